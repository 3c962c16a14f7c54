"""report.html: the result of a training or an evaluation in one self-contained HTML file."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import numpy.typing as npt

from svertka.errors import PictureError
from svertka.evaluation.confusion_plot import MAX_TABLE_CLASSES, class_name_html, confusion_html
from svertka.evaluation.evaluation_scope import PART_ADJECTIVES
from svertka.evaluation.learning_curves import LearningCurves
from svertka.evaluation.metrics import MISTAKES_KEPT, ClassMetrics, Evaluation, Mistake
from svertka.evaluation.reliability_diagram import reliability_html
from svertka.evaluation.slices import Slice, slices_html
from svertka.files import write_atomic
from svertka.pages.html_page import bidi_isolate, render_page, render_scrollable, render_section
from svertka.pages.inline_images import render_figure, render_strip
from svertka.pages.number_format import format_count, format_number, format_percent
from svertka.pages.templates import escape
from svertka.progress import duration

Pixels = npt.NDArray[np.uint8]

SHOWN_SIDE = 256  # minimum shorter side, pixels
SIDE = 128  # CSS pixels of a mistake
THUMBNAIL = 32  # CSS pixels of an example
EXAMPLES = 240  # examples of all classes together, to limit the file size


@dataclass(frozen=True)
class Report:
    """The contents of report.html.

    Attributes:
        name: Name of the run.
        network: Name of the network.
        source: Source of the images.
        facts: Pairs of label and value about how the run was made.
        history: Lines of metrics.jsonl; empty if nothing was trained.
        part: Part of the data set that was evaluated ("test", "val").
        evaluation: The evaluation; None shows the learning curves only.
        picture: Returns the image at an index, (H, W, 1 | 3) uint8; may raise PictureError.
        picture_name: Returns its path, or the source and a number.
        slices: Error by image properties.
    """

    name: str
    network: str
    source: str
    facts: Sequence[tuple[str, str]]
    history: Sequence[Mapping[str, Any]]
    part: str
    evaluation: Evaluation | None
    picture: Callable[[int], Pixels]
    picture_name: Callable[[int], str]
    slices: Sequence[Slice] = ()

    @cached_property
    def curves(self) -> LearningCurves:
        """The learning curves."""
        return LearningCurves(self.history)

    @property
    def sentence(self) -> str:
        """The result in words, such as "lenet5 on digits: 1.1 % of 361 test pictures wrong after 20 epochs, 12 s"."""
        epochs = len(self.curves.epochs)
        judged_alone = not self.history and self.evaluation is not None
        spent = "" if judged_alone else " before the end of the first epoch"
        if epochs:
            spent = f" after {format_count(epochs, 'epoch')}"
        if self.curves.seconds:
            spent += f", {duration(self.curves.seconds)}"
        if self.evaluation is None or not self.evaluation.images:
            return f"{self.network} on {self.source}: not judged yet{spent}."
        judged = format_count(self.evaluation.images, f"{PART_ADJECTIVES[self.part]}picture")
        return (
            f"{self.network} on {self.source}: {format_percent(self.evaluation.top1_error)} of {judged} wrong{spent}."
        )


def write_report(path: Path, report: Report) -> None:
    """Write `report` to `path` as one HTML file, atomically.

    Raises:
        StorageError: The disk is full or the folder cannot be written.
    """
    write_atomic(path, render_page(f"{report.name} – svertka", _body(report)).encode())


def _body(report: Report) -> str:
    parts = [
        f"<header><p><b>{bidi_isolate(report.name)}</b></p><h1>{escape(report.sentence)}</h1>{_second(report)}"
        f"{_findings(report)}</header>",
        render_section("curves", "Learning curves", _curves(report.curves)),
        render_section("range", "Learning-rate finder", _range_test(report.curves)),
    ]
    if report.evaluation is not None and report.evaluation.images:
        parts += [
            render_section("mistakes", "Worst mistakes", _worst(report, report.evaluation)),
            render_section("doubtful", "Most doubtful mistakes", _near_misses(report, report.evaluation)),
            render_section(
                "confusion", "Confusion", confusion_html(report.evaluation, lambda i, alt: _strip(report, i, alt))
            ),
            render_section("classes", "Classes", _classes(report, report.evaluation)),
            render_section(
                "calibration", "Can its probabilities be believed?", reliability_html(report.evaluation.calibration)
            ),
            render_section("conditions", "When it errs", slices_html(report.slices, report.evaluation.images)),
        ]
    facts = "".join(f"<div><dt>{escape(label)}</dt><dd>{bidi_isolate(text)}</dd></div>" for label, text in report.facts)
    parts.append(render_section("made", "How it was made", f"<dl>{facts}</dl>" if facts else ""))
    return f"<main>{''.join(parts)}</main>"


def _second(report: Report) -> str:
    """Return the metrics that the first sentence leaves out."""
    evaluation = report.evaluation
    if evaluation is None or not evaluation.images:
        return ""
    low, high = evaluation.top1_interval
    said = [
        f"Of all such pictures it would get {format_percent(low)} to {format_percent(high)} wrong (95 % confidence). "
        f"Mean loss {format_number(evaluation.loss)} nats."
    ]
    if evaluation.top5_error is not None:
        said.append(f"With five guesses instead of one, {format_percent(evaluation.top5_error)} are wrong.")
    if report.curves.best_epoch is not None:
        said.append(
            f"These are the weights of epoch {report.curves.best_epoch['epoch']:g}: of those with the lowest error on "
            "the validation pictures, give or take its standard error, the latest whose loss has not risen."
        )
    return f"<p>{escape(' '.join(said))}</p>"


def _findings(report: Report) -> str:
    warnings = report.evaluation.warnings if report.evaluation is not None else ()
    said = [("", sentence) for sentence in warnings] + report.curves.findings()
    rows = "".join(f"<li><b>{escape(when)}</b> {escape(sentence)}</li>" for when, sentence in said)
    return f'<ul class="findings">{rows}</ul>' if rows else ""


def _curves(history: LearningCurves) -> str:
    drawn = history.curves_html()
    if not drawn:
        return ""
    how = (
        "Solid is the mean over an epoch of training, dashed is the validation part after it, grey the single steps: "
        "where the dashed line turns up while the solid one falls, the network overfits "
        '(<a href="https://www.deeplearningbook.org/contents/ml.html">Goodfellow et al. 2016, §5.2</a>).'
    )
    return f'<p class="how">{how}</p>{drawn}{history.table_html()}'


def _range_test(history: LearningCurves) -> str:
    drawn = history.lr_finder_html()
    how = (
        "The loss while the learning rate rises from step to step; chosen is the rate at which it falls most steeply "
        '(<a href="https://arxiv.org/abs/1506.01186">Smith 2017, §3.3</a>).'
    )
    return f'<p class="how">{how}</p>{drawn}' if drawn else ""


def _worst(report: Report, evaluation: Evaluation) -> str:
    if not evaluation.mistakes:
        return '<p class="how">There are none.</p>'
    how = (
        "The pictures for which a wrong class got the highest probability, and what their own class got against it: "
        'look for wrong labels among them (as in <a href="https://doi.org/10.1109/5.726791">LeCun et al. 1998, '
        "fig. 8</a>)."
    )
    return _wall(how, report, evaluation, evaluation.mistakes[:MISTAKES_KEPT])


def _near_misses(report: Report, evaluation: Evaluation) -> str:
    """Return the near misses that are not among the worst mistakes as HTML."""
    worst = set(evaluation.mistakes[:MISTAKES_KEPT])
    closest = [one for one in evaluation.near_misses if one not in worst]
    how = "The pictures for which the wrong class beat the right one by the smallest margin."
    return _wall(how, report, evaluation, closest) if closest else ""


def _wall(how: str, report: Report, evaluation: Evaluation, mistakes: Sequence[Mistake]) -> str:
    shown = "".join(_mistake(report, evaluation, one) for one in mistakes)
    return f'<p class="how">{how}</p><div class="wall">{shown}</div>'


def _mistake(report: Report, evaluation: Evaluation, mistake: Mistake) -> str:
    true, guess = (evaluation.per_class[k].name for k in (mistake.label, mistake.predicted))
    sure, called = format_percent(mistake.probability), report.picture_name(mistake.index)
    alt = f"{called}: {true}, taken for {guess} with {sure}"
    lines = [
        f'<span title="{escape(true)}">is {bidi_isolate(true)}</span>',
        f'<span title="{escape(guess)}">taken for <b>{bidi_isolate(guess)}</b></span>',
        f"<span>{sure} against {format_percent(mistake.own)}</span>",
        f'<span class="quiet" title="{escape(called)}">{bidi_isolate(PurePath(called).name)}</span>',
    ]
    return render_figure(_picture(report, mistake.index), SIDE, alt, lines)


def _classes(report: Report, evaluation: Evaluation) -> str:
    listed = evaluation.per_class
    without = [one for one in listed if not one.images]
    if len(listed) > MAX_TABLE_CLASSES and without:
        listed = tuple(one for one in listed if one.images)
    each = min(8, EXAMPLES // len(listed))
    order = sorted(listed, key=lambda one: -1.0 if one.error is None else one.error, reverse=True)
    numbers = {id(one): k for k, one in enumerate(evaluation.per_class)}
    rows = "".join(_class_row(report, evaluation, one, numbers[id(one)], each) for one in order)
    how = "Recall is the share of a class that was found; precision the share of what was given its name that is of it."
    if len(listed) < len(evaluation.per_class):
        how += f" {len(without):,} of {len(evaluation.per_class):,} classes have no picture here."
    table = (
        '<table class="rows sortable"><thead><tr><th scope="col">class</th><th scope="col">pictures</th>'
        '<th scope="col" aria-sort="ascending">recall</th><th scope="col">precision</th>'
        f'<th scope="col">most often taken for</th></tr></thead><tbody>{rows}</tbody></table>'
    )
    return f'<p class="how">{how}</p>{render_scrollable("Classes", table)}'


def _class_row(report: Report, evaluation: Evaluation, one: ClassMetrics, k: int, each: int) -> str:
    examples = _strip(report, list(one.examples[:each]), f"Pictures of {one.name}") if each and one.examples else ""
    others = evaluation.confusion[k].copy()
    others[k] = 0
    most = int(others.argmax())
    taken = class_name_html(evaluation.per_class[most].name, f"{others[most]:,} × ") if others[most] else ""
    return (
        f'<tr><th scope="row" data-value="{escape(one.name)}"><div class="who">'
        f'{class_name_html(one.name)}<div class="strip">{examples}</div>'
        f"</div></th>"
        f'<td data-value="{one.images}">{one.images:,}</td>'
        f'<td data-value="{_order(one.recall)}">{format_percent(one.recall)}{_bar(one.recall)}</td>'
        f'<td data-value="{_order(one.precision)}">{format_percent(one.precision)}{_bar(one.precision)}</td>'
        f'<td data-value="{others[most]}">{taken}</td></tr>'
    )


def _bar(share: float | None) -> str:
    """Return a bar that fills its background at a share of 1."""
    filled = f'<rect width="{share or 0:.4f}" height="1"/>'
    return f'<svg class="bar" viewBox="0 0 1 1" preserveAspectRatio="none" aria-hidden="true">{filled}</svg>'


def _order(share: float | None) -> str:
    return f"{-1.0 if share is None or math.isnan(share) else share:.6f}"


def _strip(report: Report, indices: Sequence[int], alt: str) -> str:
    pictures = [pixels for index in indices if (pixels := _picture(report, index)) is not None]
    return render_strip(pictures, THUMBNAIL, alt) if pictures else ""


def _picture(report: Report, index: int) -> Pixels | None:
    """Return the pixels; None if the file is gone."""
    try:
        return report.picture(index)
    except PictureError:
        return None
