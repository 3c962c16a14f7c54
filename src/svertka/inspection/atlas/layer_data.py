"""One layer of an atlas: its units' patches and projections as sheets, and what is said about them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch.nn.functional as F

from svertka.data.dataset import Ints, Pixels
from svertka.graph.summary import Layer
from svertka.inspection.atlas.inputs import AtlasInputs
from svertka.inspection.atlas.resumable_folder import ResumableFolder
from svertka.inspection.atlas.sprite_sheets import (
    UNITS_PER_SHEET,
    Tile,
    choose_tile,
    encode_sheet,
    place_in_tile,
    to_rgb,
)
from svertka.inspection.deconvnet import Deconvnet, Projection, to_images
from svertka.inspection.first_layer_filters import FirstLayerFilters
from svertka.inspection.maximally_activating_patches import LayerPatches
from svertka.pages.inline_images import PIXEL_DENSITY, contact_sheet, encode_webp, enlarge

PATCH_QUALITY = 55
PROJECTION_SIDE = 56  # pixels in the file: half of what the page of a unit shows, and more than the wall does
PROJECTION_QUALITY = 35
CLASSES_PER_UNIT = 6  # told for each unit
STRIP_PATCHES = 12  # units that stand for a layer beside others
STRIP_SIDE = 64  # CSS pixels of each


@dataclass(frozen=True, eq=False)
class AtlasLayer:
    """A layer to be shown: `number` of the atlas's layers, the `layer` as traced, and the `found` patches of its units.

    `filters`: those of the first layer, if it is that.
    """

    number: int
    layer: Layer
    found: LayerPatches
    filters: FirstLayerFilters | None
    picture: int

    @property
    def units(self) -> int:
        """Units shown."""
        return len(self.found.values)

    @property
    def folder(self) -> str:
        """Of its sheets, in the atlas."""
        return f"layers/{self.number}"

    @property
    def data(self) -> str:
        """What its script of data is called."""
        return f"layer-{self.number}"

    @property
    def script(self) -> str:
        """That file, which says that the layer is done."""
        return f"data/{self.data}.js"

    @property
    def extent(self) -> tuple[int, int]:
        """Rows and columns of the picture that a unit sees."""
        rows, columns = (min(field.extent, field.size) for field in self.layer.fields)
        return rows, columns

    @cached_property
    def tile(self) -> Tile:
        """Of its patches."""
        return choose_tile(max(self.extent), self.picture)

    @cached_property
    def projection_tile(self) -> Tile:
        """Of its projections."""
        return choose_tile(max(self.extent), self.picture, side=PROJECTION_SIDE)


def take_first_units(found: LayerPatches, units: int | None) -> LayerPatches:
    """`found` of the first `units` units only."""
    if units is None or units >= len(found.values):
        return found
    by_unit = "values images positions boxes activation_rate histogram class_shares similar_units correlations"
    cut_ = {name: value[:units] for name in by_unit.split() if (value := getattr(found, name)) is not None}
    return replace(found, **cut_)


def write_layer_data(
    room: AtlasLayer,
    subject: AtlasInputs,
    back: Deconvnet,
    parts: ResumableFolder,
    slots: Ints,
    advance: Callable[[int], None],
) -> None:
    """Make the files of `room` that are missing; its data come last and say that it is done.

    `slots`: (pictures,), the number of each picture in the atlas. `advance`: told of units that are done.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    if room.filters is not None:
        tiles = list(to_rgb(room.filters.to_images()[: room.units]))
        parts.put(f"{room.folder}/filters.webp", encode_sheet(tiles, 1, crisp=True, quality=100))
    for number, units in enumerate(_sheet_ranges(room)):
        names = [f"{room.folder}/{kind}-{number}.webp" for kind in ("patches", "projections")]
        if not all(name in parts for name in names):
            patches, projections = _draw_tiles(room, subject, back, units)
            parts.put(names[0], encode_sheet(patches, 9, crisp=room.tile.crisp, quality=PATCH_QUALITY))
            parts.put(names[1], encode_sheet(projections, 9, crisp=room.tile.crisp, quality=PROJECTION_QUALITY))
        advance(len(units))
    parts.put(f"{room.folder}/strip.webp", _encode_strip(room, subject))
    parts.put_script(room.script, room.data, units_to_json(room, slots))


def _sheet_ranges(room: AtlasLayer) -> Iterator[range]:
    for first in range(0, room.units, UNITS_PER_SHEET):
        yield range(first, min(first + UNITS_PER_SHEET, room.units))


def _draw_tiles(
    room: AtlasLayer, subject: AtlasInputs, back: Deconvnet, units: range
) -> tuple[list[Pixels], list[Pixels]]:
    """Patches and projections of `units`, nine each, clear where there are fewer."""
    found = room.found
    pictures = found.images[units.start : units.stop].reshape(-1)
    there = np.flatnonzero(pictures >= 0)
    patches = [np.zeros((room.tile.kept, room.tile.kept, 4), np.uint8)] * len(pictures)
    projections = [np.zeros((room.projection_tile.kept, room.projection_tile.kept, 4), np.uint8)] * len(pictures)
    if not len(there):
        return patches, projections
    which, slots = np.unique(pictures[there], return_inverse=True)
    seen = subject.pictures(which)
    boxes = found.boxes[units.start : units.stop].reshape(-1, 4)[there]
    places = found.positions[units.start : units.stop].reshape(-1, 2)[there]
    numbers = there // found.images.shape[1] + units.start
    tiles = room.projection_tile
    drawn = back.project(subject.images(which), found.layer, numbers, places, slots)
    for place, slot, box, projection in zip(there, slots, boxes, drawn, strict=True):
        patches[place] = place_in_tile(_crop(seen[slot], box), box, room.tile)
        projections[place] = place_in_tile(_draw_projection(projection, box, tiles), box, tiles.reduced)
    return patches, projections


