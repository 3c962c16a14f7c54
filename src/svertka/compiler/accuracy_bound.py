"""The validation images that bound the loss of accuracy of a network in lower precision, and the loss measured."""

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor

from svertka.compiler.calibration_batches import BATCH_SIZE, require_float_images
from svertka.confidence_intervals import (
    Interval,
    Z,
    format_percentage_points,
    paired_difference_interval,
    wilson_interval,
)
from svertka.errors import UsageError
from svertka.pages.number_format import count_with_noun

Network = Callable[[Tensor], Any]
INTEGERS = torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64
LARGEST_ADVISED_LOSS = 0.1  # share of the images; nobody should allow more
EXPECTED = "give (images, labels) or an iterable of such batches; images (N, C, H, W) float32, labels (N) whole numbers"


class ChanceLevelError(UsageError):
    """A float network is no better than chance on the validation images, so it has no accuracy to lose.

    Attributes:
        finding: What was measured, without what to do.
    """

    def __init__(self, finding: str) -> None:
        super().__init__(f"{finding}; order the labels as its outputs, and preprocess the images as for its training")
        self.finding = finding


@dataclass(frozen=True)
class MixedPrecisionReport:
    """What a mixture of precisions costs in accuracy, on the same validation images, and gains in time.

    Attributes:
        images: The number of validation images.
        right: Number of images that the float network classifies correctly.
        only_float: Number of images that only the float network classifies correctly.
        only_mixed: Number of images that only the mixture classifies correctly.
        max_loss: The bound, a share of the images, 0 to 1; None if there was none.
        float_seconds: Median time of the network in float32 for a batch of the example's size, seconds.
        seconds: Median time of the mixture for such a batch, seconds.
        threads: Number of threads with which both were measured.
        batch_size: Number of images in the example's batch.
        untried: Layers of which the time limit of the search left a lower precision untried.
    """

    images: int
    right: int
    only_float: int
    only_mixed: int
    max_loss: float | None
    float_seconds: float = math.nan
    seconds: float = math.nan
    threads: int = 1
    batch_size: int = 1
    untried: int = 0

    @classmethod
    def count(cls, before: Tensor, after: Tensor, max_loss: float | None = None) -> Self:
        """Return the report on images of which each network classified some correctly; times are left unknown.

        Args:
            before: (N,) bool; whether the float network classified each image correctly.
            after: (N,) bool; whether the mixture did.
            max_loss: The bound, a share of the images, 0 to 1; None if there was none.

        Returns:
            The report.
        """
        only_before, only_after = int((before & ~after).sum()), int((after & ~before).sum())
        return cls(len(before), int(before.sum()), only_before, only_after, max_loss)

    @property
    def top1_before(self) -> float:
        """The share of images that the float network classifies correctly."""
        return self.right / self.images

    @property
    def top1_after(self) -> float:
        """The share of images that the mixture classifies correctly."""
        return (self.right - self.only_float + self.only_mixed) / self.images

    @property
    def loss(self) -> float:
        """How much the share of correct images drops; negative if it rises."""
        return (self.only_float - self.only_mixed) / self.images

    @property
    def interval(self) -> Interval:
        """The 95 % confidence interval of `loss`, which does not account for the choice among mixtures."""
        return paired_difference_interval(self.only_float, self.only_mixed, self.images)

    @property
    def is_within_bound(self) -> bool:
        """Whether the loss is at most the bound."""
        return self.max_loss is None or self.loss <= self.max_loss

    @property
    def sentence(self) -> str:
        """The loss and the speed in words."""
        low, high = (format_percentage_points(end) for end in (-self.interval[1], -self.interval[0]))
        accuracy = (
            f"top-1 {self.top1_before:.2%} → {self.top1_after:.2%} on "
            f"{count_with_noun(self.images, 'validation image')} "
            f"({format_percentage_points(-self.loss)} points, 95 % interval {low} to {high})"
        )
        if not math.isfinite(self.seconds):
            return accuracy
        batch = f"batch of {count_with_noun(self.batch_size, 'image')}"
        speed = f"{1000 * self.seconds:.2f} ms for a {batch}, {1000 * self.float_seconds:.2f} ms in fp32"
        limit = f"; the time limit left a lower precision of {count_with_noun(self.untried, 'layer')} untried"
        return f"{accuracy}; {speed}{limit if self.untried else ''}"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values.

        Returns:
            The attributes by name, and top1_before, top1_after, loss and interval, 0 to 1. Unknown times are None.
        """
        measures = {"top1_before": self.top1_before, "top1_after": self.top1_after, "loss": self.loss}
        times = {name: value if math.isfinite(value) else None for name, value in asdict(self).items() if "sec" in name}
        return asdict(self) | times | measures | {"interval": list(self.interval)}


def count_needed_images(max_loss: float) -> int:
    """Return the fewest images whose interval lies within `max_loss` if no image changes its class.

    With no change, the interval of `paired_difference_interval` ends at Z · √2 / (images + 2).
    """
    return max(1, math.ceil(Z * math.sqrt(2) / max_loss) - 2)


def smallest_testable_max_loss(count: int) -> float | None:
    """Return the smallest bound, rounded up to tenths of a point, for which `count` images suffice.

    Returns:
        The bound, a share; None if it is above 10 points, which is no useful bound.
    """
    bound = math.ceil(1000 * Z * math.sqrt(2) / (count + 2)) / 1000
    return bound if bound <= LARGEST_ADVISED_LOSS else None


def check_max_loss(max_loss: object) -> None:
    """Raise UsageError unless `max_loss` is a share above 0 and below 1."""
    if not isinstance(max_loss, int | float) or not 0 < max_loss < 1:
        raise UsageError(f"max_loss={max_loss!r} must be a share above 0 and below 1, such as 0.005 for 0.5 points")


class ValidationImages:
    """The labeled images of the argument `validation`, which are kept in memory.

    Args:
        validation: Images, (N, C, H, W) float32, with their labels, (N) whole numbers; or an iterable of such batches.
        shape: The shape of an image, (C, H, W).
        max_loss: The bound that they are for, a share.

    Attributes:
        labels: All labels, (N) int64.

    Raises:
        UsageError: The bound is no share; there are too few images for it; or images or labels are invalid.
    """

    def __init__(self, validation: Any, shape: tuple[int, ...], max_loss: float) -> None:
        check_max_loss(max_loss)
        is_pair = isinstance(validation, tuple | list) and len(validation) == 2 and isinstance(validation[0], Tensor)
        if not is_pair and (
            not isinstance(validation, Iterable) or isinstance(validation, Tensor | str | bytes | dict)
        ):
            raise UsageError(f"validation= is of type {type(validation).__name__}; {EXPECTED}")
        self.max_loss = max_loss
        self._shape = shape
        checked = [self._check(batch) for batch in ([validation] if is_pair else validation)]
        count = sum(len(labels) for _, labels in checked)
        if count == 0:
            raise UsageError(f"validation= has no images; {EXPECTED}")
        if count < (needed := count_needed_images(max_loss)):
            bound = smallest_testable_max_loss(count)
            raise UsageError(
                f"validation= has {count_with_noun(count, 'image')}, too few for max_loss={max_loss:g}: with fewer "
                f"than {needed:,} the 95 % interval of the loss exceeds it even if no image changes its class; give "
                f"more{'' if bound is None else f', or at least max_loss={bound}'}"
            )
        self._images = torch.cat([images for images, _ in checked])
        self.labels = torch.cat([labels for _, labels in checked])

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def find_right(self, network: Network, batch_size: int | None, chosen: Tensor | None = None) -> tuple[Tensor, int]:
        """Return which images `network` classifies correctly, (N) bool, and the number of classes, K.

        Args:
            network: Maps images, (B, C, H, W) float32, to scores, (B, K).
            batch_size: The only batch size that it can run, or None.
            chosen: The numbers of the images that are classified, (N); None: all.

        Raises:
            UsageError: It gives no scores for classes, some are NaN, or a label is none of the classes.
        """
        size, right, classes = batch_size or BATCH_SIZE, [], 0
        numbers = torch.arange(len(self), device="cpu") if chosen is None else chosen
        for some in torch.split(numbers, size):
            images, labels = self._images[some], self.labels[some]
            missing = size - len(images)  # batches of one size need one plan
            scores = network(torch.cat([images, images[:1].expand(missing, -1, -1, -1)]) if missing else images)
            classes = self._check_scores(scores, size).shape[1]
            right.append(scores[: len(labels)].argmax(1) == labels)
        return torch.cat(right), classes

    def report(self, before: Tensor, after: Tensor) -> MixedPrecisionReport:
        """Return the loss from `before` to `after`, which are the images classified correctly, (N) bool."""
        return MixedPrecisionReport.count(before, after, self.max_loss)

    def require_better_than_chance(self, name: str, right: Tensor, classes: int) -> None:
        """Raise ChanceLevelError if the float network, called `name`, is no better than chance."""
        count = int(right.sum())
        if wilson_interval(count, len(self))[0] <= 1 / classes:
            raise ChanceLevelError(
                f"{name} classifies {count:,} of {count_with_noun(len(self), 'validation image')} correctly, which is "
                f"no better than chance among {classes:,} classes"
            )

    def _check(self, batch: Any) -> tuple[Tensor, Tensor]:
        if not isinstance(batch, tuple | list) or len(batch) != 2 or not isinstance(batch[1], Tensor):
            raise UsageError(f"validation= has a batch that is no pair of images and labels; {EXPECTED}")
        images, labels = require_float_images("validation", batch[0], self._shape), batch[1]
        if labels.dim() != 1 or labels.dtype not in INTEGERS or len(labels) != len(images):
            raise UsageError(
                f"validation= has labels of shape {tuple(labels.shape)} {str(labels.dtype).removeprefix('torch.')} for "
                f"{count_with_noun(len(images), 'image')}; give one whole number for each image, (N)"
            )
        return images, labels.to("cpu", torch.int64)

    def _check_scores(self, scores: Any, batch_size: int) -> Tensor:
        if not isinstance(scores, Tensor) or scores.dim() != 2 or len(scores) != batch_size or scores.shape[1] < 2:
            given = f"is {tuple(scores.shape)}" if isinstance(scores, Tensor) else f"is a {type(scores).__name__}"
            raise UsageError(
                f"the output of the network {given}, and only the loss of class scores, (N, K), can be bounded; use "
                "precision='int8', 'bf16' or 'fp32'"
            )
        if not bool(scores.isfinite().all()):
            raise UsageError("the network gives scores that are NaN or infinite for validation images; correct either")
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= scores.shape[1]:
            raise UsageError(
                f"validation= has labels from {low} to {high}, and the network has {scores.shape[1]:,} classes; number "
                f"them from 0 to {scores.shape[1] - 1}"
            )
        return scores
