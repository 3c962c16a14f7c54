"""index.html of an atlas: the network diagram, a strip of patches for each layer, and data for the scripts."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import numpy as np
from markupsafe import Markup

from svertka.graph.receptive_field import ReceptiveField
from svertka.inspection.atlas.classifier_and_images import AtlasInputs
from svertka.inspection.atlas.image_data import IMAGES_PER_SCRIPT, AtlasImages
from svertka.inspection.atlas.layer_data import DEAD, PATCHES_PER_UNIT, STRIP_PATCHES, STRIP_SIDE, AtlasLayer
from svertka.inspection.atlas.network_diagram import (
    NetworkDiagram,
    format_feature_map_shape,
    render_navigation,
    render_receptive_field,
)
from svertka.inspection.atlas.sprite_sheets import MAX_CRISP_IMAGE, UNITS_PER_SHEET, images_per_row
from svertka.inspection.deconvolution.deconvnet import find_relu_and_max_pooling
from svertka.pages.html_page import render_page
from svertka.pages.number_format import count_with_noun
from svertka.pages.templates import render_template

PAPER = "https://arxiv.org/abs/1311.2901"
EXAMPLE = "pictures/example.webp"
KEYS = (
    ("← → ↑ ↓", "move"),
    ("Enter", "open"),
    ("Esc", "back"),
    ("/", "search"),
    ("p", "patches or projections"),
    ("b", "both"),
)


@dataclass(frozen=True, eq=False)
class IndexPage:
    """The content of index.html.

    Attributes:
        inputs: Classifier and images.
        diagram: Diagram of the network.
        layers: Layers of the atlas.
        total_units: Units of each layer, shown or not.
        images: Images of the atlas.
        units_of_network: Units of all convolutions of the network, and of the layers shown.
        selection: Which units are shown, such as "the first 12 of the last layer of each stage".
        advice: The command that shows every unit.
        note: A sentence about projections in this network, from `describe_missing_relu_pooling`, or "".
    """

    inputs: AtlasInputs
    diagram: NetworkDiagram
    layers: Sequence[AtlasLayer]
    total_units: Sequence[int]
    images: AtlasImages
    units_of_network: int
    selection: str
    advice: str
    note: str

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.inputs.classifier.config.model

    @property
    def num_units(self) -> int:
        """Number of units shown, in all layers."""
        return sum(layer.num_units for layer in self.layers)

    @property
    def num_dead(self) -> int:
        """Number of units shown that are dead."""
        return sum(layer.num_dead for layer in self.layers)

    @property
    def headline(self) -> str:
        """Summary, "lenet5, trained on digits: 3 layers with 142 units, 2 of them dead; patches from 361 images."."""
        source = self.inputs.training_source
        trained = f", trained on {_last_part(source)}" if source else ""
        dead = f", {self.num_dead:,} of them dead ({DEAD})" if self.num_dead else ""
        return (
            f"{self.name}{trained}: {count_with_noun(len(self.layers), 'layer')} with "
            f"{count_with_noun(self.num_units, 'unit')}{dead}; patches from "
            f"{count_with_noun(len(self.inputs), 'image')}."
        )

    @property
    def left_out(self) -> str | None:
        """A sentence about the units that are not shown; None if every unit is."""
        if self.num_units >= self.units_of_network:
            return None
        return (
            f"{self.num_units:,} of {self.units_of_network:,} units are shown, {self.selection}; {self.advice} shows "
            "every unit"
        )

    def render(self) -> str:
        """Return the whole document."""
        size = self.inputs.image_size, self.inputs.image_size
        links = {self.diagram.index_of(layer.layer.name): _address(layer) for layer in self.layers}
        facts = json.dumps(self._facts(), separators=(",", ":"), allow_nan=False)
        body = render_template(
            "atlas_index.html",
            headline=self.headline,
            left_out=self.left_out,
            paper=PAPER,
            keys=KEYS,
            navigation=render_navigation(self.diagram, links, size, EXAMPLE),
            layers=[self._describe(layer, total) for layer, total in zip(self.layers, self.total_units, strict=True)],
            facts=Markup(facts.replace("<", "\\u003c")),  # so that no text in it ends the element
        )
        return render_page(f"{self.name} – svertka", body, kind="atlas", beside=True)

    def _describe(self, layer: AtlasLayer, total: int) -> dict[str, Any]:
        """Return what the template shows of a layer."""
        node = self.diagram.nodes[self.diagram.index_of(layer.layer.name)]
        dead = f", {layer.num_dead:,} dead" if layer.num_dead else ""
        num_alive = layer.num_units - layer.num_dead
        height = STRIP_SIDE
        if layer.tile.crisp:
            height = layer.tile.window * max(1, STRIP_SIDE // layer.tile.window)
        size = self.inputs.image_size, self.inputs.image_size
        return {
            "name": layer.layer.name,
            "address": _address(layer),
            "folder": layer.folder,
            "scaling": "crisp" if layer.tile.crisp else "smooth",
            "receptive_field": render_receptive_field(node.extent, size, EXAMPLE),
            "facts": [
                (f"{layer.num_units} of " if layer.num_units < total else "") + count_with_noun(total, "unit") + dead,
                format_feature_map_shape(node),
                f"sees {_describe_extent(layer)}",
                count_with_noun(node.parameters, "parameter"),
            ],
            "num_alive": num_alive,
            "strip_width": min(STRIP_PATCHES, num_alive) * (height + 1) - 1,
            "strip_height": height,
            "sheets": list(_sheets(layer)),
        }

    def _facts(self) -> dict[str, Any]:
        """Return what the scripts read, for JSON."""
        inputs, names = self.inputs, self.inputs.classifier.names
        numbers = {name: k for k, name in enumerate(names)}
        shown, kind = inputs.shown_labels[0], inputs.classifier.task.kind
        return {
            "name": self.name,
            "kind": kind,
            "relu": find_relu_and_max_pooling(inputs.classifier.network, inputs.input_shape)[0],
            "looked_at": len(inputs),
            "classes": shown,
            "class_counts": inputs.dataset.counts().tolist(),
            "class_numbers": [numbers.get(name, -1) for name in shown],
            "knows": kind == "single-label" and all(name in numbers for name in shown),
            "predicted": names,
            "featured": self.images.with_overlays.tolist(),
            "sheet_rows": UNITS_PER_SHEET,
            "pictures": {
                "count": len(self.images.indices),
                "size": inputs.image_size,
                "columns": images_per_row(inputs.image_size),
                "crisp": inputs.image_size <= MAX_CRISP_IMAGE,
                "chunk": IMAGES_PER_SCRIPT,
            },
            "layers": [
                self._layer_facts(layer, total) for layer, total in zip(self.layers, self.total_units, strict=True)
            ],
        }

    def _layer_facts(self, layer: AtlasLayer, total_units: int) -> dict[str, object]:
        rows, columns = (
            _intervals(axis, count)
            for axis, count in zip(layer.layer.fields, layer.patches.feature_map_size, strict=True)
        )
        return {
            "name": layer.layer.name,
            "folder": layer.folder,
            "data": layer.key,
            "units": layer.num_units,
            "all": total_units,
            "dead": np.flatnonzero(layer.patches.is_dead).tolist(),
            "tile": layer.tile.to_dict(),
            "rows": rows,
            "columns": columns,
            "sees": _describe_extent(layer),
            "filters": layer.filters is not None,
            "note": self.note,
        }


def _sheets(layer: AtlasLayer) -> Iterator[dict[str, Any]]:
    """Yield the sprite sheets of a layer, which the page shows if scripts are disabled."""
    for index, first in enumerate(range(0, layer.num_units, UNITS_PER_SHEET)):
        last = min(first + UNITS_PER_SHEET, layer.num_units) - 1
        for kind in ("patches", "projections"):
            yield {
                "kind": kind,
                "index": index,
                "first": first,
                "last": last,
                "width": PATCHES_PER_UNIT * layer.tile.shown,
                "height": (last - first + 1) * layer.tile.shown,
            }


def _intervals(axis: ReceptiveField, num_positions: int) -> list[tuple[int, int]]:
    return [axis.of(k if len(axis.intervals) > 1 else 0) for k in range(num_positions)]


def _address(layer: AtlasLayer) -> str:
    # As encodeURIComponent writes it, so that the scripts can compare addresses as strings.
    return f"#/layer/{quote(layer.layer.name, safe='!()*~' + chr(39))}"


def _describe_extent(layer: AtlasLayer) -> str:
    """Return the size of a unit's receptive field in words."""
    if all(axis.whole for axis in layer.layer.fields):
        return "the whole picture"
    rows, columns = layer.extent
    return "up to the whole picture" if min(rows, columns) >= layer.image_size else f"{rows}×{columns} pixels"


def _last_part(source: str) -> str:
    return source.rstrip("/").rsplit("/", 1)[-1]