def _crop(picture: Pixels, box: Ints) -> Pixels:
    top, left, bottom, right = box
    return picture[top:bottom, left:right]


def _draw_projection(projection: Projection, box: Ints, tile: Tile) -> Pixels:
    """What of `projection` lies in `box`, as a picture at the scale of `tile`; beyond its pixels it is 0."""
    top, left, bottom, right = (int(edge) for edge in box)
    pixels, above, before = projection
    inside = pixels.new_zeros((1, len(pixels), bottom - top, right - left))
    rows = slice(max(top, above), min(bottom, above + pixels.shape[1]))
    columns = slice(max(left, before), min(right, before + pixels.shape[2]))
    inside[0, :, rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = pixels[
        :, rows.start - above : rows.stop - above, columns.start - before : columns.stop - before
    ]
    if tile.kept < tile.window:  # before it is drawn, since opposite signs side by side become a weak grey
        size = [max(1, round(length * tile.kept / tile.window)) for length in inside.shape[2:]]
        inside = F.interpolate(inside, size, mode="bilinear", antialias=True)
    picture: Pixels = to_images(inside)[0]
    return picture


def _encode_strip(room: AtlasLayer, subject: AtlasInputs) -> bytes:
    """The strongest patch of some units, evenly spread over those that are alive, in a row."""
    alive = np.flatnonzero(~room.found.is_dead)
    few = (
        alive[np.linspace(0, len(alive) - 1, min(STRIP_PATCHES, len(alive))).round().astype(int)]
        if len(alive)
        else alive
    )
    if not len(few):
        return encode_webp(np.zeros((1, 1, 4), np.uint8), exact=True)
    large = choose_tile(max(room.extent), room.picture, side=PIXEL_DENSITY * STRIP_SIDE)
    pictures = subject.pictures(room.found.images[few, 0])
    tiles = [
        place_in_tile(_crop(one, box), box, large) for one, box in zip(pictures, room.found.boxes[few, 0], strict=True)
    ]
    if large.crisp:
        return encode_webp(contact_sheet([enlarge(one, STRIP_SIDE) for one in tiles], len(tiles), gap=1), exact=True)
    return encode_webp(contact_sheet(tiles, len(tiles), gap=PIXEL_DENSITY), exact=False)


def units_to_json(room: AtlasLayer, slots: Ints) -> dict[str, object]:
    """What the page says about the units of `room`, for JSON: lists by unit."""
    found = room.found
    seen = np.flatnonzero(found.histogram.any(0))
    first, last = (seen[0], seen[-1] + 1) if len(seen) else (0, 1)
    return {
        "values": [
            [_round_to_4_digits(value) if value == value else None for value in row] for row in found.values.tolist()
        ],
        "pictures": np.where(found.images >= 0, slots[found.images], -1).tolist(),
        "rows": found.positions[..., 0].tolist(),
        "columns": found.positions[..., 1].tolist(),
        "active": [round(share, 4) for share in found.activation_rate.tolist()],
        "histogram": found.histogram[:, first:last].tolist(),
        "edges": [_round_to_4_digits(edge) for edge in found.histogram_edges[first : last + 1].tolist()],
        "classes": _preferred_classes(found),
        "similar": found.similar_units.tolist(),
        "order": room.filters.similarity_order.tolist() if room.filters is not None else order_by_similarity(found),
    }


def _round_to_4_digits(value: float) -> float:
    return float(f"{value:.4g}")


def _preferred_classes(found: LayerPatches) -> list[list[tuple[int, float]]]:
    """For each unit the classes it prefers, [class, share of what excites it]: those with most beyond their share.

    That of all pictures, that is: where a class has half of them, half of what excites a unit means nothing.
    """
    if found.class_shares is None or found.class_frequencies is None:
        return [[] for _ in found.values]
    beyond = found.class_shares - found.class_frequencies
    best = np.argsort(-beyond, axis=1, kind="stable")[:, :CLASSES_PER_UNIT]
    return [
        [(int(k), round(float(shares[k]), 4)) for k in some if surplus[k] > 0]
        for shares, surplus, some in zip(found.class_shares, beyond, best, strict=True)
    ]


def order_by_similarity(found: LayerPatches) -> list[int]:
    """The units so that each comes after one that resembles it: from each to the nearest that has not come yet."""
    units = len(found.values)
    left = dict.fromkeys(range(units))
    order: list[int] = []
    while left:
        near = (int(unit) for unit in found.similar_units[order[-1]]) if order else iter(())
        unit = next((one for one in near if one in left), next(iter(left)))
        order.append(unit)
        del left[unit]
    return order
