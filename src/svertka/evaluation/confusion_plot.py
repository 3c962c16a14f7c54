"""The confusion matrix as HTML: a table for few classes, an image and the most confused pairs for many."""

import json
from collections.abc import Callable

import numpy as np

from svertka.evaluation.metrics import Evaluation
from svertka.pages.html_page import bidi_isolate
from svertka.pages.number_format import NBSP, format_count, format_percent
from svertka.pages.templates import escape

MAX_TABLE_CLASSES = 20
MAX_PAIRS = 20
MAX_CELLS_READ_OUT = 20_000  # cells of the image with a tooltip, those with most images
SHADES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2)  # shares of the true class at which shades begin
UPRIGHT = 60  # letters in the header up to which names are upright

ThumbnailStrip = Callable[[list[int], str], str]


def confusion_html(evaluation: Evaluation, strip: ThumbnailStrip) -> str:
    """Return the section as HTML; `strip` turns image indices and an alternative text into an `<img>`."""
    if len(evaluation.per_class) <= MAX_TABLE_CLASSES:
        return _how_to_read("Rows are the true classes, columns what they were taken for.") + _table(evaluation)
    return (
        _how_to_read(
            "Rows are the true classes from top to bottom, columns what they were taken for, in the same order."
        )
        + _picture(evaluation)
        + _pairs(evaluation, strip)
    )


def shade_level(share: float) -> int:
    """Return the shade of a cell: 0 for no images, then 1 to 6, darker with its share of the true class."""
    return sum(share > floor for floor in SHADES)


def class_name_html(name: str, before: str = "") -> str:
    """Return a class name as HTML on one line, cut at the end of the column, with the whole name as title."""
    return f'<span class="called" title="{escape(name)}">{before}{bidi_isolate(name)}</span>'


def _how_to_read(text: str) -> str:
    limits = [f"to {100 * floor:g}{NBSP}%" for floor in SHADES[1:]] + ["more"]
    scale = "".join(
        f'<span class="key"><span class="swatch s{level}"></span>{limit}</span>'
        for level, limit in enumerate(limits, 1)
    )
    return f'<p class="how">{text} The stronger the shade, the larger the share of the true class: {scale}</p>'


def _table(evaluation: Evaluation) -> str:
    names = [one.name for one in evaluation.per_class]
    upright = " upright" if max(len(name) for name in names) * len(names) <= UPRIGHT else ""
    heads = "".join(f'<th scope="col"><span title="{escape(name)}">{bidi_isolate(name)}</span></th>' for name in names)
    rows = []
    for true, name in enumerate(names):
        images = evaluation.per_class[true].images
        cells = []
        for guess, number in enumerate(evaluation.confusion[true].tolist()):
            kind = "right" if guess == true else f"s{shade_level(number / images)}" if number else ""
            told = f"{name} taken for {names[guess]}: {number:,} of {images:,}"
            cells.append(f'<td class="{kind}" title="{escape(told)}">{f"{number:,}" if number else ""}</td>')
        rows.append(
            f'<tr><th scope="row"><span title="{escape(name)}">{bidi_isolate(name)}</span></th>{"".join(cells)}</tr>'
        )
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Confusion matrix">'
        f'<table class="confusion{upright}"><thead><tr><td></td>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _picture(evaluation: Evaluation) -> str:
    classes = len(evaluation.per_class)
    mistakes = _off_diagonal(evaluation)
    images = np.maximum(evaluation.confusion.sum(1), 1)
    rows, columns = mistakes.nonzero()
    shares = mistakes[rows, columns] / images[rows]
    levels = (shares[:, None] > np.array(SHADES)).sum(1)
    paths = "".join(
        f'<path class="s{level}" d="'
        + "".join(f"M{column} {row}h1v1h-1z" for row, column in zip(rows[here], columns[here], strict=True))
        + '"/>'
        for level in range(1, len(SHADES) + 1)
        if (here := levels == level).any()
    )
    order = mistakes[rows, columns].argsort(kind="stable")[::-1][:MAX_CELLS_READ_OUT]
    data = {
        "names": [one.name for one in evaluation.per_class],
        "images": [one.images for one in evaluation.per_class],
        "cells": [[int(rows[k]), int(columns[k]), int(mistakes[rows[k], columns[k]])] for k in order],
    }
    wrong = int(mistakes.sum())
    judged = format_count(evaluation.images, "picture")
    told = f"Confusion matrix of {classes} classes: {wrong:,} of {judged} beside the diagonal."
    return (
        f'<figure class="matrix" data-matrix="{escape(json.dumps(data, ensure_ascii=False))}">'
        f'<svg viewBox="0 0 {classes} {classes}" role="img" aria-label="{escape(told)}">'
        f'<path class="diagonal" d="M0 0L{classes} {classes}"/>{paths}<rect class="cursor" width="1" height="1"/></svg>'
        f"<output>{escape(told)}</output></figure>"
    )


def _pairs(evaluation: Evaluation, strip: ThumbnailStrip) -> str:
    mistakes = _off_diagonal(evaluation)
    names = [one.name for one in evaluation.per_class]
    rows = []
    for flat in mistakes.argsort(axis=None, kind="stable")[::-1][:MAX_PAIRS].tolist():
        true, guess = divmod(flat, len(names))
        number, images = int(mistakes[true, guess]), evaluation.per_class[true].images
        if not number:
            break
        indices = [one.index for one in evaluation.mistakes if (one.label, one.predicted) == (true, guess)]
        pictures = strip(indices, f"{names[true]} taken for {names[guess]}")
        rows.append(
            f'<tr><th scope="row">{class_name_html(names[true])}{class_name_html(names[guess], "taken for ")}</th>'
            f"<td>{number:,}<br>of {images:,}</td><td>{format_percent(number / images)}</td>"
            f'<td class="strip">{pictures}</td></tr>'
        )
    if not rows:
        return ""
    return (
        f'<h3>The {format_count(len(rows), "most confused pair")}</h3><div class="scroll" tabindex="0" role="region" '
        'aria-label="Most confused pairs"><table class="rows"><thead><tr><th scope="col">classes</th>'
        '<th scope="col">pictures</th><th scope="col">share</th><th scope="col">the surest of them</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _off_diagonal(evaluation: Evaluation) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    mistakes = evaluation.confusion.copy()
    np.fill_diagonal(mistakes, 0)
    return mistakes
