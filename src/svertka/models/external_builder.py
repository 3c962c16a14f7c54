"""The function that builds a network of somebody else: its name in config.json, consent, import and fingerprint."""

import hashlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import partial
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from svertka.errors import SvertkaError, UsageError
from svertka.graph.trace_errors import error_type_and_first_line
from svertka.text_width import shorten

MAX_LENGTH = 4096  # characters of a target, as of a path on Linux
GRAPH = "graph.pt2"  # the exported graph of a network without an importable builder
PACKAGES = ("timm", "torchvision")  # imported without consent: their names cannot name other code
FILE = re.compile(r"(?P<file>.+\.py):(?P<function>[^\W\d][\w.]*)")
FUNCTION = re.compile(r"(?P<module>[^\W\d]\w*(\.[^\W\d]\w*)*):(?P<function>[^\W\d][\w.]*)")

Argument = bool | int | float | str | None


class BuilderRecord(BaseModel):
    """The field `builder` of config.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: str = Field(
        max_length=MAX_LENGTH,
        description="timm:NAME, torchvision:NAME, package.module:function, /path/file.py:function or graph.pt2",
    )
    arguments: dict[str, Argument] = Field(
        default_factory=dict, description="keyword arguments, apart from the number of classes"
    )
    head_layer: str | None = Field(default=None, description="path of the layer that computes the class scores")
    fingerprint: str | None = Field(
        default=None, description="SHA-256 of the source files of the function and of the layers that are not PyTorch's"
    )

    def __hash__(self) -> int:
        return hash((self.target, self.head_layer, self.fingerprint))

    @property
    def is_graph(self) -> bool:
        """Whether the network is an exported graph in the run folder."""
        return self.target == GRAPH

    @property
    def needs_consent(self) -> bool:
        """Whether reading the network runs code of unknown origin."""
        return self.package is None

    @property
    def package(self) -> str | None:
        """The package of PACKAGES that builds the network; None for another builder."""
        package = self.target.partition(":")[0]
        return package if package in PACKAGES else None


def require_consent(builder: BuilderRecord, origin: str, *, trust_builder: bool) -> None:
    """Raise UsageError if reading the network would run code of unknown origin without `trust_builder`.

    Args:
        builder: What config.json says.
        origin: The run folder, for the message.
        trust_builder: Whether the caller trusts it.
    """
    if trust_builder or not builder.needs_consent:
        return
    target = shorten(builder.target, 200)
    what = (
        f"from its exported graph {GRAPH}, which can run code when it is read"
        if builder.is_graph
        else f"with {target}, whose code is run when it is imported"
    )
    raise UsageError(f"{origin} builds its network {what}; if you trust it, give --trust-builder (trust_builder=True)")


def import_function(target: str) -> Callable[..., Any]:
    """Import the function of "package.module:function" or "path/file.py:function"; its module's code is run.

    Raises:
        UsageError: There is no such file, module or function, or the import fails.
    """
    in_file, in_module = FILE.fullmatch(target), FUNCTION.fullmatch(target)
    if in_file:
        name, module = in_file["function"], _import_file(target, Path(in_file["file"]))
    elif in_module:
        name = in_module["function"]
        with _search_path(Path.cwd()), isolate_builder(), _explained(target):
            module = importlib.import_module(in_module["module"])
    else:
        raise UsageError(
            f"{shorten(target, 200)} is not the name of a builder; write package.module:function or file.py:function"
        )
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    if isinstance(found, nn.Module) or not callable(found):
        functions = [one for one, value in vars(module).items() if inspect.isfunction(value) and one[0] != "_"]
        listed = f"; it has {', '.join(functions[:5])}" if functions else ""
        raise UsageError(
            f"{shorten(target, 200)} cannot be imported: there is no function {name} in it{listed}; name one that "
            "takes the number of classes and returns a network"
        )
    function: Callable[..., Any] = found
    return function


class _SourceLoader(SourceFileLoader):
    """Compiles the file itself: a compiled copy passes for current if size and second of writing are equal."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def _import_file(target: str, file: Path) -> ModuleType:
    file = file.expanduser().resolve()
    if not file.is_file():
        raise UsageError(f"{shorten(target, 200)} cannot be imported: there is no file {file}; put it there")
    name = f"svertka_builder_{hashlib.sha256(str(file).encode(errors='surrogateescape')).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, file, loader=_SourceLoader(name, str(file)))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # as pickle and dataclasses expect of a module
    try:
        with _search_path(file.parent), isolate_builder(), _explained(target):
            spec.loader.exec_module(module)
    except SvertkaError:
        del sys.modules[name]
        raise
    return module


