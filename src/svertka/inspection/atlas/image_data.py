"""The pictures of an atlas: what the network takes each for, what it excites; maps of what counts, for some."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from svertka.data.dataset import Ints
from svertka.graph.summary import Layer
from svertka.inspection.activations import hook_layers, list_layers
from svertka.inspection.atlas.inputs import AtlasInputs
from svertka.inspection.atlas.layer_data import AtlasLayer
from svertka.inspection.atlas.resumable_folder import ResumableFolder
from svertka.inspection.atlas.sprite_sheets import MAX_CRISP_IMAGE, encode_sheet, images_per_row, to_rgb
from svertka.inspection.deconvnet import to_images
from svertka.inspection.maximally_activating_patches import LayerPatches
from svertka.inspection.saliency import grad_cam, guided_backpropagation, occlusion
from svertka.pages.inline_images import encode_webp

IMAGES_PER_SCRIPT = 32  # pictures in a script
PREDICTIONS_PER_IMAGE = 5  # classes told for a picture
UNITS_PER_LAYER = 6  # units told for a picture and a layer
MAX_OVERLAY_IMAGES = 40  # pictures with maps, which take a few hundred runs of the network each
IMAGE_QUALITY = 68  # of whole pictures
OCCLUSION_STEPS = 14  # along each side, of the square that covers a part of a picture, about
OCCLUSION_FRACTION = 6  # times the square's side is that of the picture
OVERLAY_OPACITY = 0.85  # how much of a picture is hidden where a map is 0


@dataclass(frozen=True, eq=False)
class AtlasImages:
    """The pictures that the atlas holds, those that excite a unit most.

    `shown`: (n,) their numbers among all, rising; the atlas counts them from 0. `slots`: (N,) the reverse, -1 for the
    others. `featured`: those that have maps, as the atlas counts.
    """

    shown: Ints
    slots: Ints
    featured: Ints


def select_images(found: Sequence[LayerPatches], labels: Ints) -> AtlasImages:
    """The pictures among the strongest of any unit; those with maps are of all classes by turns."""
    shown = np.unique(np.concatenate([one.images.ravel() for one in found]))
    shown = shown[shown >= 0]
    if not len(shown):  # all units are dead; a picture is still needed to show what they see
        shown = np.zeros(1, np.int64)
    slots = np.full(len(labels), -1, np.int64)
    slots[shown] = np.arange(len(shown))
    # By turns: first the first of each class, then the second.
    turn = np.zeros(len(shown), np.int64)
    for label in np.unique(labels[shown]):
        of_class = labels[shown] == label
        turn[of_class] = np.arange(of_class.sum())
    featured = np.lexsort((labels[shown], turn))[:MAX_OVERLAY_IMAGES]
    return AtlasImages(shown, slots, np.sort(featured))


def write_image_data(
    portraits: AtlasImages,
    rooms: Sequence[AtlasLayer],
    subject: AtlasInputs,
    parts: ResumableFolder,
    advance: Callable[[int], None],
) -> None:
    """Make the files of the pictures that are missing; `advance`: told of pictures that are done.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    _write_sheets(portraits, subject, parts)
    known = list_layers(subject.classifier.network, subject.shape)
    guesses: list[int] = []
    for number, first in enumerate(range(0, len(portraits.shown), IMAGES_PER_SCRIPT)):
        name = f"pictures-{number}"
        here = range(first, min(first + IMAGES_PER_SCRIPT, len(portraits.shown)))
        rows = _predict(portraits, here, rooms, subject, known)
        guesses += [row["best"][0][0] for row in rows]
        if f"data/{name}.js" not in parts:
            _write_overlays(portraits, here, rows, subject, parts)
            parts.put_script(f"data/{name}.js", name, rows)
        advance(len(here))
    labels = subject.dataset.labels[portraits.shown].tolist()
    names = [subject.name(int(index)) for index in portraits.shown]
    parts.put_script("data/pictures.js", "pictures", {"names": list(zip(names, labels, guesses, strict=True))})


def _write_sheets(portraits: AtlasImages, subject: AtlasInputs, parts: ResumableFolder) -> None:
    columns = images_per_row(subject.size)
    for number, first in enumerate(range(0, len(portraits.shown), columns**2)):
        name = f"pictures/{number}.webp"
        if name not in parts:
            pictures = to_rgb(subject.pictures(portraits.shown[first : first + columns**2]))
            parts.put(
                name,
                encode_sheet(list(pictures), columns, crisp=subject.size <= MAX_CRISP_IMAGE, quality=IMAGE_QUALITY),
            )
    example = to_rgb(subject.pictures(portraits.shown[portraits.featured[:1]]))[0]
    parts.put("pictures/example.webp", encode_webp(example, exact=subject.size <= MAX_CRISP_IMAGE))


