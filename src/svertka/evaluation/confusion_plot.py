"""The confusion matrix as HTML: a table for few classes, an image and the most confused pairs for many."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
from markupsafe import Markup

from svertka.evaluation.metrics import Evaluation
from svertka.pages.number_format import NBSP, count_with_noun
from svertka.pages.templates import render_template

MAX_TABLE_CLASSES = 20
MAX_PAIRS = 20
MAX_CELLS_READ_OUT = 20_000  # cells of the image with a tooltip, those with most images
SHADES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2)  # shares of the true class at which shades begin
MAX_UPRIGHT_LETTERS = 60  # letters in the header up to which names are upright

ThumbnailStrip = Callable[[list[int], str], str]


def confusion_html(evaluation: Evaluation, strip: ThumbnailStrip) -> Markup:
    """Return the section as HTML; `strip` turns image indices and an alternative text into an `<img>`."""
    has_table = len(evaluation.per_class) <= MAX_TABLE_CLASSES
    return render_template(
        "confusion.html",
        limits=[*(f"to {100 * floor:g}{NBSP}%" for floor in SHADES[1:]), "more"],
        names=[one.name for one in evaluation.per_class],
        table=_table(evaluation) if has_table else None,
        matrix=None if has_table else _matrix(evaluation),
        pairs=[] if has_table else _most_confused_pairs(evaluation, strip),
    )


def shade_level(share: float) -> int:
    """Return the shade of a cell: 0 for no images, then 1 to 6, darker with its share of the true class."""
    return sum(share > floor for floor in SHADES)


def _table(evaluation: Evaluation) -> dict[str, Any]:
    """Return what the template shows of the matrix as a table."""
    names = [one.name for one in evaluation.per_class]
    rows = []
    for true, name in enumerate(names):
        images = evaluation.per_class[true].images
        cells = [
            {
                "shade": "right" if predicted == true else f"s{shade_level(count / images)}" if count else "",
                "description": f"{name} predicted as {names[predicted]}: {count:,} of {images:,}",
                "count": f"{count:,}" if count else "",
            }
            for predicted, count in enumerate(evaluation.confusion[true].tolist())
        ]
        rows.append((name, cells))
    return {"upright": max(map(len, names)) * len(names) <= MAX_UPRIGHT_LETTERS, "rows": rows}


def _matrix(evaluation: Evaluation) -> dict[str, Any]:
    """Return what the template shows of the matrix as an image: a path for each shade, and what its cells say."""
    mistakes = _off_diagonal(evaluation)
    images = np.maximum(evaluation.confusion.sum(1), 1)
    rows, columns = mistakes.nonzero()
    shares = mistakes[rows, columns] / images[rows]
    levels = (shares[:, None] > np.array(SHADES)).sum(1)
    paths = [
        (level, "".join(f"M{column} {row}h1v1h-1z" for row, column in zip(rows[here], columns[here], strict=True)))
        for level in range(1, len(SHADES) + 1)
        if (here := levels == level).any()
    ]
    order = mistakes[rows, columns].argsort(kind="stable")[::-1][:MAX_CELLS_READ_OUT]
    data = {
        "names": [one.name for one in evaluation.per_class],
        "images": [one.images for one in evaluation.per_class],
        "cells": [[int(rows[k]), int(columns[k]), int(mistakes[rows[k], columns[k]])] for k in order],
    }
    wrong, evaluated = int(mistakes.sum()), count_with_noun(evaluation.images, "picture")
    return {
        "paths": paths,
        "data": json.dumps(data, ensure_ascii=False),
        "description": f"Confusion matrix of {len(images)} classes: {wrong:,} of {evaluated} beside the diagonal.",
    }


def _most_confused_pairs(evaluation: Evaluation, strip: ThumbnailStrip) -> list[dict[str, Any]]:
    """Return what the template shows of the pairs of true and predicted class with most mistakes."""
    mistakes = _off_diagonal(evaluation)
    names = [one.name for one in evaluation.per_class]
    pairs = []
    for flat in mistakes.argsort(axis=None, kind="stable")[::-1][:MAX_PAIRS].tolist():
        true, predicted = divmod(flat, len(names))
        if not mistakes[true, predicted]:
            break
        indices = [one.index for one in evaluation.mistakes if (one.label, one.predicted) == (true, predicted)]
        pairs.append(
            {
                "true": names[true],
                "predicted": names[predicted],
                "count": int(mistakes[true, predicted]),
                "images": evaluation.per_class[true].images,
                "examples": strip(indices, f"{names[true]} mistaken for {names[predicted]}"),
            }
        )
    return pairs


def _off_diagonal(evaluation: Evaluation) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    mistakes = evaluation.confusion.copy()
    np.fill_diagonal(mistakes, 0)
    return mistakes
