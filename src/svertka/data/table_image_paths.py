"""Search of the images that a table names: beside it, in the folders of its paths, or in those that match its name."""

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from svertka.data.file_spelling import FileSpelling, is_folder
from svertka.data.image_io import SUFFIXES
from svertka.data.split_names import match_split_name
from svertka.errors import DataError
from svertka.escaping import join_first

TRIED = 64  # rows that are tried to locate the images
MOST_FOLDERS = 500  # searched beside a table


def locate_images(file: Path, paths: list[str]) -> tuple[list[str], list[str]]:
    """Locate the images of a table.

    Args:
        file: The table.
        paths: Path of each image as the table states it.

    Returns:
        `paths` relative to the table's folder and spelled as on the disk, those of missing images unchanged; and
            sentences on how they differ from those in the table.

    Raises:
        DataError: A path may mean several files.
    """
    files = FileSpelling(file.parent)
    paths, notes = _locate_folders(file, _relative_to(file.parent, paths), files)
    spelled: list[str] = []
    different: list[str] = []
    for path in paths:
        spelled.append(_choose(file, path, files.find(path) or [path]))
        if spelled[-1] != path:
            different.append(f"{path} is {spelled[-1]}")
    if different:
        pairs = join_first(different, separator="; ")
        verb = "path in {} differs" if len(different) == 1 else "paths in {} differ"
        notes.append(f"{len(different):,} {verb.format(file)} from the files in letter case or accents: {pairs}")
    return spelled, notes


def _relative_to(folder: Path, paths: Sequence[str]) -> list[str]:
    """Return `paths`, absolute ones into `folder` relative to it, so that each file has one path."""
    starts = [f"{place.rstrip('/')}/" for place in (str(folder.absolute()), str(folder.resolve()))]
    return [next((path[len(start) :] for start in starts if path.startswith(start)), path) for path in paths]


def is_row(cells: list[str], folder: Path) -> bool:
    """Return whether the first line of a table is a row, not a header: its first cell names an existing image."""
    if len(cells) < 2 or Path(cells[0]).suffix.lower() not in SUFFIXES:
        return False
    files = FileSpelling(folder)
    return any(files.find(f"{base}{cells[0]}") for base in ("", "images/"))


def _locate_folders(file: Path, paths: list[str], files: FileSpelling) -> tuple[list[str], list[str]]:
    """Return `paths` relative to the table's folder, spelled as in the table, and notes."""
    folder = file.parent
    tried = paths[:: max(1, len(paths) // TRIED)]
    notes: list[str] = []
    if any("\\" in path and not files.find(path) for path in tried):
        paths = [path.replace("\\", "/") for path in paths]
        tried = paths[:: max(1, len(paths) // TRIED)]
        notes.append(f"the paths in {file} use backslashes")
    if not paths or any(map(files.find, tried)):
        return paths, notes
    if cut := _leading(files, tried):
        notes.append(f"the paths in {file} begin with {cut}, which is ignored: the images are in {folder}")
        return [_without(cut, path) for path in paths], notes
    places = [_Place(base, files) for base in ("", *_folders_beside(file))]
    hits = [(place, {path for path in tried if place.find(path)}) for place in places]
    hits.sort(key=lambda hit: -len(hit[1]))
    (first, found), *others = hits
    if not found:
        return paths, notes
    used = [first]
    if not _belongs(first.base, file):
        twice = next((other for other, some in others if len(some) == len(found) and some & found), None)
        if twice is not None:
            raise DataError(
                f"{file} names images that are in {first.base or folder} as well as in {twice.base}; "
                "add the folder to its paths"
            )
        for other, some in others:  # the images are spread over several folders
            if some - found:
                used.append(other)
                found |= some
    notes.append(f"the images of {file} are in {join_first([str(folder / place.base) for place in used])}")
    candidates = [next(filter(None, (place.find(path) for place in used)), [path]) for path in paths]
    return [_choose(file, path, some) for path, some in zip(paths, candidates, strict=True)], notes


def _choose(file: Path, path: str, found: Sequence[str]) -> str:
    """Return the only file that `path` may mean.

    Raises:
        DataError: There are several.
    """
    if len(found) > 1:
        raise DataError(
            f"{file} names {path}, which may be any of {join_first(found)}; write one of them into the table"
        )
    return found[0]


def _leading(files: FileSpelling, paths: list[str]) -> PurePosixPath | None:
    """Return the leading folders that all `paths` share and without which they lead to `files`, if any."""
    try:
        common = PurePosixPath(os.path.commonpath([PurePosixPath(path).parent for path in paths]))
    except ValueError:  # some are absolute and others are not
        return None
    for cut in (*reversed(common.parents), common):
        if cut.name and any(files.find(_without(cut, path)) for path in paths):
            return cut
    return None


def _without(cut: PurePosixPath, path: str) -> str:
    """Return `path` without the leading folders `cut`."""
    place = PurePosixPath(path)
    return str(place.relative_to(cut)) if place.is_relative_to(cut) else path


class _Place:
    """Folder `base` beside a table, in which images are found by name with or without suffix."""

    def __init__(self, base: str, files: FileSpelling) -> None:
        self.base, self._files = base, files

    def find(self, path: str) -> Sequence[str]:
        """Return the paths of the images that `path` may mean, from the table's folder; [] if there is none here.

        A path that leads to a file is returned as the table spells it.
        """
        straight = f"{self.base}/{path}" if self.base else path
        return [straight] if self._files.find(straight) else self._files.find_without_suffix(straight, SUFFIXES)


def _folders_beside(file: Path) -> list[str]:
    """Return the folders beside a table and their subfolders, those that match its name first."""
    found: list[str] = []
    waiting = [""]
    while waiting and len(found) < MOST_FOLDERS:
        base = waiting.pop(0)
        try:
            with os.scandir(file.parent / base) as entries:
                names = sorted(entry.name for entry in entries if is_folder(entry) and not entry.name.startswith("."))
        except OSError:
            continue
        inside = [f"{base}/{name}" if base else name for name in names]
        found += inside
        if not base:
            waiting += inside
    return sorted(found, key=lambda base: (not _belongs(base, file), base.count("/"), base))


def _belongs(base: str, file: Path) -> bool:
    """Return whether a folder matches the table's name: train/ beside train.csv, images/ beside any."""
    first = base.partition("/")[0].lower()
    stem = file.stem.lower()
    return (
        first == stem
        or (match_split_name(stem) is not None and match_split_name(first) == match_split_name(stem))
        or first in ("images", "img")
    )
