"""Metrics of a network that predicts several labels of an image: average precision, F1, thresholds."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from svertka.confidence_intervals import (
    Interval,
    finite_interval_or_none,
    finite_or_none,
    format_percentage_points,
    percent_with_interval,
)
from svertka.escaping import join_first
from svertka.evaluation.bootstrap import as_interval, bootstrap_intervals
from svertka.evaluation.calibration import Calibration, CalibrationAccumulator
from svertka.evaluation.evaluation_scope import EvaluationScope, format_image_count
from svertka.evaluation.metrics import MISTAKES_KEPT
from svertka.pages.notebook_block import NotebookBlock
from svertka.pages.number_format import format_percent
from svertka.tasks import MultiLabel

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

MIN_IMAGES = 10  # with a label, and without it, from which a threshold is chosen; on fewer it would follow chance
LABELS_IN_WARNING = 10


@dataclass(frozen=True)
class LabelMetrics:
    """Metrics of one label; None where it has no images, or is never predicted.

    Attributes:
        name: The label.
        images: Images with the label.
        average_precision: Area under the curve of precision against recall, 0 to 1.
        average_precision_interval: Its 95 % confidence interval.
        threshold: Probability from which it is predicted.
        precision: Share of the images predicted to have it that have it.
        recall: Share of the images with it that are predicted to have it.
        f1: Harmonic mean of precision and recall.
        f1_interval: Its 95 % confidence interval.
    """

    name: str
    images: int
    average_precision: float | None
    average_precision_interval: Interval | None
    threshold: float
    precision: float | None
    recall: float | None
    f1: float | None
    f1_interval: Interval | None


@dataclass(frozen=True)
class LabelMistake:
    """A label that an image was wrongly predicted to have, or to lack.

    Attributes:
        index: Index of the image in its data set.
        label: Number of the label.
        is_missed: Whether the image has it.
        probability: Its probability, 0 to 1.
    """

    index: int
    label: int
    is_missed: bool
    probability: float


@dataclass(frozen=True, eq=False, repr=False)
class MultiLabelEvaluation:
    """Metrics of a network that predicts K labels, on N images.

    Attributes:
        names: The K labels.
        indices: Indices of the images, (N,) int64, ascending.
        probabilities: Probability of each label, (N, K) float64.
        targets: Whether each image has each label, (N, K) bool.
        loss: Mean over the images of the binary cross-entropy, summed over the labels, nats.
        task: The thresholds.
        scope: Which images these are; None if the caller chose them.
        chose_thresholds: Whether the thresholds were chosen on these images, so that F1, precision and recall are too
            high.
    """

    names: tuple[str, ...]
    indices: npt.NDArray[np.int64]
    probabilities: Floats
    targets: Bools
    loss: float
    task: MultiLabel
    scope: EvaluationScope | None = None
    chose_thresholds: bool = False

    metric_name: ClassVar[str] = "mAP"
    metric_key: ClassVar[str] = "mean_average_precision"
    metric_unit: ClassVar[str] = " points"
    higher_is_better: ClassVar[bool] = True

    @property
    def images(self) -> int:
        """N, the number of images."""
        return len(self.indices)

    @cached_property
    def predicted(self) -> Bools:
        """Whether each image is predicted to have each label, (N, K)."""
        found: Bools = self.probabilities >= np.array([self.task.threshold(k) for k in range(len(self.names))])
        return found

    @property
    def wrong(self) -> Bools:
        """Whether any label of each image is wrong, (N,)."""
        found: Bools = (self.predicted != self.targets).any(1)
        return found

    @property
    def error(self) -> float:
        """Share of the labels of all images that are wrong, 0 to 1 (Hamming loss); NaN without images."""
        return float((self.predicted != self.targets).mean()) if self.images else math.nan

    def weighted_metrics(self, weights: Floats) -> Floats:
        """Return the metrics for weights of the images (S, N), (S, 2 + 2·K).

        They are the means of average precision and F1 over the labels, then each label's average precision and F1.
        """
        precisions, scores = average_precisions(self.probabilities, self.targets, weights), self._f1(weights)
        means = np.stack([_mean_of_known(precisions), _mean_of_known(scores)], 1)
        return np.concatenate([means, precisions, scores], 1)

    @property
    def num_metrics(self) -> int:
        """Number of metrics that `weighted_metrics` returns."""
        return 2 + 2 * len(self.names)

    @cached_property
    def _values(self) -> list[float]:
        """Return the metrics of these images, in the order of `weighted_metrics`."""
        count = self.num_metrics
        found: list[float] = (
            self.weighted_metrics(np.ones((1, self.images)))[0].tolist() if self.images else [math.nan] * count
        )
        return found

    def _f1(self, weights: Floats) -> Floats:
        """Return F1 of each label, (S, K), for weights of the images (S, N); NaN for a label that no image has."""
        right = weights @ (self.predicted & self.targets)
        has, said = weights @ self.targets, weights @ self.predicted
        return np.where(has > 0, 2 * right / np.maximum(has + said, 1e-300), np.nan)

    @cached_property
    def _intervals(self) -> tuple[Floats, Floats]:
        """Return both ends of the intervals of the metrics, in the order of `weighted_metrics`."""
        return bootstrap_intervals(self.weighted_metrics, self.images, len(self._values))

    @property
    def metric(self) -> float:
        """The metric by which runs are compared: the mean average precision."""
        return self.mean_average_precision

    @property
    def metric_interval(self) -> Interval:
        """Its 95 % confidence interval."""
        return self.mean_average_precision_interval

    def format_metric(self, value: float) -> str:
        """Return a mean average precision as text."""
        return format_percent(value)

    def format_metric_difference(self, value: float) -> str:
        """Return a difference of mean average precisions as text, in points."""
        return format_percentage_points(value)

    def metric_cells(self) -> tuple[tuple[str, str], ...]:
        """Return the names and values of what a table of runs shows."""
        return (("mAP", f"{self.metric:.2%}"), ("F1", f"{self.f1:.2%}"), ("loss", f"{self.loss:.4f}"))

    @property
    def mean_average_precision(self) -> float:
        """Mean over the labels that some image has of the average precision, 0 to 1 (mAP)."""
        return self._values[0]

    @property
    def mean_average_precision_interval(self) -> Interval:
        """95 % confidence interval of the mean average precision."""
        return as_interval(self._intervals[0][0], self._intervals[1][0])

    @property
    def f1(self) -> float:
        """Mean over the labels that some image has of F1, 0 to 1 (macro F1)."""
        return self._values[1]

    @property
    def f1_interval(self) -> Interval:
        """95 % confidence interval of the mean F1."""
        return as_interval(self._intervals[0][1], self._intervals[1][1])

    @property
    def chance(self) -> float:
        """Mean average precision of scores that say nothing: the mean share of images with a label."""
        shares = self.targets.mean(0) if self.images else np.zeros(0)
        return float(shares[shares > 0].mean()) if (shares > 0).any() else math.nan

    @cached_property
    def per_label(self) -> tuple[LabelMetrics, ...]:
        """Metrics of each label."""
        if not self.images:
            return ()
        count, (low, high) = len(self.names), self._intervals
        found = []
        for k, name in enumerate(self.names):
            right = int((self.predicted[:, k] & self.targets[:, k]).sum())
            has, said = int(self.targets[:, k].sum()), int(self.predicted[:, k].sum())
            found.append(
                LabelMetrics(
                    name,
                    has,
                    finite_or_none(self._values[2 + k]),
                    finite_interval_or_none(as_interval(low[2 + k], high[2 + k])),
                    self.task.threshold(k),
                    right / said if said else None,
                    right / has if has else None,
                    finite_or_none(self._values[2 + count + k]),
                    finite_interval_or_none(as_interval(low[2 + count + k], high[2 + count + k])),
                )
            )
        return tuple(found)

    @cached_property
    def calibration(self) -> Calibration:
        """Confidence against accuracy of all labels of all images, each a decision between having and lacking it."""
        accumulator = CalibrationAccumulator()
        logits = torch.from_numpy(self.probabilities).logit(1e-7).float()
        for k in range(len(self.names)):
            has = torch.from_numpy(self.targets[:, k])
            of_two = torch.stack([torch.zeros(self.images), logits[:, k]], 1)
            accumulator.update(of_two, has.long(), (logits[:, k] > 0) == has, torch.from_numpy(self.indices))
        return accumulator.result()

    @cached_property
    def mistakes(self) -> tuple[LabelMistake, ...]:
        """The 24 wrong labels whose probability is farthest from their threshold, farthest first."""
        thresholds = np.array([self.task.threshold(k) for k in range(len(self.names))])
        far = np.where(self.predicted != self.targets, np.abs(self.probabilities - thresholds), -1.0)
        order = np.argsort(-far, axis=None, kind="stable")[:MISTAKES_KEPT]
        rows, labels = np.unravel_index(order, far.shape) if self.images else (order, order)
        return tuple(
            LabelMistake(int(self.indices[n]), int(k), bool(self.targets[n, k]), float(self.probabilities[n, k]))
            for n, k in zip(rows, labels, strict=True)
            if far[n, k] >= 0
        )

    @property
    def never_predicted(self) -> tuple[str, ...]:
        """Labels that some image has and that are never predicted."""
        return tuple(one.name for one in self.per_label if one.images and one.precision is None)

    @property
    def at_chance(self) -> bool | None:
        """Whether the mean average precision is not significantly above that of chance; None if it is unknown."""
        low = self.mean_average_precision_interval[0]
        return None if math.isnan(low) else low <= self.chance

    @property
    def sentence(self) -> str:
        """The metrics in words, with their confidence intervals."""
        said = [
            f"mAP {percent_with_interval(self.mean_average_precision, self.mean_average_precision_interval)}",
            f"F1 {percent_with_interval(self.f1, self.f1_interval)}"
            + (", too high since the thresholds were chosen on these images" if self.chose_thresholds else ""),
            f"wrong labels {self.error:.2%}",
            f"loss {self.loss:.4f}",
        ]
        if self.calibration.is_meaningful:
            said.append(f"calibration error {self.calibration.error:.2%}")
        return f"{format_image_count(self.images)}: {', '.join(said)}"

    @property
    def warnings(self) -> tuple[str, ...]:
        """Problems of the network as a whole, a sentence each."""
        said = []
        if self.at_chance:
            said.append(
                f"It is not significantly better than guessing: mAP {self.mean_average_precision:.1%}, and "
                f"{self.chance:.1%} would be by chance."
            )
        if missed := self.never_predicted:
            said.append(f"It never predicts {join_first(missed, LABELS_IN_WARNING)}, of which there are images.")
        return tuple(said)

    def __repr__(self) -> str:
        return f"MultiLabelEvaluation({self.sentence})"

    def _repr_html_(self) -> str:
        scope = () if self.scope is None else (self.scope.sentence,)
        header, *rows = self.table()
        return NotebookBlock(self.sentence, (*scope, *self.warnings), header=header, rows=rows).render()

    def table(self) -> list[tuple[str, ...]]:
        """Return the metrics of each label that some image has as rows of text, after a header."""
        header = ("label", "images", "average precision", "F1", "precision", "recall", "threshold")
        return [
            header,
            *(
                (
                    one.name,
                    f"{one.images:,}",
                    *(
                        "–" if share is None else f"{share:.1%}"
                        for share in (one.average_precision, one.f1, one.precision, one.recall)
                    ),
                    f"{one.threshold:.3f}",
                )
                for one in self.per_label
                if one.images
            ),
        ]

    def numbers(self) -> dict[str, float | None]:
        """Return the metrics and both ends of their intervals by name; None for what is not known."""
        metrics = {
            "mean_average_precision": (self.mean_average_precision, *self.mean_average_precision_interval),
            "f1": (self.f1, *self.f1_interval),
        }
        return {
            name + end: finite_or_none(value)
            for name, values in metrics.items()
            for end, value in zip(("", "_low", "_high"), values, strict=True)
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON values that `svertka evaluate --json` prints; null for what is not known."""
        calibration = self.calibration if self.calibration.is_meaningful else None
        return {
            **(self.scope.to_dict() if self.scope else {}),
            "images": self.images,
            "mean_average_precision": finite_or_none(self.mean_average_precision),
            "mean_average_precision_interval": finite_interval_or_none(self.mean_average_precision_interval),
            "f1": finite_or_none(self.f1),
            "f1_interval": finite_interval_or_none(self.f1_interval),
            "label_error": finite_or_none(self.error),
            "loss": finite_or_none(self.loss),
            "calibration_error": None if calibration is None else calibration.error,
            "temperature": None if calibration is None else calibration.temperature,
            "at_chance": self.at_chance,
            "never_predicted": list(self.never_predicted),
            "chose_thresholds": self.chose_thresholds,
            "per_label": [
                {
                    "name": one.name,
                    "images": one.images,
                    "average_precision": one.average_precision,
                    "average_precision_interval": one.average_precision_interval,
                    "threshold": one.threshold,
                    "precision": one.precision,
                    "recall": one.recall,
                    "f1": one.f1,
                    "f1_interval": one.f1_interval,
                }
                for one in self.per_label
            ],
        }


