"""Figures of an evaluation: confusion matrix, reliability diagram, and the most confident mistakes."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from svertka.classifier import Classifier
from svertka.confidence_intervals import error_interval
from svertka.data.dataset import Dataset
from svertka.data.source_opener import Source, open_source
from svertka.errors import UsageError
from svertka.evaluation.evaluate import evaluate
from svertka.evaluation.metrics import Evaluation
from svertka.evaluation.run_images import open_images_of_run
from svertka.plot.figure_canvas import COLORS, Model, mosaic, new_figure
from svertka.type_checking import check_types

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_NUMBERS = 20  # classes up to which the counts are written into the matrix


@check_types
def confusion(model: Model | Evaluation, source: Source | None = None, *, size: int | None = None) -> "Figure":
    """Show which classes are predicted as which: rows are true classes, columns predicted ones.

    Colors are shares of the row. Up to 20 classes, the counts are written into the cells. Of more classes, those that
    no image has and none is predicted as are left out.

    Args:
        model: A run, any nn.Module that classifies, or the result of `svertka.evaluate`.
        source: Labeled images, as for `svertka.evaluate`. None: the held-out images of the run.
        size: Height and width of the images that an nn.Module takes, pixels. None: as for `Classifier.wrap`.

    Returns:
        The figure.

    Raises:
        UsageError: An nn.Module without `source`, or `source` holds no images to evaluate on.
        RunError: The run is missing or damaged.
        DataError: The source cannot be read or holds classes that the run does not know.
    """
    evaluation = _evaluated(model, source, size)
    counts, names = evaluation.confusion, [one.name for one in evaluation.per_class]
    left_out = ""
    if len(names) > MAX_NUMBERS:
        occurs = np.flatnonzero(counts.sum(0) + counts.sum(1))
        left_out = f"\n{len(occurs)} of {len(names):,} classes" if len(occurs) < len(names) else ""
        counts, names = counts[np.ix_(occurs, occurs)], [names[place] for place in occurs]
    totals = counts.sum(1, keepdims=True)
    shares = counts / np.where(totals, totals, 1)
    is_written = len(names) <= MAX_NUMBERS
    side = float(np.clip(0.42 * len(names), 3.2, 8)) + 1.2
    with new_figure(width=side + 0.6, height=side) as (figure, axes):
        axis = axes[0][0]
        axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        axis.set_xlabel("predicted class")
        axis.set_ylabel("true class")
        for spine in axis.spines.values():
            spine.set_visible(False)
        if is_written:
            axis.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
            axis.set_yticks(range(len(names)), names)
            for row, column in zip(*np.nonzero(counts), strict=True):
                color = "white" if shares[row, column] > 0.55 else "black"
                axis.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", color=color, fontsize=8)
        axis.set_title(f"top-1 error {_percent(evaluation)}, {evaluation.images:,} images{left_out}", loc="left")
    return figure


@check_types
def reliability(model: Model | Evaluation, source: Source | None = None, *, size: int | None = None) -> "Figure":
    """Show how often predictions are right by their confidence, with 95 % intervals; on the diagonal they are honest.

    Args:
        model: A run, any nn.Module that classifies, or the result of `svertka.evaluate`.
        source: Labeled images, as for `svertka.evaluate`. None: the held-out images of the run.
        size: Height and width of the images that an nn.Module takes, pixels. None: as for `Classifier.wrap`.

    Returns:
        The figure; the bars below are the number of images.

    Raises:
        UsageError: An nn.Module without `source`, or `source` holds no images to evaluate on.
        RunError: The run is missing or damaged.
        DataError: The source cannot be read or holds classes that the run does not know.
    """
    evaluation = _evaluated(model, source, size)
    calibration = evaluation.calibration
    if not calibration.bins:
        raise UsageError("there is no image with finite scores, so there is no confidence to show")
    confidences = [100 * one.confidence for one in calibration.bins]
    accuracies = [100 * one.accuracy for one in calibration.bins]
    intervals = [error_interval(1 - one.accuracy, one.images) for one in calibration.bins]
    below = [accuracy - 100 * (1 - high) for accuracy, (_, high) in zip(accuracies, intervals, strict=True)]
    above = [100 * (1 - low) - accuracy for accuracy, (low, _) in zip(accuracies, intervals, strict=True)]
    with new_figure(width=4.6, height=4.4) as (figure, axes):
        axis = axes[0][0]
        axis.plot([0, 100], [0, 100], color="#999", linewidth=1)
        axis.errorbar(confidences, accuracies, np.maximum([below, above], 0), fmt="o-", markersize=4, capsize=2)
        axis.set_xlabel("confidence, %")
        axis.set_ylabel("correct, %")
        axis.set_xlim(-3, 103)
        axis.set_ylim(-3, 103)
        counts = axis.twinx()
        images = [one.images for one in calibration.bins]
        counts.bar(confidences, images, width=3, color=COLORS[5], alpha=0.5)
        counts.set_ylim(0, 4 * max(images))
        counts.set_yticks([max(images)], [f"{max(images):,}"])
        counts.set_ylabel("images (bars)")
        few = "" if calibration.is_meaningful else ": few images"
        error = f"{100 * calibration.error:.1f} points"
        axis.set_title(f"calibration error {error}, {calibration.images:,} images{few}", loc="left", fontsize=9)
    return figure


@check_types
def top_losses(model: Model, source: Source | None = None, count: int = 12, *, size: int | None = None) -> "Figure":
    """Show the mistakes of which the network was most confident.

    Args:
        model: A run, or any nn.Module that classifies.
        source: Labeled images, as for `svertka.evaluate`. None: the held-out images of the run.
        count: The number of images, at most 24.
        size: Height and width of the images that an nn.Module takes, pixels. None: as for `Classifier.wrap`.

    Returns:
        The figure: above each image the predicted class with its probability, and the true class.

    Raises:
        UsageError: An nn.Module without `source`, `count` is not 1 to 24, or the network makes no mistake.
        RunError: The run is missing or damaged.
        DataError: The source cannot be read or holds classes that the run does not know.
    """
    if not 1 <= count <= 24:
        raise UsageError(f"count={count} must be 1 to 24")
    evaluation = _evaluated(model, source, size)
    if not evaluation.mistakes:
        raise UsageError(f"all {evaluation.images:,} images are classified correctly, so there is no mistake to show")
    dataset = _dataset(model, source)
    names = [one.name for one in evaluation.per_class]
    mistakes = evaluation.mistakes[:count]
    titles = [f"{names[one.predicted]}, {100 * one.probability:.0f} %\nis {names[one.label]}" for one in mistakes]
    tiles = [dataset.images.read(one.index) for one in mistakes]
    title = f"most confident mistakes, {int(evaluation.wrong.sum()):,} of {evaluation.images:,} images"
    return mosaic(tiles, titles, columns=min(6, len(tiles)), title=title, side=1.3)


def _evaluated(model: Model | Evaluation, source: Source | None, size: int | None) -> Evaluation:
    """Return the evaluation of a model on `source`, or on the held-out images of its run."""
    found = model if isinstance(model, Evaluation) else evaluate(model, _source(model, source), size=size)
    if not isinstance(found, Evaluation):
        raise UsageError(
            "the run predicts several labels or a number; this figure is of networks that predict one class"
        )
    return found


def _source(model: Model, source: Source | None) -> Source:
    if source is not None:
        return source
    if isinstance(model, nn.Module):
        raise UsageError(f"{type(model).__name__} has no images of its own; give labeled images as source=")
    folder = Path(model.origin if isinstance(model, Classifier) else model)
    return open_images_of_run(folder, None, None).source


def _dataset(model: Model, source: Source | None) -> Dataset:
    return open_source(_source(model, source), to_train=False)


def _percent(evaluation: Evaluation) -> str:
    low, high = evaluation.top1_interval
    return f"{100 * evaluation.top1_error:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
