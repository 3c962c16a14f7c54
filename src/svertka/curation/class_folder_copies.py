"""Copies of images in folders of their classes; nothing is overwritten or moved."""

import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path, PurePath

from svertka.curation.corrections import number_until_free
from svertka.data.dataset import Dataset, FileImages
from svertka.data.file_tree import is_junk_file_name
from svertka.errors import UsageError
from svertka.escaping import to_printable
from svertka.files import NAME_BYTES, os_error_to_storage_error, parse_path
from svertka.text_width import shorten


def check_copy_target(folder: str | os.PathLike[str], source: Path, names: Iterable[str]) -> Path:
    """Return `folder` as a path if images of `source` can be copied into folders of its classes `names`.

    Raises:
        UsageError: It is a file, or within `source`, or a class cannot be the name of a folder.
    """
    target = parse_path(folder)
    if os.path.lexists(target) and not target.is_dir():
        raise UsageError(f"{to_printable(str(target))} is a file; name a folder for the copies")
    real, real_source = (Path(os.path.realpath(path)) for path in (target, source))  # even of links that loop
    if real.is_relative_to(real_source):
        raise UsageError(
            f"{to_printable(str(target))} is within {to_printable(str(source))}, so that the copies would be suggested "
            "next; name a folder elsewhere"
        )
    for name in names:
        if not _is_folder_name(name):
            raise UsageError(
                f"the class {shorten(to_printable(name))} cannot be the name of a folder; leave out --sort-into"
            )
    return target


def _is_folder_name(name: str) -> bool:
    return (
        not is_junk_file_name(name)  # which would not be read as a class
        and to_printable(name) == name
        and not {"/", "\\"} & set(name)
        and 0 < len(os.fsencode(name)) <= NAME_BYTES
    )


def copy_into_class_folders(target: Path, dataset: Dataset, classes: Iterable[tuple[int, str]]) -> list[Path]:
    """Copy images of a folder to TARGET/CLASS/NAME and return the paths of the copies.

    A copy gets a free name if that is taken, unless by a file of the same content, which is left as it is.

    Args:
        target: The folder, as `check_copy_target` returns it.
        dataset: The images, in files.
        classes: Index and class of each image to copy.

    Raises:
        ImageError: An image cannot be read any more.
        StorageError: A file cannot be written.
    """
    files = dataset.images
    assert isinstance(files, FileImages)  # decided by the caller
    copies = []
    for index, name in classes:
        content = files.read_bytes(index)
        path = target / name / PurePath(files.paths[index]).name
        with os_error_to_storage_error(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            free = number_until_free(path, partial(_is_other_file, content))
            if not os.path.lexists(free):
                _write_new(free, content)
        copies.append(free)
    return copies


def _is_other_file(content: bytes, path: Path) -> bool:
    """Return whether there is something at `path` other than a file of this content."""
    if not os.path.lexists(path):
        return False
    return not (path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content)


def _write_new(path: Path, content: bytes) -> None:
    """Write a file that must not exist; nothing is left of it if that fails."""
    with path.open("xb") as file:
        try:
            file.write(content)
            file.flush()
        except BaseException:
            path.unlink()
            raise