@contextmanager
def _search_path(folder: Path) -> Iterator[None]:
    """Find modules in `folder`, too, as `python file.py` does."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        if str(folder) in sys.path:
            sys.path.remove(str(folder))


@contextmanager
def _explained(target: str) -> Iterator[None]:
    """Raise a UsageError in place of any error of the code that is imported."""
    try:
        yield
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"{shorten(target, 200)} cannot be imported ({error_type_and_first_line(error)}); fix it, or install what "
            "it needs"
        ) from error


@contextmanager
def isolate_builder() -> Iterator[None]:
    """Restore what code of others changes in this process, and send what it prints to stderr.

    Restored are the current folder, PyTorch's default dtype, its number of threads and whether it records gradients.
    """
    folder, dtype, threads, grad = (
        Path.cwd(),
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
    )
    try:
        with redirect_stdout(sys.stderr):  # stdout is for results, such as JSON
            yield
    finally:
        os.chdir(folder)
        torch.set_default_dtype(dtype)
        torch.set_num_threads(threads)
        torch.set_grad_enabled(grad)


def import_target_and_arguments(function: Callable[..., Any]) -> tuple[str, dict[str, Argument]] | None:
    """Return the name under which `function` can be imported, and its keyword arguments if it is a functools.partial.

    None if it has no such name, as a lambda or a function inside another, or arguments that JSON cannot hold.
    """
    arguments: dict[str, Argument] = {}
    if isinstance(function, partial):
        arguments, positional, function = dict(function.keywords), function.args, function.func
        if positional or not all(isinstance(one, Argument) for one in arguments.values()):
            return None
    name, module = getattr(function, "__qualname__", ""), sys.modules.get(getattr(function, "__module__", None) or "")
    if module is None or not re.fullmatch(r"[^\W\d][\w.]*", name):
        return None
    target = f"{module.__name__}:{name}"
    if module.__name__ == "__main__" or module.__name__.startswith("svertka_builder_"):
        file = getattr(module, "__file__", None)
        if not file or not Path(file).is_file() or not str(file).endswith(".py"):
            return None
        target = f"{Path(file).resolve()}:{name}"
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    return (target, arguments) if found is function else None


def absolute_target(target: str) -> str:
    """Return `target` with an absolute path if it is of a file, so that it is found from any folder.

    Raises:
        UsageError: It is too long.
    """
    found = FILE.fullmatch(target) if len(target) <= MAX_LENGTH else None
    absolute = target if found is None else f"{Path(found['file']).expanduser().resolve()}:{found['function']}"
    if len(absolute) > MAX_LENGTH:
        raise UsageError(
            f"{shorten(target, 200)} is too long for the name of a builder; move its file to another folder"
        )
    return absolute


def fingerprint_source_code(function: Callable[..., Any], network: nn.Module) -> str | None:
    """Return the SHA-256 of the source files of `function` and of the layers of `network` that are not PyTorch's.

    None if there are none, as for code that was typed into a notebook.
    """
    while isinstance(function, partial):
        function = function.func
    files = {_source_file(function)} | {
        _source_file(type(module)) for module in network.modules() if not type(module).__module__.startswith("torch.")
    }
    contents = sorted(Path(file).read_bytes() for file in files if file is not None and Path(file).is_file())
    digest = hashlib.sha256()
    for content in contents:
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest() if contents else None


def _source_file(thing: Any) -> str | None:
    try:
        return inspect.getsourcefile(thing)
    except (TypeError, OSError):
        return None
