"""index.html of an atlas: the network as a drawing, a strip of patches for each layer, facts for the scripts."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

import numpy as np

from svertka.conv_geometry import ReceptiveField
from svertka.inspection.atlas.image_data import IMAGES_PER_SCRIPT, AtlasImages
from svertka.inspection.atlas.inputs import AtlasInputs
from svertka.inspection.atlas.layer_data import STRIP_PATCHES, STRIP_SIDE, AtlasLayer
from svertka.inspection.atlas.network_diagram import (
    NetworkDiagram,
    format_shape,
    render_navigation,
    render_receptive_field,
)
from svertka.inspection.atlas.sprite_sheets import MAX_CRISP_IMAGE, UNITS_PER_SHEET, images_per_row
from svertka.pages.html_page import escape, isolate, render_page
from svertka.pages.number_format import format_count

PAPER = "https://arxiv.org/abs/1311.2901"
EXAMPLE = "pictures/example.webp"
READ_SHEETS = '<p class="how">Patches, then projections: a unit a row, the strongest at the left.</p>'
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
    """All that index.html is drawn from; `note`: a sentence on what projections are in this network, or nothing."""

    subject: AtlasInputs
    rail: NetworkDiagram
    rooms: Sequence[AtlasLayer]
    all_units: Sequence[int]
    portraits: AtlasImages
    note: str

    @property
    def name(self) -> str:
        """Of the network."""
        return self.subject.classifier.config.model

    @property
    def units(self) -> int:
        """Shown, of all layers."""
        return sum(room.units for room in self.rooms)

    @property
    def dead(self) -> int:
        """Units that nothing excites."""
        return sum(int(room.found.is_dead.sum()) for room in self.rooms)

    @property
    def sentence(self) -> str:
        """What is seen: "lenet5, trained on digits, looks at 361 pictures: 3 layers of 142 units, 2 of them dead." """
        trained = f", trained on {_short(self.subject.trained_on)}," if self.subject.trained_on else ""
        dead = f", {self.dead:,} of them dead" if self.dead else ""
        return (
            f"{self.name}{trained} looks at {format_count(len(self.subject), 'picture')}: "
            f"{format_count(len(self.rooms), 'layer')} of {format_count(self.units, 'unit')}{dead}."
        )

    def html(self) -> str:
        """The whole document."""
        size = self.subject.size, self.subject.size
        links = {self.rail.index(room.layer.name): _address(room) for room in self.rooms}
        keys = "".join(f"<span><kbd>{escape(key)}</kbd> {escape(what)}</span>" for key, what in KEYS)
        body = (
            '<button type="button" id="drawer">Layers</button>'
            '<nav id="side" aria-label="Network">'
            '<p class="ways"><a href="#/">Network</a> <a href="#/pictures">Pictures</a></p>'
            '<input type="search" id="find" placeholder="layer, or layer and unit" autocomplete="off" '
            'spellcheck="false" aria-label="Find a layer, or a unit by its layer and number">'
            '<ul id="found" aria-live="polite"></ul>'
            f"{render_navigation(self.rail, links, size, EXAMPLE)}</nav>"
            f'<main><div id="network">{self._network()}</div><div id="stage"></div>'
            f'<footer class="keys quiet">{keys}</footer>'
            f"<noscript>{READ_SHEETS}{''.join(self._without_scripts(room) for room in self.rooms)}</noscript></main>"
            f'<script type="application/json" id="facts">{self._facts()}</script>'
        )
        return render_page(f"{self.name} – svertka", body, chapter="atlas", beside=True)

    def _network(self) -> str:
        storeys = "".join(self._storey(room) for room in self.rooms)
        return (
            f'<h1 tabindex="-1">{escape(self.sentence)}</h1><p class="how">From the picture down as the data flow: for '
            "each layer the patches that excite up to twelve of its units most; the frame is what one unit sees of a "
            f'picture (<a href="{PAPER}">Zeiler &amp; Fergus 2014, fig. 2</a>).</p>'
            f'<ol class="storeys">{storeys}</ol>'
        )

    def _storey(self, room: AtlasLayer) -> str:
        node = self.rail.nodes[self.rail.index(room.layer.name)]
        dead = int(room.found.is_dead.sum())
        facts = [
            format_count(room.units, "unit") + (f", {dead:,} dead" if dead else ""),
            f"{format_shape(node)}",
            f"sees {_seen(room)}",
            format_count(node.parameters, "parameter"),
        ]
        seen = render_receptive_field(node.extent, (self.subject.size, self.subject.size), EXAMPLE)
        said = "".join(f"<span>{escape(fact)}</span>" for fact in facts)
        return (
            f'<li><a href="{escape(_address(room))}">{seen}'
            f'<span class="said"><b class="name">{isolate(room.layer.name)}</b>{said}</span>'
            f'<span class="strip">{_strip(room, room.units - dead)}</span></a></li>'
        )

    def _without_scripts(self, room: AtlasLayer) -> str:
        """The wall of a layer as its sheets, a unit a row: what is seen where scripts do not run."""
        sheets = []
        for number, first in enumerate(range(0, room.units, UNITS_PER_SHEET)):
            last = min(first + UNITS_PER_SHEET, room.units) - 1
            for kind in ("patches", "projections"):
                alt = f"{kind} of units {first} to {last}, a unit a row, the strongest at the left"
                width, height = 9 * room.tile.shown, (last - first + 1) * room.tile.shown
                sheets.append(
                    f'<img src="{room.folder}/{kind}-{number}.webp" width="{width}" height="{height}" loading="lazy" '
                    f'alt="{escape(alt)}" class="{"crisp" if room.tile.crisp else "smooth"}">'
                )
        name = escape(_address(room)[1:])
        title = f"<h2>{isolate(room.layer.name)}</h2>"
        return f'<section id="{name}">{title}<div class="sheets">{"".join(sheets)}</div></section>'

    def _facts(self) -> str:
        subject, names = self.subject, self.subject.classifier.names
        numbers = {name: k for k, name in enumerate(names)}
        value = {
            "name": self.name,
            "looked_at": len(subject),
            "classes": subject.dataset.names,
            "class_counts": subject.dataset.counts().tolist(),
            "class_numbers": [numbers.get(name, -1) for name in subject.dataset.names],
            "knows": all(name in numbers for name in subject.dataset.names),
            "predicted": names,
            "featured": self.portraits.featured.tolist(),
            "sheet_rows": UNITS_PER_SHEET,
            "pictures": {
                "count": len(self.portraits.shown),
                "size": subject.size,
                "columns": images_per_row(subject.size),
                "crisp": subject.size <= MAX_CRISP_IMAGE,
                "chunk": IMAGES_PER_SCRIPT,
            },
            "layers": [self._layer(room, units) for room, units in zip(self.rooms, self.all_units, strict=True)],
        }
        text = json.dumps(value, separators=(",", ":"), allow_nan=False)
        return text.replace("<", "\\u003c")  # nothing in it can end the element

    def _layer(self, room: AtlasLayer, units: int) -> dict[str, object]:
        rows, columns = (_intervals(axis, room.found.feature_map_size[k]) for k, axis in enumerate(room.layer.fields))
        return {
            "name": room.layer.name,
            "folder": room.folder,
            "data": room.data,
            "units": room.units,
            "all": units,
            "dead": np.flatnonzero(room.found.is_dead).tolist(),
            "tile": room.tile.to_dict(),
            "rows": rows,
            "columns": columns,
            "sees": _seen(room),
            "filters": room.filters is not None,
            "note": self.note,
        }


def _strip(room: AtlasLayer, alive: int) -> str:
    if not alive:
        return '<span class="dead">dead</span>'
    side = room.tile.window * max(1, STRIP_SIDE // room.tile.window) if room.tile.crisp else STRIP_SIDE
    width = min(STRIP_PATCHES, alive) * (side + 1) - 1
    kind = "crisp" if room.tile.crisp else "smooth"
    return (
        f'<img src="{room.folder}/strip.webp" width="{width}" height="{side}" class="{kind}" alt="" loading="lazy" '
        'decoding="async">'
    )


def _intervals(axis: ReceptiveField, positions: int) -> list[tuple[int, int]]:
    return [axis.of(k if len(axis.intervals) > 1 else 0) for k in range(positions)]


def _address(room: AtlasLayer) -> str:
    # As encodeURIComponent writes it, so that addresses can be compared as texts.
    return f"#/layer/{quote(room.layer.name, safe='!()*~' + chr(39))}"


def _seen(room: AtlasLayer) -> str:
    """What of a picture a unit looks at, in words."""
    if all(axis.whole for axis in room.layer.fields):
        return "the whole picture"
    rows, columns = room.extent
    return "up to the whole picture" if min(rows, columns) >= room.picture else f"{rows}×{columns} pixels"


def _short(source: str) -> str:
    return source.rstrip("/").rsplit("/", 1)[-1]
