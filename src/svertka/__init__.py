"""Train, evaluate and use convolutional networks on your own machine.

    import svertka
    run = svertka.train("photos/")
    svertka.predict(run, "holiday.jpg")

Each name is imported when first used, so that `import svertka` is fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from svertka import package_version

if TYPE_CHECKING:
    from svertka import conv as conv
    from svertka import inspection as inspection
    from svertka import lessons as lessons
    from svertka import plot as plot
    from svertka.classifier import Classifier as Classifier
    from svertka.classifier import predict as predict
    from svertka.compiler.optimize import Optimized as Optimized
    from svertka.compiler.optimize import optimize as optimize
    from svertka.conv.accelerate import accelerate as accelerate
    from svertka.conv.accelerate import restore as restore
    from svertka.curation.dataset_check import check as check
    from svertka.curation.similar import similar as similar
    from svertka.curation.suggest import suggest as suggest
    from svertka.data.shard import shard as shard
    from svertka.errors import SvertkaError as SvertkaError
    from svertka.evaluation.algorithm_timing import tune as tune
    from svertka.evaluation.compare import compare as compare
    from svertka.evaluation.evaluate import evaluate as evaluate
    from svertka.evaluation.optimize_run import optimize_run as optimize_run
    from svertka.exporters.export import export as export
    from svertka.graph.layer_table import summary as summary
    from svertka.inspection.atlas.build import look as look
    from svertka.inspection.run_ablation import ablate as ablate
    from svertka.inspection.unit_comparison import compare_units as compare_units
    from svertka.localization.locate import locate as locate
    from svertka.models.external import list_models as list_models
    from svertka.run import Run as Run
    from svertka.serving.serve import serve as serve
    from svertka.training.calibrate_run import calibrate as calibrate
    from svertka.training.extend import extend as extend
    from svertka.training.recipe import Recipe as Recipe
    from svertka.training.repeated_splits import Repeats as Repeats
    from svertka.training.resume import resume as resume
    from svertka.training.train import train as train

__version__ = package_version.VERSION

_HOMES = {
    "Classifier": "svertka.classifier",
    "predict": "svertka.classifier",
    "accelerate": "svertka.conv.accelerate",
    "restore": "svertka.conv.accelerate",
    "check": "svertka.curation.dataset_check",
    "SvertkaError": "svertka.errors",
    "compare": "svertka.evaluation.compare",
    "evaluate": "svertka.evaluation.evaluate",
    "export": "svertka.exporters.export",
    "extend": "svertka.training.extend",
    "ablate": "svertka.inspection.run_ablation",
    "compare_units": "svertka.inspection.unit_comparison",
    "look": "svertka.inspection.atlas.build",
    "Optimized": "svertka.compiler.optimize",
    "optimize": "svertka.compiler.optimize",
    "optimize_run": "svertka.evaluation.optimize_run",
    "calibrate": "svertka.training.calibrate_run",
    "locate": "svertka.localization.locate",
    "list_models": "svertka.models.external",
    "Recipe": "svertka.training.recipe",
    "Repeats": "svertka.training.repeated_splits",
    "Run": "svertka.run",
    "resume": "svertka.training.resume",
    "serve": "svertka.serving.serve",
    "shard": "svertka.data.shard",
    "similar": "svertka.curation.similar",
    "suggest": "svertka.curation.suggest",
    "summary": "svertka.graph.layer_table",
    "train": "svertka.training.train",
    "tune": "svertka.evaluation.algorithm_timing",
}
_PACKAGES = ("conv", "inspection", "lessons", "plot")
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f"svertka.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'svertka' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
