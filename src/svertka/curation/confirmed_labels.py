"""Labels that somebody has decided on, kept beside a source, so that the next check does not doubt them again."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from svertka.data.builtin import NAMES
from svertka.data.content_hash import unwrap_subset
from svertka.data.dataset import Dataset, FileImages
from svertka.data.in_memory_sources import IN_MEMORY
from svertka.data.source_opener import Source, is_path
from svertka.errors import DataError
from svertka.files import (
    error_reason,
    is_url,
    os_error_to_storage_error,
    parse_path,
    read_json,
    resolve_path,
    write_json,
)

SUFFIX = ".confirmed.json"  # not CSV, which would be read as a table of labels
LARGEST = 2**28  # bytes, as of a table of labels


def find_confirmed_file(source: Source) -> Path | None:
    """Return where the decisions on `source` are kept: photos.confirmed.json beside photos/ or photos.csv.

    None for images in memory, built-in data sets and URLs.
    """
    if not is_path(source) or os.fspath(source) in (*NAMES, *IN_MEMORY) or is_url(source):
        return None
    place = resolve_path(parse_path(source))
    stem = place.name if place.is_dir() else place.stem
    return place.with_name(stem + SUFFIX) if stem else None


def read_confirmed(source: Source) -> Mapping[str, str]:
    """Return the decisions on `source`, path -> class; none if there is no file of them.

    Raises:
        DataError: The file cannot be read.
    """
    file = find_confirmed_file(source)
    if file is None or not file.exists():
        return {}
    try:
        found = read_json(file, LARGEST)
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read ({error_reason(error)}); fix or remove it") from error
    if not isinstance(found, dict) or not all(isinstance(label, str) for label in found.values()):
        raise DataError(f"{file} must be a JSON object of paths and class names; fix or remove it")
    return found


def change_confirmed(source: Source, decided: Iterable[tuple[str, str]], undone: Iterable[str] = ()) -> Path | None:
    """Add decisions, path and class of each image, to those on `source`; a later one replaces that on the same path.

    Args:
        source: What was decided on.
        decided: The decisions.
        undone: Paths whose decisions are dropped. The file is removed if none is left.

    Returns:
        The file; None if nothing was added.

    Raises:
        DataError: The file cannot be read.
        StorageError: It cannot be written.
    """
    file, new, dropped = find_confirmed_file(source), dict(decided), set(undone)
    if file is None or not (new or dropped):
        return None
    before = read_confirmed(source)
    after = {path: label for path, label in before.items() if path not in dropped} | new
    if after:
        write_json(file, after)
    elif before:
        with os_error_to_storage_error(file):
            file.unlink()
    return file if new else None


def name_in_source(dataset: Dataset, index: int) -> str:
    """Return how the source itself names an image: the path relative to its folder, or else its name."""
    source, where = unwrap_subset(dataset.images)
    return source.paths[where[index]] if isinstance(source, FileImages) else source.name(int(where[index]))
