"""Figures of arrays: images side by side, and curves."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from svertka.errors import UsageError
from svertka.plot.figure_canvas import COLORS, Pixels, draw_signed, mosaic, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def images(
    tiles: Any,
    titles: Sequence[str] = (),
    *,
    signed: bool = False,
    columns: int | None = None,
    side: float = 1.6,
    title: str = "",
) -> "Figure":
    """Show arrays as images.

    Gray images have their own contrast each. With `signed`, all share one scale: white is 0, blue positive, red
    negative.

    Args:
        tiles: Tensors or arrays (H, W), (1, H, W), (H, W, 3) or (3, H, W), in a list or as one array; colors are 0 to 1
            or uint8.
        titles: A line of text above each, or none.
        signed: Whether values are shown by their sign.
        columns: Number of images in a row; None: about as many as rows.
        side: Width of an image, inches, above 0.
        title: Text above all.

    Returns:
        The figure.

    Raises:
        UsageError: There is no image, an array is no image, or there are not as many titles as images.
    """
    arrays = [_as_tile(tile) for tile in tiles]
    if not arrays:
        raise UsageError("there are no images to show; give at least one")
    if titles and len(titles) != len(arrays):
        raise UsageError(f"there are {len(titles)} titles for {len(arrays)} images; give one for each, or none")
    largest = max(float(np.abs(array).max()) for array in arrays) or 1.0
    return mosaic(arrays, titles, columns, title, side, draw_signed(largest) if signed else None)


def curves(
    lines: Mapping[str, Any],
    *,
    x_label: str = "",
    y_label: str = "",
    log_x: bool = False,
    log_y: bool = False,
    title: str = "",
) -> "Figure":
    """Show named curves, with a legend if there are several.

    Args:
        lines: The values of each curve, (N,), or a pair (x, y) of such.
        x_label: Label of the horizontal axis.
        y_label: Label of the vertical axis.
        log_x: Whether the horizontal axis is logarithmic.
        log_y: Whether the vertical axis is logarithmic.
        title: Text above the curves.

    Returns:
        The figure.

    Raises:
        UsageError: There is no curve, or x and y of one differ in length.
    """
    if not lines:
        raise UsageError("there are no curves to show; give at least one")
    with new_figure(width=6.4, height=3.4) as (figure, axes):
        axis = axes[0][0]
        for number, (name, values) in enumerate(lines.items()):
            pair = values if isinstance(values, tuple) and len(values) == 2 else (range(len(values)), values)
            x, y = (np.asarray(one, dtype=np.float64) for one in pair)
            if x.shape != y.shape or x.ndim != 1:
                raise UsageError(f"{name} has x of {x.shape} and y of {y.shape}; give two rows of one length")
            marker = "o" if len(x) <= 16 else None
            axis.plot(x, y, label=name, color=COLORS[number % len(COLORS)], marker=marker, markersize=3)
        axis.set(xlabel=x_label, ylabel=y_label)
        if log_x:
            axis.set_xscale("log")
        if log_y:
            axis.set_yscale("log")
        if len(lines) > 1:
            axis.legend(frameon=False, fontsize=8)
        axis.set_title(title, loc="left")
    return figure


def _as_tile(tile: Any) -> Pixels:
    """Return an image as (H, W) or (H, W, 3).

    Raises:
        UsageError: It has another shape.
    """
    array: Pixels = np.asarray(tile.detach().cpu() if hasattr(tile, "detach") else tile)
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] != 3:
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] == 3):
        raise UsageError(f"an image has the shape {array.shape}; give (H, W), (H, W, 3) or (3, H, W)")
    return array
