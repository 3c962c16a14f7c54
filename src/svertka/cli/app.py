"""Entry point of the command line: runs a command, reports errors in one sentence and sets the exit code.

Exit codes: 0 success, 1 failure, 2 usage error; 130, 143 or 129 if stopped by Ctrl-C, SIGTERM or SIGHUP.
"""

import os
import re
import sys
from collections.abc import Callable, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperOption

from svertka.cli.ablate import ablate
from svertka.cli.calibrate import calibrate
from svertka.cli.check import check
from svertka.cli.compare import compare
from svertka.cli.compare_units import compare_units
from svertka.cli.evaluate import evaluate
from svertka.cli.export import export
from svertka.cli.extend import extend
from svertka.cli.locate import locate
from svertka.cli.look import look
from svertka.cli.models import models
from svertka.cli.optimize import optimize
from svertka.cli.predict import predict
from svertka.cli.serve import serve
from svertka.cli.shard import shard
from svertka.cli.similar import similar
from svertka.cli.studio import studio
from svertka.cli.suggest import suggest
from svertka.cli.time_convolutions import tune
from svertka.cli.train import train
from svertka.errors import SvertkaError, UsageError
from svertka.escaping import to_printable
from svertka.malloc import keep_freed_memory
from svertka.package_version import VERSION
from svertka.signals import StopRequest, raise_on_stop
from svertka.standard_streams import OutputLostError, guard_streams
from svertka.text_width import shorten

INTERRUPTED = 130
LONGEST = 300  # characters of a word in a message; file names are shorter


class GroupedCommand(TyperCommand):
    """A command whose --help groups options under headings, in plain text."""

    def format_options(self, ctx: Any, formatter: Any) -> None:  # of click, a copy of which is inside typer
        """Write arguments, then options by heading; options without a heading come first."""
        groups: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is None:
                continue
            default = "Options" if isinstance(parameter, TyperOption) or parameter.name == "help" else "Arguments"
            groups.setdefault(getattr(parameter, "rich_help_panel", None) or default, []).append(record)
        for heading, records in groups.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"svertka {VERSION}")
        raise typer.Exit


app = typer.Typer(
    name="svertka",
    help="Train, evaluate and use convolutional networks on your own machine.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
SUMMARIES: dict[
    Callable[..., None], str
] = {  # which svertka --help shows; at 80 columns, a docstring's first line would be cut
    check: "Report what a dataset contains and what is wrong with it.",
    train: "Train a network and write a run folder.",
    evaluate: "Measure top-1 and top-5 error, with confidence intervals.",
    compare: "Compare the errors, sizes and speeds of runs.",
    calibrate: "Set the score above which an image is unknown.",
    optimize: "Make the network of a run faster on this CPU.",
    predict: "Classify images, folders of images and arrays.",
    look: "Build an atlas: pages that show what each unit responds to.",
    ablate: "Measure what each unit does for the accuracy on each class.",
    compare_units: "Find the units that two networks share, and those that are new.",
    locate: "Locate classes in images, with a score and a box for each.",
    suggest: "Suggest which unlabeled images to label next.",
    similar: "List the images that resemble an image most.",
    extend: "Add classes to a run in seconds, as a new run.",
    export: "Export an ONNX file, an offline page or a hub folder.",
    serve: "Serve predictions on a web page and over HTTP.",
    studio: "Collect images, train, try and export on web pages.",
    shard: "Write images to shards, for data sets that exceed a disk.",
    models: "List the networks, or the layers of one network.",
    tune: "Time the convolution algorithms on this machine.",
}
for verb, summary in SUMMARIES.items():
    app.command(verb.__name__.replace("_", "-"), cls=GroupedCommand, short_help=summary)(verb)


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None, asked: StopRequest | None = None) -> int:
    """Run one command line (None: this process's) and return its exit code; `asked`: a stop requested earlier."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be UTF-8
    keep_freed_memory()
    arguments = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    with guard_streams(), raise_on_stop() as request:
        request.number = asked.number if asked else None
        try:
            code = _answer(arguments, request)
            sys.stdout.flush()
        except OutputLostError as error:
            code = (
                _fail(f"the result could not be printed, because stdout was closed or is full ({error})", 1)
                if error.wanted
                else 0
            )
    return code


def _answer(arguments: list[str], request: StopRequest) -> int:
    try:
        Path.cwd()
    except OSError:  # without a current folder, libraries below PyTorch end the process
        return _fail("the current folder has been deleted or cannot be read; change to another, as with cd", 1)
    try:
        code = INTERRUPTED if request.number else app(args=arguments, prog_name="svertka", standalone_mode=False)
    except typer.TyperException as error:
        return _fail(_one_sentence(error), UsageError.exit_code)
    except SvertkaError as error:
        return _fail(str(error), request.exit_code if request.number else error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except OutputLostError:
        raise
    except OSError as error:  # of a path that no command checks itself
        place = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        return _fail(f"{place}{(error.strerror or str(error)).lower()}; name another", 1)
    except Exception as error:
        if os.environ.get("SVERTKA_TRACEBACK"):
            raise
        if not request.number:  # otherwise the stop may have caused it
            return _fail(f"{_fault(error)}; please report it with what SVERTKA_TRACEBACK=1 shows", 1)
        code = INTERRUPTED
    if code == INTERRUPTED or request.number:  # typer reports it, before there was anything to save
        return _fail("stopped; run the same command again; cached data is kept", request.exit_code)
    return code if isinstance(code, int) else 0


def _fault(error: Exception) -> str:
    message = " ".join(str(error).split())
    if isinstance(error, MemoryError):
        return f"this machine does not have enough memory ({shorten(message, 200)})"
    return f"internal error in svertka: {type(error).__name__}: {shorten(message, 300)}"


def _one_sentence(error: typer.TyperException) -> str:
    message = error.format_message()
    context = getattr(error, "ctx", None)
    if message.startswith("Missing argument") and context:  # click names RUN of RUN... SOURCE if one of them is given
        needed = [
            one.metavar or str(one.name).upper() for one in context.command.params if isinstance(one, TyperArgument)
        ]
        message = f"{context.info_name} needs {' '.join(needed)}"
    return f"{message.rstrip('.')}; see {context.command_path if context else 'svertka'} --help"


def _fail(sentence: str, code: int) -> int:
    sentence = re.sub(rf"\S{{{LONGEST},}}", lambda word: shorten(word[0]), sentence)  # such as 5,000 digits
    print(f"svertka: {to_printable(sentence)}", file=sys.stderr)
    return code
