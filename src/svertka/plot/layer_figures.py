"""Figures of layers: first-layer filters, feature maps, receptive fields, and parameters and multiply-adds."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from svertka.device import is_dense_with_values
from svertka.errors import UsageError
from svertka.graph.layer_table import LayerTable, summary
from svertka.inspection.activations import layer_outputs
from svertka.inspection.first_layer_filters import get_first_layer_filters
from svertka.plot.figure_canvas import (
    COLORS,
    Model,
    choose_units,
    draw_signed,
    mosaic,
    new_figure,
    open_network,
    to_batch,
)
from svertka.type_checking import check_types

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_MAPS = 48  # feature maps that are shown unless units are given


@check_types
def first_layer_filters(model: Model) -> "Figure":
    """Show the filters of the first convolution, similar ones next to each other.

    Filters for RGB are shown in color, gray being a weight of 0, and each with its own contrast. Filters for one
    channel are shown on a scale from red (negative) to blue (positive).

    Args:
        model: A run, or any nn.Module.

    Returns:
        The figure.

    Raises:
        UsageError: The first convolution does not read an image of 1 or 3 channels, or matplotlib is not installed.
        RunError: The run is missing or damaged.
    """
    found = get_first_layer_filters(open_network(model)[0])
    order = found.similarity_order
    title = f"{len(order)} filters of {found.layer}, {found.weights.shape[1]}×{found.weights.shape[2]}"
    if found.weights.shape[3] == 1:
        weights = found.weights[order, :, :, 0]
        return mosaic(list(weights), title=title, side=0.7, draw=draw_signed(float(np.abs(weights).max()) or 1.0))
    return mosaic(list(found.to_images()[order]), title=title, side=0.7)


@check_types
def feature_maps(model: Model, images: Any, layer: str, units: Sequence[int] | None = None) -> "Figure":
    """Show what a layer makes of an image.

    All maps share one scale: white is 0, blue positive, red negative.

    Args:
        model: A run, or any nn.Module.
        images: The image: a tensor (C, H, W) or (1, C, H, W) as the network takes it; for a run, also an image file, a
            PIL image or an array. Of several, the first is shown.
        layer: Name of the layer, as in `svertka.summary`.
        units: The channels to show. None: up to 48, evenly spread.

    Returns:
        The figure.

    Raises:
        UsageError: There is no such layer or unit, the layer has no feature maps, or the network cannot run on the
            image.
        RunError: The run is missing or damaged.
    """
    network, classifier = open_network(model)
    with torch.no_grad():
        output = layer_outputs(network, to_batch(images, classifier)[:1], [layer])[layer]
    if output.ndim != 4:
        shape = "×".join(map(str, output.shape[1:]))
        raise UsageError(f"layer={layer} has the output {shape}, which is no set of feature maps; give a convolution")
    if not is_dense_with_values(output) or output.is_complex() or not output.isfinite().all():
        raise UsageError(
            f"layer={layer} gives values that are NaN, infinite, complex or missing; check the weights and the image"
        )
    maps = output[0].float().cpu().numpy()
    chosen = choose_units(units, len(maps), MAX_MAPS)
    title = f"{layer}: {len(chosen)} of {len(maps)} feature maps of {maps.shape[1]}×{maps.shape[2]}"
    largest = float(np.abs(maps[chosen]).max()) or 1.0
    return mosaic(
        [maps[unit] for unit in chosen], [str(unit) for unit in chosen], title=title, draw=draw_signed(largest)
    )


@check_types
def receptive_fields(model: Model, size: int | tuple[int, ...] | None = None) -> "Figure":
    """Show how the height of the receptive field grows from layer to layer, and that of the feature maps beside it.

    Args:
        model: A run, or any nn.Module.
        size: The image, as for `svertka.summary`. None: that of the run; 224 for an nn.Module.

    Returns:
        The figure.

    Raises:
        UsageError: The network cannot be traced with such an image.
        RunError: The run is missing or damaged.
    """
    table = _table(model, size)
    layers = [layer for layer in table.trace.layers if layer.fields and layer.fields[0].grid and len(layer.shape) == 4]
    if not layers:
        raise UsageError(f"{table.name} has no layer with feature maps, so it has no receptive fields to show")
    with new_figure(1, 2, 9.6, max(2.4, 0.17 * len(layers) + 0.9)) as (figure, axes):
        places, names = range(len(layers)), [layer.name for layer in layers]
        fields = [layer.fields[0].extent for layer in layers]
        left, right = axes[0]
        left.barh(places, fields, color=COLORS[0])
        height = table.shape[2]
        left.axvline(height, color=COLORS[1], linewidth=1)
        above = left.get_xaxis_transform()  # pixels to the right, and the axes' height upwards
        left.annotate(
            f"image: {height}", (height, 1), xycoords=above, color=COLORS[1], fontsize=8, ha="center", va="bottom"
        )
        left.set_xlabel("height of the receptive field, pixels")
        left.set_yticks(places, names, fontsize=7)
        right.barh(places, [layer.shape[2] for layer in layers], color=COLORS[2])
        right.set_xlabel("height of the feature maps")
        right.set_yticks([])
        for axis, values in ((left, fields), (right, [layer.shape[2] for layer in layers])):
            axis.invert_yaxis()
            for place, value in enumerate(values):
                axis.annotate(f" {value}", (value, place), va="center", fontsize=7)
        figure.suptitle(f"{table.name}, {'×'.join(map(str, table.shape[1:]))}", fontsize=10)
    return figure


@check_types
def layer_table(model: Model, size: int | tuple[int, ...] | None = None) -> "Figure":
    """Show the parameters and the multiply-adds of each layer that has any.

    Args:
        model: A run, or any nn.Module.
        size: The image, as for `svertka.summary`. None: that of the run; 224 for an nn.Module.

    Returns:
        The figure.

    Raises:
        UsageError: The network cannot be traced with such an image, or no layer has parameters.
        RunError: The run is missing or damaged.
    """
    table = _table(model, size)
    layers = [layer for layer in table.trace.layers if layer.parameters or layer.multiply_adds]
    if not layers:
        raise UsageError(f"{table.name} has no layer with parameters or multiply-adds, so there is nothing to show")
    counts = {
        "parameters": [layer.parameters for layer in layers],
        "multiply-adds": [layer.multiply_adds for layer in layers],
    }
    with new_figure(1, 2, 9.6, max(2.4, 0.17 * len(layers) + 0.9)) as (figure, axes):
        for axis, (what, numbers), color in zip(axes[0], counts.items(), COLORS, strict=False):
            total = sum(numbers)
            axis.barh(range(len(layers)), numbers, color=color)
            axis.set_xlabel(f"{what}, {total:,} in all")
            axis.ticklabel_format(axis="x", style="plain")
            axis.xaxis.set_major_formatter(lambda number, _: _short(number))
            axis.invert_yaxis()
            for place, number in enumerate(numbers):
                share = f" {100 * number / total:.1f} %" if number else ""
                axis.annotate(share, (number, place), va="center", fontsize=7)
            axis.margins(x=0.15)
        axes[0][0].set_yticks(range(len(layers)), [layer.name for layer in layers], fontsize=7)
        axes[0][1].set_yticks([])
        figure.suptitle(f"{table.name}, {'×'.join(map(str, table.shape[1:]))}", fontsize=10)
    return figure


def _table(model: Model, size: int | tuple[int, ...] | None) -> LayerTable:
    """Return the layer table of a network on images of `size`, by default those of its run."""
    network, classifier = open_network(model)
    if size is None:
        size = 224 if classifier is None else classifier.preprocess.input_shape
    return summary(network, size)


def _short(number: float) -> str:
    """Format a count for an axis: 1.5 M."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= unit:
            return f"{number / unit:g} {name}"
    return f"{number:g}"
