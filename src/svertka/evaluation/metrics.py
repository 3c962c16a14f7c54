"""Metrics of a classifier on labeled images: errors, loss, confusion matrix, mistakes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from svertka import distributed
from svertka.confidence_intervals import (
    Interval,
    error_interval,
    finite_or_none,
    format_percentage_points,
    percent_with_interval,
)
from svertka.errors import UsageError
from svertka.escaping import join_first
from svertka.evaluation.calibration import Calibration, CalibrationAccumulator
from svertka.evaluation.chance_level import chance_accuracy_mean_and_std, is_at_chance
from svertka.evaluation.evaluation_scope import EvaluationScope, format_image_count
from svertka.pages.notebook_block import NotebookBlock
from svertka.pages.number_format import format_percent

MISTAKES_KEPT = 24  # most confident mistakes, and as many near misses
MISTAKES_PER_PAIR = 8  # most confident mistakes of each (true, predicted) pair
EXAMPLES_PER_CLASS = 8  # images of each class
MIN_CLASSES_FOR_TOP5 = 6
CLASSES_IN_WARNING = 10
MIN_IMAGES_FOR_CHANCE_TEST = 30
PRUNE_AT = 8192  # mistakes kept before the ones not needed are dropped


@dataclass(frozen=True)
class Mistake:
    """A misclassified image.

    Attributes:
        probability: Probability of the wrong class, the highest, 0 to 1.
        own: Probability of the true class.
        index: Index of the image in its data set.
        label: True class.
        predicted: Predicted class.
    """

    probability: float
    own: float
    index: int
    label: int
    predicted: int


@dataclass(frozen=True)
class ClassMetrics:
    """Metrics of one class.

    Attributes:
        name: Class name.
        images: Images of the class.
        error: Share of these that got another class, 1 − recall; None without images.
        precision: Share of the images predicted as this class that belong to it; None if there are none.
        examples: Indices of up to 8 of its images.
    """

    name: str
    images: int
    error: float | None
    precision: float | None
    examples: tuple[int, ...] = ()

    @property
    def recall(self) -> float | None:
        """Share of the images of the class that were predicted as it; None without images."""
        return None if self.error is None else 1 - self.error


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """Metrics of a classifier on N labeled images of K classes.

    Errors are shares, 0 to 1; NaN without images.

    Attributes:
        images: Number of images, N.
        top1_error: Share of images, 0 to 1, whose true class does not have the highest score.
        top5_error: Share of images whose true class is not among the 5 highest scores; None below 6 classes.
        loss: Mean cross-entropy, nats.
        per_class: Metrics of each class.
        confusion: Confusion matrix (K, K) int64: rows are true classes, columns predicted classes.
        mistakes: Mistakes, most confident first; among them are the 24 most confident of all and the 8 most confident
            of each pair of classes.
        near_misses: The 24 mistakes with the smallest margin between the wrong and the true class, smallest first.
        indices: Indices of the evaluated images (N,) int64, ascending.
        wrong: Whether each of them is a mistake, (N,) bool.
        calibration: Confidence against accuracy.
        scope: Which images these are; None if the caller chose them.
        unknown_images: Number of images that the run calls unknown, as of none of its classes; None without a
            calibration, for several crops, and for several runs.
    """

    images: int
    top1_error: float
    top5_error: float | None
    loss: float
    per_class: tuple[ClassMetrics, ...]
    confusion: npt.NDArray[np.int64]
    mistakes: tuple[Mistake, ...]
    near_misses: tuple[Mistake, ...]
    indices: npt.NDArray[np.int64]
    wrong: npt.NDArray[np.bool_]
    calibration: Calibration
    scope: EvaluationScope | None = None
    unknown_images: int | None = None

    @property
    def unknown_share(self) -> float | None:
        """Share of the images that the run calls unknown; None where these were not counted."""
        return None if self.unknown_images is None or not self.images else self.unknown_images / self.images

    @property
    def error(self) -> float:
        """The top-1 error."""
        return self.top1_error

    @property
    def metric(self) -> float:
        """The metric by which runs are compared: the top-1 error."""
        return self.top1_error

    @property
    def metric_interval(self) -> Interval:
        """Its 95 % confidence interval."""
        return self.top1_interval

    def format_metric(self, value: float) -> str:
        """Return an error as text.

        Args:
            value: The error, 0 to 1.

        Returns:
            The error in percent, with a percent sign.
        """
        return format_percent(value)

    def format_metric_difference(self, value: float) -> str:
        """Return a difference of errors as text, in points.

        Args:
            value: The difference, −1 to 1.

        Returns:
            The difference in percentage points, with its sign.
        """
        return format_percentage_points(value)

    def metric_cells(self) -> tuple[tuple[str, str], ...]:
        """Return the names and values of what a table of runs shows.

        Returns:
            Pairs of a name and a formatted value: top-1 error, top-5 error and loss.
        """
        top5 = "–" if self.top5_error is None else f"{self.top5_error:.2%}"
        return (("top-1 error", f"{self.top1_error:.2%}"), ("top-5 error", top5), ("loss", f"{self.loss:.4f}"))

    @property
    def top1_interval(self) -> Interval:
        """95 % confidence interval of the top-1 error."""
        return error_interval(self.top1_error, self.images)

    @property
    def top5_interval(self) -> Interval | None:
        """95 % confidence interval of the top-5 error; None below 6 classes."""
        return None if self.top5_error is None else error_interval(self.top5_error, self.images)

    @property
    def sentence(self) -> str:
        """The metrics in words, errors with their confidence intervals."""
        said = [f"top-1 error {percent_with_interval(self.top1_error, self.top1_interval)}"]
        if self.top5_error is not None and self.top5_interval is not None:
            said.append(f"top-5 error {percent_with_interval(self.top5_error, self.top5_interval)}")
        said.append(f"loss {self.loss:.4f}")
        if self.calibration.is_meaningful:
            said.append(f"calibration error {self.calibration.error:.2%}")
        if self.unknown_share is not None:
            said.append(f"{self.unknown_share:.1%} called unknown")
        return f"{format_image_count(self.images)}: {', '.join(said)}"

    def __repr__(self) -> str:
        return f"Evaluation({self.sentence})"

    def _repr_html_(self) -> str:
        scope = () if self.scope is None else (self.scope.sentence,)
        rows = [
            (
                one.name,
                f"{one.images:,}",
                *("–" if share is None else f"{share:.1%}" for share in (one.recall, one.precision)),
            )
            for one in self.per_class
            if one.images
        ]
        header = ("class", "images", "recall", "precision")
        return NotebookBlock(self.sentence, (*scope, *self.warnings), header=header, rows=rows).render()

    @property
    def never_predicted(self) -> tuple[str, ...]:
        """Names of the classes that have images but were never predicted."""
        return tuple(one.name for one in self.per_class if one.images and one.precision is None)

    @property
    def at_chance(self) -> bool | None:
        """Whether the accuracy is no better than chance; see `chance_level.is_at_chance`."""
        return is_at_chance(self.confusion)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Problems of the classifier as a whole, a sentence each."""
        said = []
        if sentence := self._against_chance():
            said.append(sentence)
        if missed := self.never_predicted:
            said.append(f"It never predicts {join_first(missed, CLASSES_IN_WARNING)}, of which there are images.")
        return tuple(said)

    def _against_chance(self) -> str | None:
        """Return a warning if the classifier is no better than chance, else None."""
        if self.at_chance is False or (self.confusion.sum(1) > 0).sum() < 2:
            return None
        share, _ = chance_accuracy_mean_and_std(self.confusion)
        right = 1 - self.top1_error
        if self.images < MIN_IMAGES_FOR_CHANCE_TEST:
            return (
                f"With so few images it is not significantly better than guessing: {right:.1%} of {self.images} are "
                f"right, and {share:.1%} would be by chance."
            )
        return (
            f"It is no better than guessing: {right:.1%} of {self.images:,} are right, and {share:.1%} would be by "
            "chance."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON values that `svertka evaluate --json` prints; null for what is not known.

        Returns:
            The metrics with their intervals, the metrics of each class, and the scope of the evaluation.
        """
        return {
            **(self.scope.to_dict() if self.scope else {}),
            "images": self.images,
            "top1_error": finite_or_none(self.top1_error),
            "top1_interval": _finite_pair(self.top1_interval),
            "top5_error": finite_or_none(self.top5_error),
            "top5_interval": _finite_pair(self.top5_interval),
            "loss": finite_or_none(self.loss),
            "calibration_error": finite_or_none(self.calibration.error) if self.calibration.is_meaningful else None,
            "temperature": finite_or_none(self.calibration.temperature) if self.calibration.is_meaningful else None,
            "unknown_images": self.unknown_images,
            "unknown_share": self.unknown_share,
            "at_chance": self.at_chance,
            "never_predicted": list(self.never_predicted),
            "per_class": [
                {
                    "name": one.name,
                    "images": one.images,
                    "error": one.error,
                    "recall": one.recall,
                    "precision": one.precision,
                }
                for one in self.per_class
            ],
        }


class MetricAccumulator:
    """Metrics accumulated over batches.

    An image is correct among k guesses if fewer than k other classes score at least as high as its own. Ties count as
    mistakes, so that a network with equal scores for all classes is always wrong. An image with a NaN logit is wrong.
    Memory grows by one number per image.

    Args:
        classes: K, the number of classes.
    """

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self._loss = torch.zeros(1, dtype=torch.float64)
        self._wrong5 = torch.zeros(1, dtype=torch.int64)
        self._confusion = torch.zeros(classes, classes, dtype=torch.int64)
        # Columns: bits of both probabilities, index, label, predicted; integers, so that one tensor holds all.
        self._mistakes = torch.zeros(0, 5, dtype=torch.int64)
        self._near_misses = torch.zeros(0, 5, dtype=torch.int64)
        self._prune_at = PRUNE_AT
        self._outcomes: list[Tensor] = []  # 2 × index of each image, plus 1 for a mistake
        self._confidence = CalibrationAccumulator()
        self._examples = torch.zeros(0, 2, dtype=torch.int64)  # columns: label, index

    @torch.no_grad()
    def update(self, logits: Tensor, labels: Tensor, indices: Tensor) -> None:
        """Add a batch.

        Args:
            logits: Scores (B, K), floating point.
            labels: True classes (B,) int64, 0 to K − 1.
            indices: Indices of the images (B,) int64.

        Raises:
            UsageError: `logits` have another number of classes.
        """
        if logits.shape[1] != self.classes:
            raise UsageError(
                f"the network gives {logits.shape[1]} scores per image, but the data have {self.classes} classes; "
                f"use the data set it was trained on"
            )
        logits, labels, indices = logits.float().cpu(), labels.cpu(), indices.cpu()
        rows = torch.arange(len(labels))
        own = logits[rows, labels][:, None]
        # Not `logits >= own`: a NaN counts as a rival.
        rivals = (~(logits < own)).sum(1) - 1
        wrong = (rivals >= 1) | logits.isnan().any(1)
        others = logits.nan_to_num(nan=torch.finfo(torch.float32).min, neginf=torch.finfo(torch.float32).min)
        others[rows, labels] = -math.inf
        rival = others.argmax(1)
        predicted = torch.where(wrong, rival, labels)

        self._loss += cross_entropy(logits, labels, reduction="none").double().sum()
        self._wrong5 += ((rivals >= 5) | logits.isnan().any(1)).sum()
        self._confusion.view(-1).index_add_(0, labels * self.classes + predicted, torch.ones_like(labels))
        probabilities = logits.softmax(1)
        guessed, own = (_bits(probabilities[rows, which]) for which in (rival, labels))
        mistakes = torch.stack([guessed, own, indices, labels, predicted], 1)[wrong]
        self._mistakes = torch.cat([self._mistakes, mistakes])
        self._near_misses = _closest(torch.cat([self._near_misses, mistakes]))
        self._outcomes.append(2 * indices + wrong)
        self._confidence.update(logits, labels, ~wrong, indices)
        self._examples = _first_of_each(
            torch.cat([self._examples, torch.stack([labels, indices], 1)]), EXAMPLES_PER_CLASS
        )
        if len(self._mistakes) > self._prune_at:
            self._mistakes = _worst(self._mistakes)
            self._prune_at = max(PRUNE_AT, 2 * len(self._mistakes))

    def all_reduce(self) -> "MetricAccumulator":
        """Return the sum over all processes; this accumulator does not change."""
        whole = MetricAccumulator(self.classes)
        whole._loss = distributed.all_reduce(self._loss.clone())
        whole._wrong5 = distributed.all_reduce(self._wrong5.clone())
        whole._confusion = distributed.all_reduce(self._confusion.clone())
        whole._mistakes = torch.cat(distributed.all_gather(_worst(self._mistakes)))
        whole._near_misses = _closest(torch.cat(distributed.all_gather(self._near_misses)))
        whole._outcomes = distributed.all_gather(self._all_outcomes())
        whole._confidence = self._confidence.all_reduce()
        whole._examples = _first_of_each(torch.cat(distributed.all_gather(self._examples)), EXAMPLES_PER_CLASS)
        return whole

    def result(self, names: Sequence[str]) -> Evaluation:
        """Return the metrics; `names` are the K class names in the order of the logits."""
        confusion = self._confusion.numpy().copy()
        right, images, given = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
        count = int(images.sum())
        examples = self._examples.tolist()
        per_class = tuple(
            ClassMetrics(
                name,
                int(images[k]),
                float(1 - right[k] / images[k]) if images[k] else None,
                float(right[k] / given[k]) if given[k] else None,
                tuple(index for label, index in examples if label == k),
            )
            for k, name in enumerate(names)
        )
        outcomes = self._all_outcomes().sort().values.numpy()
        return Evaluation(
            images=count,
            top1_error=float((count - right.sum()) / count) if count else math.nan,
            top5_error=(self._wrong5.item() / count if count else math.nan)
            if self.classes >= MIN_CLASSES_FOR_TOP5
            else None,
            loss=self._loss.item() / count if count else math.nan,
            per_class=per_class,
            confusion=confusion,
            mistakes=_as_mistakes(_worst(self._mistakes)),
            near_misses=_as_mistakes(self._near_misses),
            indices=outcomes // 2,
            wrong=outcomes % 2 == 1,
            calibration=self._confidence.result(),
        )

    def _all_outcomes(self) -> Tensor:
        return torch.cat([torch.zeros(0, dtype=torch.int64), *self._outcomes])


def _bits(probability: Tensor) -> Tensor:
    """Return the bits of probabilities (N,) as int64, which sort like the numbers; NaN counts as 0."""
    # Bits sort like the numbers from +0 upwards; + 0.0 turns −0 into +0.
    return (probability.nan_to_num(nan=0.0).double() + 0.0).view(torch.int64)


def _numbers(bits: Tensor) -> Tensor:
    return bits.contiguous().view(torch.float64)


def _as_mistakes(rows: Tensor) -> tuple[Mistake, ...]:
    probabilities, own = _numbers(rows[:, 0]).tolist(), _numbers(rows[:, 1]).tolist()
    return tuple(Mistake(p, q, *row) for p, q, row in zip(probabilities, own, rows[:, 2:].tolist(), strict=True))


def _closest(mistakes: Tensor) -> Tensor:
    """Return the mistakes with the smallest margin; ties are ordered by index."""
    mistakes = mistakes[mistakes[:, 2].argsort(stable=True)]
    gap = _numbers(mistakes[:, 0]) - _numbers(mistakes[:, 1])
    return mistakes[gap.argsort(stable=True)][:MISTAKES_KEPT]


def _worst(mistakes: Tensor) -> Tensor:
    """Return the mistakes that `Evaluation.mistakes` contains, most confident first; ties are ordered by index."""
    # Two stable sorts, the second key first.
    mistakes = mistakes[mistakes[:, 2].argsort(stable=True)]
    mistakes = mistakes[mistakes[:, 0].argsort(descending=True, stable=True)]
    _, pair = torch.unique(mistakes[:, 3:], dim=0, return_inverse=True)
    keep = _place_in_group(pair) < MISTAKES_PER_PAIR
    keep[:MISTAKES_KEPT] = True
    return mistakes[keep]


def _first_of_each(rows: Tensor, count: int) -> Tensor:
    """Return the `count` lowest indices of each label, from rows of (label, index), sorted."""
    rows = torch.unique(rows, dim=0)
    return rows[_place_in_group(rows[:, 0]) < count]


def _place_in_group(group: Tensor) -> Tensor:
    """Return for each element how many equal elements precede it."""
    order = group.argsort(stable=True)
    ordered = group[order]
    places = torch.empty_like(order)
    places[order] = torch.arange(len(group)) - torch.searchsorted(ordered, ordered)
    return places


def _finite_pair(pair: Interval | None) -> list[float] | None:
    return list(pair) if pair is not None and all(map(math.isfinite, pair)) else None
