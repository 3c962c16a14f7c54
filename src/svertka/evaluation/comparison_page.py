"""comparison.html: several runs side by side in one self-contained HTML file."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Literal

import numpy as np
from markupsafe import Markup

from svertka.confidence_intervals import Interval, format_p_value
from svertka.errors import ImageError
from svertka.evaluation.comparison import ComparedRun, Comparison, Difference
from svertka.evaluation.metrics import Evaluation
from svertka.evaluation.regression_metrics import RegressionEvaluation
from svertka.evaluation.report_page import SHOWN_SIDE
from svertka.evaluation.task_metrics import AnyEvaluation
from svertka.evaluation.training_curves import TrainingCurves, format_epoch, read_metric, subsample_log_lines
from svertka.files import write_atomic
from svertka.pages.axes import Scale, fit_scale
from svertka.pages.html_page import render_page
from svertka.pages.inline_images import render_image
from svertka.pages.number_format import (
    MISSING,
    NBSP,
    count_with_noun,
    format_brief,
    format_percent,
    format_three_digits,
)
from svertka.pages.svg_curves import LINE_STYLES, CursorReadout, Line, Panel, XAxis, render_curves
from svertka.pages.templates import render_template
from svertka.progress import format_duration, show_spinner
from svertka.run import display_name

INTERVAL = "95 % interval"
HEIGHT = 224  # pixels of a panel of curves
MAX_DISAGREEMENTS = 6  # images of each kind that two runs disagree about: a row
SIDE = 128  # CSS pixels of one
MAX_CLASSES = 100  # rows of the table of classes
# Of the table of errors, by kind of task.
COLUMNS = {
    "single-label": (
        "error",
        INTERVAL,
        "top-5 error",
        "loss, nats",
        "calibration error",
        "points from A",
        INTERVAL,
        "p",
    ),
    "multi-label": ("mAP", INTERVAL, "F1", "loss, nats", "calibration error", "points from A", INTERVAL),
    "regression": (
        "mean absolute error",
        INTERVAL,
        "root mean squared error",
        "R²",
        "loss",
        "difference from A",
        INTERVAL,
    ),
}

Trained = Sequence[tuple[ComparedRun, Sequence[Mapping[str, Any]]]]


@show_spinner("writing the page")
def write_comparison(path: Path, comparison: Comparison) -> None:
    """Write `comparison` to `path` as one HTML file, atomically; some of the images are read again.

    Raises:
        StorageError: The disk is full or the folder cannot be written.
    """
    title = " and ".join(display_name(one.run) + one.suffix for one in comparison.runs[:2])
    more = len(comparison.runs) - 2
    document = render_page(f"{title}{f' and {more} more' if more > 0 else ''} – svertka", _body(comparison))
    write_atomic(path, document.encode())


def _body(comparison: Comparison) -> Markup:
    runs, kind = comparison.runs, comparison.joint.classifiers[0].task.kind
    evaluations = [comparison.ensemble, *(one.evaluation for one in runs)]
    ends = [end for one in evaluations for end in one.metric_interval if not math.isnan(end)]
    axis = (min(0.0, *ends), max(ends)) if ends else (0.0, 1.0)
    differences = [end for one in runs if one.difference for end in one.difference.interval if not math.isnan(end)]
    reach = max(map(abs, differences), default=1.0)
    trained = [(one, epochs) for one in runs if (epochs := TrainingCurves(one.history).epochs)]
    classes = _classes_by_range(runs)
    return render_template(
        "comparison.html",
        comparison=comparison,
        kind=kind,
        names=", ".join(f"{one.letter}{NBSP}is {display_name(one.run)}{one.suffix}" for one in runs),
        letters=[one.letter for one in runs],
        columns=COLUMNS[kind],
        runs=[_describe_run(one, axis, reach) for one in runs],
        ensemble=_metric_cells(comparison.ensemble, axis),
        curves=_curves(trained, is_share=kind != "regression"),
        without_history=_without_history(runs, trained),
        walls=_disagreements(comparison),
        classes=classes[:MAX_CLASSES],
        classes_left_out=max(0, len(classes) - MAX_CLASSES),
        settings=_different_settings(runs),
    )


def _metric_cells(evaluation: AnyEvaluation, axis: Interval) -> list[Any]:
    """Return the cells of an evaluation in the table of errors: the metric, its interval as a bar, and the others."""
    bar = _bar(evaluation.metric_interval, evaluation.metric, axis, evaluation.format_metric)
    metric, loss = evaluation.format_metric(evaluation.metric), format_three_digits(evaluation.loss)
    if isinstance(evaluation, RegressionEvaluation):
        return [metric, bar, format_three_digits(evaluation.rmse), format_three_digits(evaluation.r2), loss]
    other = evaluation.top5_error if isinstance(evaluation, Evaluation) else evaluation.f1
    calibration = evaluation.calibration
    calibration_error = calibration.error if calibration.is_meaningful else None
    return [metric, bar, format_percent(other), loss, format_percent(calibration_error)]


def _describe_run(one: ComparedRun, axis: Interval, reach: float) -> dict[str, Any]:
    """Return what the template shows of a run.

    Args:
        one: The run.
        axis: Both ends of the axis of errors, or of the metric.
        reach: End of the axis of differences, in both directions.
    """
    history = TrainingCurves(one.history)
    is_trained = bool(history.epochs)
    difference = one.difference
    cells: list[Any] = [*_metric_cells(one.evaluation, axis), "", ""]
    if difference is not None:
        text = one.evaluation.format_metric_difference
        cells[-2:] = [text(difference.value), _bar(difference.interval, difference.value, (-reach, reach), text)]
    if isinstance(one.evaluation, Evaluation):
        p = "" if not isinstance(difference, Difference) else format_p_value(difference.p)
        cells.append(p.removeprefix("= ").replace(" ", NBSP))
    return {
        "letter": one.letter,
        "run": one.run,
        "name": display_name(one.run) + one.suffix,
        "cells": cells,
        "costs": (
            one.network,
            f"{one.parameters:,}",
            f"{one.multiply_adds:,}",
            f"{format_three_digits(1000 * one.speed.seconds)}{NBSP}ms",
            f"{one.speed.per_second:,.0f}",
            f"{len(history.epochs):,}" if is_trained else MISSING,
            format_duration(history.seconds) if is_trained else MISSING,
        ),
    }


def _bar(interval: Interval, estimate: float, axis: Interval, text: Callable[[float], str]) -> dict[str, str] | str:
    """Return the places of `interval` and `estimate` on `axis`, shares of its length, and the interval in words.

    Without an interval, as on too few images, return a dash.
    """
    low, high = interval
    if math.isnan(low + high + estimate):
        return MISSING
    start, end = axis
    length = end - start or 1.0

    def place(value: float) -> str:
        return f"{100 * (value - start) / length:.2f}%"

    return {
        "zero": place(0),
        "low": place(low),
        "width": f"{100 * (high - low) / length:.2f}%",
        "estimate": place(estimate),
        "text": f"{text(low)} to {text(high)}".replace(" ", NBSP),
    }


def _curves(trained: Trained, *, is_share: bool) -> Markup:
    """Return validation error, which may be a share, and training loss of the runs that were trained here."""
    if not trained:
        return Markup()
    panels = [
        _panel(
            trained,
            "Validation error",
            "val_error",
            "root",
            (lambda y: f"{100 * y:g}{NBSP}%") if is_share else format_brief,
        ),
        _panel(trained, f"Training loss{', nats' if is_share else ''}", "train_loss", "log", format_brief),
    ]
    last = max(read_metric(epochs[-1], "epoch") for _, epochs in trained)
    scale = Scale("linear", 0.0, last)
    longest = max((epochs for _, epochs in trained), key=len)
    readings = [
        _reading(trained, read_metric(line, "epoch"), format_percent if is_share else format_three_digits)
        for line in subsample_log_lines(longest)
    ]
    return render_curves(panels, XAxis("epoch", scale, scale.ticks(5, whole=last >= 2)), readings, None, "")


def _without_history(runs: Sequence[ComparedRun], trained: Trained) -> str:
    """Return a sentence on the runs without training curves; empty if there are none."""
    known = {one.letter for one, _ in trained}
    without = [one.letter for one in runs if one.letter not in known]
    return f"No history: {', '.join(without)}." if without else ""


def _panel(
    trained: Trained, title: str, name: str, nonlinear: Literal["log", "root"], text: Callable[[float], str]
) -> Panel:
    lines = [
        Line(
            one.letter,
            [read_metric(line, "epoch") for line in subsample_log_lines(epochs)],
            [read_metric(line, name) for line in subsample_log_lines(epochs)],
            LINE_STYLES[k % len(LINE_STYLES)],
        )
        for k, (one, epochs) in enumerate(trained)
    ]
    return Panel(title, fit_scale([y for line in lines for y in line.y], nonlinear), lines, text, HEIGHT)


def _reading(trained: Trained, epoch: float, text: Callable[[float], str]) -> CursorReadout:
    """Return the values of each run at `epoch`, or at its last epoch if that was earlier."""
    reached = [(one, [line for line in epochs if read_metric(line, "epoch") <= epoch][-1:]) for one, epochs in trained]
    errors = ", ".join(f"{one.letter} {text(read_metric(line[0], 'val_error'))}" for one, line in reached if line)
    losses = ", ".join(
        f"{one.letter} {format_three_digits(read_metric(line[0], 'train_loss'))}" for one, line in reached if line
    )
    return CursorReadout(epoch, format_epoch(epoch), [errors, losses])


def _disagreements(comparison: Comparison) -> list[dict[str, Any]]:
    """Return the images that one of the first and each other run gets wrong, or further off, and the other does not."""
    first, *others = comparison.runs
    walls = []
    for one in others:
        for wrong, right in ((one, first), (first, one)):
            title, indices = _find_disagreements(wrong, right)
            walls.append({"title": title, "images": [_describe_image(comparison, wrong, index) for index in indices]})
    return walls


def _find_disagreements(wrong: ComparedRun, right: ComparedRun) -> tuple[str, list[int]]:
    """Return the title and the indices of the images of one wall."""
    one, other = wrong.evaluation, right.evaluation
    if isinstance(one, RegressionEvaluation) or isinstance(other, RegressionEvaluation):
        assert isinstance(one, RegressionEvaluation)
        assert isinstance(other, RegressionEvaluation)  # of runs that predict the same
        further = np.abs(one.predicted - one.targets) - np.abs(other.predicted - other.targets)
        places = np.argsort(-further, kind="stable")[:MAX_DISAGREEMENTS]
        title = f"{wrong.letter} further off than {right.letter}, the most of all pictures"
        return title, one.indices[places[further[places] > 0]].tolist()
    indices = one.indices[one.wrong & ~other.wrong].tolist()
    title = f"{wrong.letter} wrong, {right.letter} right: {count_with_noun(len(indices), 'picture')}"
    if len(indices) > MAX_DISAGREEMENTS:
        title += f", {MAX_DISAGREEMENTS} of them shown"
        # Evenly spread, since neighbors in a folder are alike.
        indices = [indices[k * len(indices) // MAX_DISAGREEMENTS] for k in range(MAX_DISAGREEMENTS)]
    return title, indices


def _describe_image(comparison: Comparison, wrong: ComparedRun, index: int) -> dict[str, Any]:
    """Return what the template shows of an image that `wrong` gets wrong."""
    dataset = comparison.joint.dataset
    name, path = dataset.label_text(index), dataset.images.name(index)
    is_number = isinstance(wrong.evaluation, RegressionEvaluation)
    alt = f"{path}: {name}, which {wrong.letter} {'predicts less well' if is_number else 'gets wrong'}"
    try:
        image = render_image(dataset.images.read(index, SHOWN_SIDE), SIDE, alt)
    except ImageError:
        image = None
    return {"name": name, "path": path, "file": PurePath(path).name, "alt": alt, "image": image}


@dataclass(frozen=True)
class _ClassRow:
    """A class or label with its images, and the recall or average precision of each run, 0 to 1."""

    name: str
    images: int
    shares: tuple[float, ...]

    @property
    def range(self) -> float:
        """Difference of the highest and the lowest share."""
        return max(self.shares) - min(self.shares)


def _classes_by_range(runs: Sequence[ComparedRun]) -> list[_ClassRow]:
    """Return the classes or labels with images, those with the largest range of recall or precision first."""
    rows = []
    for some in zip(*(_shares(one.evaluation) for one in runs), strict=True):
        name, images, _ = some[0]
        if images:
            rows.append(_ClassRow(name, images, tuple(share or 0.0 for _, _, share in some)))
    return sorted(rows, key=lambda row: row.range, reverse=True)


def _shares(evaluation: AnyEvaluation) -> list[tuple[str, int, float | None]]:
    """Return the name, the images and the recall of each class, or the average precision of each label."""
    if isinstance(evaluation, RegressionEvaluation):
        return []
    if isinstance(evaluation, Evaluation):
        return [(one.name, one.images, one.recall) for one in evaluation.per_class]
    return [(one.name, one.images, one.average_precision) for one in evaluation.per_label]


def _different_settings(runs: Sequence[ComparedRun]) -> list[tuple[str, list[str]]]:
    """Return the settings of training.json that differ between the runs: the name and the value of each run."""
    flat = [_flat(one.settings) for one in runs]
    known = [one for one in flat if one]
    names = dict.fromkeys(name for one in known for name in one)
    return [
        (name, [one.get(name, MISSING) for one in flat])
        for name in names
        if len({one.get(name) for one in known}) > 1 and name != "recipe.source"  # a paragraph, and recipe_name says it
    ]


def _flat(settings: Mapping[str, Any], before: str = "") -> dict[str, str]:
    """Return nested settings by path: "recipe.lr" -> "0.1"."""
    found: dict[str, str] = {}
    for name, content in settings.items():
        if isinstance(content, Mapping):
            found |= _flat(content, f"{before}{name}.")
        elif isinstance(content, list):
            kinds = [str(one.get("kind", "…") if isinstance(one, Mapping) else one) for one in content]
            found[before + name] = ", ".join(kinds) or MISSING
        else:
            found[before + name] = MISSING if content is None else str(content)
    return found
