"""Files of one layer in an atlas: sprite sheets of its units' patches and projections, and the data of its page."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch.nn.functional as F

from svertka.data.dataset import Ints, Pixels
from svertka.graph.summary import Layer
from svertka.inspection.atlas.classifier_and_images import AtlasInputs
from svertka.inspection.atlas.resumable_folder import ResumableFolder
from svertka.inspection.atlas.sprite_sheets import (
    UNITS_PER_SHEET,
    TileSizes,
    align_patch_in_tile,
    choose_tile_sizes,
    encode_sheet,
    to_rgb,
)
from svertka.inspection.deconvolution.deconvnet import Deconvnet, Projection, to_images
from svertka.inspection.first_layer_filters import FirstLayerFilters
from svertka.inspection.maximally_activating_patches import LayerPatches
from svertka.pages.inline_images import PIXEL_DENSITY, contact_sheet, encode_webp, enlarge

PATCH_QUALITY = 55
PROJECTION_SIDE = 56  # pixels in the file: half the size on a unit's page, more than the size on a layer's page
PROJECTION_QUALITY = 35
PATCHES_PER_UNIT = 9
CLASSES_PER_UNIT = 6
STRIP_PATCHES = 12  # units that represent a layer on the index page
STRIP_SIDE = 64  # CSS pixels of each
DEAD = "constant, never above 0"  # what "dead" means; see `LayerPatches`


@dataclass(frozen=True, eq=False)
class AtlasLayer:
    """A layer of an atlas.

    Attributes:
        index: Index of the layer among the layers of the atlas.
        layer: The layer's entry in the trace of the network.
        patches: Patches of the units shown.
        filters: Filters of the first convolution, if this layer is it; else None.
        image_size: Side of the network's input, pixels.
    """

    index: int
    layer: Layer
    patches: LayerPatches
    filters: FirstLayerFilters | None
    image_size: int

    @property
    def num_units(self) -> int:
        """Number of units shown."""
        return len(self.patches.values)

    @property
    def num_dead(self) -> int:
        """Number of units shown that are dead."""
        return int(self.patches.is_dead.sum())

    @property
    def folder(self) -> str:
        """Folder of the layer's sheets inside the atlas."""
        return f"layers/{self.index}"

    @property
    def key(self) -> str:
        """Key of the layer's data in `atlasData`."""
        return f"layer-{self.index}"

    @property
    def script(self) -> str:
        """Path of the layer's data, which is written last."""
        return f"data/{self.key}.js"

    @property
    def extent(self) -> tuple[int, int]:
        """Rows and columns of a unit's receptive field, pixels."""
        rows, columns = (min(field.extent, field.size) for field in self.layer.fields)
        return rows, columns

    @cached_property
    def tile(self) -> TileSizes:
        """Tile of the layer's patches."""
        return choose_tile_sizes(max(self.extent), self.image_size)

    @cached_property
    def projection_tile(self) -> TileSizes:
        """Tile of the layer's projections."""
        return choose_tile_sizes(max(self.extent), self.image_size, side=PROJECTION_SIDE)


def take_first_units(patches: LayerPatches, num_units: int | None) -> LayerPatches:
    """Return `patches` of the first `num_units` units only. None: of all."""
    if num_units is None or num_units >= len(patches.values):
        return patches
    by_unit = "values images positions boxes activation_rate histogram class_shares similar_units correlations"
    cut = {name: value[:num_units] for name in by_unit.split() if (value := getattr(patches, name)) is not None}
    return replace(patches, **cut)


