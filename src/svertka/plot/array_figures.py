"""Figures of arrays: images side by side, and curves."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from svertka.device import is_dense_with_values
from svertka.errors import UsageError
from svertka.plot.figure_canvas import COLORS, Pixels, draw_signed, mosaic, new_figure
from svertka.type_checking import check_types

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@check_types
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
        tiles: Tensors or arrays (H, W), (1, H, W), (H, W, 3) or (3, H, W), in a list or as one array; colors are 0 to
            1, or integers from 0 to 255. Colors outside are clipped.
        titles: A line of text above each, or none.
        signed: Whether values are shown by their sign.
        columns: Number of images in a row; None: about as many as rows.
        side: Width of an image, inches, above 0.
        title: Text above all.

    Returns:
        The figure.

    Raises:
        UsageError: There is no image, an array is no image, there are not as many titles as images, or `columns` or
            `side` is too small.
    """
    if columns is not None and columns < 1:
        raise UsageError(f"columns={columns} must be at least 1")
    if not 0.1 <= side <= 100:
        raise UsageError(f"side={side} must be 0.1 to 100 inches")
    try:
        several = list(tiles)
    except TypeError as error:  # a number, or a tensor without axes
        raise UsageError(f"images are {type(tiles).__name__}; give a list of arrays, or one array (N, H, W)") from error
    arrays = [_as_tile(tile, signed=signed) for tile in several]
    if not arrays:
        raise UsageError("there are no images to show; give at least one")
    if titles and len(titles) != len(arrays):
        raise UsageError(f"there are {len(titles)} titles for {len(arrays)} images; give one for each, or none")
    largest = max(float(np.abs(array[np.isfinite(array)]).max(initial=0)) for array in arrays) or 1.0
    return mosaic(arrays, titles, columns, title, side, draw_signed(largest) if signed else None)


@check_types
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
        UsageError: There is no curve, x and y of one differ in length, or one has no value that can be drawn.
    """
    if not lines:
        raise UsageError("there are no curves to show; give at least one")
    with new_figure(width=6.4, height=3.4) as (figure, axes):
        axis = axes[0][0]
        for number, (name, values) in enumerate(lines.items()):
            x, y = _to_curve(name, values)
            if not (np.isfinite(x) & np.isfinite(y) & ((x > 0) | (not log_x)) & ((y > 0) | (not log_y))).any():
                logarithmic = " above 0, as a logarithmic axis needs" if log_x or log_y else ""
                raise UsageError(f"{name} has no values to draw; give finite numbers{logarithmic}")
            marker = "o" if len(x) <= 16 else None
            axis.plot(x, y, label=name, color=COLORS[number % len(COLORS)], marker=marker, markersize=3)
        axis.set(xlabel=x_label, ylabel=y_label)
        if log_x:
            axis.set_xscale("log")
        if log_y:
            axis.set_yscale("log")
        if len(lines) > 1:
            axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))  # not on a curve
        axis.set_title(title, loc="left")
    return figure


def _to_curve(name: str, values: Any) -> tuple[Pixels, Pixels]:
    """Return x and y of a curve, (N,) float64 each.

    Raises:
        UsageError: They are not two rows of one length.
    """
    if isinstance(values, tuple) and len(values) == 2:
        x, y = (_to_array(one, name).astype(np.float64) for one in values)
    else:
        y = _to_array(values, name).astype(np.float64)
        x = np.arange(y.shape[0] if y.ndim else 0, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise UsageError(f"{name} has x of {x.shape} and y of {y.shape}; give two rows of one length")
    return x, y


def _as_tile(tile: Any, *, signed: bool) -> Pixels:
    """Return an image as (H, W), or (H, W, 3) in 0 to 1 or uint8.

    Raises:
        UsageError: It has another shape, holds no pixels, or is in color although signs are shown.
    """
    array = _to_array(tile, "an image")
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] != 3:
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] == 3):
        raise UsageError(f"an image has the shape {array.shape}; give (H, W), (H, W, 3) or (3, H, W)")
    if not array.size:
        raise UsageError(f"an image of shape {array.shape} holds no pixels; give at least one")
    if array.ndim == 2:
        return array
    if signed:
        raise UsageError("an image has three colors, whose signs cannot be shown; give (H, W), or leave signed out")
    if not np.isfinite(array).all():
        raise UsageError("an image has colors that are NaN or infinite; give 0 to 1")
    return array.clip(0, 1) if array.dtype.kind == "f" else array.clip(0, 255).astype(np.uint8)


def _to_array(values: Any, what: str) -> Pixels:
    """Return real numbers as an array of integers, or of float32 or float64.

    Args:
        values: A tensor on any device, with or without gradients; an array; or nested lists.
        what: Names the values in an error.

    Raises:
        UsageError: They are not real numbers, or have no single shape.
    """
    if isinstance(values, Tensor):
        if not is_dense_with_values(values) or values.is_complex():
            raise UsageError(f"{what} is a tensor of {values.dtype} without plain values; give a dense, real tensor")
        values = values.detach().cpu()
        values = (
            values.float() if values.is_floating_point() and values.itemsize < 4 else values
        )  # NumPy lacks bfloat16
    elif isinstance(values, list | tuple):
        values = [one.item() if isinstance(one, Tensor) and one.numel() == 1 else one for one in values]
    try:
        array: Pixels = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:  # such as lists of different lengths
        raise UsageError(f"{what} is no array of numbers; give numbers of one shape") from error
    if array.dtype.kind not in "biuf":
        kind = "text" if array.dtype.kind in "SU" else array.dtype
        raise UsageError(f"{what} is no array of real numbers, but of {kind}; give numbers")
    if array.dtype.kind == "b":
        return array.astype(np.float32)
    return array.astype(np.float32) if array.dtype.itemsize < 4 and array.dtype.kind == "f" else array
