"""Files of the images in an atlas: sprite sheets, predictions, the strongest units, and saliency overlays."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from svertka.data.dataset import Ints
from svertka.graph.summary import Layer, Trace
from svertka.inspection.activations import hook_layers, list_layers
from svertka.inspection.atlas.classifier_and_images import AtlasInputs
from svertka.inspection.atlas.layer_data import AtlasLayer
from svertka.inspection.atlas.resumable_folder import ResumableFolder
from svertka.inspection.atlas.sprite_sheets import MAX_CRISP_IMAGE, encode_sheet, images_per_row, to_rgb
from svertka.inspection.deconvolution.deconvnet import to_images
from svertka.inspection.maximally_activating_patches import LayerPatches
from svertka.inspection.saliency import grad_cam, guided_backpropagation, occlusion
from svertka.pages.inline_images import encode_webp
from svertka.tasks import Regression

IMAGES_PER_SCRIPT = 32
PREDICTIONS_PER_IMAGE = 5
UNITS_PER_LAYER = 6  # strongest units listed for an image and a layer
MAX_OVERLAY_IMAGES = 40  # overlays take a few hundred forward passes per image
OVERLAY_BUDGET = 500_000_000_000  # multiply-adds of the overlays of a quick atlas
IMAGE_QUALITY = 68
OCCLUSION_STEPS = 14  # positions of the occluding square along each side, approximately
OCCLUSION_FRACTION = 6  # image side over side of the occluding square
OVERLAY_OPACITY = 0.85  # where the heat map is 0


@dataclass(frozen=True, eq=False)
class AtlasImages:
    """The images that an atlas contains: those among the strongest of any unit.

    Attributes:
        indices: (n,) indices in the data set, ascending; the atlas numbers its images from 0 in this order.
        slots: (N,) number within the atlas of each image of the data set; −1 if it is not in the atlas.
        with_overlays: Numbers within the atlas of the images that get saliency overlays.
    """

    indices: Ints
    slots: Ints
    with_overlays: Ints


def choose_overlay_count(trace: Trace, size: int, *, every: bool) -> int:
    """Return how many images get overlays: those that take about ten seconds on two cores, at least one.

    Args:
        trace: Trace of the network.
        size: Side of the network's input, pixels.
        every: Whether time does not matter.
    """
    affordable = MAX_OVERLAY_IMAGES if every else OVERLAY_BUDGET // (num_overlay_passes(size) * trace.multiply_adds + 1)
    return min(MAX_OVERLAY_IMAGES, max(1, affordable))


def select_atlas_images(patches: Sequence[LayerPatches], labels: Ints, overlays: int) -> AtlasImages:
    """Select the strongest images of all units, and `overlays` of them, from every class, for overlays."""
    indices = np.unique(np.concatenate([one.images.ravel() for one in patches]))
    indices = indices[indices >= 0]
    if not len(indices):  # all units are dead; the receptive fields are still drawn over an image
        indices = np.zeros(1, np.int64)
    slots = np.full(len(labels), -1, np.int64)
    slots[indices] = np.arange(len(indices))
    # The first image of each class comes first, then the second of each, and so on.
    rank_in_class = np.zeros(len(indices), np.int64)
    for label in np.unique(labels[indices]):
        of_class = labels[indices] == label
        rank_in_class[of_class] = np.arange(of_class.sum())
    with_overlays = np.lexsort((labels[indices], rank_in_class))[:overlays]
    return AtlasImages(indices, slots, np.sort(with_overlays))


def write_image_data(
    images: AtlasImages,
    layers: Sequence[AtlasLayer],
    inputs: AtlasInputs,
    folder: ResumableFolder,
    advance: Callable[[int, int], None],
) -> None:
    """Write the missing files of the images.

    Args:
        images: Images of the atlas.
        layers: Layers of the atlas.
        inputs: Classifier and images.
        folder: Folder of the atlas.
        advance: Called with the number of images just finished, and the number of those with overlays.

    Raises:
        StorageError: The disk is full or the folder cannot be written.
    """
    _write_sheets(images, inputs, folder)
    known = list_layers(inputs.classifier.network, inputs.input_shape)
    predictions: list[int | str] = []
    for index, first in enumerate(range(0, len(images.indices), IMAGES_PER_SCRIPT)):
        key = f"pictures-{index}"
        chunk = range(first, min(first + IMAGES_PER_SCRIPT, len(images.indices)))
        records = _predict(images, chunk, layers, inputs, known)
        predictions += [_describe_prediction(record["best"][0], inputs) for record in records]
        if f"data/{key}.js" not in folder:
            _write_overlays(images, chunk, records, inputs, folder)
            folder.write_script(f"data/{key}.js", key, records)
        advance(len(chunk), len(_slots_with_overlays(images, chunk)))
    labels = inputs.shown_labels[1][images.indices].tolist()
    names = [inputs.image_name(int(index)) for index in images.indices]
    folder.write_script("data/pictures.js", "pictures", {"names": list(zip(names, labels, predictions, strict=True))})


def _describe_prediction(best: tuple[int, float], inputs: AtlasInputs) -> int | str:
    """Return the number of the most probable class or label, or the predicted number as text."""
    label, value = best
    return f"{value:.4g}" if isinstance(inputs.classifier.task, Regression) else label


def _write_sheets(images: AtlasImages, inputs: AtlasInputs, folder: ResumableFolder) -> None:
    columns = images_per_row(inputs.image_size)
    crisp = inputs.image_size <= MAX_CRISP_IMAGE
    for index, first in enumerate(range(0, len(images.indices), columns**2)):
        name = f"pictures/{index}.webp"
        if name not in folder:
            pixels = to_rgb(inputs.pixels(images.indices[first : first + columns**2]))
            folder.write(name, encode_sheet(list(pixels), columns, crisp=crisp, quality=IMAGE_QUALITY))
    example = to_rgb(inputs.pixels(images.indices[images.with_overlays[:1]]))[0]
    folder.write("pictures/example.webp", encode_webp(example, exact=crisp))


def _predict(
    images: AtlasImages, chunk: range, layers: Sequence[AtlasLayer], inputs: AtlasInputs, known: Sequence[Layer]
) -> list[dict[str, Any]]:
    """Return a record for each image of `chunk`: its most probable classes and the strongest units of each layer."""
    records: list[dict[str, Any]] = []
    maxima: dict[str, Tensor] = {}
    observed = [layer.patches.observed_layer for layer in layers]
    network = inputs.classifier.network
    with torch.inference_mode(), hook_layers(network, known, {name: _max_hook(maxima, name) for name in observed}):
        for batch in inputs.batches(images.indices[chunk.start : chunk.stop]).epoch(0):
            probabilities = inputs.classifier.task.activate(network(batch.images).float()).cpu()
            best = probabilities.topk(min(PREDICTIONS_PER_IMAGE, probabilities.shape[1]))
            strongest = [_strongest_units(maxima[layer.patches.observed_layer], layer) for layer in layers]
            for k, (values, classes) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
                predictions = [(label, float(f"{value:.4g}")) for label, value in zip(classes, values, strict=True)]
                records.append({"best": predictions, "strongest": [layer[k] for layer in strongest]})
    return records


def _max_hook(maxima: dict[str, Tensor], name: str) -> Callable[[Tensor], None]:
    """Return a hook that stores the maximum of each feature map and its flat position, (2, B, C)."""

    def keep(maps: Tensor) -> None:
        # Flattened in memory order, so that the maximum reads each value once.
        maxima[name] = torch.stack([part.double() for part in maps.flatten(2).max(2)]).cpu()

    return keep


def _strongest_units(maxima: Tensor, layer: AtlasLayer) -> list[list[tuple[int, float, int, int]]]:
    """Return, for each image, the units closest to their own maximum: (unit, share of it, row, column)."""
    values, positions = maxima.numpy()
    largest = layer.patches.values[:, 0]
    largest = np.where(largest > 0, largest, np.inf)  # a unit that is never above 0 has no share
    shares = values[:, : layer.num_units] / largest
    order = np.argsort(-shares, axis=1, kind="stable")[:, :UNITS_PER_LAYER]
    width = layer.patches.feature_map_size[1]
    return [
        [
            (int(unit), round(float(row[unit]), 3), int(where[unit]) // width, int(where[unit]) % width)
            for unit in units
            if row[unit] > 0
        ]
        for row, where, units in zip(shares, positions, order, strict=True)
    ]


def num_overlay_passes(size: int) -> int:
    """Return the approximate number of forward passes for the overlays of one image."""
    side, stride = _occlusion_square(size)
    return (-(-(size - side) // stride) + 1) ** 2 + 8


def _occlusion_square(size: int) -> tuple[int, int]:
    """Return the side and the stride of the occluding square, pixels."""
    stride = max(1, round(size / OCCLUSION_STEPS))
    return max(stride, round(size / OCCLUSION_FRACTION)), stride


def _write_overlays(
    images: AtlasImages, chunk: range, records: list[dict[str, Any]], inputs: AtlasInputs, folder: ResumableFolder
) -> None:
    """Write the overlays of the images of `chunk` for their first prediction, and add their scales to `records`."""
    slots = _slots_with_overlays(images, chunk)
    if not len(slots):
        return
    network, size, kind = inputs.classifier.network, inputs.image_size, inputs.classifier.task.kind
    side, stride = _occlusion_square(size)
    network_inputs = inputs.network_inputs(images.indices[slots])
    best = [records[slot - chunk.start]["best"][0] for slot in slots]
    labels = torch.tensor([label for label, _ in best])
    probabilities = torch.tensor([probability for _, probability in best])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* has no ReLU")  # the page says so
        saliency = to_images(guided_backpropagation(network, network_inputs, labels))
    cam = F.interpolate(grad_cam(network, network_inputs, labels)[:, None], (size, size), mode="bilinear")[:, 0]
    drops = None
    if kind != "regression":  # whose output is no probability
        covered = occlusion(network, network_inputs, labels, side, stride, multilabel=kind == "multi-label")
        drops = probabilities[:, None, None] - covered.cpu()
    for index, slot in enumerate(slots.tolist()):
        folder.write(f"overlays/{slot}-saliency.webp", encode_webp(saliency[index], exact=size <= MAX_CRISP_IMAGE))
        folder.write(f"overlays/{slot}-grad-cam.webp", encode_heatmap_overlay(cam[index]))
        records[slot - chunk.start]["scales"] = {}
        if drops is not None:
            drop = occlusion_per_pixel(drops[index], side, stride, size)
            folder.write(f"overlays/{slot}-occlusion.webp", encode_heatmap_overlay(drop))
            records[slot - chunk.start]["scales"] = {"occlusion": round(max(0.0, float(drop.max())), 4)}


def _slots_with_overlays(images: AtlasImages, chunk: range) -> Ints:
    return images.with_overlays[(images.with_overlays >= chunk.start) & (images.with_overlays < chunk.stop)]


def occlusion_per_pixel(values: Tensor, side: int, stride: int, size: int) -> Tensor:
    """Average, for each pixel, the values of the squares that cover it.

    Args:
        values: (rows, columns), one value for each square.
        side: Side of the squares, pixels.
        stride: Distance between squares, pixels.
        size: Side of the image, pixels.

    Returns:
        (size, size).
    """
    sums, counts = torch.zeros(size, size), torch.zeros(size, size)
    for row, line in enumerate(values.tolist()):
        for column, value in enumerate(line):
            square = (slice(row * stride, row * stride + side), slice(column * stride, column * stride + side))
            sums[square] += value
            counts[square] += 1
    return sums / counts.clamp_min(1)


def encode_heatmap_overlay(values: Tensor) -> bytes:
    """Encode a heat map (H, W) as a WebP overlay: gray where it is 0 or less, transparent at its maximum."""
    shares = (values / values.max().clamp_min(1e-12)).clamp(0, 1).cpu().numpy()
    gray = np.full((*shares.shape, 4), 128, np.uint8)
    gray[..., 3] = np.rint(255 * OVERLAY_OPACITY * (1 - shares))
    return encode_webp(gray, exact=False)
