"""What verbs print on stdout; names and paths of any origin are made printable first."""

import json
import math
from collections.abc import Sequence
from typing import Any

from svertka.escaping import printable

WIDEST = 72  # characters to which a column is filled; one long path must not spread all rows


def print_json(value: Any) -> None:
    """Print one JSON value, and nothing else; ASCII, so that any name survives any terminal."""
    print(json_text(value))


def json_text(value: Any) -> str:
    """`value` as JSON that every reader takes: null for numbers that are not finite, escapes for bytes without text."""
    return json.dumps(_readable(value), indent=2, allow_nan=False)


def print_line(text: str) -> None:
    """Print `text` on one line."""
    print(printable(text))


def print_table(rows: Sequence[Sequence[str]], right: str = "", widths: Sequence[int] = ()) -> list[int]:
    """Print rows of equal length in columns as wide as they must be, up to WIDEST, and return how wide that was.

    `right`: the columns that are set flush right. `widths`: how wide they are at least.
    """
    shown = [[printable(cell) for cell in row] for row in rows]
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
