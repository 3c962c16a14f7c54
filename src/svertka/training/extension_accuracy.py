"""How well a run predicts the held-out images of its own classes or labels before and after it was extended."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from svertka.classifier import Classifier
from svertka.confidence_intervals import Interval, finite_interval_or_none, wilson_interval
from svertka.data.dataset import Dataset, Ints
from svertka.evaluation.multi_label_metrics import MultiLabelEvaluation
from svertka.tasks import MultiLabel
from svertka.training.extended_dataset import ExtendedDataset
from svertka.transfer.image_features import compute_features

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class AccuracyEstimate:
    """How many of some held-out images a network classifies correctly.

    Attributes:
        images: Number of images, at least 1.
        right: Number of those that it classifies correctly.
    """

    images: int
    right: int

    @property
    def share(self) -> float:
        """Share of the images that are classified correctly, 0 to 1."""
        return self.right / self.images

    @property
    def interval(self) -> Interval:
        """95 % confidence interval of that share."""
        return wilson_interval(self.right, self.images)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.share:.1%} ({low:.1%} to {high:.1%}) right"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values.

        Returns:
            The keys images, right, share and interval.
        """
        return {"images": self.images, "right": self.right, "share": self.share, "interval": list(self.interval)}


@dataclass(frozen=True)
class MeanPrecisionEstimate:
    """The mean average precision of a network of several labels on some held-out images.

    Attributes:
        images: Number of images, at least 1.
        mean_average_precision: Mean over the labels that some of them has, 0 to 1.
        interval: Its 95 % confidence interval, by a bootstrap of the images.
    """

    images: int
    mean_average_precision: float
    interval: Interval

    def __str__(self) -> str:
        low, high = self.interval
        return f"mAP {self.mean_average_precision:.1%} ({low:.1%} to {high:.1%})"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values.

        Returns:
            The keys images, mean_average_precision and interval, which is null if it is unknown.
        """
        return {
            "images": self.images,
            "mean_average_precision": self.mean_average_precision,
            "interval": finite_interval_or_none(self.interval),
        }


Estimate = AccuracyEstimate | MeanPrecisionEstimate


@dataclass(frozen=True)
class ExtensionAccuracy:
    """What two runs, one of which extends the other, predict of held-out images.

    Attributes:
        part: Part of the images: "test", or without test images "val".
        before: Estimate for the first run on the images of its own classes or labels; None without such images.
        after: Estimate for the run that extends it, on the same images.
        lost: Number of these images, or of their labels, that only the first run predicts correctly.
        gained: Number of these that only the other run predicts correctly.
        added: Estimate for the run that extends the other: on new images, or of new labels; None without any.
    """

    part: str
    before: Estimate | None
    after: Estimate | None
    lost: int
    gained: int
    added: Estimate | None


def compare_before_and_after(
    before: Classifier, after: Classifier, extended: ExtendedDataset, threads: int, cache_limit: int | None
) -> ExtensionAccuracy:
    """Return how both runs predict the held-out images.

    Args:
        before: A run.
        after: The run that extends it.
        extended: The images of both.
        threads: Threads for decoding.
        cache_limit: Bytes of all cached features, and of all cached images. None: a share of the free disk.

    Raises:
        RunError: A network gives NaN.
    """
    parts, is_new = extended.dataset.parts, extended.is_new
    part = "test" if (parts[~is_new] == "test").any() else "val"

    def predict(classifier: Classifier, indices: Ints) -> tuple[npt.NDArray[np.float32], Ints]:
        """Return the probabilities of the readable images at `indices`, and their indices."""
        preprocess = classifier.preprocess
        dataset = extended.dataset.with_intensity_range(preprocess.intensity_range)
        features = compute_features(classifier, preprocess, dataset, indices, threads=threads, cache_limit=cache_limit)
        return features.probabilities(), features.indices

    old, new = (np.flatnonzero((parts == part) & chosen).astype(np.int64) for chosen in (~is_new, is_new))
    if isinstance(before.task, MultiLabel):
        count = len(before.names)
        was, now = (_evaluate(one, *predict(one, old), extended.dataset, range(count)) for one in (before, after))
        chosen = (range(count, len(after.names)), np.sort([*old, *new])) if extended.added else (range(count), new)
        added = _evaluate(after, *predict(after, chosen[1]), extended.dataset, chosen[0])
        right, still = (one.predicted == one.targets for one in (was, now))
        estimates: list[Estimate | None] = [_estimate_precision(one) for one in (was, now, added)]
    else:
        labels = extended.dataset.labels
        right, still, further = (
            probabilities.argmax(1) == labels[indices]
            for probabilities, indices in (predict(before, old), predict(after, old), predict(after, new))
        )
        estimates = [_estimate_accuracy(one) for one in (right, still, further)]
    lost, gained = int((right & ~still).sum()), int((still & ~right).sum())
    first, second, third = estimates
    return ExtensionAccuracy(part, first, second, lost, gained, third)


def _estimate_accuracy(right: Flags) -> AccuracyEstimate | None:
    """Return the accuracy on images, given which are classified correctly, (N,); None without images."""
    return AccuracyEstimate(len(right), int(right.sum())) if len(right) else None


def _estimate_precision(evaluation: MultiLabelEvaluation) -> MeanPrecisionEstimate | None:
    """Return the mean average precision; None if no image has any of the labels."""
    if not evaluation.images or not evaluation.targets.any():
        return None
    return MeanPrecisionEstimate(evaluation.images, evaluation.metric, evaluation.metric_interval)


def _evaluate(
    classifier: Classifier, probabilities: npt.NDArray[np.float32], indices: Ints, dataset: Dataset, labels: range
) -> MultiLabelEvaluation:
    """Return the metrics of some of the labels on the images at `indices`, whose `probabilities` are given."""
    task, chosen = classifier.task, list(labels)
    assert isinstance(task, MultiLabel)
    return MultiLabelEvaluation(
        names=tuple(classifier.names[label] for label in chosen),
        indices=indices,
        probabilities=probabilities[:, chosen].astype(np.float64),
        targets=np.asarray(dataset.labels[indices][:, chosen] > 0.5),
        loss=float("nan"),
        task=MultiLabel(thresholds=tuple(task.threshold(label) for label in chosen)),
    )
