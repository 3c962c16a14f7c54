"""comparison.html: several runs side by side in one self-contained HTML file."""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from svertka.errors import PictureError
from svertka.evaluation.compare import ComparedRun, Comparison
from svertka.evaluation.confidence_intervals import Interval, format_p, format_points
from svertka.evaluation.learning_curves import LearningCurves, epoch_name, metric, subsample
from svertka.evaluation.metrics import ClassMetrics, Evaluation
from svertka.evaluation.report_page import SHOWN_SIDE
from svertka.files import write_atomic
from svertka.pages.axes import Scale, fit_scale
from svertka.pages.html_page import bidi_isolate, render_page, render_scrollable, render_section
from svertka.pages.inline_images import render_figure
from svertka.pages.number_format import MISSING, NBSP, format_brief, format_count, format_number, format_percent
from svertka.pages.svg_curves import LINE_STYLES, Line, Panel, Reading, XAxis, render_curves
from svertka.pages.templates import escape
from svertka.progress import duration
from svertka.run import display_name

HEIGHT = 224  # pixels of a panel of curves
POINTS = 400  # readings of the curves
DISAGREEMENTS_SHOWN = 6  # pictures of each kind that two runs disagree about: a row
SIDE = 128  # CSS pixels of one
CLASSES = 100  # rows of the table of classes


def write_comparison(path: Path, comparison: Comparison) -> None:
    """Write `comparison` to `path` as one HTML file, atomically; some of the images are read again.

    Raises:
        StorageError: The disk is full or the folder cannot be written.
    """
    title = " and ".join(display_name(one.run) for one in comparison.runs[:2])
    more = len(comparison.runs) - 2
    write_atomic(
        path, render_page(f"{title}{f' and {more} more' if more else ''} – svertka", _body(comparison)).encode()
    )


def _body(comparison: Comparison) -> str:
    runs = comparison.runs
    named = ", ".join(f"{one.letter}{NBSP}is {display_name(one.run)}" for one in runs)
    parts = [
        f"<header><p><b>{bidi_isolate(named)}</b></p><h1>{escape(comparison.sentence)}</h1>{_chosen(comparison)}</header>",
        render_section("errors", "How often they are wrong", _errors(comparison)),
        render_section("costs", "What they take", _costs(comparison)),
        render_section("curves", "Learning curves", _curves(runs)),
        render_section("disagree", "Where they disagree", _disagreements(comparison)),
        render_section("classes", "Classes", _classes(runs)),
        render_section("made", "What differs in how they were made", _settings(runs)),
    ]
    return f"<main>{''.join(parts)}</main>"


def _chosen(comparison: Comparison) -> str:
    if comparison.joint.part != "test":
        return ""
    return (
        "<p>The best of several runs on the test pictures is worse on new pictures: "
        "choose a run on the validation part, and use the test part to measure the chosen one.</p>"
    )


def _errors(comparison: Comparison) -> str:
    runs, together = comparison.runs, comparison.ensemble
    top = max(one.evaluation.top1_interval[1] for one in runs)
    reach = max((abs(end) for one in runs if one.difference for end in one.difference.interval), default=1.0)
    rows = [f"<tr>{_head(one)}{_error_cells(one.evaluation, top)}{_difference_cells(one, reach)}</tr>" for one in runs]
    mean = f'<th scope="row"><span class="called">their mean</span></th>{_error_cells(together, top)}{"<td></td>" * 3}'
    how = (
        "The bar is the 95 % confidence interval of the share of all such pictures that a run would get wrong "
        "(Wilson 1927). Two runs are compared on the same pictures: those that only one of them gets wrong "
        "count, those that both get wrong do not. The difference from A has an interval, too (Bonett &amp; Price 2012; "
        "the line is zero), and p is the probability of a split at least as unequal between equally good runs "
        "(McNemar 1947, exact): one in twenty comparisons of equals falls below 0.05. "
        "Their mean is the average of the probabilities of all runs."
    )
    heads = (
        "run", "wrong", "95 % interval", "with five guesses", "loss, nats", "calibration error", "points over A",
        "95 % interval", "p",
    )  # fmt: skip
    return f'<p class="how">{how}</p>' + _table("Errors", heads, [*rows, f"<tr>{mean}</tr>"])


def _head(one: ComparedRun) -> str:
    said = f"<b>{one.letter}</b> {bidi_isolate(display_name(one.run))}"
    return f'<th scope="row"><span class="called" title="{escape(one.run)}">{said}</span></th>'


