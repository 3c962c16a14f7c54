"""Printing on stdout: JSON, lines and tables, with control characters escaped."""

import json
import math
from collections.abc import Sequence
from typing import Any

from svertka.escaping import to_printable

WIDEST = 72  # characters; one long path must not widen every row


def print_json(value: Any) -> None:
    """Print one JSON value in ASCII, so that any name survives any terminal."""
    print(json_text(value))


def json_text(value: Any) -> str:
    """Return `value` as strict JSON: null for NaN and infinity, escapes for bytes that are not UTF-8."""
    return json.dumps(_readable(value), indent=2, allow_nan=False)


def print_line(text: str) -> None:
    """Print `text` on one line."""
    print(to_printable(text))


def print_table(rows: Sequence[Sequence[str]], right: str = "", widths: Sequence[int] = ()) -> list[int]:
    """Print rows of equal length in aligned columns and return the column widths.

    Args:
        rows: rows of equal length.
        right: digits of the columns to align right.
        widths: least width of each column, characters; columns grow up to WIDEST.
    """
    shown = [[to_printable(cell) for cell in row] for row in rows]
    least = [*widths, *[0] * len(shown[0])]
    longest = [max(least[column], *(len(row[column]) for row in shown)) for column in range(len(shown[0]))]
    wide = [min(width, WIDEST) for width in longest]
    for row in shown:
        cells = [
            cell.rjust(width) if str(column) in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, wide, strict=True))
        ]
        print("  ".join(cells).rstrip())
    return wide


def _readable(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_readable(key): _readable(inside) for key, inside in value.items()}
    if isinstance(value, list | tuple):
        return [_readable(inside) for inside in value]
    return value
