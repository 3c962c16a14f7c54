"""The one door: verbs in, results out, errors to one sentence and an exit code.

0 well done · 1 it failed · 2 it was asked for wrongly · 130 it was stopped
"""

import sys
from collections.abc import Sequence
from io import TextIOWrapper

import typer

from svertka.cli.check import check
from svertka.cli.compare import compare
from svertka.cli.evaluate import evaluate
from svertka.cli.export import export
from svertka.cli.locate import locate
from svertka.cli.look import look
from svertka.cli.models import models
from svertka.cli.predict import predict
from svertka.cli.serve import serve
from svertka.cli.train import train
from svertka.cli.tune import tune
from svertka.errors import SvertkaError, UsageError
from svertka.quoting import printable

INTERRUPTED = 130

app = typer.Typer(
    name="svertka",
    help="Train, judge and use convolutional networks on the machine you have.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
for verb in (check, train, evaluate, compare, predict, look, locate, export, serve, models, tune):
    app.command()(verb)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (None: this process's) and return its exit code."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be UTF-8
    arguments = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        code = app(args=arguments, prog_name="svertka", standalone_mode=False)
    except typer.TyperException as error:
        return _fail(_one_sentence(error), UsageError.exit_code)
    except SvertkaError as error:
        return _fail(str(error), error.exit_code)
    if code == INTERRUPTED:  # Ctrl-C before there was a run to save, as typer reports it
        return _fail("stopped; pictures that were decoded stay decoded", INTERRUPTED)
    return code if isinstance(code, int) else 0


def _one_sentence(error: typer.TyperException) -> str:
    message = error.format_message()
    context = getattr(error, "ctx", None)
    return f"{message.rstrip('.')}; see {context.command_path if context else 'svertka'} --help"


def _fail(sentence: str, code: int) -> int:
    print(f"svertka: {printable(sentence)}", file=sys.stderr)
    return code