def _predict(
    portraits: AtlasImages, here: range, rooms: Sequence[AtlasLayer], subject: AtlasInputs, known: Sequence[Layer]
) -> list[dict[str, Any]]:
    """What the network says of the pictures `here`: its guesses, and the strongest units of each layer."""
    rows: list[dict[str, Any]] = []
    pending: dict[str, Tensor] = {}
    see = {room.found.observed_layer: _max_hook(pending, room.found.observed_layer) for room in rooms}
    network = subject.classifier.network
    with torch.inference_mode(), hook_layers(network, known, see):
        for batch in subject.batches(portraits.shown[here.start : here.stop]).epoch(0):
            probabilities = network(batch.images).float().softmax(1).cpu()
            best = probabilities.topk(min(PREDICTIONS_PER_IMAGE, probabilities.shape[1]))
            strongest = [_strongest_units(pending[room.found.observed_layer], room) for room in rooms]
            for k, (values, classes) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
                guesses = [(name, round(value, 4)) for name, value in zip(classes, values, strict=True)]
                rows.append({"best": guesses, "strongest": [layer[k] for layer in strongest]})
    return rows


def _max_hook(pending: dict[str, Tensor], name: str) -> Callable[[Tensor], None]:
    """What keeps of a layer's maps the largest value of each, and its place: (B, C), (B, C)."""

    def keep(maps: Tensor) -> None:
        # As one row of places, in the layout in which they lie: to look for the largest is to read them once.
        pending[name] = torch.stack([part.double() for part in maps.flatten(2).max(2)]).cpu()

    return keep


def _strongest_units(maxima: Tensor, room: AtlasLayer) -> list[list[tuple[int, float, int, int]]]:
    """For each picture the units of `room` nearest to their own best: [unit, share of it, row, column]."""
    values, places = maxima.numpy()
    best = np.nan_to_num(room.found.values[:, 0], nan=np.inf)
    shares = values[:, : room.units] / best
    order = np.argsort(-shares, axis=1, kind="stable")[:, :UNITS_PER_LAYER]
    width = room.found.feature_map_size[1]
    return [
        [
            (int(unit), round(float(row[unit]), 3), int(where[unit]) // width, int(where[unit]) % width)
            for unit in some
            if row[unit] > 0
        ]
        for row, where, some in zip(shares, places, order, strict=True)
    ]


def num_overlay_passes(size: int) -> int:
    """How many runs of the network, forward, the maps of one picture take, about."""
    side, stride = _occlusion_square(size)
    return (-(-(size - side) // stride) + 1) ** 2 + 8


def _occlusion_square(size: int) -> tuple[int, int]:
    """Side of the square that covers a part of a picture, and the stride at which it moves, pixels."""
    stride = max(1, round(size / OCCLUSION_STEPS))
    return max(stride, round(size / OCCLUSION_FRACTION)), stride


def _write_overlays(
    portraits: AtlasImages, here: range, rows: list[dict[str, Any]], subject: AtlasInputs, parts: ResumableFolder
) -> None:
    """The maps of the featured pictures among `here`, for its best class; `rows` are told their scales."""
    slots = portraits.featured[(portraits.featured >= here.start) & (portraits.featured < here.stop)]
    if not len(slots):
        return
    network, size, (side, stride) = subject.classifier.network, subject.size, _occlusion_square(subject.size)
    images = subject.images(portraits.shown[slots])
    best = [rows[slot - here.start]["best"][0] for slot in slots]
    guesses = torch.tensor([guess for guess, _ in best])
    probabilities = torch.tensor([probability for _, probability in best])
    drawn = to_images(guided_backpropagation(network, images, guesses))
    places = F.interpolate(grad_cam(network, images, guesses)[:, None], (size, size), mode="bilinear")[:, 0]
    falls = probabilities[:, None, None] - occlusion(network, images, guesses, side, stride).cpu()
    for number, slot in enumerate(slots.tolist()):
        fallen = occlusion_per_pixel(falls[number], side, stride, size)
        parts.put(f"overlays/{slot}-saliency.webp", encode_webp(drawn[number], exact=size <= MAX_CRISP_IMAGE))
        parts.put(f"overlays/{slot}-grad-cam.webp", encode_heatmap_overlay(places[number]))
        parts.put(f"overlays/{slot}-occlusion.webp", encode_heatmap_overlay(fallen))
        rows[slot - here.start]["scales"] = {"occlusion": round(max(0.0, float(fallen.max())), 4)}


def occlusion_per_pixel(values: Tensor, side: int, stride: int, size: int) -> Tensor:
    """For each pixel the mean of the `values` (rows, columns) of the squares that cover it, (size, size)."""
    sums, counts = torch.zeros(size, size), torch.zeros(size, size)
    for row, line in enumerate(values.tolist()):
        for column, value in enumerate(line):
            square = (slice(row * stride, row * stride + side), slice(column * stride, column * stride + side))
            sums[square] += value
            counts[square] += 1
    return sums / counts.clamp_min(1)


def encode_heatmap_overlay(values: Tensor) -> bytes:
    """Grey that hides a picture where `values` (H, W) are 0 or less, and is clear where they are largest."""
    shares = (values / values.max().clamp_min(1e-12)).clamp(0, 1).cpu().numpy()
    grey = np.full((*shares.shape, 4), 128, np.uint8)
    grey[..., 3] = np.rint(255 * OVERLAY_OPACITY * (1 - shares))
    return encode_webp(grey, exact=False)
