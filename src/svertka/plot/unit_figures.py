"""Figures of what a network looks at: top patches of units, their projections, and saliency of predictions."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svertka.errors import UsageError
from svertka.inspection.activations import convolution_names, hook_layers, layer_outputs, list_layers
from svertka.inspection.checked_forward_pass import call_network
from svertka.inspection.deconvolution.deconvnet import project
from svertka.inspection.deconvolution.deconvnet import to_images as projections_to_images
from svertka.inspection.maximally_activating_patches import LayerPatches
from svertka.inspection.maximally_activating_patches import top_patches as find_top_patches
from svertka.inspection.saliency import grad_cam, guided_backpropagation
from svertka.plot.figure_canvas import (
    Model,
    Pixels,
    choose_units,
    mosaic,
    new_figure,
    open_network,
    to_batch,
    to_pixels,
)
from svertka.type_checking import check_types

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_UNITS = 8  # units that are shown unless they are given
PATCHES = 9  # of each unit
MAX_IMAGES = 6  # rows of saliency


@check_types
def top_patches(
    model: Model, images: Any, layer: str | None = None, units: Sequence[int] | None = None, count: int = PATCHES
) -> "Figure":
    """Show the image patches that activate units most, a row for each unit, strongest first.

    Args:
        model: A run, or any nn.Module.
        images: A tensor (N, C, H, W) as the network takes it; for a run, also a list of image files, PIL images or
            arrays.
        layer: Name of the layer. None: the last convolution.
        units: The units to show. None: up to 8 that are not dead, evenly spread.
        count: Patches of each unit, 1 or more.

    Returns:
        The figure. A dead unit has an empty row that says so.

    Raises:
        UsageError: There is no such layer or unit, the layer gives NaN, or the network cannot run on the images.
        RunError: The run is missing or damaged.
    """
    network, classifier = open_network(model)
    batch = to_batch(images, classifier)
    found, chosen = _strongest(network, batch, layer, units, count)
    pixels = to_pixels(batch, classifier)
    tiles, titles = [], []
    for unit in chosen:
        for place in range(found.images.shape[1]):
            tiles.append(_patch(found, pixels, unit, place))
            titles.append(_unit_title(found, unit, place))
    title = f"{found.layer}: patches with the largest activations, of {len(batch)} images"
    return mosaic(tiles, titles, columns=found.images.shape[1], title=title)


@check_types
def projections(
    model: Model, images: Any, layer: str | None = None, units: Sequence[int] | None = None, count: int = PATCHES
) -> "Figure":
    """Show top patches of units and, below each, the projection of its activation to pixels by deconvolution.

    Args:
        model: A run, or any nn.Module.
        images: As for `top_patches`.
        layer: Name of the layer. None: the last convolution.
        units: The units to show. None: up to 8 that are not dead, evenly spread.
        count: Patches of each unit, 1 or more.

    Returns:
        The figure.

    Raises:
        UsageError: As for `top_patches`.
        RunError: The run is missing or damaged.

    Source: Zeiler & Fergus 2014, "Visualizing and understanding convolutional networks", figure 2.
    """
    network, classifier = open_network(model)
    batch = to_batch(images, classifier)
    found, chosen = _strongest(network, batch, layer, units, count)
    pixels = to_pixels(batch, classifier)
    tiles, titles = [], []
    for unit in chosen:
        places = [place for place in range(found.images.shape[1]) if found.images[unit, place] >= 0]
        blank = [np.ones((1, 1, 3))] * (found.images.shape[1] - len(places))
        below: list[Pixels] = []
        if places:
            projected = project(
                network,
                batch,
                found.layer,
                [unit] * len(places),
                found.positions[unit, places].tolist(),
                found.images[unit, places].tolist(),
            )
            shown = projections_to_images(projected)
            below = [_crop(shown[row], found.boxes[unit, place]) for row, place in enumerate(places)]
        tiles += [_patch(found, pixels, unit, place) for place in range(found.images.shape[1])] + below + blank
        titles += [_unit_title(found, unit, place) for place in range(found.images.shape[1])]
        titles += [""] * found.images.shape[1]
    title = f"{found.layer}: patches, and below each what in it activates the unit"
    return mosaic(tiles, titles, columns=found.images.shape[1], title=title)


@check_types
def saliency(model: Model, images: Any, classes: Sequence[int] | int | None = None) -> "Figure":
    """Show, for each image, Grad-CAM and guided backpropagation of one class.

    Args:
        model: A run, or any nn.Module that classifies.
        images: A tensor (N, C, H, W) as the network takes it; for a run, also image files, PIL images or arrays. The
            first 6 are shown.
        classes: The class of each image, or one for all. None: the predicted ones.

    Returns:
        The figure: the image, the heat map over it, and the gradient.

    Raises:
        UsageError: There is no such class, or the network cannot run on the images.
        RunError: The run is missing or damaged.
    """
    network, classifier = open_network(model)
    batch = to_batch(images, classifier)[:MAX_IMAGES]
    if classes is None:
        with hook_layers(network, [], {}), torch.no_grad():  # in evaluation mode
            scores = call_network(network, batch)
        if not isinstance(scores, Tensor) or scores.ndim != 2:
            raise UsageError(f"{type(network).__name__} does not return scores (N, K), so it predicts no class")
        targets = scores.argmax(1).tolist()
    else:
        targets = [classes] * len(batch) if isinstance(classes, int) else list(classes)[:MAX_IMAGES]
    heat = grad_cam(network, batch, targets)
    gradients = projections_to_images(guided_backpropagation(network, batch, targets))
    pixels = to_pixels(batch, classifier)
    heat = F.interpolate(heat[:, None].float(), size=pixels.shape[1:3], mode="bilinear", align_corners=False)[:, 0]
    with new_figure(len(batch), 3, 6.6, 2.2 * len(batch) + 0.2) as (figure, axes):
        for row, (image, warm, gradient, target) in enumerate(zip(pixels, heat, gradients, targets, strict=True)):
            name = str(target) if classifier is None else classifier.names[target]
            for axis, tile, title in zip(
                axes[row], (image, image, gradient), (f"evidence for {name}", "Grad-CAM", "guided backpropagation"),
                strict=True,
            ):  # fmt: skip
                axis.imshow(tile)
                axis.set_title(title, fontsize=8)
                axis.axis("off")
            axes[row][1].imshow(warm.cpu().numpy(), cmap="inferno", alpha=0.6)
    return figure


def _strongest(
    network: nn.Module, batch: Tensor, layer: str | None, units: Sequence[int] | None, count: int
) -> tuple[LayerPatches, list[int]]:
    """Return the patches of a layer and the units to show."""
    if layer is None:
        names = convolution_names(list_layers(network, tuple(batch.shape)))
        if not names:
            raise UsageError(f"{type(network).__name__} has no convolution with feature maps; name a layer")
        layer = names[-1]
    found = find_top_patches(network, batch, layer, min(count, len(batch)) if count >= 1 else count)[layer]
    if found.is_dead.any():  # a unit that is NaN counts as inactive
        with torch.no_grad():
            output = layer_outputs(network, batch, [found.observed_layer])[found.observed_layer]
        if output.isnan().any():
            raise UsageError(f"layer={layer} gives NaN; check the weights and the images for NaN and inf")
    if units is not None:
        return found, choose_units(units, len(found.values), MAX_UNITS)
    alive = np.flatnonzero(~found.is_dead)
    if not len(alive):
        read = "" if found.observed_layer == layer else f", read after {found.observed_layer},"
        raise UsageError(f"all {len(found.values)} units of {layer}{read} are dead on these images; give others")
    return found, [int(alive[place]) for place in choose_units(None, len(alive), MAX_UNITS)]


def _patch(found: LayerPatches, pixels: Pixels, unit: int, place: int) -> Pixels:
    """Return the patch of a unit, white where fewer images activate it."""
    index = found.images[unit, place]
    return np.ones((1, 1, 3)) if index < 0 else _crop(pixels[index], found.boxes[unit, place])


def _crop(image: Pixels, box: Pixels) -> Pixels:
    top, left, bottom, right = box
    return image[top:bottom, left:right]


def _unit_title(found: LayerPatches, unit: int, place: int) -> str:
    if place:
        return ""
    return f"unit {unit}, dead" if found.is_dead[unit] else f"unit {unit}"
