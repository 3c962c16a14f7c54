"""Figures of a training: loss and error by epoch, the learning-rate finder, and augmented training images."""

import math
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np
import torch

from svertka.data.dataset import Dataset
from svertka.data.loader import BatchLoader
from svertka.errors import UsageError
from svertka.evaluation.run_images import open_images_of_run, spread_evenly
from svertka.evaluation.training_curves import TrainingCurves, bucket_means, read_metric
from svertka.plot.figure_canvas import COLORS, mosaic, new_figure, to_pixels
from svertka.run import Run
from svertka.tasks import Regression, format_number
from svertka.training.recipe import Recipe
from svertka.type_checking import check_types

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RunFolder = Run | str | PathLike[str]
# Of a line of metrics.jsonl: its figure is not empty if one of them is finite.
DRAWN = ("loss", "error", "train_loss", "train_error", "val_loss", "val_error", "learning_rate")


@check_types
def learning_curves(run: RunFolder) -> "Figure":
    """Show loss, error and learning rate of a run by epoch; the epoch whose weights were kept is marked.

    The training curve is that of the augmented training images during the epoch, so it may be above the validation
    curve.

    Args:
        run: A run folder.

    Returns:
        The figure.

    Raises:
        UsageError: Nothing of the training is recorded, or the last layer was fitted at once, without steps.
        RunError: The run is missing or damaged.
    """
    folder = _as_run(run)
    curves = TrainingCurves.of_run(folder)
    if curves.is_fitted:
        raise UsageError(
            f"{folder.folder} has no training curves: its last layer was fitted at once, without steps; train one with "
            "steps (--epochs 30), or use plot.confusion"
        )
    if not any(math.isfinite(read_metric(line, name)) for line in curves.epochs + curves.steps for name in DRAWN):
        raise UsageError(f"{folder.folder} has no recorded epoch or step yet; train it first")
    smooth = bucket_means(curves.steps, ("epoch", "loss", "error"))
    error_title = curves.error_title.lower() + ", %" * curves.is_share
    with new_figure(1, 3, 11, 3.2) as (figure, axes):
        for axis, what, title in (
            (axes[0][0], "loss", f"loss{curves.loss_unit}"), (axes[0][1], "error", error_title),
        ):  # fmt: skip
            factor = 100 if what == "error" and curves.is_share else 1
            values = [factor * value for value in smooth[what]]
            axis.plot(smooth["epoch"], values, color=COLORS[0], alpha=0.35, linewidth=1)
            highest = max((value for value in values if math.isfinite(value)), default=0.0)
            ends = {}
            for kind, style in (("train", "-"), ("val", "--")):
                points = [(read_metric(one, "epoch"), read_metric(one, f"{kind}_{what}")) for one in curves.epochs]
                points = [(x, factor * y) for x, y in points if math.isfinite(y)]
                if points:
                    axis.plot(*zip(*points, strict=True), style, color=COLORS[0])
                    ends[{"train": "training", "val": "validation"}[kind]] = points[-1]
                    highest = max(highest, *(y for _, y in points))
            for label, place in zip(sorted(ends, key=lambda name: ends[name][1]), ("top", "bottom"), strict=False):
                axis.annotate(f" {label}", ends[label], color=COLORS[0], fontsize=8, va=place)
            axis.set_title(title, loc="left")
            axis.set_xlabel("epoch")
            axis.margins(x=0.12)
            if what == "loss" and highest > 0:
                axis.set_yscale("log")
            if curves.best_epoch is not None:
                axis.axvline(read_metric(curves.best_epoch, "epoch"), color=COLORS[1], linewidth=1)
        lines = curves.steps or curves.epochs
        axes[0][2].plot(
            [read_metric(one, "epoch") for one in lines],
            [read_metric(one, "learning_rate") for one in lines],
            color=COLORS[2],
        )
        axes[0][2].set_title("learning rate", loc="left")
        axes[0][2].set_xlabel("epoch")
        kept = "" if curves.best_epoch is None else f"; kept: epoch {read_metric(curves.best_epoch, 'epoch'):g}"
        figure.suptitle(f"{folder.name}{kept}", fontsize=10)
    return figure


