"""What a lower precision costs a network of several labels or of a number, in the metric of its task."""

import math
from dataclasses import dataclass
from typing import Any

from svertka.evaluation.metric_difference import MetricDifference, TaskEvaluation
from svertka.pages.number_format import count_with_noun


@dataclass(frozen=True, repr=False)
class PrecisionReport:
    """The metric of a network in a lower precision beside that in float32, on the same validation images.

    Attributes:
        before: The evaluation of the network in float32.
        after: That of the network in the lower precision.
        max_loss: The bound of `loss`; None if there was none.
        float_seconds: Median time of the network in float32 for one image.
        seconds: That of the network in the lower precision.
        threads: The threads with which both were measured.
    """

    before: TaskEvaluation
    after: TaskEvaluation
    max_loss: float | None
    float_seconds: float
    seconds: float
    threads: int

    @property
    def loss(self) -> float:
        """How much mAP drops, −1 to 1; or by which share of itself the mean absolute error rises."""
        if self.before.higher_is_better:
            return self.before.metric - self.after.metric
        return self.after.metric / self.before.metric - 1 if self.before.metric > 0 else math.inf

    @property
    def is_within_bound(self) -> bool:
        """Whether the loss is at most the bound."""
        return self.max_loss is None or self.loss <= self.max_loss

    @property
    def sentence(self) -> str:
        """The loss and the speed in words."""
        before, after = (one.format_metric(one.metric) for one in (self.before, self.after))
        difference = MetricDifference.between(self.after, self.before)
        low, high = map(self.after.format_metric_difference, difference.interval)
        change = f"{self.after.format_metric_difference(difference.value)}{self.after.metric_unit}"
        images = count_with_noun(self.before.images, "validation image")
        return (
            f"{self.before.metric_name} {before} → {after} on {images} ({change}, 95 % interval {low} to {high}); "
            f"{1000 * self.seconds:.2f} ms for a batch of 1 image, {1000 * self.float_seconds:.2f} ms in fp32"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        key = self.before.metric_key
        return {
            "images": self.before.images,
            f"{key}_before": self.before.metric,
            f"{key}_after": self.after.metric,
            "loss": self.loss if math.isfinite(self.loss) else None,
            "max_loss": self.max_loss,
            "float_seconds": self.float_seconds,
            "seconds": self.seconds,
            "threads": self.threads,
        }
