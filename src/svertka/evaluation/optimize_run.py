"""optimize_run(): the network of a run optimized for the CPU, with its loss of accuracy measured, in the run folder."""

from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from svertka.classifier import WEIGHTS, Classifier
from svertka.compiler.accuracy_bound import (
    ChanceLevelError,
    MixedPrecisionReport,
    check_max_loss,
    count_needed_images,
    smallest_testable_max_loss,
)
from svertka.compiler.mixed_precision import measure_median_seconds
from svertka.compiler.optimize import DEFAULT_MAX_LOSS, Optimized, optimize
from svertka.device import set_threads, with_preserved_settings
from svertka.errors import UsageError
from svertka.evaluation.metric_difference import TaskEvaluation
from svertka.evaluation.metrics import Evaluation
from svertka.evaluation.precision_report import PrecisionReport
from svertka.evaluation.run_images import BATCH_SIZE, CALIBRATION_IMAGES, RunImages, open_images_of_run
from svertka.evaluation.task_metrics import make_accumulator
from svertka.files import parse_cache_limit_option, parse_path
from svertka.optimized_file import OPTIMIZED, hash_weights
from svertka.pages.notebook_block import NotebookBlock
from svertka.pages.number_format import count_with_noun
from svertka.type_checking import check_types

VALIDATION_IMAGES = 10_000  # at most
MIN_TASK_IMAGES = 10  # on which the metric of several labels or of a number is measured
TIMED_SECONDS = 1.0