@check_types
def lr_finder(run: RunFolder) -> "Figure":
    """Show the loss against the learning rate, as the learning-rate finder measured it before the training.

    Args:
        run: A run folder, trained with the learning rate "find".

    Returns:
        The figure.

    Raises:
        UsageError: The run was trained at a given learning rate, so the finder did not run.
        RunError: The run is missing or damaged.
    """
    folder = _as_run(run)
    curves = TrainingCurves.of_run(folder)
    points, chosen = curves.lr_finder_curve()
    points = [(rate, loss) for rate, loss in points if math.isfinite(loss)]
    if len(points) < 2:
        raise UsageError(f"{folder.folder} has no curve of the learning-rate finder; train it with lr='find'")
    with new_figure(height=3.4) as (figure, axes):
        axis = axes[0][0]
        axis.plot(*zip(*points, strict=True))
        axis.set_xscale("log")
        axis.set_xlabel("learning rate")
        axis.set_ylabel(f"loss{curves.loss_unit}")
        if chosen > 0:
            axis.axvline(chosen, color=COLORS[1], linewidth=1)
            axis.annotate(f" chosen: {chosen:.2g}", (chosen, max(loss for _, loss in points)), color=COLORS[1])
        figure.suptitle(folder.name, fontsize=10)
    return figure


@check_types
def show_batch(run: RunFolder, count: int = 8, draws: int = 4, seed: int = 0) -> "Figure":
    """Show training images as the network saw them: the original images above random augmentations.

    Args:
        run: A run folder.
        count: Number of images, evenly spread over the data set.
        draws: Augmented versions of each, 1 or more.
        seed: Seed of the augmentations.

    Returns:
        The figure. Above each image is its class, its labels joined by |, or its number.

    Raises:
        UsageError: `count` or `draws` is below 1.
        RunError: The run is missing or damaged, or its images are no longer there.
        DataError: The images cannot be read.
    """
    if count < 1 or draws < 1:
        raise UsageError(f"count={count} and draws={draws} must be at least 1")
    folder = _as_run(run)
    classifier, settings = folder.classifier(), folder.settings()
    recipe, side = Recipe.model_validate(settings["recipe"]), int(settings["stored_side"])
    preprocess = classifier.preprocess
    dataset = open_images_of_run(folder.folder, None, None).with_intensity_range(preprocess.intensity_range)
    chosen = spread_evenly(len(dataset), count)
    stored = preprocess if side == preprocess.side else preprocess.model_copy(update={"resize": side})
    squares = np.stack([stored.square(dataset.images.read(int(index))) for index in chosen])
    batches = [preprocess.normalize(torch.from_numpy(squares).permute(0, 3, 1, 2))]
    if not recipe.augmentations:
        draws = 0
    for draw in range(draws):
        loader = BatchLoader(
            squares, dataset.labels[chosen], np.arange(len(chosen)), preprocess, batch_size=len(chosen),
            seed=seed + draw, augmentations=recipe.augmentations,
        )  # fmt: skip
        batches.append(next(iter(loader.epoch(0))).images)
    tiles = [tile for batch in batches for tile in to_pixels(batch, classifier)]
    titles = [_target_text(dataset, int(index)) for index in chosen] + [""] * (draws * len(chosen))
    names = ", ".join(type(one).__name__ for one in recipe.augmentations)
    title = f"{folder.name}: images, and {draws} draws of {names}" if names else f"{folder.name}: no augmentations"
    return mosaic(tiles, titles, columns=len(chosen), title=title)


def _target_text(dataset: Dataset, index: int) -> str:
    if isinstance(dataset.task, Regression):
        return format_number(float(dataset.labels[index]))  # label_text gives 17 digits
    return dataset.label_text(index)


def _as_run(run: RunFolder) -> Run:
    return run if isinstance(run, Run) else Run(run)
