"""HTML of results for notebooks: a title, sentences, a chart, a table and thumbnails, in one block.

The block has inline styles only and loads nothing, so that it works offline and in notebooks that remove scripts and
style sheets.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from svertka.pages.inline_images import Pixels, show_bands, shrink, to_data_uri
from svertka.pages.templates import render_template

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
class NotebookBlock:
    """What a notebook shows of a result, from top to bottom. All strings are plain text.

    Attributes:
        title: First line, bold.
        sentences: Lines below the title.
        curves: Curves of one chart.
        axes: Names of its x and y axes.
        header: Column names of the table.
        rows: Rows of the table.
        right: Columns of the table that are aligned right.
        most_rows: The number of rows that are shown, of the first ones.
        thumbnails: Images.
        omitted: What was left out, such as "3 more images"; empty if nothing was.
    """

    title: str
    sentences: Sequence[str] = ()
    curves: Sequence[Curve] = ()
    axes: tuple[str, str] = ("", "")
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    right: Sequence[int] = ()
    most_rows: int = MAX_ROWS
    thumbnails: Sequence[Thumbnail] = ()
    omitted: str = field(default="")

    def render(self) -> str:
        """Return the block as HTML."""
        hidden = len(self.rows) - self.most_rows
        omitted = self.omitted or (f"{hidden:,} more rows" if hidden > 0 else "")
        chart = _chart(self.curves)
        return str(
            render_template(
                "notebook_block.html",
                block=self,
                rows=self.rows[: self.most_rows],
                omitted=omitted,
                chart=chart,
                side=THUMBNAIL_SIDE,
            )
        )


def thumbnail_uri(image: Pixels) -> str:
    """Return a `data:` URI of `image` (H, W, 1 | 3) uint8, reduced to at most 96 pixels a side."""
    image = show_bands(image)
    return to_data_uri(shrink(image, THUMBNAIL_SIDE), exact=max(image.shape[:2]) <= THUMBNAIL_SIDE)


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
