"""Cross-validation on few images: folds that keep groups together, and the error with a confidence interval."""

import math
import warnings
from collections.abc import Callable
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from svertka.confidence_intervals import Interval, wilson_interval
from svertka.data.dataset import Ints
from svertka.evaluation.multi_label_metrics import MultiLabelEvaluation
from svertka.evaluation.regression_metrics import RegressionEvaluation
from svertka.progress import progress
from svertka.tasks import MultiLabel, Regression, Targets

FOLDS = 10  # at most: each head is trained on as many images as one whose validation set is the default tenth
REPEATS = 3  # with other folds; more narrow the interval by less than 15 %

# Places of training images and of held-out images to the predicted class of each held-out image.
Predict = Callable[[Ints, Ints], Ints]
# The same to the outputs (n, K) of each held-out image.
PredictOutputs = Callable[[Ints, Ints], npt.NDArray[np.float32]]
Metric = Literal["error", "mAP", "mean absolute error"]
ERROR: Metric = "error"
MEAN_ABSOLUTE_ERROR: Metric = "mean absolute error"


class CrossValidation(BaseModel):
    """The cross-validated error of a classifier, as training.json holds it.

    Attributes:
        metric: What `error` is: "error", or "mAP" for several labels and "mean absolute error" for a number.
        error: Mean share of wrong images over all repeats, 0 to 1; or the mean of the metric.
        interval: Its 95 % confidence interval.
        images: Number of images; each was held out once in each repeat.
        parts: The parts that they belong to, "train" or "train and val".
        folds: Number of folds.
        repeats: Number of times that the images were divided into folds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    metric: Metric = ERROR
    error: float = Field(ge=0)
    interval: Interval
    images: int = Field(ge=1)
    parts: str = Field(max_length=20)
    folds: int = Field(ge=2)
    repeats: int = Field(ge=1)

    @model_validator(mode="after")
    def _is_share(self) -> Self:
        if self.metric != MEAN_ABSOLUTE_ERROR and self.error > 1:
            raise ValueError("error must be a share")
        return self

    @model_serializer(mode="wrap")
    def _without_default(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omit `metric` if it is the error, so that earlier versions read the file, too."""
        fields: dict[str, Any] = dump(self)
        return {name: value for name, value in fields.items() if name != "metric" or value != ERROR}

    def text(self, value: float) -> str:
        """Return a value of the metric as text."""
        return format_metric(self.metric, value)

    @property
    def sentence(self) -> str:
        """The result in words."""
        error, low, high = map(self.text, (self.error, *self.interval))
        return (
            f"cross-validated {self.metric} {error}, 95 % interval {low} to {high}, on {self.images:,} images "
            f"of {self.parts} ({self.folds} folds, {self.repeats} times)"
        )


def format_metric(metric: str, value: float) -> str:
    """Return a value of a metric as text."""
    return f"{value:.4g}" if metric == MEAN_ABSOLUTE_ERROR else f"{value:.1%}"