@dataclass(frozen=True, eq=False, repr=False)
class OptimizedRun:
    """The optimized network of a run.

    Attributes:
        run: The run folder.
        path: The file of the optimized network.
        network: The optimized network.
        calibration_images: Training images on which the ranges of int8 were measured; 0 if none was needed.
        accuracy: Its top-1, or the metric of its task, and its speed on validation images, beside those of the float
            network.
    """

    run: Path
    path: Path
    network: Optimized
    calibration_images: int
    accuracy: MixedPrecisionReport | PrecisionReport

    @property
    def sentence(self) -> str:
        """The precisions, the loss and the speed in words."""
        return f"{self.network.precision}: {self.accuracy.sentence}"

    def __repr__(self) -> str:
        return f"OptimizedRun({str(self.run)!r}, {self.sentence})"

    def _repr_html_(self) -> str:
        rows = [(one.name, one.kernel, one.precision) for one in self.network.layers]
        return NotebookBlock(
            str(self.path), (self.sentence,), header=("layer", "kernel", "precision"), rows=rows
        ).render()

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, as `svertka optimize --json` prints them.

        Returns:
            The keys run, path, calibration_images and accuracy, and the keys of `Optimized.to_dict`.
        """
        return {
            "run": str(self.run),
            "path": str(self.path),
            "calibration_images": self.calibration_images,
            **self.network.to_dict(),
            "accuracy": self.accuracy.to_dict(),
        }


@check_types
@with_preserved_settings
def optimize_run(
    run: str | PathLike[str],
    source: str | PathLike[str] | None = None,
    *,
    precision: str = "auto",
    max_loss: float = DEFAULT_MAX_LOSS,
    threads: int | None = None,
    cache_limit: float | None = None,
    max_pixels: int | None = None,
    trust_builder: bool = False,
) -> OptimizedRun:
    """Optimize the network of a run for the CPU and write it into the run, where other commands use it.

    The ranges of int8 are measured on training images of the run, and the loss of accuracy on its own validation
    images, which are recognized by content. `predict`, `evaluate`, `compare`, `serve` and `locate` use the file on the
    CPU until the weights of the run change. In `locate`, layers that overlapping patches share stay float32.

    For several labels the metric is the mean average precision, for a number the mean absolute error, and "auto"
    chooses among int8, bf16 and fp32 for the whole network.

    Args:
        run: The run folder.
        source: The images of the training, if they have moved. None: where they were.
        precision: "auto", the fastest mixture of precisions that loses at most `max_loss`; "int8", "bf16" or "fp32",
            whose loss is measured, too.
        max_loss: For "auto", by how much top-1, or mAP, may drop on the validation images, above 0 and below 1; of a
            number, the share of itself by which the mean absolute error may rise.
        threads: CPU threads, at least 1, with which speed is measured. None: all cores.
        cache_limit: Size limit of the image cache, GB (10⁹ bytes). None: a share of the free disk.
        max_pixels: Largest image that is decoded, pixels. None: `data.image_io.PIXEL_LIMIT`.
        trust_builder: As for `Classifier.load`.

    Returns:
        The optimized network, its loss and its speed.

    Raises:
        UsageError: There are too few validation images for the bound, the network cannot be optimized, or an option is
            invalid.
        RunError: The run is missing or damaged, or its training images are no longer known.
        DataError: The images cannot be read.
        StorageError: The run cannot be written.
    """
    if precision != "auto" and max_loss != DEFAULT_MAX_LOSS:
        raise UsageError(f"max_loss={max_loss:g} is a bound for precision=auto; leave it out with {precision}")
    folder, workers = parse_path(run), set_threads(threads)
    classifier = Classifier.load(folder, trust_builder=trust_builder)
    dataset = open_images_of_run(folder, source, max_pixels)
    images = RunImages(classifier, dataset, workers, parse_cache_limit_option(cache_limit))
    held_out, labels = images.load("val", VALIDATION_IMAGES)
    is_single = classifier.task.is_single_label
    if is_single and precision == "auto" and 0 < max_loss < 1 and len(labels) < count_needed_images(max_loss):
        raise UsageError(describe_too_few_images(str(folder), len(labels), max_loss))
    calibration = None
    if precision in ("auto", "int8"):
        calibration, _ = images.load("train", CALIBRATION_IMAGES)
    if not is_single:
        return _optimize_task(folder, classifier, (held_out, labels), calibration, precision, max_loss)
    bound: dict[str, Any] = {"validation": (held_out, labels), "max_loss": max_loss} if precision == "auto" else {}
    try:
        optimized = optimize(classifier.network, held_out[:1], precision=precision, calibration=calibration, **bound)
    except ChanceLevelError as error:
        raise UsageError(f"{folder} has not learned: {error.finding}; train it longer or on more images") from error
    report = optimized.accuracy or _measure(classifier.network, optimized, held_out, labels)
    optimized.compiled[0].info = replace(optimized.info, accuracy=report, weights_hash=hash_weights(folder / WEIGHTS))
    path = folder / OPTIMIZED
    optimized.save(path)
    return OptimizedRun(folder, path, optimized, 0 if calibration is None else len(calibration), report)


def describe_too_few_images(run: str, count: int, max_loss: float) -> str:
    """Return the sentence that a run has too few validation images for a bound, and what to do.

    Args:
        run: The run folder.
        count: Its number of validation images.
        max_loss: The bound, a share.

    Returns:
        The sentence. It advises a larger bound only if one of at most 10 points suffices.
    """
    bound = smallest_testable_max_loss(count)
    advice = (
        "train with more validation images" if bound is None else f"use --max-loss {bound:.1%} (max_loss={bound:g})"
    )
    return (
        f"{run} has {count_with_noun(count, 'validation image')}, and a loss of {max_loss:.2%} can be bounded with "
        f"{count_needed_images(max_loss):,} or more; {advice}, or {'use ' if bound is None else ''}--precision int8, "
        "bf16 or fp32"
    )


def _optimize_task(
    folder: Path,
    classifier: Classifier,
    validation: tuple[Tensor, Tensor],
    calibration: Tensor | None,
    precision: str,
    max_loss: float,
) -> OptimizedRun:
    """Optimize a run of several labels or of a number, and write the network; see `optimize_run`.

    Args:
        folder: The run folder.
        classifier: The run.
        validation: Validation images, (N, C, H, W) float32, and their targets.
        calibration: Training images for int8; None if it is not asked for.
        precision: The precision; "auto" for the fastest within the bound.
        max_loss: The bound for "auto".
    """
    check_max_loss(max_loss)
    images, targets = validation
    if len(images) < MIN_TASK_IMAGES:
        raise UsageError(
            f"{folder} has {count_with_noun(len(images), 'validation image')}, too few to measure what a precision "
            f"costs; {MIN_TASK_IMAGES} are needed"
        )
    floats = optimize(classifier.network, images[:1])
    before = _evaluate(classifier, classifier.network, images, targets)
    bound = max_loss if precision == "auto" else None
    found: list[tuple[Optimized, PrecisionReport]] = []
    losses: dict[str, float] = {}
    refused: UsageError | None = None
    for one in ("int8", "bf16", "fp32") if precision == "auto" else (precision,):
        try:
            made = optimize(
                classifier.network, images[:1], precision=one, calibration=calibration if one == "int8" else None
            )
        except UsageError as error:  # its outputs differ too much
            if precision != "auto":
                raise
            refused = error
            continue
        after = _evaluate(classifier, made, images, targets)
        float_seconds, seconds = measure_median_seconds([floats, made], images[:1], TIMED_SECONDS)
        report = PrecisionReport(before, after, bound, float_seconds, seconds, torch.get_num_threads())
        losses[one] = report.loss
        if report.is_within_bound:
            found.append((made, report))
    if not losses:
        assert refused is not None  # a precision is measured or refused
        raise refused
    if not found:
        best = min(losses, key=losses.__getitem__)
        raise UsageError(
            f"{before.metric_name} of {folder} loses {losses[best]:.3g} in {best}, and more than max_loss={max_loss:g} "
            "in every precision; allow a larger loss, or run the network as it is"
        )
    optimized, report = min(found, key=lambda pair: pair[1].seconds)
    optimized.compiled[0].info = replace(optimized.info, weights_hash=hash_weights(folder / WEIGHTS))
    path = folder / OPTIMIZED
    optimized.save(path)
    used = 0 if calibration is None or optimized.precision != "int8" else len(calibration)
    return OptimizedRun(folder, path, optimized, used, report)


@torch.inference_mode()
def _evaluate(
    classifier: Classifier, network: nn.Module | Optimized, images: Tensor, targets: Tensor
) -> TaskEvaluation:
    """Return the metrics of a network of several labels or of a number."""
    accumulator = make_accumulator(classifier.task, len(classifier.names))
    for places in torch.split(torch.arange(len(images)), BATCH_SIZE):
        accumulator.update(network(images[places]), targets[places], places)
    found = accumulator.result(classifier.names)
    assert not isinstance(found, Evaluation)  # runs of classes are measured by their top-1
    return found


@torch.inference_mode()
def _measure(network: nn.Module, optimized: Optimized, images: Tensor, labels: Tensor) -> MixedPrecisionReport:
    """Return the accuracy of a network and of its optimized form on labeled images, and their times for one image."""
    floats = optimize(network, images[:1])
    before, after = (
        torch.cat([made(some).argmax(1) for some in torch.split(images, BATCH_SIZE)]) == labels
        for made in (network, optimized)
    )
    float_seconds, seconds = measure_median_seconds([floats, optimized], images[:1], TIMED_SECONDS)
    report = MixedPrecisionReport.count(before, after)
    return replace(report, float_seconds=float_seconds, seconds=seconds, threads=torch.get_num_threads())