def _error_cells(evaluation: Evaluation, top: float) -> str:
    low, high = evaluation.top1_interval
    said = f"{format_percent(low)} to {format_percent(high)}".replace(" ", NBSP)
    return (
        f"<td>{format_percent(evaluation.top1_error)}</td>"
        f"<td>{_whisker((low, high), evaluation.top1_error, 0.0, top, said)}</td>"
        f"<td>{format_percent(evaluation.top5_error)}</td><td>{format_number(evaluation.loss)}</td><td>{format_percent(evaluation.calibration.error)}</td>"
    )


def _difference_cells(one: ComparedRun, reach: float) -> str:
    if one.difference is None:
        return "<td></td>" * 3
    low, high = one.difference.interval
    said = f"{format_points(low)} to {format_points(high)}".replace(" ", NBSP)
    return (
        f"<td>{format_points(one.difference.top1_error)}</td>"
        f"<td>{_whisker((low, high), one.difference.top1_error, -reach, reach, said)}</td>"
        f"<td>{format_p(one.difference.p).removeprefix('= ').replace(' ', NBSP)}</td>"
    )


def _whisker(interval: Interval, middle: float, low: float, high: float, said: str) -> str:
    """Return `interval` as a bar with a tick in the middle, on an axis from `low` to `high`, and in words."""

    def place(share: float) -> str:
        return f"{100 * (share - low) / (high - low):.2f}%"

    start, end = interval
    width = f"{100 * (end - start) / (high - low):.2f}%"
    return (
        f'<svg class="whisker" aria-hidden="true"><line class="zero" x1="{place(0)}" x2="{place(0)}" y1="0" y2="16"/>'
        f'<rect x="{place(start)}" y="6" width="{width}" height="4"/>'
        f'<line class="middle" x1="{place(middle)}" x2="{place(middle)}" y1="2" y2="14"/></svg>'
        f'<span class="quiet">{said}</span>'
    )


def _costs(comparison: Comparison) -> str:
    rows = []
    for one in comparison.runs:
        history = LearningCurves(one.history)
        trained = (f"{len(history.epochs):,}", duration(history.seconds)) if history.epochs else (MISSING, MISSING)
        cells = (
            escape(one.network),
            f"{one.parameters:,}",
            f"{one.multiply_adds:,}",
            f"{format_number(1000 * one.speed.seconds)}{NBSP}ms",
            f"{one.speed.per_second:,.0f}",
            *trained,
        )
        rows.append(f"<tr>{_head(one)}{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    how = (
        f"The times are of the network alone on this machine ({escape(comparison.device)}), the runs taking turns, "
        "medians: of one picture, and of pictures a second, sixteen at a time."
    )
    heads = ("run", "network", "parameters", "multiply-adds", "one picture", "pictures/s", "epochs", "trained for")
    return f'<p class="how">{how}</p>' + _table("Costs", heads, rows)


def _curves(runs: Sequence[ComparedRun]) -> str:
    """Return validation error and training loss of the runs that were trained here."""
    trained = [(one, LearningCurves(one.history).epochs) for one in runs]
    trained = [(one, epochs) for one, epochs in trained if epochs]
    without = [one.letter for one in runs if one not in [other for other, _ in trained]]
    missing = f" Of {' and '.join(without)} there is no history." if without else ""
    if not trained:
        return ""
    panels = [
        _panel(trained, "Error on the validation part", "val_error", "root", lambda y: f"{100 * y:g}{NBSP}%"),
        _panel(trained, "Loss on the training part, nats", "train_loss", "log", format_brief),
    ]
    last = max(metric(epochs[-1], "epoch") for _, epochs in trained)
    scale = Scale("linear", 0.0, last)
    longest = max((epochs for _, epochs in trained), key=len)
    readings = [_reading(trained, metric(line, "epoch")) for line in subsample(longest)]
    how = f"A line a run, by epoch, with its letter at the end.{missing}"
    drawn = render_curves(panels, XAxis("epoch", scale, scale.ticks(5, whole=last >= 2)), readings, None, "")
    return f'<p class="how">{how}</p>{drawn}'


Trained = Sequence[tuple[ComparedRun, Sequence[Mapping[str, Any]]]]


def _panel(trained: Trained, title: str, name: str, bent: Any, text: Any) -> Panel:
    lines = [
        Line(
            one.letter,
            [metric(line, "epoch") for line in subsample(epochs)],
            [metric(line, name) for line in subsample(epochs)],
            LINE_STYLES[k % len(LINE_STYLES)],
        )
        for k, (one, epochs) in enumerate(trained)
    ]
    return Panel(title, fit_scale([y for line in lines for y in line.y], bent), lines, text, HEIGHT)


