"""Docstrings of the public API, in Google style: a summary, arguments with shapes and dtypes, results and errors."""

import ast
import dis
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from types import FunctionType, ModuleType
from typing import Any

import pytest
from pydantic import BaseModel
from torch import Tensor

import svertka
import svertka.conv
import svertka.inspection
import svertka.plot
from svertka.classifier import Predictions
from svertka.compiler.accuracy_bound import MixedPrecisionReport
from svertka.curation.dataset_findings import Findings
from svertka.curation.label_check import AmbiguousPair, GlobalOutlier, LabelError, LabelFindings, Neighbor
from svertka.curation.similar import SimilarImage, SimilarImages
from svertka.curation.suggest import Suggestion, Suggestions
from svertka.data.shard import ShardedDataset
from svertka.errors import SvertkaError
from svertka.evaluation.comparison import ComparedRun, Comparison, Difference
from svertka.evaluation.label_thresholds import LabelThresholds
from svertka.evaluation.metrics import Evaluation
from svertka.evaluation.optimize_run import OptimizedRun
from svertka.exporters.export import Export
from svertka.graph.layer_table import LayerTable
from svertka.inspection.atlas.build import Atlas
from svertka.inspection.run_ablation import AblatedRun, UnitEffect
from svertka.inspection.unit_comparison import UnitComparison
from svertka.inspection.unit_matching import MatchedLayer
from svertka.localization.locate import LocatedClass, LocatedImage, LocatedImages
from svertka.training.calibrate_run import CalibratedRun
from svertka.training.extend import Extension
from svertka.training.extension_accuracy import AccuracyEstimate, MeanPrecisionEstimate

RESULTS = (
    AblatedRun, UnitEffect, UnitComparison, MatchedLayer,
    MixedPrecisionReport, AmbiguousPair, Atlas, CalibratedRun, ComparedRun, Comparison, Difference, Evaluation, Export,
    Extension, GlobalOutlier, Findings, AccuracyEstimate, LabelError, LabelFindings, LabelThresholds,
    LayerTable, LocatedImages, LocatedClass, LocatedImage, MeanPrecisionEstimate, Neighbor, OptimizedRun, Predictions,
    ShardedDataset, SimilarImage, SimilarImages, Suggestion, Suggestions,
)  # fmt: skip
SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises", "Source", "Example", "Examples", "Note")


def public_objects() -> dict[str, Any]:
    """Return every public function, class and method by its qualified name."""
    found: dict[str, Any] = {f"svertka.{name}": getattr(svertka, name) for name in svertka.__all__}
    for module in (svertka.conv, svertka.inspection, svertka.plot):
        found |= {f"{module.__name__}.{name}": one for name, one in exported(module)}
    found |= {f"{one.__module__}.{one.__name__}": one for one in RESULTS}
    for name, one in list(found.items()):
        if inspect.isclass(one):
            found |= {f"{name}.{method}": member for method, member in public_methods(one)}
    return found


def exported(module: ModuleType) -> Iterator[tuple[str, Any]]:
    for name in getattr(module, "__all__", None) or dir(module):
        one = getattr(module, name)
        if not name.startswith("_") and callable(one):
            yield name, one


def public_methods(cls: type) -> Iterator[tuple[str, Any]]:
    """Yield the methods and properties that `cls` itself defines, without dunders."""
    for name, member in vars(cls).items():
        if not name.startswith("_") and isinstance(member, FunctionType | classmethod | staticmethod | property):
            yield name, member


def as_function(one: Any) -> Callable[..., Any]:
    if isinstance(one, property):
        assert one.fget is not None
        return one.fget
    return inspect.unwrap(one.__func__ if isinstance(one, classmethod | staticmethod) else one)


