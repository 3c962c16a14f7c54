"""The sections of a report on several labels, or on a number."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from svertka.confidence_intervals import Interval
from svertka.errors import ImageError
from svertka.evaluation.multi_label_metrics import LabelMetrics, LabelMistake, MultiLabelEvaluation
from svertka.evaluation.regression_metrics import RegressionEvaluation
from svertka.evaluation.reliability_diagram import reliability_html
from svertka.pages.axes import Scale
from svertka.pages.inline_images import render_image, render_strip
from svertka.pages.number_format import MISSING, NBSP, format_brief, format_percent
from svertka.pages.templates import render_template

Pixels = npt.NDArray[np.uint8]
Read = Callable[[int], Pixels]

SIDE = 128  # CSS pixels of a mistake
THUMBNAIL = 32  # CSS pixels of an example
EXAMPLES = 4  # of a label
MAX_EXAMPLES = 240  # of all labels together, to limit the file size
POINTS = 2000  # of the scatter plot
PLOT = 256  # pixels, its side


@dataclass(frozen=True)
class Section:
    """A section of the report: its id in links, its title, and its content."""

    id: str
    title: str
    html: Markup


def describe_labels(evaluation: MultiLabelEvaluation, read: Read, image_name: Callable[[int], str]) -> list[Section]:
    """Return the sections on the labels: metrics of each, the worst mistakes, and calibration.

    Args:
        evaluation: The evaluation.
        read: Returns the image at an index, (H, W, 1 | 3) uint8; may raise ImageError.
        image_name: Returns its path.
    """
    listed = sorted(evaluation.per_label, key=lambda one: -1.0 if one.f1 is None else one.f1)
    count = min(EXAMPLES, MAX_EXAMPLES // max(len(listed), 1))
    numbers = {name: k for k, name in enumerate(evaluation.names)}
    rows = [_describe_label(evaluation, one, numbers[one.name], read, count) for one in listed]
    table = render_template("label_table.html", rows=rows, chosen_here=evaluation.chose_thresholds)
    wall = _wall([_describe_mistake(evaluation, one, read, image_name) for one in evaluation.mistakes])
    sections = [Section("labels", "Labels", table), Section("mistakes", "Worst mistakes", wall)]
    if reliability := reliability_html(evaluation.calibration, "label"):
        sections.append(Section("calibration", "Calibration", reliability))
    return sections


def _describe_label(
    evaluation: MultiLabelEvaluation, one: LabelMetrics, label: int, read: Read, count: int
) -> dict[str, Any]:
    indices = evaluation.indices[evaluation.targets[:, label]][:count].tolist()
    images = [pixels for index in indices if (pixels := _read(read, index)) is not None]
    return {
        "name": one.name,
        "images": one.images,
        "average_precision": one.average_precision,
        "average_precision_interval": _interval(one.average_precision_interval),
        "f1": one.f1,
        "f1_interval": _interval(one.f1_interval),
        "precision": one.precision,
        "recall": one.recall,
        "threshold": one.threshold,
        "examples": render_strip(images, THUMBNAIL, f"Pictures with {one.name}") if images else Markup(),
    }


def _describe_mistake(
    evaluation: MultiLabelEvaluation, mistake: LabelMistake, read: Read, image_name: Callable[[int], str]
) -> dict[str, Any]:
    name = evaluation.names[mistake.label]
    said = "has" if mistake.is_missed else "lacks"
    probability = format_percent(mistake.probability)
    lines = [f"{said} {name}", f"predicted with {probability}"]
    return _captioned(mistake.index, lines, read, image_name)


def describe_numbers(evaluation: RegressionEvaluation, read: Read, image_name: Callable[[int], str]) -> list[Section]:
    """Return the sections on a number: predicted against true, and the largest errors; see `describe_labels`."""
    shown = [
        _captioned(
            int(evaluation.indices[place]),
            [
                f"is {format_brief(float(evaluation.targets[place]))}",
                f"predicted {format_brief(float(evaluation.predicted[place]))}",
            ],
            read,
            image_name,
        )
        for place in evaluation.worst
    ]
    return [
        Section("numbers", "Predicted against true", _scatter(evaluation)),
        Section("mistakes", "Largest errors", _wall(shown)),
    ]


def _scatter(evaluation: RegressionEvaluation) -> Markup:
    """Return the scatter plot of predicted against true numbers, of up to 2000 images."""
    places = np.arange(evaluation.images)
    if len(places) > POINTS:
        places = np.sort(np.random.default_rng(0).choice(places, POINTS, replace=False))
    targets, predicted = evaluation.targets[places], evaluation.predicted[places]
    low, high = float(min(targets.min(), predicted.min())), float(max(targets.max(), predicted.max()))
    margin = 0.02 * (high - low) or 1.0
    scale = Scale("linear", low - margin, high + margin)

    def place(value: float) -> float:
        return round(PLOT * scale.place(value), 1)

    points = [(place(x), round(PLOT - place(y), 1)) for x, y in zip(targets, predicted, strict=True)]
    ticks = [(place(tick), round(PLOT - place(tick), 1), format_brief(tick)) for tick in scale.ticks(5)]
    rows = evaluation.table()
    return render_template(
        "number_scatter.html", number=evaluation.name, points=points, ticks=ticks, side=PLOT, rows=rows,
        shown=len(places), images=evaluation.images,
    )  # fmt: skip


def _captioned(index: int, lines: Sequence[str], read: Read, image_name: Callable[[int], str]) -> dict[str, Any]:
    path, pixels = image_name(index), _read(read, index)
    alt = f"{path}: {', '.join(lines)}"
    image = None if pixels is None else render_image(pixels, SIDE, alt)
    return {"path": path, "file": PurePath(path).name, "alt": alt, "lines": lines, "image": image}


def _wall(shown: Sequence[dict[str, Any]]) -> Markup:
    return render_template("captioned_images.html", shown=shown)


def _interval(interval: Interval | None) -> str:
    return MISSING if interval is None else f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}{NBSP}%"


def _read(read: Read, index: int) -> Pixels | None:
    """Return the pixels; None if the file is gone."""
    try:
        return read(index)
    except ImageError:
        return None
