"""Metrics of a network that predicts a number: mean absolute error, root mean squared error, R²."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from svertka.confidence_intervals import Interval, finite_interval_or_none, finite_or_none
from svertka.evaluation.bootstrap import as_interval, bootstrap_intervals
from svertka.evaluation.evaluation_scope import EvaluationScope, format_image_count
from svertka.evaluation.metrics import MISTAKES_KEPT
from svertka.pages.notebook_block import NotebookBlock

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False)
class RegressionEvaluation:
    """Metrics of a network that predicts a number, on N images.

    Attributes:
        name: Name of the number: its column in the table.
        indices: Indices of the images, (N,) int64, ascending.
        predicted: The predicted numbers, (N,) float64.
        targets: The true numbers, (N,) float64.
        loss: Mean Huber loss of the standardized numbers.
        scope: Which images these are; None if the caller chose them.
    """

    name: str
    indices: npt.NDArray[np.int64]
    predicted: Floats
    targets: Floats
    loss: float
    scope: EvaluationScope | None = None

    metric_name: ClassVar[str] = "mean absolute error"
    metric_key: ClassVar[str] = "mean_absolute_error"
    metric_unit: ClassVar[str] = ""
    higher_is_better: ClassVar[bool] = False
    num_metrics: ClassVar[int] = 3  # that `weighted_metrics` returns

    @property
    def images(self) -> int:
        """N, the number of images."""
        return len(self.indices)

    def weighted_metrics(self, weights: Floats) -> Floats:
        """Return mean absolute error, root mean squared error and R², (S, 3), for weights of the images (S, N)."""
        errors, total = self.predicted - self.targets, weights.sum(1)
        squared = weights @ errors**2
        targets = self.targets - self.targets.mean()  # so that numbers far from 0, such as times, lose no digits
        center = weights @ targets / total
        spread = weights @ targets**2 - total * center**2
        known = spread > 1e-9 * np.maximum(weights @ targets**2, 1e-300)  # else all numbers are the same
        share = np.where(known, 1 - squared / np.where(known, spread, 1.0), np.nan)
        return np.stack([weights @ np.abs(errors) / total, np.sqrt(squared / total), share], 1)

    @cached_property
    def _values(self) -> tuple[float, float, float]:
        if not self.images:
            return math.nan, math.nan, math.nan
        mae, rmse, r2 = self.weighted_metrics(np.ones((1, self.images)))[0].tolist()
        return mae, rmse, r2

    @cached_property
    def _intervals(self) -> tuple[Floats, Floats]:
        return bootstrap_intervals(self.weighted_metrics, self.images, self.num_metrics)

    @property
    def metric(self) -> float:
        """The metric by which runs are compared: the mean absolute error."""
        return self.error

    @property
    def metric_interval(self) -> Interval:
        """Its 95 % confidence interval."""
        return self.error_interval

    def format_metric(self, value: float) -> str:
        """Return a mean absolute error as text."""
        return f"{value:.4g}"

    def format_metric_difference(self, value: float) -> str:
        """Return a difference of mean absolute errors as text."""
        return f"{value:+.3g}"

    def metric_cells(self) -> tuple[tuple[str, str], ...]:
        """Return the names and values of what a table of runs shows."""
        return (("mean absolute error", f"{self.error:.4g}"), ("R²", f"{self.r2:.4g}"), ("loss", f"{self.loss:.4f}"))

    @property
    def error(self) -> float:
        """Mean absolute error, in the unit of the number; NaN without images."""
        return self._values[0]

    @property
    def error_interval(self) -> Interval:
        """95 % confidence interval of the mean absolute error."""
        return as_interval(self._intervals[0][0], self._intervals[1][0])

    @property
    def rmse(self) -> float:
        """Root mean squared error, in the unit of the number."""
        return self._values[1]

    @property
    def rmse_interval(self) -> Interval:
        """95 % confidence interval of the root mean squared error."""
        return as_interval(self._intervals[0][1], self._intervals[1][1])

    @property
    def r2(self) -> float:
        """R², the share of the variance of the true numbers that is predicted; NaN if all are the same."""
        return self._values[2]

    @property
    def r2_interval(self) -> Interval:
        """95 % confidence interval of R²."""
        return as_interval(self._intervals[0][2], self._intervals[1][2])

    @property
    def worst(self) -> list[int]:
        """Places, in `indices`, of the 24 images with the largest errors, largest first."""
        order = np.argsort(-np.abs(self.predicted - self.targets), kind="stable")
        return [int(place) for place in order[:MISTAKES_KEPT]]

    @property
    def at_chance(self) -> bool | None:
        """Whether it is not significantly better than the mean of the numbers; None if it is unknown."""
        low = self.r2_interval[0]
        return None if math.isnan(low) else low <= 0

    @property
    def never_predicted(self) -> tuple[str, ...]:
        """Empty: a number has no classes."""
        return ()

    @property
    def sentence(self) -> str:
        """The metrics in words, with their confidence intervals."""
        said = [
            f"mean absolute error of {self.name} {_with_interval(self.error, self.error_interval)}",
            f"root mean squared error {_with_interval(self.rmse, self.rmse_interval)}",
            f"R² {_with_interval(self.r2, self.r2_interval)}",
            f"loss {self.loss:.4f}",
        ]
        return f"{format_image_count(self.images)}: {', '.join(said)}"

    @property
    def warnings(self) -> tuple[str, ...]:
        """Problems of the network as a whole, a sentence each."""
        if not self.at_chance:
            return ()
        return (
            f"It is not significantly better than the mean of {self.name}, predicted for every image: R² is "
            f"{self.r2:.3g}, 95 % interval {self.r2_interval[0]:.3g} to {self.r2_interval[1]:.3g}.",
        )

    def __repr__(self) -> str:
        return f"RegressionEvaluation({self.sentence})"

    def _repr_html_(self) -> str:
        scope = () if self.scope is None else (self.scope.sentence,)
        header, *rows = self.table()
        return NotebookBlock(self.sentence, (*scope, *self.warnings), header=header, rows=rows).render()

    def table(self) -> list[tuple[str, ...]]:
        """Return the metrics as rows of text, after a header."""
        values = (
            ("mean absolute error", self.error, self.error_interval),
            ("root mean squared error", self.rmse, self.rmse_interval),
            ("R²", self.r2, self.r2_interval),
        )
        rows = [(name, f"{value:.4g}", f"{low:.4g} to {high:.4g}") for name, value, (low, high) in values]
        return [("metric", "value", "95 % interval"), *rows]

    def numbers(self) -> dict[str, float | None]:
        """Return the metrics and both ends of their intervals by name; None for what is not known."""
        metrics = {
            "mean_absolute_error": (self.error, *self.error_interval),
            "rmse": (self.rmse, *self.rmse_interval),
            "r2": (self.r2, *self.r2_interval),
        }
        return {
            name + end: finite_or_none(value)
            for name, values in metrics.items()
            for end, value in zip(("", "_low", "_high"), values, strict=True)
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON values that `svertka evaluate --json` prints; null for what is not known."""
        return {
            **(self.scope.to_dict() if self.scope else {}),
            "images": self.images,
            "name": self.name,
            "mean_absolute_error": finite_or_none(self.error),
            "mean_absolute_error_interval": finite_interval_or_none(self.error_interval),
            "rmse": finite_or_none(self.rmse),
            "rmse_interval": finite_interval_or_none(self.rmse_interval),
            "r2": finite_or_none(self.r2),
            "r2_interval": finite_interval_or_none(self.r2_interval),
            "loss": finite_or_none(self.loss),
            "at_chance": self.at_chance,
        }


def _with_interval(value: float, interval: Interval) -> str:
    return f"{value:.4g} ({interval[0]:.4g} to {interval[1]:.4g})"