def sections(docstring: str) -> dict[str, str]:
    """Split a docstring into its summary (under "") and its sections by name."""
    parts = re.split(rf"^({'|'.join(SECTIONS)}):", docstring, flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def entries(section: str) -> dict[str, str]:
    """Return the entries of an Args or Raises section by name."""
    text = textwrap.dedent(section.strip("\n"))
    found = re.split(r"^\*{0,2}(\w+)(?: \([^)]*\))?:", text, flags=re.MULTILINE)
    return dict(zip(found[1::2], found[2::2], strict=True))


def gaps(one: Any) -> list[str]:
    """Return what the docstring of a public object lacks, a phrase each."""
    docstring = inspect.getdoc(one) or ""
    summary, *_ = docstring.split("\n\n")
    parts, missing = sections(docstring), []
    if not re.match(r"[A-Z0-9].*\.$", summary.partition("\n")[0] if "\n" not in summary else ""):
        missing.append("summary: one line that begins with a capital letter and ends with a period")
    if isinstance(one, property) or (inspect.isclass(one) and issubclass(one, SvertkaError)):
        return missing
    function = as_function(one.__init__ if inspect.isclass(one) else one)
    arguments = entries(parts.get("Args", "")) | (entries(parts.get("Attributes", "")) if inspect.isclass(one) else {})
    for parameter in parameters(one):
        if parameter.name not in arguments:
            missing.append(f"Args: {parameter.name}")
        elif is_array(parameter.annotation) and not has_shape(arguments[parameter.name]):
            missing.append(f"shape: {parameter.name}")
        elif is_array(parameter.annotation) and not has_dtype(arguments[parameter.name]):
            missing.append(f"dtype: {parameter.name}")
    if not inspect.isclass(one):
        returned = inspect.signature(function).return_annotation
        if returned not in (None, "None", inspect.Signature.empty) and not {"Returns", "Yields"} & parts.keys():
            missing.append("Returns")
        if is_array(returned) and not has_shape(docstring):
            missing.append("shape of what it returns")
    if raises_svertka_error(function) and not entries(parts.get("Raises", "")):
        missing.append("Raises")
    return missing


def parameters(one: Any) -> list[inspect.Parameter]:
    """Return the parameters that the docstring has to list; fields of a pydantic model may have a description."""
    if inspect.isclass(one) and issubclass(one, BaseModel):
        described = {name for name, field in one.model_fields.items() if field.description}
        return [one for one in inspect.signature(one).parameters.values() if one.name not in described]
    function = as_function(one.__init__ if inspect.isclass(one) else one)
    found = list(inspect.signature(function).parameters.values())
    is_bound = inspect.isclass(one) or isinstance(one, classmethod) or (found[:1] and found[0].name == "self")
    return found[1:] if is_bound else found


def is_array(annotation: Any) -> bool:
    """Return whether `annotation` is an array; not so of images, which may be paths, too."""
    return re.search(r"\b(Tensor|ndarray|NDArray)\b", str(annotation)) is not None and "str" not in str(annotation)


def has_shape(text: str) -> bool:
    """Return whether `text` names a shape, such as "(N, C, H, W)" or "(K,)"."""
    return re.search(r"\([A-Z0-9][^()]*,[^()]*\)|\bscalar\b|\bany shape\b", text) is not None


def has_dtype(text: str) -> bool:
    """Return whether `text` says of which type the values are, such as "float32", "integers" or "in the dtype of"."""
    return re.search(r"\b(float|u?int|bool|dtype|integers|indices|pairs)", text, re.IGNORECASE) is not None


def raises_svertka_error(function: Callable[..., Any], depth: int = 4) -> bool:
    """Return whether `function`, or a function of svertka that it calls by name, raises a SvertkaError.

    Functions are followed `depth` calls deep; calls of methods are not.
    """
    seen: set[Callable[..., Any]] = set()
    level = [inspect.unwrap(function)]
    for _ in range(depth):
        following: list[Callable[..., Any]] = []
        for one in level:
            if one in seen or not isinstance(one, FunctionType):
                continue
            seen.add(one)
            if raises_directly(one):
                return True
            following += called(one)
        level = following
    return False


def raises_directly(function: FunctionType) -> bool:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return False
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
            kind = function.__globals__.get(node.exc.func.id)
            if inspect.isclass(kind) and issubclass(kind, SvertkaError):
                return True
    return False


def called(function: FunctionType) -> list[Callable[..., Any]]:
    names = {str(step.argval) for step in dis.get_instructions(function) if step.opname == "LOAD_GLOBAL"}
    found = [inspect.unwrap(one) for name in names if callable(one := function.__globals__.get(name))]
    return [one for one in found if str(getattr(one, "__module__", "")).startswith("svertka")]


PUBLIC = public_objects()


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_the_docstring_is_complete(name: str) -> None:
    assert gaps(PUBLIC[name]) == []


def complete(images: Tensor, top: int) -> None:
    """Do nothing.

    Args:
        images: Any images, (N, C, H, W) float32.
        top: How many.

    Raises:
        SvertkaError: Always.
    """
    refuse()


def incomplete(images: Tensor, boxes: Tensor, top: int) -> int:
    """`images` and so on

    Args:
        images: Some tensor.
        boxes: One of each image, (N, 4).
    """
    refuse()
    return 0


def refuse() -> None:
    raise SvertkaError("no")


def test_what_is_missing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refuse, "__module__", "svertka.tests")
    assert gaps(complete) == []
    assert gaps(incomplete) == [
        "summary: one line that begins with a capital letter and ends with a period",
        "shape: images",
        "dtype: boxes",
        "Args: top",
        "Returns",
        "Raises",
    ]
    assert raises_svertka_error(svertka.train)
    assert raises_svertka_error(svertka.check)
