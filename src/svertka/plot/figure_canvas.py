"""What the figures share: matplotlib, one style, mosaics, and the arguments that mean a network and its images."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from svertka.classifier import Classifier
from svertka.device import is_dense_with_values
from svertka.errors import UsageError
from svertka.graph.network_copy import refuse_lazy_layers
from svertka.pages.inline_images import show_bands

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Model = str | PathLike[str] | Classifier | nn.Module
Pixels = npt.NDArray[Any]
# Colors that color-blind people can tell apart, also in print: Okabe & Ito 2008.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
TITLE_WIDTH = 0.08  # inches of a character of the title above a mosaic
DIVERGING = "RdBu"  # safe for the color-blind: negative red, positive blue
STYLE: dict[str, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.axisbelow": True,
    "figure.constrained_layout.use": True,
}


@contextmanager
def new_figure(
    rows: int = 1, columns: int = 1, width: float = 6.4, height: float = 4.0
) -> Iterator[tuple["Figure", Any]]:
    """Yield a figure and its axes, (rows, columns), in svertka's style.

    Args:
        rows: Rows of axes.
        columns: Columns of axes.
        width: Width of the figure, inches.
        height: Height, inches.

    Raises:
        UsageError: matplotlib is not installed.
    """
    try:
        import matplotlib.pyplot as plt
        from cycler import cycler
    except ModuleNotFoundError as error:
        raise UsageError(f"figures need matplotlib ({error}); install it: pip install 'svertka[figures]'") from error
    style: Any = {**STYLE, "axes.prop_cycle": cycler(color=COLORS)}
    with plt.rc_context(style):
        figure, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False)
        plt.close(figure)  # else a notebook shows it twice, and pyplot keeps it
        yield figure, axes


def mosaic(
    tiles: Sequence[Pixels],
    titles: Sequence[str] = (),
    columns: int | None = None,
    title: str = "",
    side: float = 1.0,
    draw: Callable[[Any, Pixels], None] | None = None,
) -> "Figure":
    """Return a figure of images in rows.

    Args:
        tiles: Images, (H, W) or (H, W, 3); (H, W) without `draw` is shown in gray.
        titles: Lines of text above each, or none.
        columns: Number of images in a row; None: about as many as rows, at most 12.
        title: Text above all.
        side: Width of an image, inches, above 0.
        draw: Shows an image on axes.
    """
    columns = columns or min(12, max(1, math.ceil(math.sqrt(len(tiles) * 1.6))))
    rows = max(1, math.ceil(len(tiles) / columns))
    columns = min(columns, max(1, len(tiles)))
    extra = 0.06 + 0.16 * max((1 + one.count("\n") for one in titles), default=0)
    width = max(3.2, columns * (side + 0.06), TITLE_WIDTH * len(title))
    with new_figure(rows, columns, width, rows * (side + extra) + 0.35 * bool(title)) as (figure, axes):
        layout: Any = figure.get_layout_engine()
        layout.set(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
        for place, axis in enumerate(axes.flat):
            axis.axis("off")
            if place >= len(tiles):
                continue
            tile = tiles[place]
            if draw is not None:
                draw(axis, tile)
            else:
                axis.imshow(tile, cmap="gray", interpolation="nearest" if tile.shape[0] < 64 else "antialiased")
            if titles:
                axis.set_title(titles[place], fontsize=8, pad=2)
        if title:
            figure.suptitle(title, fontsize=10)
    return figure


def draw_signed(largest: float) -> Callable[[Any, Pixels], None]:
    """Return a function that shows values on a diverging scale: white at 0, full color at ±`largest`."""

    def draw(axis: Any, values: Pixels) -> None:
        axis.imshow(values, cmap=DIVERGING, vmin=-largest, vmax=largest, interpolation="nearest")

    return draw


def open_network(model: Model) -> tuple[nn.Module, Classifier | None]:
    """Return the network that `model` means, and its classifier; None for a plain nn.Module.

    Raises:
        UsageError: The network has lazy layers.
        RunError: The run is missing or damaged.
    """
    if isinstance(model, nn.Module):
        refuse_lazy_layers(model)
        return model, None
    classifier = Classifier.open(model)
    return classifier.network, classifier


def to_batch(images: Any, classifier: Classifier | None) -> Tensor:
    """Return images as the network takes them, (N, C, H, W).

    Args:
        images: A tensor (N, C, H, W) or (C, H, W), which is used as it is; or, for a run, one or several image files,
            PIL images or arrays, which are preprocessed as in its training.
        classifier: The run's.

    Raises:
        UsageError: The images are files, but nothing says how to preprocess them; a tensor has another shape or no
            values; or there are none.
    """
    if isinstance(images, Tensor):
        if not is_dense_with_values(images) or images.ndim not in (3, 4):
            raise UsageError(
                f"images are a {images.layout} tensor of {images.ndim} axes; give a dense one with values, (N, C, H, W)"
            )
        batch = images if images.ndim == 4 else images[None]
    elif classifier is None:
        raise UsageError(
            f"images are {type(images).__name__}, which a network without preprocessing cannot read; give a tensor "
            "(N, C, H, W), or a run or svertka.Classifier in place of the network"
        )
    else:
        several = images if isinstance(images, list | tuple) else [images]
        batch = torch.stack([classifier.preprocess(image) for image in several]) if several else torch.empty(0)
    if not len(batch):
        raise UsageError("there are no images to show; give at least one")
    return batch


def to_pixels(batch: Tensor, classifier: Classifier | None) -> Pixels:
    """Return network inputs as images to show, (N, H, W, 3) in 0 to 1.

    Without a classifier, whose normalization is undone, each image is stretched from its smallest to its largest value.
    """
    values = batch.detach().float().cpu()
    if classifier is not None:
        shape = (1, classifier.preprocess.channels, 1, 1)
        mean, std = (torch.tensor(one).view(shape) for one in (classifier.preprocess.mean, classifier.preprocess.std))
        values = (values * std + mean).clamp(0, 1)
    else:
        low, high = values.amin((1, 2, 3), keepdim=True), values.amax((1, 2, 3), keepdim=True)
        values = (values - low) / (high - low).clamp_min(1e-12)
    pixels = show_bands(values.permute(0, 2, 3, 1).numpy())
    return np.broadcast_to(pixels, (*pixels.shape[:-1], 3))


def choose_units(units: Sequence[int] | None, count: int, most: int) -> list[int]:
    """Return the units to show: those that are given, or up to `most` of `count`, evenly spread.

    Raises:
        UsageError: There is no such unit, or `units` is empty.
    """
    if units is None:
        return [int(unit) for unit in np.linspace(0, count - 1, min(most, count))]
    if not units:
        raise UsageError(f"units is empty; name at least one of the layer's {count}, or leave it out")
    if wrong := [unit for unit in units if not 0 <= unit < count]:
        raise UsageError(f"unit {wrong[0]} does not exist; the layer has {count} units, 0 to {count - 1}")
    return list(units)
