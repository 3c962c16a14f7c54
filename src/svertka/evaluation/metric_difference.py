"""The difference of two runs that predict several labels or a number, on the same images."""

from dataclasses import dataclass
from typing import Any

from svertka.confidence_intervals import Interval, finite_interval_or_none, finite_or_none
from svertka.evaluation.bootstrap import as_interval, bootstrap_intervals
from svertka.evaluation.multi_label_metrics import MultiLabelEvaluation
from svertka.evaluation.regression_metrics import RegressionEvaluation
from svertka.pages.notebook_block import NotebookBlock

TaskEvaluation = MultiLabelEvaluation | RegressionEvaluation


@dataclass(frozen=True, repr=False)
class MetricDifference:
    """The metric of one run minus that of the first, on the same images.

    Attributes:
        evaluation: The evaluation of this run, whose `metric_name` says which metric it is.
        value: Difference of the metrics.
        interval: Its 95 % confidence interval, by a bootstrap of the images, the same samples for both runs.
    """

    evaluation: TaskEvaluation
    value: float
    interval: Interval

    @classmethod
    def between(cls, here: TaskEvaluation, first: TaskEvaluation) -> "MetricDifference":
        """Return the difference of two evaluations on the same images.

        Args:
            here: The evaluation of this run.
            first: The evaluation of the first run.
        """
        low, high = bootstrap_intervals(
            lambda weights: here.weighted_metrics(weights) - first.weighted_metrics(weights),
            here.images,
            here.num_metrics,
        )
        return cls(here, here.metric - first.metric, as_interval(low[0], high[0]))

    @property
    def text(self) -> str:
        """The difference with its interval, for a table."""
        low, high = map(self.evaluation.format_metric_difference, self.interval)
        return f"{self.evaluation.format_metric_difference(self.value)} ({low} to {high})"

    @property
    def p_text(self) -> str:
        """Empty: the interval by a bootstrap has no p-value."""
        return ""

    @property
    def is_significant(self) -> bool:
        """Whether the interval excludes 0."""
        return self.interval[0] > 0 or self.interval[1] < 0

    @property
    def sentence(self) -> str:
        """The difference in words, such as "is better, by +1.3 points of mAP (+0.6 to +2.0)"."""
        low, high = map(self.evaluation.format_metric_difference, self.interval)
        value = self.evaluation.format_metric_difference(self.value)
        change = f"{value}{self.evaluation.metric_unit} of {self.evaluation.metric_name} ({low} to {high})"
        if not self.is_significant:
            return f"is not significantly different, {change}"
        is_better = (self.value > 0) == self.evaluation.higher_is_better
        return f"is {'better' if is_better else 'worse'}, by {change}"

    def __repr__(self) -> str:
        return f"MetricDifference({self.sentence})"

    def _repr_html_(self) -> str:
        return NotebookBlock(self.sentence).render()

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, as in the output of `svertka compare --json`."""
        return {
            self.evaluation.metric_key: finite_or_none(self.value),
            "interval": finite_interval_or_none(self.interval),
        }
