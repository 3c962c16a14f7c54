"""The result of a comparison of runs: each run, and its difference from the first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from svertka.confidence_intervals import (
    Interval,
    format_p_value,
    format_percentage_points,
    mcnemar_p_value,
    paired_difference_interval,
)
from svertka.evaluation.evaluate import JointEvaluation
from svertka.evaluation.evaluation_scope import PART_ADJECTIVES
from svertka.evaluation.inference_speed import InferenceSpeed
from svertka.evaluation.metric_difference import MetricDifference
from svertka.evaluation.metrics import Evaluation
from svertka.evaluation.task_metrics import AnyEvaluation
from svertka.pages.notebook_block import NotebookBlock
from svertka.pages.number_format import count_with_noun, format_percent

SIGNIFICANCE_LEVEL = 0.05  # differences with a larger p are called not significant


@dataclass(frozen=True, repr=False)
class Difference:
    """The error of one run minus the error of the first, on the same images, of runs of one class an image.

    Attributes:
        only_here: Number of images that only this run gets wrong.
        only_first: Number of images that only the first run gets wrong.
        top1_error: Difference of the top-1 errors, −1 to 1.
        interval: Its 95 % confidence interval.
        p: Two-sided p-value of the exact McNemar test, 0 to 1.
    """

    only_here: int
    only_first: int
    top1_error: float
    interval: Interval
    p: float

    @classmethod
    def between(cls, here: Evaluation, first: Evaluation) -> "Difference":
        """Return the difference of two evaluations on the same images.

        Args:
            here: The evaluation of this run.
            first: The evaluation of the first run.

        Returns:
            The difference, with its interval and p-value.
        """
        only_here, only_first = int((here.wrong & ~first.wrong).sum()), int((first.wrong & ~here.wrong).sum())
        return cls(
            only_here,
            only_first,
            (only_here - only_first) / here.images,
            paired_difference_interval(only_here, only_first, here.images),
            mcnemar_p_value(only_here, only_first),
        )

    @property
    def value(self) -> float:
        """The difference of the top-1 errors."""
        return self.top1_error

    @property
    def text(self) -> str:
        """The difference in points with its interval, for a table."""
        low, high = (f"{100 * end:+.2f}" for end in self.interval)
        return f"{100 * self.top1_error:+.2f} ({low} to {high})"

    @property
    def p_text(self) -> str:
        """The p-value for a table."""
        return "<0.001" if self.p < 0.001 else f"{self.p:.3f}"

    @property
    def is_significant(self) -> bool:
        """Whether p is below 0.05."""
        return self.p < SIGNIFICANCE_LEVEL

    @property
    def sentence(self) -> str:
        """The difference in words, such as "errs less, by −1.3 points (−2.0 to −0.6, p < 0.001)"."""
        low, high = map(format_percentage_points, self.interval)
        points = f"{format_percentage_points(self.top1_error)} points ({low} to {high}, p {format_p_value(self.p)})"
        if not self.is_significant:
            return f"is not significantly different, {points}"
        return f"errs {'less' if self.top1_error < 0 else 'more'}, by {points}"

    def __repr__(self) -> str:
        return f"Difference({self.sentence})"

    def _repr_html_(self) -> str:
        counts = f"{self.only_here:,} images wrong only here, {self.only_first:,} only with the first run"
        return NotebookBlock(self.sentence, (counts,)).render()

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, as in the output of `svertka compare --json`.

        Returns:
            The keys only_here_wrong, only_first_wrong, top1_error, interval and p.
        """
        return {
            "only_here_wrong": self.only_here,
            "only_first_wrong": self.only_first,
            "top1_error": self.top1_error,
            "interval": list(self.interval),
            "p": self.p,
        }


AnyDifference = Difference | MetricDifference


def difference_between(here: AnyEvaluation, first: AnyEvaluation) -> AnyDifference:
    """Return the difference of two evaluations on the same images."""
    if isinstance(here, Evaluation) and isinstance(first, Evaluation):
        return Difference.between(here, first)
    assert not isinstance(here, Evaluation)
    assert not isinstance(first, Evaluation)  # runs that predict different things are refused
    return MetricDifference.between(here, first)


