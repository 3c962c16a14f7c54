"""Sources of labeled images: built-in data sets by name, folders, tables, and objects in memory."""

import difflib
from os import PathLike, fspath
from pathlib import Path
from typing import TypeGuard

from svertka.data.builtin import NAMES, open_builtin
from svertka.data.dataset import Dataset
from svertka.data.folder_and_table_sources import open_folder
from svertka.data.in_memory_sources import IN_MEMORY, open_in_memory
from svertka.data.in_memory_sources import Source as Source
from svertka.data.label_tables import parse_columns
from svertka.data.labels_from_boxes import label_by_boxes
from svertka.data.shard_storage import is_shard_source
from svertka.data.sharded_images import ClassNames, open_shards
from svertka.errors import UsageError
from svertka.files import is_url, parse_path, resolve_path


def open_source(
    source: Source,
    *,
    to_train: bool = True,
    columns: str | None = None,
    boxes: str | PathLike[str] | None = None,
    names: ClassNames | None = None,
) -> Dataset:
    """Open a source of labeled images.

    Args:
        source: The name of a built-in data set, which wins over a folder of that name ("./mnist" is the folder); a
            folder; a table such as a CSV file; shards, as for `open_shards`; or images in memory, as for
            `open_in_memory`. A Dataset is returned as it is.
        to_train: Whether the images must suffice for training.
        columns: Columns of a table that contain paths and labels, such as "path=file,label=class".
        boxes: As for `box_annotations.read_boxes`; they label the images of a folder without class folders.

        names: Class names of shards, as for `open_shards`.

    Raises:
        UsageError: The source is neither a name nor a path nor images; or `columns` are given without a table, or
            `names` without shards.
        DataError, FetchError: As `open_builtin`, `open_folder` and `open_in_memory`.
    """
    meanings = parse_columns(columns)
    is_table = isinstance(source, str | PathLike) and str(source) not in NAMES
    if meanings and not is_table:
        named = source if is_path(source) else "the source"
        raise UsageError(f"columns={columns} are for a table, but {named} is not a table; leave them out")
    in_shards = is_table and str(source) not in IN_MEMORY and is_shard_source(source)  # type: ignore[arg-type]
    if names is not None and not in_shards:
        raise names_error(source)
    if not isinstance(source, str | PathLike):
        return source if isinstance(source, Dataset) else open_in_memory(source)
    if str(source) in NAMES:
        return open_builtin(str(source))
    if str(source) in IN_MEMORY:
        raise UsageError(f"{source} were images in memory; pass them again in Python, or name a folder")
    if in_shards:
        if boxes is not None or meanings:
            option = "columns" if meanings else "boxes"
            raise UsageError(f"{source} are shards, to which {option} do not apply; leave {option} out")
        return open_shards(source, names)
    check_exists(source)
    if boxes is not None and parse_path(source).is_dir():
        labeled = label_by_boxes(parse_path(source), parse_path(boxes), meanings)
        if labeled is not None:
            return labeled
    return open_folder(parse_path(source), to_train=to_train, columns=meanings)


def names_error(source: Source) -> UsageError:
    """Return the error that class names were given for a source that names its own classes."""
    named = source if is_path(source) else "the source"
    return UsageError(f"names are for shards, and {named} is no folder or URL of shards; leave names (--names) out")


def is_path(source: Source) -> TypeGuard[str | PathLike[str]]:
    """Return whether `source` is a name or a path, not images in memory."""
    return isinstance(source, str | PathLike)


def is_same_source(one: str | PathLike[str], other: str | PathLike[str]) -> bool:
    """Return whether two names or paths lead to the same images; never for images in memory."""
    for names in (NAMES, IN_MEMORY):
        if str(one) in names or str(other) in names:
            return str(one) == str(other) and names is NAMES
    if is_url(fspath(one)) or is_url(fspath(other)):
        return fspath(one) == fspath(other)
    return resolve_path(parse_path(one)) == resolve_path(parse_path(other))


def source_word(source: str) -> str | Path:
    """Return what a command line that is shown has for `source`: a Path, or a URL as it is."""
    return source if is_url(source) else Path(source)


def check_exists(source: str | PathLike[str]) -> None:
    """Raise UsageError if there is no path `source`; suggest a built-in data set of a similar name."""
    path = parse_path(source)
    if path.exists():
        return
    near = difflib.get_close_matches(str(source).lower(), NAMES, n=1)
    hint = f"did you mean {near[0]}?" if near else f"give a folder, a .csv file or one of: {', '.join(NAMES)}"
    raise UsageError(f"there is no folder {path}; {hint}")