def average_precisions(scores: Floats, targets: Bools, weights: Floats) -> Floats:
    """Return the average precision of each label, Σ precision · Δrecall over the images in descending order of score.

    Images of equal score count together, so that equal scores for all images have the average precision of chance.

    Args:
        scores: Scores of N images for K labels, (N, K).
        targets: Whether they have the labels, (N, K).
        weights: Weights of the images, (S, N).

    Returns:
        The average precisions, (S, K); NaN for a label without images.

    Source: Zhu 2004, "Recall, precision and average precision"; without interpolation.
    """
    found = np.full((len(weights), scores.shape[1]), np.nan)
    for k in range(scores.shape[1]):
        order = np.argsort(-scores[:, k], kind="stable")
        ordered, has, weight = -scores[order, k], targets[order, k], weights[:, order]
        ends = np.searchsorted(ordered, ordered, side="right") - 1  # the last image of each score
        of_label = np.cumsum(weight * has, 1)
        precision = of_label[:, ends] / np.maximum(np.cumsum(weight, 1)[:, ends], 1e-300)
        total = of_label[:, -1] if len(order) else np.zeros(len(weights))
        with np.errstate(invalid="ignore", divide="ignore"):
            found[:, k] = np.where(total > 0, (weight * has * precision).sum(1) / total, np.nan)
    return found


