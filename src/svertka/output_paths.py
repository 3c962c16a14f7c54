"""Where results may be written: never over what svertka did not make, unless asked; a full disk is said early."""

import os
import stat
import tempfile
from pathlib import Path

from svertka.errors import UsageError
from svertka.escaping import join_first, to_printable
from svertka.files import os_error_to_storage_error, parse_path

SEARCHED = 2**16  # bytes at the start of a file that may contain its mark
HTML = "– svertka</title>".encode()  # in every page that svertka writes


def prepare_output_file(path: str | os.PathLike[str], mark: bytes, *, overwrite: bool = False) -> Path:
    """Return `path` if a file can be written there: it does not exist, or is svertka's and contains `mark`.

    Missing folders are created. `overwrite`: any other file may be replaced, too.

    Raises:
        UsageError: It is a folder or a device, or holds something else. StorageError: It cannot be written.
    """
    file = parse_path(path)
    with os_error_to_storage_error(file):
        status = file.stat() if os.path.lexists(file) and file.exists() else None
        if status is not None and not stat.S_ISREG(status.st_mode):
            what = "a folder" if stat.S_ISDIR(status.st_mode) else "a device or a pipe"
            raise UsageError(f"{to_printable(str(file))} is {what}; name a file to write")
        if status is not None and not overwrite and status.st_size and not _holds(file, mark):
            raise UsageError(f"{to_printable(str(file))} exists and was not written by svertka; {ADVICE}")
        file.parent.mkdir(parents=True, exist_ok=True)
    _try_to_write(file.parent)
    return file


def prepare_output_folder(path: str | os.PathLike[str], name: str, mark: bytes, *, overwrite: bool = False) -> Path:
    """Return the folder `path` if it is new or empty, or is svertka's: its file `name` contains `mark`.

    It is created if missing. `overwrite`: it may contain other files, too.

    Raises:
        UsageError: It is a file, or holds something else. StorageError: It cannot be written.
    """
    folder = parse_path(path)
    with os_error_to_storage_error(folder):
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{to_printable(str(folder))} is a file; name a folder")
        inside = sorted(one.name for one in folder.iterdir()) if folder.is_dir() else []
        if inside and not overwrite and not _holds(folder / name, mark):
            raise UsageError(
                f"{to_printable(str(folder))} contains other files ({to_printable(join_first(inside))}), which may be "
                f"lost; {ADVICE}"
            )
        folder.mkdir(parents=True, exist_ok=True)
    _try_to_write(folder)
    return folder


ADVICE = "name another, or give --overwrite"


def _holds(file: Path, mark: bytes) -> bool:
    if not file.is_file():
        return False
    with file.open("rb") as opened:
        return mark in opened.read(SEARCHED)


def _try_to_write(folder: Path) -> None:
    """Raise StorageError now, not after the work, if `folder` takes no file."""
    with os_error_to_storage_error(folder), tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(SEARCHED))
        file.flush()