def write_layer_data(
    layer: AtlasLayer,
    inputs: AtlasInputs,
    deconvnet: Deconvnet,
    folder: ResumableFolder,
    image_slots: Ints,
    advance: Callable[[int], None],
) -> None:
    """Write the missing files of a layer. Its data come last and mark the layer as complete.

    Args:
        layer: A layer of the atlas.
        inputs: Classifier and images.
        deconvnet: The network's `Deconvnet`, which computes the projections.
        folder: Folder of the atlas.
        image_slots: (images,), the index of each image within the atlas.
        advance: Called with the number of units just finished.

    Raises:
        StorageError: The disk is full or the folder cannot be written.
    """
    if layer.filters is not None:
        tiles = list(to_rgb(layer.filters.to_images()[: layer.num_units]))
        folder.write(f"{layer.folder}/filters.webp", encode_sheet(tiles, 1, crisp=True, quality=100))
    columns = PATCHES_PER_UNIT
    for index, units in enumerate(_sheet_ranges(layer)):
        names = [f"{layer.folder}/{kind}-{index}.webp" for kind in ("patches", "projections")]
        if not all(name in folder for name in names):
            patches, projections = _draw_tiles(layer, inputs, deconvnet, units)
            crisp = layer.tile.crisp
            folder.write(names[0], encode_sheet(patches, columns, crisp=crisp, quality=PATCH_QUALITY))
            folder.write(names[1], encode_sheet(projections, columns, crisp=crisp, quality=PROJECTION_QUALITY))
        advance(len(units))
    folder.write(f"{layer.folder}/strip.webp", _encode_strip(layer, inputs))
    folder.write_script(layer.script, layer.key, units_to_json(layer, image_slots))


def _sheet_ranges(layer: AtlasLayer) -> Iterator[range]:
    for first in range(0, layer.num_units, UNITS_PER_SHEET):
        yield range(first, min(first + UNITS_PER_SHEET, layer.num_units))


def _draw_tiles(
    layer: AtlasLayer, inputs: AtlasInputs, deconvnet: Deconvnet, units: range
) -> tuple[list[Pixels], list[Pixels]]:
    """Return the patches and projections of `units`, transparent where there are fewer."""
    found, projection_tile = layer.patches, layer.projection_tile
    images = found.images[units.start : units.stop].reshape(-1)
    valid = np.flatnonzero(images >= 0)
    patches = [np.zeros((layer.tile.kept, layer.tile.kept, 4), np.uint8)] * len(images)
    projections = [np.zeros((projection_tile.kept, projection_tile.kept, 4), np.uint8)] * len(images)
    if not len(valid):
        return patches, projections
    unique, image_indices = np.unique(images[valid], return_inverse=True)
    pixels = inputs.pixels(unique)
    boxes = found.boxes[units.start : units.stop].reshape(-1, 4)[valid]
    positions = found.positions[units.start : units.stop].reshape(-1, 2)[valid]
    channels = valid // found.images.shape[1] + units.start
    drawn = deconvnet.project(inputs.network_inputs(unique), found.layer, channels, positions, image_indices)
    for place, image, box, projection in zip(valid, image_indices, boxes, drawn, strict=True):
        patches[place] = align_patch_in_tile(_crop(pixels[image], box), box, layer.tile)
        projections[place] = align_patch_in_tile(
            _draw_projection(projection, box, projection_tile), box, projection_tile.reduced
        )
    return patches, projections


def _crop(image: Pixels, box: Ints) -> Pixels:
    top, left, bottom, right = box
    return image[top:bottom, left:right]


