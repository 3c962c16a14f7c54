"""Line charts as SVG: stacked panels with a shared x axis, whose values pointer and arrow keys read out.

Lengths along x are shares of the width, so that the chart fits any page without scaling its text; lengths along y are
pixels. static/base.js moves the cursor and shows the readings.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from svertka.pages.axes import Scale
from svertka.pages.number_format import format_brief
from svertka.pages.templates import escape

WIDTH = 1000  # range of the x coordinates inside a plot
LineStyle = Literal["solid", "dashed", "dotted", "mixed", "faint", "steps"]
LINE_STYLES: tuple[LineStyle, ...] = ("solid", "dashed", "dotted", "mixed")  # for lines of equal importance
LABEL_HEIGHT = 18  # pixels; labels closer than this would overlap


@dataclass(frozen=True)
class Line:
    """One curve. NaN in `y` interrupts it; `name` labels its end; "faint" lines are drawn behind the others."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: LineStyle


@dataclass(frozen=True)
class Panel:
    """Curves over one y axis. `text` formats the value of a tick; `height` is in pixels."""

    title: str
    scale: Scale
    lines: Sequence[Line]
    text: Callable[[float], str]
    height: int

    @property
    def full_title(self) -> str:
        """The title, with the kind of axis if it is not linear."""
        note = {"linear": "", "log": ", logarithmic axis", "root": ", square-root axis"}[self.scale.kind]
        return self.title + note


@dataclass(frozen=True)
class Reading:
    """The readout at `x`: its name ("epoch 14"), and a text for each panel."""

    x: float
    name: str
    texts: Sequence[str]


@dataclass(frozen=True)
class XAxis:
    """The shared x axis: its title, scale and ticks."""

    title: str
    scale: Scale
    ticks: Sequence[float]


def render_curves(
    panels: Sequence[Panel], axis: XAxis, readings: Sequence[Reading], mark: int | None, label: str
) -> str:
    """Render the panels as one HTML figure.

    Args:
        panels: from top to bottom.
        axis: the shared x axis.
        readings: the values that can be read out, by rising x.
        mark: index of the reading to highlight, or None.
        label: text at the highlighted reading.
    """
    shown = readings[-1 if mark is None else mark] if readings else None
    parts = []
    for number, panel in enumerate(panels):
        said = shown.texts[number] if shown else ""
        if shown and number == 0:
            said = f"{shown.name} · {said}"
        inside = _grid(panel, axis) + _marked(panel, axis, None if mark is None else readings[mark])
        if number == 0 and mark is not None:
            place = axis.scale.place(readings[mark].x)
            anchor = "start" if place < 0.5 else "end"
            inside += f'<text class="mark" x="{place:.2%}" y="-8" text-anchor="{anchor}">{escape(label)}</text>'
        inside += _end_labels(panel)
        if number == len(panels) - 1:
            inside += _x_labels(panel.height, axis)
        described = f"{panel.full_title} against {axis.title}. {said}"
        parts.append(
            f'<div class="panel"><div class="head"><h3>{escape(panel.full_title)}</h3>'
            f"<output>{escape(said)}</output></div>"
            f'<svg height="{panel.height}" role="img" aria-label="{escape(described)}">{inside}'
            f'<line class="cursor" x1="0" x2="0" y1="0" y2="{panel.height}"/></svg></div>'
        )
    data = {
        "places": [round(axis.scale.place(reading.x), 4) for reading in readings],
        "names": [reading.name for reading in readings],
        "texts": [list(reading.texts) for reading in readings],
        "rest": len(readings) - 1 if mark is None else mark,
    }
    read = escape(json.dumps(data, ensure_ascii=False))
    return f'<figure class="curves" data-readings="{read}">{"".join(parts)}</figure>'


def _grid(panel: Panel, axis: XAxis) -> str:
    """Return the grid lines with their values, and the curves."""
    parts = []
    for tick in panel.scale.ticks(max(3, panel.height // 40)):
        y = panel.height * (1 - panel.scale.place(tick))
        parts.append(f'<line class="hair" x1="0" x2="100%" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="-8" y="{y + 5:.1f}" text-anchor="end">{escape(panel.text(tick))}</text>')
    paths: list[str] = []
    dots: list[str] = []
    for line in panel.lines:
        runs = _runs(line, panel, axis)
        if line.style != "faint":
            alone = [run[0] for run in runs if len(run) == 1]
            dots += [f'<circle cx="{x / WIDTH:.2%}" cy="{y:.1f}" r="3"/>' for x, y in alone]
        drawn = "".join(_path(run, steps=line.style == "steps") for run in runs if len(run) > 1)
        if drawn:
            paths.append(f'<path class="{line.style}" d="{drawn}"/>')
    # Stretched along x only; strokes keep their width (vector-effect in base.css).
    plot = f'<svg width="100%" height="{panel.height}" viewBox="0 0 {WIDTH} {panel.height}" preserveAspectRatio="none">'
    return "".join(parts) + f"{plot}{''.join(paths)}</svg>" + "".join(dots)


def _runs(line: Line, panel: Panel, axis: XAxis) -> list[list[tuple[float, float]]]:
    """Return the points in drawing coordinates, split where a value is missing."""
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(line.x, line.y, strict=True):
        if math.isfinite(x) and math.isfinite(y):
            runs[-1].append((WIDTH * axis.scale.place(x), panel.height * (1 - panel.scale.place(y))))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _path(run: Sequence[tuple[float, float]], *, steps: bool) -> str:
    parts = [f"M{run[0][0]:.1f} {run[0][1]:.1f}"]
    for x, y in run[1:]:
        parts.append(f"H{x:.1f}V{y:.1f}" if steps else f"L{x:.1f} {y:.1f}")
    return "".join(parts)


def _marked(panel: Panel, axis: XAxis, reading: Reading | None) -> str:
    """Return the highlighted x as a line through the panel, with a dot on each named curve."""
    if reading is None:
        return ""
    place = f"{axis.scale.place(reading.x):.2%}"
    parts = [f'<line class="mark" x1="{place}" x2="{place}" y1="0" y2="{panel.height}"/>']
    for line in panel.lines:
        for x, y in zip(line.x, line.y, strict=True):
            if line.name and x == reading.x and math.isfinite(y):
                y = panel.height * (1 - panel.scale.place(y))
                parts.append(f'<circle class="mark" cx="{place}" cy="{y:.1f}" r="4"/>')
    return "".join(parts)


def _end_labels(panel: Panel) -> str:
    """Return the curves' names at their ends, moved apart where they would overlap."""
    ends = []
    for line in panel.lines:
        last = next((y for y in reversed(line.y) if math.isfinite(y)), None)
        if line.name and last is not None:
            ends.append((panel.height * (1 - panel.scale.place(last)), line.name))
    ends.sort()
    places: list[float] = []
    for y, _ in ends:
        places.append(max(y, places[-1] + LABEL_HEIGHT) if places else y)
    sink = max(0.0, places[-1] - panel.height) if places else 0.0
    return "".join(
        f'<text class="name" x="100%" dx="8" y="{place - sink + 5:.1f}">{escape(name)}</text>'
        for place, (_, name) in zip(places, ends, strict=True)
    )


def _x_labels(height: int, axis: XAxis) -> str:
    parts = [
        f'<text x="{axis.scale.place(tick):.2%}" y="{height + 20}" text-anchor="middle">{format_brief(tick)}</text>'
        for tick in axis.ticks
    ]
    return "".join(parts) + f'<text x="100%" dx="16" y="{height + 20}">{escape(axis.title)}</text>'
