"""The choice of `--model auto`: the best of the pretrained networks whose weights are on this machine.

They are compared on their frozen features: by the cross-validated error of a logistic regression, by the mean average
precision (mAP) of one for each label, or by the mean absolute error of a ridge regression of a number.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from svertka import distributed
from svertka.confidence_intervals import Interval
from svertka.data.dataset import Dataset, Ints
from svertka.data.deduplicated_split import group_images
from svertka.data.near_duplicates import find_near_duplicates
from svertka.errors import SvertkaError, UsageError
from svertka.evaluation.cross_validation import (
    ERROR,
    corrected_interval,
    corrected_metric_interval,
    evaluate_outputs,
    format_metric,
)
from svertka.models.published_weights import BACKBONE, PRETRAINED
from svertka.models.registry import SIZES
from svertka.progress import format_duration, say, say_table
from svertka.tasks import MultiLabel, SingleLabel
from svertka.training.data_splits import DataSplits
from svertka.transfer.backbone_features import compute_backbone_features
from svertka.transfer.logistic_and_nearest_mean_heads import FOLDS, Floats, predict_out_of_fold
from svertka.transfer.multi_label_and_regression_heads import (
    divide_into_folds,
    predict_labels_out_of_fold,
    predict_numbers_out_of_fold,
)

AUTO = "auto"
SECONDS = 120.0  # for the comparison, or
SHARE = 0.25  # of --time, if that is shorter
MAX_IMAGES = 1000  # training images that networks are compared on
TIMED_IMAGES = (8, 40)  # images by which the time for all is estimated


@dataclass(frozen=True)
class CrossValidatedMetric:
    """An out-of-fold metric.

    Attributes:
        name: "error", "mAP" or "mean absolute error".
        value: Its value; an error or mAP is a share.
        interval: Its 95 % confidence interval.
    """

    name: str
    value: float
    interval: Interval

    @property
    def loss(self) -> float:
        """What the best network has least of."""
        return -self.value if self.name == "mAP" else self.value

    @property
    def best(self) -> str:
        """What the best network has, such as "lowest error"."""
        return f"{'highest' if self.name == 'mAP' else 'lowest'} {self.name}"

    @property
    def sentence(self) -> str:
        """The metric in words."""
        value, low, high = (format_metric(self.name, one) for one in (self.value, *self.interval))
        return f"cross-validated {self.name} {value}, 95 % interval {low} to {high}"


@dataclass(frozen=True)
class ComparedBackbone:
    """A pretrained network and what its frozen features are worth.

    Attributes:
        backbone: Network and name of its weights.
        found: Its out-of-fold metric; None if it was not compared.
        seconds: How long its comparison took.
        reason: Why it was not compared.
    """

    backbone: tuple[str, str]
    found: CrossValidatedMetric | None = None
    seconds: float = 0.0
    reason: str = ""

    @property
    def row(self) -> tuple[str, str]:
        """Name and result in words."""
        name = ":".join(self.backbone)
        if self.found is None:
            return name, f"not compared: {self.reason}"
        return name, f"{self.found.sentence}, {format_duration(self.seconds)}"


def find_offline_backbones() -> list[tuple[str, str]]:
    """Return network and weights of all that need no download: the bundled one, then the smallest first."""
    found = [
        (model, name)
        for model, some in PRETRAINED.items()
        for name, published in some.items()
        if (model, name) != BACKBONE and published.is_offline
    ]
    return [BACKBONE, *sorted(found, key=lambda backbone: SIZES[backbone[0]][2])]


def choose_backbone(
    dataset: Dataset,
    parts: DataSplits,
    budget: float | None,
    *,
    device: str,
    threads: int | None,
    cache_limit: int | None,
) -> tuple[str, str]:
    """Compare the pretrained networks on this machine, print the comparison and return the best network and weights.

    Only training images are used, at most `MAX_IMAGES`. The first network is always compared; of the others, those
    whose features can be computed within the time that is left.

    Args:
        dataset: The images.
        parts: The images as the training will divide them.
        budget: Seconds for the whole training. None: not limited.
        device: Device of the networks.
        threads: CPU threads, at least 1. None: all cores.
        cache_limit: Bytes of all cached features, and of all cached images. None: a share of the free disk.

    Raises:
        UsageError: Several processes train.
    """
    if distributed.world_size() > 1:
        raise UsageError("model=auto compares networks in one process; name a --model, or start one process")
    limit = SECONDS if budget is None else min(SECONDS, SHARE * budget)
    began, backbones = time.monotonic(), find_offline_backbones()
    images = _draw(dataset.task.strata(dataset.labels), parts.indices["train"])
    groups = _number_groups(dataset, parts.digests, images, threads or 1)
    if isinstance(dataset.task, SingleLabel):
        can_be_compared = _is_of_large_class(dataset.labels[images], groups)
        images, groups = images[can_be_compared], groups[can_be_compared]
        too_few = len(np.unique(dataset.labels[images])) < 2
    else:
        too_few = len(np.unique(groups)) < 2 * FOLDS
        too_few = too_few or not divide_into_folds(dataset.labels[images], groups, dataset.task)
    if len(backbones) == 1 or too_few:
        why = "there are too few images to compare others" if too_few else "no other weights are on this machine"
        say(f"model=auto takes {':'.join(BACKBONE)}: {why}")
        return BACKBONE

    def features_of(backbone: tuple[str, str], some: Ints) -> Floats:
        found = compute_backbone_features(
            dataset, some, backbone, device=device, threads=threads, cache_limit=cache_limit
        )
        return found.values

    compared: list[ComparedBackbone] = []
    for backbone in backbones:
        try:
            needed = _estimate_seconds(partial(features_of, backbone), images) if compared else 0.0
            left = limit - (time.monotonic() - began)
            if compared and needed > left:
                why = f"it needs about {format_duration(needed)}, and {format_duration(max(left, 0.0))} are left"
                compared.append(ComparedBackbone(backbone, reason=why))
                continue
            started = time.monotonic()
            found = _cross_validate(features_of(backbone, images), dataset, images, groups)
            compared.append(ComparedBackbone(backbone, found, time.monotonic() - started))
        except SvertkaError as fault:
            if backbone == BACKBONE:
                raise
            compared.append(ComparedBackbone(backbone, reason=str(fault)))
    metric, best = min(((one.found, one.backbone) for one in compared if one.found), key=lambda pair: pair[0].loss)
    say_table([one.row for one in compared])
    say(
        f"model=auto takes {':'.join(best)}: the {metric.best} on {len(images):,} training images of the "
        f"networks whose weights are on this machine, compared for at most {format_duration(limit)}"
    )
    return best


def _draw(strata: Ints, train: Ints) -> Ints:
    """Return at most `MAX_IMAGES` of the training images, of each class or other stratum its share, ascending."""
    if len(train) <= MAX_IMAGES:
        return train
    shuffled = np.random.default_rng(0).permutation(train)
    by_class = shuffled[np.argsort(strata[shuffled], kind="stable")]
    return np.sort(by_class[np.linspace(0, len(train) - 1, MAX_IMAGES).astype(np.int64)])


def _is_of_large_class(labels: Ints, groups: Ints) -> npt.NDArray[np.bool_]:
    """Return whether the class of each image has as many groups as there are folds, (N,)."""
    large = [label for label in np.unique(labels) if len(np.unique(groups[labels == label])) >= FOLDS]
    return np.isin(labels, large)


def _number_groups(dataset: Dataset, digests: list[bytes], images: Ints, threads: int) -> Ints:
    """Return a number for each of `images`, equal for copies, near-duplicates and images of one group."""
    return group_images(dataset, digests, images, find_near_duplicates(dataset.images, digests, images, threads))


def _estimate_seconds(features_of: Callable[[Ints], Floats], images: Ints) -> float:
    """Estimate the seconds for the features of `images`, from those of a few and of some more."""
    times = []
    for count in TIMED_IMAGES:
        began = time.monotonic()
        features_of(images[:count])  # stored, so that the second call computes the features of the others
        times.append(time.monotonic() - began)
    few, more = TIMED_IMAGES
    each = max(times[1] - times[0], 0.0) / (more - 2 * few)  # both load the network
    return each * max(len(images) - more, 0)


def _cross_validate(features: Floats, dataset: Dataset, images: Ints, groups: Ints) -> CrossValidatedMetric:
    """Return the out-of-fold metric of a head that is computed from `features` of `images`."""
    targets, task = dataset.labels[images], dataset.task
    if isinstance(task, SingleLabel):
        classes, labels = np.unique(targets, return_inverse=True)
        probabilities = predict_out_of_fold(features, labels.astype(np.int64), groups, len(classes))
        wrong = int((probabilities.argmax(1) != labels).sum())
        return CrossValidatedMetric(ERROR, wrong / len(labels), corrected_interval(wrong, groups, FOLDS, 1))
    splits = divide_into_folds(targets, groups, task)
    predict = predict_labels_out_of_fold if isinstance(task, MultiLabel) else predict_numbers_out_of_fold
    outputs = predict(features, targets, splits).astype(np.float64)
    found = evaluate_outputs(task, outputs, targets)
    interval = corrected_metric_interval(found, found.metric, groups, len(splits), 1)
    return CrossValidatedMetric(found.metric_name, found.metric, interval)
