"""svertka: convolutional networks on the machine you have.

    import svertka
    run = svertka.train("photos/")
    svertka.predict(run, "holiday.jpg")

Each name is imported when it is first used, so that `import svertka` is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from svertka import conv as conv
    from svertka.classifier import Classifier as Classifier
    from svertka.classifier import predict as predict
    from svertka.conv.accelerate import accelerate as accelerate
    from svertka.conv.accelerate import restore as restore
    from svertka.data.check import check as check
    from svertka.deployment.export import export as export
    from svertka.deployment.serve import serve as serve
    from svertka.errors import SvertkaError as SvertkaError
    from svertka.evaluation.comparison import compare as compare
    from svertka.evaluation.judgement import evaluate as evaluate
    from svertka.graph.optimize import Optimized as Optimized
    from svertka.graph.optimize import optimize as optimize
    from svertka.inspection.atlas import look as look
    from svertka.localization.search import locate as locate
    from svertka.run import Run as Run
    from svertka.training.job import resume as resume
    from svertka.training.job import train as train

_HOMES = {
    "Classifier": "svertka.classifier",
    "predict": "svertka.classifier",
    "accelerate": "svertka.conv.accelerate",
    "restore": "svertka.conv.accelerate",
    "check": "svertka.data.check",
    "SvertkaError": "svertka.errors",
    "compare": "svertka.evaluation.comparison",
    "evaluate": "svertka.evaluation.judgement",
    "export": "svertka.deployment.export",
    "look": "svertka.inspection.atlas",
    "Optimized": "svertka.graph.optimize",
    "optimize": "svertka.graph.optimize",
    "locate": "svertka.localization.search",
    "Run": "svertka.run",
    "resume": "svertka.training.job",
    "serve": "svertka.deployment.serve",
    "train": "svertka.training.job",
}
_PACKAGES = ("conv",)
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f"svertka.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'svertka' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
