"""Labels that somebody has decided on, kept beside a source, so that the next check does not doubt them again."""

import csv
import io
import os
from collections.abc import Iterable
from pathlib import Path

from svertka.curation.corrections import HEADER, read_correction_rows
from svertka.data.builtin import NAMES
from svertka.data.in_memory_sources import IN_MEMORY
from svertka.data.source_opener import Source, is_path
from svertka.escaping import escape_csv_cell, escape_csv_path
from svertka.files import parse_path, write_atomic

SUFFIX = ".confirmed.csv"

Decision = tuple[str, str]  # path in the source and class, as CSV cells


def find_confirmed_file(source: Source) -> Path | None:
    """Return where the decisions on `source` are kept: photos.confirmed.csv beside photos/ or photos.csv.

    None for images in memory and built-in data sets.
    """
    if not is_path(source) or os.fspath(source) in (*NAMES, *IN_MEMORY):
        return None
    place = parse_path(source).resolve()
    stem = place.name if place.is_dir() else place.stem
    return place.with_name(stem + SUFFIX) if stem else None


def read_confirmed(source: Source) -> frozenset[Decision]:
    """Return the decisions on `source`; none if there is no file of them.

    Raises:
        DataError: The file cannot be read.
    """
    file = find_confirmed_file(source)
    if file is None or not file.exists():
        return frozenset()
    return frozenset((row["path"], row["corrected"]) for _, row in read_correction_rows(file))


def add_confirmed(source: Source, decided: Iterable[tuple[str, str]]) -> Path | None:
    """Add decisions, path and class of each image, to those on `source`; a later one replaces that on the same path.

    Returns:
        The file; None if there is nothing to add.

    Raises:
        DataError: The file cannot be read.
        StorageError: It cannot be written.
    """
    file = find_confirmed_file(source)
    new = {escape_csv_path(path): escape_csv_cell(label) for path, label in decided}
    if file is None or not new:
        return None
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(HEADER)
    rows.writerows((path, label, label) for path, label in (dict(sorted(read_confirmed(source))) | new).items())
    write_atomic(file, text.getvalue().encode())
    return file