def _draw_projection(projection: Projection, box: Ints, tile: TileSizes) -> Pixels:
    """Return the part of `projection` inside `box` as an image at the scale of `tile`; outside its pixels it is 0."""
    top, left, bottom, right = (int(edge) for edge in box)
    pixels, first_row, first_column = projection
    inside = pixels.new_zeros((1, len(pixels), bottom - top, right - left))
    rows = slice(max(top, first_row), min(bottom, first_row + pixels.shape[1]))
    columns = slice(max(left, first_column), min(right, first_column + pixels.shape[2]))
    inside[0, :, rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = pixels[
        :, rows.start - first_row : rows.stop - first_row, columns.start - first_column : columns.stop - first_column
    ]
    if tile.kept < tile.window:  # resized before the conversion to bytes, in which opposite signs would cancel to gray
        size = [max(1, round(length * tile.kept / tile.window)) for length in inside.shape[2:]]
        inside = F.interpolate(inside, size, mode="bilinear", antialias=True)
    image: Pixels = to_images(inside)[0]
    return image


def _encode_strip(layer: AtlasLayer, inputs: AtlasInputs) -> bytes:
    """Return one row of patches: the strongest of some units, evenly spaced among those that are not dead."""
    alive = np.flatnonzero(~layer.patches.is_dead)
    if not len(alive):
        return encode_webp(np.zeros((1, 1, 4), np.uint8), exact=True)
    units = alive[np.linspace(0, len(alive) - 1, min(STRIP_PATCHES, len(alive))).round().astype(int)]
    tile = choose_tile_sizes(max(layer.extent), layer.image_size, side=PIXEL_DENSITY * STRIP_SIDE)
    images, boxes = inputs.pixels(layer.patches.images[units, 0]), layer.patches.boxes[units, 0]
    tiles = [align_patch_in_tile(_crop(image, box), box, tile) for image, box in zip(images, boxes, strict=True)]
    if tile.crisp:
        return encode_webp(contact_sheet([enlarge(one, STRIP_SIDE) for one in tiles], len(tiles), gap=1), exact=True)
    return encode_webp(contact_sheet(tiles, len(tiles), gap=PIXEL_DENSITY), exact=False)


def units_to_json(layer: AtlasLayer, image_slots: Ints) -> dict[str, object]:
    """Return the data of a layer's units as JSON values: lists with one entry per unit."""
    found = layer.patches
    used = np.flatnonzero(found.histogram.any(0))
    first, last = (used[0], used[-1] + 1) if len(used) else (0, 1)
    return {
        "values": [[_round_to_4_digits(one) if one == one else None for one in row] for row in found.values.tolist()],
        "pictures": np.where(found.images >= 0, image_slots[found.images], -1).tolist(),
        "rows": found.positions[..., 0].tolist(),
        "columns": found.positions[..., 1].tolist(),
        "active": [round(share, 4) for share in found.activation_rate.tolist()],
        "histogram": found.histogram[:, first:last].tolist(),
        "edges": [_round_to_4_digits(edge) for edge in found.histogram_edges[first : last + 1].tolist()],
        "classes": _preferred_classes(found),
        "similar": found.similar_units.tolist(),
        "order": layer.filters.similarity_order.tolist() if layer.filters is not None else order_by_similarity(found),
    }


def _round_to_4_digits(value: float) -> float:
    return float(f"{value:.4g}")


def _preferred_classes(patches: LayerPatches) -> list[list[tuple[int, float]]]:
    """Return each unit's preferred classes as (class, share of the unit's activation), most preferred first.

    A class is preferred by how much its share of the unit's activation exceeds its share of all images.
    """
    if patches.class_shares is None or patches.class_frequencies is None:
        return [[] for _ in patches.values]
    excess = patches.class_shares - patches.class_frequencies
    best = np.argsort(-excess, axis=1, kind="stable")[:, :CLASSES_PER_UNIT]
    return [
        [(int(k), round(float(shares[k]), 4)) for k in classes if surplus[k] > 0]
        for shares, surplus, classes in zip(patches.class_shares, excess, best, strict=True)
    ]


def order_by_similarity(patches: LayerPatches) -> list[int]:
    """Return an order of the units in which each is followed by the most similar unit not yet listed."""
    left = dict.fromkeys(range(len(patches.values)))
    order: list[int] = []
    while left:
        similar = (int(unit) for unit in patches.similar_units[order[-1]]) if order else iter(())
        unit = next((one for one in similar if one in left), next(iter(left)))
        order.append(unit)
        del left[unit]
    return order
