"""Line charts as SVG: stacked panels with a shared x axis, whose values pointer and arrow keys read out.

Lengths along x are shares of the width, so that the chart fits any page without scaling its text; lengths along y are
pixels. static/base.js moves the cursor and shows the readings.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from markupsafe import Markup

from svertka.pages.axes import Scale
from svertka.pages.number_format import format_brief
from svertka.pages.templates import render_template

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
class CursorReadout:
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
    panels: Sequence[Panel], axis: XAxis, readings: Sequence[CursorReadout], mark: int | None, label: str
) -> Markup:
    """Render the panels as one HTML figure.

    Args:
        panels: Panels from top to bottom.
        axis: The shared x axis.
        readings: The values that can be read out, by rising x.
        mark: Index of the reading to highlight, or None.
        label: Text at the highlighted reading.
    """
    marked = None if mark is None else readings[mark]
    shown = marked or (readings[-1] if readings else None)
    drawn = [_describe_panel(panel, number, axis, shown, marked) for number, panel in enumerate(panels)]
    data = {
        "places": [round(axis.scale.place(reading.x), 4) for reading in readings],
        "names": [reading.name for reading in readings],
        "texts": [list(reading.texts) for reading in readings],
        "rest": len(readings) - 1 if mark is None else mark,
    }
    return render_template(
        "curves.html",
        panels=drawn,
        readings=json.dumps(data, ensure_ascii=False),
        width=WIDTH,
        mark=marked and _describe_mark(marked, axis, label),
        ticks=[(_percent_of_width(axis, tick), format_brief(tick)) for tick in axis.ticks],
        axis=axis.title,
    )


def _describe_panel(
    panel: Panel, number: int, axis: XAxis, shown: CursorReadout | None, marked: CursorReadout | None
) -> dict[str, Any]:
    """Return what the template draws in a panel; `shown` is the reading beside its title."""
    reading = shown.texts[number] if shown else ""
    if shown and number == 0:
        reading = f"{shown.name} · {reading}"
    ticks = panel.scale.ticks(max(3, panel.height // 40))
    paths, dots = _paths_and_dots(panel, axis)
    return {
        "title": panel.full_title,
        "reading": reading,
        "description": f"{panel.full_title} against {axis.title}. {reading}",
        "height": panel.height,
        "grid": [(_y(panel, tick), panel.text(tick)) for tick in ticks],
        "paths": paths,
        "dots": dots,
        "marked": [_y(panel, y) for y in _values_at(panel, marked)],
        "names": _end_labels(panel, axis),
    }


def _describe_mark(marked: CursorReadout, axis: XAxis, label: str) -> dict[str, str]:
    """Return the place and the text of the highlighted reading."""
    anchor = "start" if axis.scale.place(marked.x) < 0.5 else "end"
    return {"x": _percent_of_width(axis, marked.x), "anchor": anchor, "label": label}


def _percent_of_width(axis: XAxis, x: float) -> str:
    return f"{axis.scale.place(x):.2%}"


def _y(panel: Panel, value: float) -> float:
    """Return the y coordinate of `value`, pixels from the top of the panel."""
    return round(panel.height * (1 - panel.scale.place(value)), 1)


def _paths_and_dots(panel: Panel, axis: XAxis) -> tuple[list[tuple[LineStyle, str]], list[tuple[str, float]]]:
    """Return the curves as (style, path data), and points without neighbors as (x, y)."""
    paths: list[tuple[LineStyle, str]] = []
    dots: list[tuple[str, float]] = []
    for line in panel.lines:
        runs = _runs(line, panel, axis)
        if line.style != "faint":
            dots += [(f"{run[0][0] / WIDTH:.2%}", round(run[0][1], 1)) for run in runs if len(run) == 1]
        drawn = "".join(_path(run, steps=line.style == "steps") for run in runs if len(run) > 1)
        if drawn:
            paths.append((line.style, drawn))
    return paths, dots


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


def _values_at(panel: Panel, marked: CursorReadout | None) -> list[float]:
    """Return the values of the named curves at the highlighted x."""
    if marked is None:
        return []
    named = [line for line in panel.lines if line.name]
    return [y for line in named for x, y in zip(line.x, line.y, strict=True) if x == marked.x and math.isfinite(y)]


def _end_labels(panel: Panel, axis: XAxis) -> list[tuple[str, float, str]]:
    """Return the curves' names with their places at the ends, (x, y, name), moved apart where they would overlap."""
    ends = []
    for line in panel.lines:
        points = [(x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)]
        if line.name and points:
            x, y = points[-1]
            ends.append((panel.height * (1 - panel.scale.place(y)), _percent_of_width(axis, x), line.name))
    ends.sort()
    places: list[float] = []
    for y, _, _ in ends:
        places.append(max(y, places[-1] + LABEL_HEIGHT) if places else y)
    sink = max(0.0, places[-1] - panel.height) if places else 0.0
    return [(x, round(place - sink + 5, 1), name) for place, (_, x, name) in zip(places, ends, strict=True)]