def stratified_group_folds(
    labels: Ints, groups: Ints, classes: int, folds: int, seed: int = 0
) -> list[tuple[Ints, Ints]]:
    """Divide images into folds in whole groups, so that each class is spread evenly over the folds.

    Args:
        labels: Class of each image, (N,) int64.
        groups: Number of each image's group, (N,) int64; a group counts for the class that most of its images have.
        classes: Number of classes.
        folds: Number of folds; at least one class needs as many groups.
        seed: Another number divides differently.

    Returns:
        For each fold, the places of the images outside and inside of it, int64, ascending.
    """
    from sklearn.model_selection import StratifiedKFold

    first, class_of_unit = _units(labels, groups, classes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class has fewer groups than there are folds
        held_out = StratifiedKFold(folds, shuffle=True, random_state=seed).split(class_of_unit, class_of_unit)
        inside = [np.isin(first, units_inside) for _, units_inside in held_out]
    return [(np.flatnonzero(~some).astype(np.int64), np.flatnonzero(some).astype(np.int64)) for some in inside]


def _units(labels: Ints, groups: Ints, classes: int) -> tuple[Ints, Ints]:
    """Return the place of each image's group, (N,), and the class of each group, (G,)."""
    units, first = np.unique(groups, return_inverse=True)
    counts = np.zeros((len(units), classes), np.int64)
    np.add.at(counts, (first, labels), 1)
    return first.astype(np.int64), counts.argmax(1).astype(np.int64)


def count_folds(labels: Ints, groups: Ints, classes: int) -> int:
    """Return the number of folds: `FOLDS`, or the number of groups of the largest class if that is lower."""
    return min(FOLDS, int(np.bincount(_units(labels, groups, classes)[1]).max()))


def find_class_too_small(labels: Ints, groups: Ints, classes: int) -> int | None:
    """Return the first class that cannot be cross-validated, because its images are of one group; None without one."""
    groups_of = [len(np.unique(groups[labels == label])) for label in range(classes)]
    return next((label for label, count in enumerate(groups_of) if count < 2), None)


def cross_validate(predict: Predict, labels: Ints, groups: Ints, classes: int, parts: str) -> CrossValidation:
    """Cross-validate a classifier and return its error.

    Args:
        predict: Trains a classifier and returns its predictions.
        labels: Class of each image, (N,) int64; no class is `find_class_too_small`.
        groups: Number of each image's group, (N,) int64; a group stays in one fold.
        classes: Number of classes.
        parts: The parts of the data set that the images belong to.
    """
    folds, wrong = count_folds(labels, groups, classes), 0
    # Before the time is measured: scikit-learn takes seconds to import, the time of many folds.
    divided = [fold for seed in range(REPEATS) for fold in stratified_group_folds(labels, groups, classes, folds, seed)]
    with progress("cross-validating", len(divided), "folds") as shown:
        for outside, inside in divided:
            wrong += int((predict(outside, inside) != labels[inside]).sum())
            shown.advance()
    return CrossValidation(
        error=wrong / (REPEATS * len(labels)),
        interval=corrected_interval(wrong / REPEATS, groups, folds, REPEATS),
        images=len(labels),
        parts=parts,
        folds=folds,
        repeats=REPEATS,
    )


def cross_validate_outputs(
    predict: PredictOutputs, targets: Targets, groups: Ints, task: MultiLabel | Regression, parts: str
) -> CrossValidation:
    """Cross-validate a network of several labels or of a number and return its metric.

    Args:
        predict: Trains a network and returns its outputs.
        targets: Targets of the task, (N, …).
        groups: Number of each image's group, (N,) int64; a group stays in one fold.
        task: The task.
        parts: The parts of the data set that the images belong to.
    """
    strata, images = task.strata(targets), len(targets)
    classes = int(strata.max()) + 1
    folds = count_folds(strata, groups, classes)
    divided = [fold for seed in range(REPEATS) for fold in stratified_group_folds(strata, groups, classes, folds, seed)]
    repeats = np.zeros((REPEATS, images, *targets.shape[1:]))
    with progress("cross-validating", len(divided), "folds") as shown:
        for number, (outside, inside) in enumerate(divided):
            outputs = task.activate(torch.from_numpy(predict(outside, inside)).double()).numpy()
            repeats[number // folds, inside] = outputs.reshape(-1, *targets.shape[1:])
            shown.advance()
    evaluations = [evaluate_outputs(task, outputs, targets) for outputs in repeats]
    metric = float(np.mean([one.metric for one in evaluations]))
    return CrossValidation(
        metric=evaluations[0].metric_name,
        error=metric,
        interval=corrected_metric_interval(evaluations[0], metric, groups, folds, REPEATS),
        images=images,
        parts=parts,
        folds=folds,
        repeats=REPEATS,
    )


def corrected_metric_interval(
    evaluation: MultiLabelEvaluation | RegressionEvaluation, metric: float, groups: Ints, folds: int, repeats: int
) -> Interval:
    """Return the 95 % confidence interval of a cross-validated mean average precision or mean absolute error.

    Args:
        evaluation: The out-of-fold metrics of one repeat.
        metric: The mean of the metric over the repeats.
        groups: Number of each image's group, (N,) int64.
        folds: Number of folds.
        repeats: Number of repeats.

    Source: as for `corrected_interval`; the half-widths of the bootstrap interval of one repeat are scaled.
    """
    wider = math.sqrt(len(groups) / _count_independent(groups, folds, repeats))
    low, high = evaluation.metric_interval
    low, high = metric - wider * (evaluation.metric - low), metric + wider * (high - evaluation.metric)
    return max(0.0, low), high if isinstance(evaluation, RegressionEvaluation) else min(1.0, high)


def evaluate_outputs(
    task: MultiLabel | Regression, outputs: npt.NDArray[np.float64], targets: Targets
) -> MultiLabelEvaluation | RegressionEvaluation:
    """Return the metrics of outputs.

    Args:
        task: The task.
        outputs: Probabilities (N, K) or numbers (N,).
        targets: Targets of the task, (N, …).
    """
    indices = np.arange(len(targets))
    if isinstance(task, Regression):
        return RegressionEvaluation("", indices, outputs, targets, math.nan)
    names = tuple(map(str, range(targets.shape[1])))
    return MultiLabelEvaluation(names, indices, outputs, targets > 0.5, math.nan, task)


def _count_independent(groups: Ints, folds: int, repeats: int) -> float:
    """Return as many independent images as give the estimate its variance; see `corrected_interval`."""
    images = len(groups)
    independent = images**2 / float(np.square(np.bincount(groups).astype(np.float64)).sum())
    return independent / (1 / repeats + folds / (folds - 1))


def corrected_interval(wrong: float, groups: Ints, folds: int, repeats: int) -> Interval:
    """Return the 95 % confidence interval of a cross-validated error.

    It is the Wilson interval of as many independent images as give the estimate its variance. Heads of different folds
    share training images: with a fold's error of binomial variance, the corrected variance of the mean over J splits
    with n₂ held-out and n₁ training images is that of one split times 1/J + n₂/n₁. Images of one group are wrong or
    right together, at worst: groups of sizes m count as (Σm)² / Σm² images.

    Args:
        wrong: Mean number of wrong images over the repeats.
        groups: Number of each image's group, (N,) int64.
        folds: Number of folds.
        repeats: Number of repeats.

    Source: Nadeau & Bengio 2003, "Inference for the generalization error", eq. 16; Kish 1965, "Survey sampling",
    §5.4 (equal answers within a cluster).
    """
    effective = _count_independent(groups, folds, repeats)
    return wilson_interval(wrong / len(groups) * effective, effective)