@dataclass(frozen=True, eq=False, repr=False)
class ComparedRun:
    """One of the runs of a comparison.

    Attributes:
        letter: "A" for the first run, "B" for the second and so on.
        run: The run as it was named.
        network: Name of its network, such as "resnet20".
        precision: That of its predictions, "fp32" or that of its optimized network.
        is_optimized: Whether its optimized network was used.
        evaluation: Its evaluation.
        parameters: Number of parameters of the network.
        multiply_adds: Number of multiply-adds of the network for one image.
        speed: Its speed on this machine.
        history: Lines of metrics.jsonl; empty for a network that was not trained here.
        settings: Content of training.json; empty for a network that was not trained here.
        difference: Difference of its error or metric from that of the first run; None for the first.
    """

    letter: str
    run: str
    network: str
    precision: str
    is_optimized: bool
    evaluation: AnyEvaluation
    parameters: int
    multiply_adds: int
    speed: InferenceSpeed
    history: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any]
    difference: AnyDifference | None

    @property
    def suffix(self) -> str:
        """What follows its name, such as ", optimized (int8)"; empty if its weights were used as they are."""
        return f", optimized ({self.precision})" if self.is_optimized else ""

    def __repr__(self) -> str:
        error = " ".join(self.evaluation.metric_cells()[0])
        return f"ComparedRun({self.letter}: {self.run!r}{self.suffix}, {self.network}, {error})"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, as in the output of `svertka compare --json`.

        Returns:
            The run with its network, size, speed and metrics, and the difference from the first run, or None.
        """
        return {
            "run": self.run,
            "model": self.network,
            "precision": self.precision,
            "optimized": self.is_optimized,
            "parameters": self.parameters,
            "multiply_adds": self.multiply_adds,
            "seconds_per_image": self.speed.seconds,
            "images_per_second": self.speed.per_second,
            **_metrics_dict(self.evaluation),
            "difference_from_first": self.difference and self.difference.to_dict(),
        }


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """Runs compared on the same images.

    Attributes:
        runs: The runs, in the order given; the first is the reference of the others.
        joint: Their evaluations, data set and scope.
        device: The device on which speeds were measured, in words.
    """

    runs: tuple[ComparedRun, ...]
    joint: JointEvaluation
    device: str

    @property
    def is_of_one_run(self) -> bool:
        """Whether a run is compared with its own optimized network, whose ensemble is of no use."""
        names, optimized = {one.run for one in self.runs}, {one.is_optimized for one in self.runs}
        return len(names) == 1 and len(optimized) == 2

    @property
    def ensemble(self) -> AnyEvaluation:
        """The evaluation of the mean of the runs' probabilities or numbers."""
        return self.joint.ensemble

    @property
    def sentence(self) -> str:
        """The result in words, with the first run as the reference."""
        first, *others = self.runs
        images = count_with_noun(self.ensemble.images, f"{PART_ADJECTIVES[self.joint.part]}picture")
        source, evaluation = self.joint.dataset.source, first.evaluation
        if isinstance(evaluation, Evaluation):
            found = f"A gets {format_percent(evaluation.top1_error)} of {images} of {source} wrong"
        else:
            metric = f"{evaluation.metric_name} {evaluation.format_metric(evaluation.metric)}"
            found = f"A has {metric} on {images} of {source}"
        against = "; ".join(f"{one.letter} {one.difference.sentence}" for one in others if one.difference)
        return f"{found}; {against}."

    def __repr__(self) -> str:
        return f"Comparison({self.sentence})"

    def _repr_html_(self) -> str:
        rows = [
            (
                f"{one.letter} {one.run}{one.suffix}",
                one.network,
                one.precision,
                one.evaluation.metric_cells()[0][1],
                "" if one.difference is None else one.difference.sentence,
                f"{one.parameters:,}",
                f"{one.speed.per_second:,.0f}",
            )
            for one in self.runs
        ]
        metric = self.ensemble.metric_cells()[0][0]
        header = ("run", "network", "precision", metric, "against A", "parameters", "images/s")
        return NotebookBlock(self.sentence, header=header, rows=rows).render()

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON values that `svertka compare --json` prints.

        Returns:
            The keys images, device, runs and together, and the scope of the evaluation.
        """
        return {
            **self.joint.scope.to_dict(),
            "images": self.ensemble.images,
            "device": self.device,
            "runs": [one.to_dict() for one in self.runs],
            "together": None if self.is_of_one_run else _metrics_dict(self.ensemble),
        }


def _metrics_dict(evaluation: AnyEvaluation) -> dict[str, Any]:
    """Return the metrics that differ between runs evaluated on the same images."""
    return {key: value for key, value in replace(evaluation, scope=None).to_dict().items() if key != "images"}
