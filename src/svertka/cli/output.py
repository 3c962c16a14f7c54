"""What verbs print on stdout."""

import json
from collections.abc import Sequence
from typing import Any


def print_json(value: Any) -> None:
    """Print one JSON value, and nothing else; ASCII, so that any name survives any terminal."""
    print(json.dumps(value, indent=2, allow_nan=False))


def print_table(rows: Sequence[Sequence[str]], right: str = "") -> None:
    """Print rows of equal length in columns as wide as they must be; `right`: the columns that are set flush right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [
            cell.rjust(width) if str(column) in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())