def choose_thresholds(probabilities: Floats, targets: Bools) -> tuple[float, ...]:
    """Return the threshold of each label with the highest F1 on these images, in the middle of a gap of probabilities.

    A label with fewer than 10 images, or that fewer than 10 lack, has 0.5.

    Args:
        probabilities: Probabilities of the labels, (N, K): of validation images.
        targets: Whether the images have them, (N, K).
    """
    chosen = []
    for scores, has in zip(probabilities.T, targets.T, strict=True):
        if min(has.sum(), (~has).sum()) < MIN_IMAGES:
            chosen.append(0.5)
            continue
        order = np.argsort(-scores, kind="stable")
        ordered = scores[order]
        right = np.cumsum(has[order])
        f1 = 2 * right / (has.sum() + np.arange(1, len(scores) + 1))
        lower = np.append(ordered[1:], 0.0)
        f1[ordered == lower] = -1.0  # images of equal probability are predicted together
        best = int(f1.argmax())
        chosen.append(float((ordered[best] + lower[best]) / 2))
    return tuple(chosen)


def _mean_of_known(values: Floats) -> Floats:
    """Return the means (S,) of the numbers in each row (S, K) that are not NaN; NaN without any."""
    known = ~np.isnan(values)
    sums = np.where(known, values, 0.0).sum(1)
    return np.where(known.any(1), sums / np.maximum(known.sum(1), 1), np.nan)
