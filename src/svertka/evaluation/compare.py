"""compare(): several runs on the same images, and whether their errors differ significantly."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike, fspath
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import torch
from torch import nn

from svertka.classifier import Classifier, is_classifier_name
from svertka.confidence_intervals import (
    Interval,
    format_p_value,
    format_percentage_points,
    mcnemar_p_value,
    paired_difference_interval,
)
from svertka.data.builtin import NAMES
from svertka.data.source_opener import is_same_source
from svertka.device import choose_device, describe_device, network_device, with_preserved_settings
from svertka.errors import UsageError
from svertka.escaping import format_command
from svertka.evaluation.evaluate import JointEvaluation, evaluate_jointly
from svertka.evaluation.evaluation_scope import PART_ADJECTIVES
from svertka.evaluation.held_out import read_manifest
from svertka.evaluation.inference_speed import InferenceSpeed, measure_speeds
from svertka.evaluation.metric_difference import MetricDifference
from svertka.evaluation.metrics import Evaluation
from svertka.evaluation.task_metrics import AnyEvaluation
from svertka.files import is_url, parse_cache_limit_option
from svertka.graph.summary import trace
from svertka.output_paths import HTML, prepare_output_file
from svertka.pages.notebook_block import NotebookBlock
from svertka.pages.number_format import count_with_noun, format_percent
from svertka.run import Run
from svertka.type_checking import check_types

Source = str | PathLike[str]

SIGNIFICANCE_LEVEL = 0.05  # differences with a larger p are called not significant


@check_types
@with_preserved_settings
def compare(
    runs: Sequence[Source | Classifier | nn.Module],
    source: Source | None = None,
    *,
    crops: str | int = "1",
    scales: Sequence[int] | None = None,
    part: str | None = None,
    include_training: bool = False,
    output: Source | None = None,
    overwrite: bool = False,
    device: str = "auto",
    threads: int | None = None,
    cache_limit: float | None = None,
    max_pixels: int | None = None,
    trust_builder: bool = False,
    precision: str | None = None,
) -> "Comparison":
    """Compare runs on the same labeled images: errors, their differences from the first run, and speed.

    Runs of several labels are compared by their mean average precision, those of a number by their mean absolute error.

    Args:
        runs: 2 to 26 run folders or networks with weights, as for `Classifier.load`, Classifiers or nn.Modules; or one
            run folder with an optimized network, which is compared with the weights of the run.
        source: Labeled images, as for `evaluate`. None: the source that all runs were trained on.
        crops: Crops of each image: "1", "10", "144" or "dense".
        scales: Lengths of the shorter side at which crops are taken, pixels. None: those of the protocol's paper.
        part: "train", "val", "test" or "all". None: as for `evaluate`.
        include_training: Whether to evaluate on images that a run was trained on, too.
        output: HTML file for the comparison. None: no file.
        overwrite: Whether `output` may replace a file that svertka did not write.
        device: "auto", "cpu", "cuda" or "cuda:1".
        threads: CPU threads, at least 1. None: all cores.
        cache_limit: Size limit of the image cache, GB (10⁹ bytes). None: a share of the free disk.
        max_pixels: Largest image that is decoded, pixels. None: `data.image_io.PIXEL_LIMIT`.
        trust_builder: As for `Classifier.load`.
        precision: "fp32" to use the weights of a run even if it has an optimized network, which is used on the CPU
            otherwise.

    Returns:
        The runs in the order given, each with its evaluation, size, speed and difference from the first.

    Raises:
        DataError: The source cannot be read or holds classes that the runs do not know.
        RunError: A run is missing or damaged.
        UsageError: There are fewer than 2 runs, more than 26, or one twice; they know different classes; they were
            trained on different sources and `source` is None, or on different parts of `source`; the part, crops or
            scales do not exist; or `output` exists.
        FetchError: Weights or the data set cannot be downloaded.
        StorageError: `output` or the cache cannot be written.
    """
    from svertka.evaluation.comparison_page import write_comparison  # which imports this module

    opened = [Classifier.wrap(one) if isinstance(one, nn.Module) else one for one in runs]
    if len(opened) == 1 and not isinstance(opened[0], Classifier):
        opened = _open_variants(opened[0], choose_device(device), trust_builder=trust_builder, precision=precision)
    names = [one.origin if isinstance(one, Classifier) else fspath(one) for one in opened]
    _check_runs(names, [name for name, one in zip(names, opened, strict=True) if not isinstance(one, Classifier)])
    file = None if output is None else prepare_output_file(output, HTML, overwrite=overwrite)
    given = fspath(source) if source is not None else _common_source(names)
    joint = evaluate_jointly(
        opened,
        given,
        crops,
        scales,
        part,
        include_training,
        device,
        threads,
        parse_cache_limit_option(cache_limit),
        max_pixels,
        trust_builder=trust_builder,
        precision=precision,
    )
    torch_device = network_device(joint.classifiers[0].network) or choose_device(device)
    speeds = measure_speeds(joint.classifiers, torch_device)
    compared = []
    for number, (name, classifier) in enumerate(zip(names, joint.classifiers, strict=True)):
        layers = trace(classifier.network, classifier.preprocess.input_shape)
        compared.append(
            ComparedRun(
                letter=ascii_uppercase[number],
                run=name,
                network=classifier.config.model,
                precision=classifier.precision,
                is_optimized=classifier.optimized is not None,
                evaluation=joint.per_run[number],
                parameters=layers.parameters,
                multiply_adds=layers.multiply_adds,
                speed=speeds[number],
                history=Run(name).history(),
                settings=_settings(name),
                difference=_difference(joint.per_run[number], joint.per_run[0]) if number else None,
            )
        )
    comparison = Comparison(tuple(compared), joint, describe_device(torch_device))
    if file is not None:
        write_comparison(file, comparison)
    return comparison


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


def _difference(here: AnyEvaluation, first: AnyEvaluation) -> AnyDifference:
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


def separate_runs_and_source(arguments: Sequence[str]) -> tuple[list[str], str | None]:
    """Split the arguments `RUN RUN... [SOURCE]`: the last one is a source unless it is a run."""
    *runs, last = arguments
    if not runs or is_classifier_name(last) or Run(last).training.exists():
        return [*runs, last], None
    return runs, last


def _open_variants(
    run: Source, device: torch.device, *, trust_builder: bool, precision: str | None
) -> list[Source | Classifier]:
    """Return the network of a run in float32 and its optimized network; only the run if it has none."""
    optimized = Classifier.open(run, device, trust_builder=trust_builder, precision=precision)
    if optimized.optimized is None:
        return [run]
    return [Classifier.open(run, device, trust_builder=trust_builder), optimized]


def _check_runs(runs: Sequence[str], loaded: Sequence[str]) -> None:
    """Raise UsageError unless `runs` are 2 to 26 names, and those to be loaded, `loaded`, all differ."""
    if len(runs) < 2:
        raise UsageError(
            f"{' '.join(runs) or 'nothing'} has nothing to be compared with; name two runs or more, or one with an "
            "optimized network, which svertka optimize makes"
        )
    if len(runs) > len(ascii_uppercase):
        raise UsageError(f"{len(runs)} runs are too many to compare at once; name at most {len(ascii_uppercase)}")
    repeated = next((run for run in loaded if loaded.count(run) > 1), None)
    if repeated is not None:
        raise UsageError(f"{repeated} is named twice; name each run once")


def _common_source(runs: Sequence[str]) -> str:
    """Return the source that all of `runs` were trained on.

    Raises:
        UsageError: They were trained on different sources, do not record one, or it is no longer there.
    """
    sources = []
    for run in runs:
        source = _settings(run).get("source")
        if source is None:
            raise UsageError(f"{run} does not say what it was trained on; name a SOURCE after the runs")
        sources.append(source)
    for run, source in zip(runs, sources, strict=True):
        if not (is_same_source(source, sources[0]) or _have_same_images(run, runs[0])):
            raise UsageError(
                f"{runs[0]} was trained on {sources[0]} and {run} on {source}; name the SOURCE to compare them on"
            )
    source = str(sources[0])
    if source not in NAMES and not is_url(source) and not Path(source).exists():
        raise UsageError(
            f"the training images of {' and '.join(runs)} are no longer in {source}; "
            f"name their folder: {format_command('compare', *map(Path, runs))} SOURCE"
        )
    return source


def _have_same_images(run: str, other: str) -> bool:
    """Return whether both runs were trained on images of the same contents, wherever the files were."""
    one, two = read_manifest(run), read_manifest(other)
    return one is not None and two is not None and one.contents == two.contents


def _settings(run: str) -> dict[str, Any]:
    """Return the content of training.json; empty where the run has none, such as for pretrained weights."""
    return Run(run).settings() if Run(run).training.exists() else {}
