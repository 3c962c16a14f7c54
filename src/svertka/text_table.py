"""Rows of text in aligned columns that fit a given width."""

from collections.abc import Iterator, Sequence
from unicodedata import bidirectional

from svertka.text_width import ELLIPSIS, pad, shorten, text_width

WIDEST = 72  # columns of a cell if the width is not limited: one long path must not widen every row
MIN_WIDTH = 16  # columns to which a cell may be shortened
GAP = 2  # columns between cells
LEFT_TO_RIGHT_MARK = "\u200e"


def format_table(
    rows: Sequence[Sequence[str]],
    available: int | None,
    *,
    right: Sequence[int] = (),
    shrink: Sequence[int] = (),
    drop: Sequence[int] = (),
    prose: Sequence[int] = (),
    longest: Sequence[int] | None = None,
    ellipsis: str = ELLIPSIS,
) -> Iterator[str]:
    """Yield a line for each row.

    Args:
        rows: Rows of equal length.
        available: Width that no line exceeds, in columns; None: nothing is shortened.
        right: Columns to align right.
        shrink: Columns whose cells may be shortened, the least important first.
        drop: Columns that may be left out if that is not enough, the least important first; `ellipsis` at the end of
            the rows stands for them.
        prose: Columns whose cells lose their end if they are shortened; others lose their middle.
        longest: Width of each column's longest cell; None: that of `rows`.
        ellipsis: What stands for what is left out.
    """
    if longest is None:
        longest = [max(map(text_width, column)) for column in zip(*rows, strict=True)]
    fitted = [min(width, WIDEST) for width in longest]
    if available is not None:
        fitted = fit_columns(longest, available, shrink, drop)
    for row in rows:
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
        yield (" " * GAP).join([*padded, ellipsis] if 0 in fitted and len(padded) < len(row) else padded).rstrip()


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