def _reading(trained: Trained, at: float) -> Reading:
    """Return what each run had reached at epoch `at`, or ended with."""
    then = [(one, [line for line in epochs if metric(line, "epoch") <= at][-1:]) for one, epochs in trained]
    errors = ", ".join(f"{one.letter} {format_percent(metric(line[0], 'val_error'))}" for one, line in then if line)
    losses = ", ".join(f"{one.letter} {format_number(metric(line[0], 'train_loss'))}" for one, line in then if line)
    return Reading(at, epoch_name(at), [errors, losses])


def _disagreements(comparison: Comparison) -> str:
    first, *others = comparison.runs
    how = "Pictures that one run gets wrong and the other right: what they have in common says where the two differ."
    walls = []
    for one in others:
        for wrong, right in ((one, first), (first, one)):
            these = wrong.evaluation.pictures[wrong.evaluation.wrong & ~right.evaluation.wrong].tolist()
            said = f"Wrong with {wrong.letter}, right with {right.letter}: {format_count(len(these), 'picture')}"
            if len(these) > DISAGREEMENTS_SHOWN:
                said += f", of which {DISAGREEMENTS_SHOWN} are shown"
            # Evenly spread over them, since neighbours in a folder are alike.
            shown = (
                [these[k * len(these) // DISAGREEMENTS_SHOWN] for k in range(DISAGREEMENTS_SHOWN)]
                if len(these) > DISAGREEMENTS_SHOWN
                else these
            )
            walls.append(f"<h3>{said}</h3>" + _wall(comparison, wrong, shown))
    return f'<p class="how">{how}</p>' + "".join(walls)


def _wall(comparison: Comparison, wrong: ComparedRun, indices: Sequence[int]) -> str:
    dataset = comparison.joint.dataset
    figures = []
    for index in indices:
        try:
            pixels = dataset.pictures.read(index, SHOWN_SIDE)
        except PictureError:
            pixels = None
        name, path = dataset.names[int(dataset.labels[index])], dataset.pictures.name(index)
        lines = [
            f'<span title="{escape(name)}">is {bidi_isolate(name)}</span>',
            f'<span class="quiet" title="{escape(path)}">{bidi_isolate(PurePath(path).name)}</span>',
        ]
        figures.append(render_figure(pixels, SIDE, f"{path}: {name}, which {wrong.letter} gets wrong", lines))
    return f'<div class="wall">{"".join(figures)}</div>' if figures else ""


def _classes(runs: Sequence[ComparedRun]) -> str:
    """Return recall by class; the classes on which the runs differ most come first."""
    rows = [some for some in zip(*(one.evaluation.per_class for one in runs), strict=True) if some[0].images]
    rows.sort(key=_spread, reverse=True)
    cells = [
        f'<tr><th scope="row" data-value="{escape(some[0].name)}">{bidi_isolate(some[0].name)}</th>'
        f'<td data-value="{some[0].images}">{some[0].images:,}</td>'
        + "".join(f'<td data-value="{one.recall:.6f}">{format_percent(one.recall)}</td>' for one in some)
        + f'<td data-value="{_spread(some):.6f}">{100 * _spread(some):.1f}</td></tr>'
        for some in rows[:CLASSES]
    ]
    more = f" {len(rows) - CLASSES:,} more classes are left out." if len(rows) > CLASSES else ""
    how = f"Recall, the share of a class that was found, with each run; those first on which they differ most.{more}"
    heads = ("class", "pictures", *(one.letter for one in runs), "points between them")
    return f'<p class="how">{how}</p>' + _table("Classes", heads, cells, sortable=True)


def _spread(some: Sequence[ClassMetrics]) -> float:
    shares = [one.recall or 0.0 for one in some]
    return max(shares) - min(shares)


def _settings(runs: Sequence[ComparedRun]) -> str:
    """Return the settings of training.json that differ between the runs."""
    flat = [_flat(one.settings) for one in runs]
    some = [one for one in flat if one]
    names = dict.fromkeys(name for one in some for name in one)
    rows = [
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(f"<td>{escape(one.get(name, MISSING))}</td>" for one in flat)
        + "</tr>"
        for name in names
        if len({one.get(name) for one in some}) > 1 and name != "recipe.source"  # a paragraph, and recipe_name says it
    ]
    if not rows:
        return ""
    how = "From the runs' training.json: what is not written here was the same."
    return f'<p class="how">{how}</p>' + _table("Settings", ("", *(one.letter for one in runs)), rows)


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


def _table(name: str, heads: Sequence[str], rows: Sequence[str], *, sortable: bool = False) -> str:
    head = "".join(f'<th scope="col">{one}</th>' for one in heads)
    kind = "numbers sortable" if sortable else "numbers"
    return render_scrollable(
        name, f'<table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    )
