"""Printing on stdout: JSON, lines, and tables that fit the terminal, with control characters escaped."""

import json
import math
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any
from unicodedata import bidirectional

from svertka.escaping import escape_undecodable, to_printable
from svertka.standard_streams import to_encodable
from svertka.text_width import ELLIPSIS, pad, shorten, text_width

WIDEST = 72  # columns, where stdout is not a terminal
MIN_WIDTH = 16  # columns to which a cell may be shortened
GAP = 2  # columns between cells
LEFT_TO_RIGHT_MARK = "\u200e"


def print_json(value: Any) -> None:
    """Print one JSON value in ASCII, so that any name survives any terminal."""
    print(to_json(value))


def to_json(value: Any) -> str:
    """Return `value` as strict JSON: null for NaN and infinity, escapes for bytes that are not UTF-8."""
    return json.dumps(_readable(value), indent=2, allow_nan=False)


@contextmanager
def show_import_spinner() -> Iterator[None]:
    """Show a spinner while the body imports PyTorch and what needs it; elsewhere than on a terminal, nothing."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield
        return
    from svertka.progress import show_spinner

    with show_spinner("loading PyTorch"):
        yield


def print_line(text: str = "") -> None:
    """Print `text` on one line."""
    print(to_encodable(to_printable(text), sys.stdout))


def print_table(
    rows: Sequence[Sequence[str]],
    *,
    right: Sequence[int] = (),
    shrink: Sequence[int] = (),
    drop: Sequence[int] = (),
    prose: Sequence[int] = (),
    widths: Sequence[int] = (),
) -> list[int]:
    """Print rows in aligned columns. On a terminal no row is wider than it, so that none wraps.

    Args:
        rows: Rows of equal length.
        right: Columns to align right.
        shrink: Columns whose cells may be shortened, the least important first.
        drop: Columns that may be left out if that is not enough, the least important first; "…" at the end of the rows
            stands for them.
        prose: Columns whose cells lose their end if they are shortened; others lose their middle.
        widths: What an earlier call returned, to align these rows with those.

    Returns:
        The width of each column's longest cell so far.
    """
    shown = [[to_encodable(to_printable(cell), sys.stdout) for cell in row] for row in rows]
    longest = [max(map(text_width, column)) for column in zip(*shown, strict=True)]
    longest = [max(pair) for pair in zip_longest(longest, widths[: len(longest)], fillvalue=0)]
    available = _terminal_width()
    # In a file one long path must not widen every row.
    fitted = [min(width, WIDEST) for width in longest]
    if available is not None:
        fitted = fit_columns(longest, available, shrink, drop)
    ellipsis = to_encodable(ELLIPSIS, sys.stdout)
    for row in shown:
        cells = list(row)
        if available is not None:
            cells = [
                append_left_to_right_mark(shorten(cell, width, ellipsis, is_prose=column in prose))
                for column, (cell, width) in enumerate(zip(cells, fitted, strict=True))
            ]
        padded = [
            pad(cell, width, right=column in right)
            for column, (cell, width) in enumerate(zip(cells, fitted, strict=True))
            if width or not longest[column]
        ]
        print((" " * GAP).join([*padded, ellipsis] if 0 in fitted and len(padded) < len(row) else padded).rstrip())
    return longest


def fit_columns(
    widths: Sequence[int], available: int, shrink: Sequence[int] = (), drop: Sequence[int] = ()
) -> list[int]:
    """Return the widths at which columns fit into a terminal; 0: left out.

    Args:
        widths: Width of each column's longest cell.
        available: Width of the terminal.
        shrink: Columns that may be narrower, down to MIN_WIDTH, the least important first.
        drop: Columns that may be left out, the least important first; after them, others from the right.
    """
    order = [*drop, *(column for column in reversed(range(1, len(widths))) if column not in drop)]
    fitted = list(widths)
    for dropped in range(len(order) + 1):
        fitted = [0 if column in order[:dropped] else width for column, width in enumerate(widths)]
        gaps = GAP * (len(widths) - dropped - 1) + (GAP + 1 if dropped else 0)
        excess = sum(fitted) + gaps - available
        for column in shrink:
            cut = max(0, min(excess, fitted[column] - MIN_WIDTH))
            fitted[column] -= cut
            excess -= cut
        if excess <= 0:
            return fitted
    fitted[0] = max(available - GAP - 1, 1)
    return fitted


def append_left_to_right_mark(text: str) -> str:
    """Return `text` with a left-to-right mark after its last right-to-left letter.

    Else a terminal that orders letters by direction would move the numbers that follow.
    """
    if text.isascii():
        return text
    end = max((place for place, letter in enumerate(text) if bidirectional(letter) in ("R", "AL")), default=-1) + 1
    return f"{text[:end]}{LEFT_TO_RIGHT_MARK}{text[end:]}" if end else text


def _terminal_width() -> int | None:
    """Return the columns of the terminal that stdout is; None: it is none."""
    if sys.stdout is None or not sys.stdout.isatty():
        return None
    return shutil.get_terminal_size().columns


def _readable(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return escape_undecodable(value)
    if isinstance(value, dict):
        return {_readable(key): _readable(inside) for key, inside in value.items()}
    if isinstance(value, list | tuple):
        return [_readable(inside) for inside in value]
    return value
