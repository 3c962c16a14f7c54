"""HTML of results for notebooks: a title, sentences, a chart, a table and thumbnails, in one block.

The block has inline styles only and loads nothing, so that it works offline and in notebooks that remove scripts and
style sheets. Jinja2 escapes every text.
"""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from svertka.escaping import replace_forbidden

if TYPE_CHECKING:
    from jinja2 import Template

MAX_ROWS = 30  # of a table
CHART_WIDTH, CHART_HEIGHT = 360, 140  # pixels
CHART_POINTS = 400  # points of a curve; more cannot be seen
THUMBNAIL_SIDE = 96  # pixels


@dataclass(frozen=True)
class Curve:
    """A named line of a chart: x and y of its points; points that are not finite are left out."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Thumbnail:
    """A small image: its `data:` address (None: it cannot be read) and the lines of text below it."""

    address: str | None
    lines: Sequence[str]


@dataclass(frozen=True)
class Block:
    """What a notebook shows of a result, from top to bottom; all strings are plain text.

    Attributes:
        title: First line, bold.
        sentences: Lines below the title.
        curves: Curves of one chart.
        axes: Names of its x and y axes.
        header: Column names of the table.
        rows: Rows of the table; the first 30 are shown.
        thumbnails: Images.
        omitted: What was left out, such as "3 more images"; empty if nothing was.
    """

    title: str
    sentences: Sequence[str] = ()
    curves: Sequence[Curve] = ()
    axes: tuple[str, str] = ("", "")
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    thumbnails: Sequence[Thumbnail] = ()
    omitted: str = field(default="")

    def render(self) -> str:
        """Return the block as HTML."""
        hidden = len(self.rows) - MAX_ROWS
        omitted = self.omitted or (f"{hidden:,} more rows" if hidden > 0 else "")
        return _template().render(
            block=self, rows=self.rows[:MAX_ROWS], omitted=omitted, chart=_chart(self.curves), side=THUMBNAIL_SIDE
        )


def image_address(pixels: npt.NDArray[np.uint8]) -> str:
    """Return a `data:` address of an image (H, W, 1 | 3) uint8, reduced to at most 96 pixels a side."""
    from PIL import Image

    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "PNG" if max(pixels.shape[:2]) <= THUMBNAIL_SIDE else "WEBP")
    kind = "png" if max(pixels.shape[:2]) <= THUMBNAIL_SIDE else "webp"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _chart(curves: Sequence[Curve]) -> dict[str, Any] | None:
    """Return what the template draws: the points of each curve in pixels, and the ends of the axes."""
    finite = [
        [(x, y) for x, y in zip(curve.x, curve.y, strict=True) if math.isfinite(x) and math.isfinite(y)]
        for curve in curves
    ]
    points = [point for one in finite for point in one]
    if not points:
        return None
    left, right, top = min(x for x, _ in points), max(x for x, _ in points), max(y for _, y in points)
    width, height = right - left or 1.0, top if top > 0 else 1.0
    lines = []
    for curve, one in zip(curves, finite, strict=True):
        stride = -(-len(one) // CHART_POINTS) or 1
        drawn = " ".join(
            f"{CHART_WIDTH * (x - left) / width:.1f},{CHART_HEIGHT * (1 - max(y, 0.0) / height):.1f}"
            for x, y in one[::-stride][::-1]
        )
        lines.append({"name": curve.name, "points": drawn})
    return {
        "lines": lines, "left": f"{left:g}", "right": f"{right:g}", "top": f"{top:.3g}",
        "width": CHART_WIDTH, "height": CHART_HEIGHT,
    }  # fmt: skip


@cache
def _template() -> "Template":
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: replace_forbidden(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.from_string(_SOURCE)


_SOURCE = """
<div style="font-family:system-ui,sans-serif;line-height:1.4">
<div><b><bdi>{{ block.title }}</bdi></b></div>
{% for sentence in block.sentences %}
<div><bdi>{{ sentence }}</bdi></div>
{% endfor %}
{% if chart %}
<svg viewBox="-6 -6 {{ chart.width + 12 }} {{ chart.height + 12 }}" width="{{ chart.width }}" role="img"
 aria-label="{{ block.axes[1] }} by {{ block.axes[0] }}" style="display:block;max-width:100%;margin:8px 0 0">
<path d="M0 0V{{ chart.height }}H{{ chart.width }}" fill="none" stroke="#888"/>
{% for line in chart.lines %}
<polyline points="{{ line.points }}" fill="none" stroke="currentColor" stroke-width="1.5"
 {{ 'stroke-dasharray="5 3"'|safe if loop.index0 % 2 }}><title>{{ line.name }}</title></polyline>
{% endfor %}
</svg>
<div style="color:#777">{% for line in chart.lines %}{{ "dashed" if loop.index0 % 2 else "solid" }}:
 <bdi>{{ line.name }}</bdi>; {% endfor %}{{ block.axes[1] }} 0 to {{ chart.top }},
 {{ block.axes[0] }} {{ chart.left }} to {{ chart.right }}</div>
{% endif %}
{% if rows %}
<table style="border-collapse:collapse;margin:8px 0">
<thead><tr>{% for name in block.header %}<th scope="col" style="text-align:left"><bdi>{{ name }}</bdi></th>
{% endfor %}</tr></thead>
<tbody>
{% for row in rows %}
<tr>{% for cell in row %}<td style="text-align:left"><bdi>{{ cell }}</bdi></td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
{% endif %}
{% if block.thumbnails %}
<div style="display:flex;flex-wrap:wrap;gap:12px;margin:8px 0">
{% for one in block.thumbnails %}
<figure style="margin:0;width:{{ side + 32 }}px;overflow-wrap:anywhere">
{% if one.address %}
<img src="{{ one.address }}" alt="{{ one.lines|first|default('') }}"
 style="max-width:{{ side }}px;max-height:{{ side }}px">
{% endif %}
<figcaption>{% for line in one.lines %}<div><bdi>{{ line }}</bdi></div>{% endfor %}</figcaption>
</figure>
{% endfor %}
</div>
{% endif %}
{% if omitted %}
<div style="color:#777">{{ omitted }}</div>
{% endif %}
</div>
"""
