"""Printing on stdout: JSON, lines, and tables that fit the terminal, with control characters escaped."""

import json
import math
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any

from svertka.escaping import escape_undecodable, to_printable
from svertka.standard_streams import to_encodable
from svertka.text_table import format_table
from svertka.text_width import ELLIPSIS, text_width


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
    lines = format_table(
        shown,
        _terminal_width(),
        right=right,
        shrink=shrink,
        drop=drop,
        prose=prose,
        longest=longest,
        ellipsis=to_encodable(ELLIPSIS, sys.stdout),
    )
    for line in lines:
        print(line)
    return longest


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
