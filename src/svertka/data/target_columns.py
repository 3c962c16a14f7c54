"""The columns of a table that say what an image shows: one class, several labels, or a number.

label                   one class; with | in some cells, several labels: cat|dog
labels                  several labels, if some cells contain |, or are lists in JSON
cat,dog,fox             one-hot columns of 0 and 1: one class if each row has exactly one 1, else several labels
target                  a number, if it is no whole number in some rows, or takes many values
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from svertka.data.split_names import match_split_name
from svertka.errors import DataError
from svertka.escaping import join_first, shell_quote
from svertka.tasks import LARGEST_NUMBER, SEPARATOR
from svertka.text_width import shorten

Kind = Literal["single-label", "multi-label", "regression"]

KINDS: dict[str, Kind] = {"label": "single-label", "labels": "multi-label", "target": "regression"}
SEPARATORS = (SEPARATOR, ";", ",", " ")  # of the labels in a cell, the first that occurs
BINARY = {"0", "1", "0.0", "1.0"}
WRITTEN_LIST = re.compile(r"\[\s*['\"].*\]$", re.DOTALL)  # ['cat', 'dog'], as pandas writes a list into a cell
MANY_NUMBERS = 20  # whole numbers of which more are no classes


@dataclass(frozen=True)
class TargetColumns:
    """The columns that say what an image shows.

    Attributes:
        kind: The kind of task, as in `tasks`.
        columns: The column, or the one-hot columns.
        is_one_hot: Whether they are one-hot columns.
        separator: What separates several labels in a cell.
        numbers: Columns beside one-hot columns with so many numbers that they may be what is wanted; or the column of
            the class itself, if its classes are such numbers.
    """

    kind: Kind
    columns: tuple[str, ...]
    is_one_hot: bool = False
    separator: str = SEPARATOR
    numbers: tuple[str, ...] = ()

    def text(self, cells: Sequence[str], where: str) -> str:
        """Return what an image shows: its class, its labels joined by |, or its number.

        Args:
            cells: What the row has in `columns`.
            where: The row, for messages.

        Raises:
            DataError: There is no class or number.
        """
        if self.is_one_hot:
            return SEPARATOR.join(
                name for name, cell in zip(self.columns, cells, strict=True) if float(cell.strip() or 0)
            )
        cell = cells[0].strip()
        if WRITTEN_LIST.match(cell):
            raise DataError(
                f"{where} has {self.columns[0]}={shorten(cell)}, a list as Python writes it; separate several labels "
                f"by {SEPARATOR}, without brackets and quotes"
            )
        if self.kind == "multi-label":
            return SEPARATOR.join(dict.fromkeys(filter(None, map(str.strip, cell.split(self.separator)))))
        if not cell:
            raise DataError(
                f"{where} has no {'label' if self.kind == 'single-label' else self.columns[0]}; fill it in "
                "or remove the line"
            )
        if self.kind == "single-label":
            return cell
        number = _number(cell)
        if number is None:
            pointed = cell.replace(",", ".")
            advice = f"write {pointed}" if cell.count(",") == 1 and _number(pointed) is not None else "correct it"
            raise DataError(f"{where} has {self.columns[0]}={shorten(cell)}, which is not a finite number; {advice}")
        if abs(number) > LARGEST_NUMBER:
            raise DataError(
                f"{where} has {self.columns[0]}={shorten(cell)}, beyond ±{LARGEST_NUMBER:g}; give it in a larger unit"
            )
        return repr(number)

    def note(self, file: Path) -> list[str]:
        """Return a sentence on how the columns of `file` are read; [] for a class in one column."""
        named = join_first(self.columns)
        instead = ""
        if self.numbers:
            option = shell_quote("--columns", f"target={self.numbers[0]}")
            instead = f"; to predict {self.numbers[0]} instead: {option}"
        if self.kind == "regression":
            return [f"the column {named} of {file} is read as a number, which is to be predicted"]
        if self.kind == "multi-label":
            how = "one-hot columns" if self.is_one_hot else "column"
            return [f"{file} has several labels an image, in its {how} {named}{instead}"]
        if self.is_one_hot:
            return [f"the classes of {file} are its one-hot columns {named}{instead}"]
        return (
            [f"the numbers in the column {named} of {file} are taken for names of classes{instead}"] if instead else []
        )


def find_target_columns(
    names: Sequence[str],
    given: Mapping[str, str],
    taken: Sequence[str],
    likely: Sequence[str],
    cells: Callable[[str], Sequence[str]],
    file: Path,
) -> TargetColumns | None:
    """Find the columns that say what an image shows; None if there are none.

    Args:
        names: Names of all columns.
        given: Meaning -> column, as far as the user says: "label", "labels" or "target".
        taken: Columns with another meaning.
        likely: Names in lower case that may mean the class, so that columns of 0 and 1 beside them are no labels.
        cells: Returns the cells of a column.
        file: The table, for messages.

    Raises:
        DataError: Several columns are given, the one that is given does not exist, or a column may mean either of two.
    """
    lower = {name.lower(): name for name in reversed(names)}
    meant = [meaning for meaning in KINDS if meaning in given]
    if len(meant) > 1:
        raise DataError(f"{' and '.join(meant)} each say what an image shows; give one of label, labels and target")
    if meant:
        column = lower.get(given[meant[0]].lower())
        return None if column is None else _of_column(KINDS[meant[0]], column, cells(column))
    for meaning in ("label", "labels"):
        if meaning in lower:
            found = _of_column("single-label", lower[meaning], cells(lower[meaning]))
            if meaning == "label" or found.kind == "multi-label":
                return found
    if not set(lower) & {"labels", *likely} and (one_hot := _one_hot(names, taken, cells, file)):
        return one_hot
    if "target" in lower:
        read = [_number(cell if cell.count(",") != 1 else cell.replace(",", ".")) for cell in cells(lower["target"])]
        numbers = {number for number in read if number is not None}
        if len(numbers) > MANY_NUMBERS or not all(map(float.is_integer, numbers)):
            return TargetColumns("regression", (lower["target"],))  # which refuses cells that are none
        if 2 * read.count(None) < len(read):
            column, count = lower["target"], len(numbers)
            raise DataError(
                f"the column {column} of {file} has {count} different whole numbers, which may be classes or counts; "
                f"say which: {shell_quote('--columns', f'label={column}')} or "
                f"{shell_quote('--columns', f'target={column}')}"
            )
    return None


def _of_column(kind: Kind, column: str, cells: Sequence[str]) -> TargetColumns:
    """Return how a column is read; one of classes has several labels if some cells contain |."""
    if kind == "single-label" and any(SEPARATOR in cell for cell in cells):
        return TargetColumns("multi-label", (column,))
    if kind == "single-label":
        read = {_number(cell) for cell in cells}
        are_numbers = None not in read and len(read) > MANY_NUMBERS and not all(one.is_integer() for one in read if one)
        return TargetColumns(kind, (column,), numbers=(column,) if are_numbers else ())
    separators = (one for one in SEPARATORS if any(one in cell.strip() for cell in cells))
    return TargetColumns(kind, (column,), separator=next(separators, SEPARATOR) if kind == "multi-label" else SEPARATOR)


def _one_hot(
    names: Sequence[str], taken: Sequence[str], cells: Callable[[str], Sequence[str]], file: Path
) -> TargetColumns | None:
    """Return the columns of 0 and 1, if there are two or more."""
    hot = [
        name
        for name in names
        if name
        and name not in taken
        and not match_split_name(name.lower().removeprefix("is_"))
        and (values := {cell.strip() for cell in cells(name)}) <= BINARY
        and values
    ]
    if len(hot) < 2:
        return None
    if split := next((name for name in hot if SEPARATOR in name), None):
        raise DataError(f"{file} has a column {shorten(split)}; rename it, as {SEPARATOR} separates labels")
    counts = [sum(map(float, row)) for row in zip(*map(cells, hot), strict=True)]
    others = [name for name in names if name and name not in (*taken, *hot)]
    numbers = []
    for name in others:
        found = {_number(cell) for cell in cells(name)}
        if len(found) > MANY_NUMBERS and None not in found:
            numbers.append(name)
    kind: Kind = "single-label" if {*counts} == {1.0} else "multi-label"
    return TargetColumns(kind, tuple(hot), is_one_hot=True, numbers=tuple(numbers))


def _number(cell: str) -> float | None:
    """Return the finite number in a cell; None if there is none."""
    try:
        number = float(cell)
    except ValueError:
        return None
    if "_" in cell:  # which Python ignores
        return None
    return number if math.isfinite(number) else None
