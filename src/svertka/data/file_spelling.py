"""Search of files by paths whose spelling differs from that on the disk.

Windows and macOS ignore letter case, and macOS may store accents apart from their letters. A table made there can
spell a name differently from a file system that distinguishes both.
"""

import os
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from pathlib import Path, PurePosixPath


def fold_spelling(name: str) -> str:
    """Return what names have in common that differ only in letter case or in the Unicode form of accents."""
    return unicodedata.normalize("NFC", name).casefold()


def is_folder(entry: "os.DirEntry[str]") -> bool:
    """Return whether an entry leads to a folder; a link that leads to itself does not."""
    try:
        return entry.is_dir()
    except OSError:
        return False


class FileSpelling:
    """The spelling of the files below a folder; each subfolder is listed once.

    Args:
        root: Folder that paths are relative to.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._listed: dict[PurePosixPath, tuple[Set[str], Set[str]] | None] = {}
        self._folded: dict[tuple[PurePosixPath, bool], Mapping[str, list[str]]] = {}
        self._by_stem: dict[tuple[PurePosixPath, Callable[[str], str]], Mapping[str, list[str]]] = {}
        self._folders: dict[PurePosixPath, Sequence[PurePosixPath]] = {}

    def find(self, path: str) -> Sequence[str]:
        """Return `path` if it leads to a file, or else the paths of all files that differ from it only in spelling."""
        wanted = PurePosixPath(path)
        folders = self._find_folders(wanted.parent)
        found = [one for folder in folders for one in self._find_in(folder, wanted.name, folders=False)]
        return [path] if wanted in found else [str(one) for one in found]

    def find_without_suffix(self, path: str, suffixes: Collection[str]) -> Sequence[str]:
        """Return the paths of the files that `path` becomes with a suffix; without any, those that it nearly becomes.

        Args:
            path: A path without suffix.
            suffixes: The suffixes, in lower case.
        """
        wanted = PurePosixPath(path)
        for fold in (str, fold_spelling):
            found = [
                str(folder / name)
                for folder in self._find_folders(wanted.parent)
                for name in self._stems(folder, fold).get(fold(wanted.name), ())
                if PurePosixPath(name).suffix.lower() in suffixes
            ]
            if found:
                return found
        return []

    def _stems(self, folder: PurePosixPath, fold: Callable[[str], str]) -> Mapping[str, list[str]]:
        """Return the files in `folder` by their names without suffix, as `fold` changes them."""
        stems = self._by_stem.get((folder, fold))
        if stems is None:
            stems = self._by_stem[folder, fold] = defaultdict(list)
            for name in sorted((self._list(folder) or ((), ()))[False]):
                stems[fold(PurePosixPath(name).stem)].append(name)
        return stems

    def _find_folders(self, folder: PurePosixPath) -> Sequence[PurePosixPath]:
        if folder not in self._folders:
            places: Sequence[PurePosixPath] = [PurePosixPath(folder.anchor)]
            for part in folder.relative_to(folder.anchor).parts:
                places = self._without_repetitions(
                    [one for place in places for one in self._find_in(place, part, folders=True)]
                )
            self._folders[folder] = places
        return self._folders[folder]

    def _without_repetitions(self, places: Sequence[PurePosixPath]) -> Sequence[PurePosixPath]:
        """Return `places` without those that links lead to again; else loops of links double them in every folder."""
        if len(places) < 2:
            return places
        first: dict[str, PurePosixPath] = {}
        for place in places:
            first.setdefault(os.path.realpath(self._root / place), place)
        return list(first.values())

    def _find_in(self, folder: PurePosixPath, name: str, *, folders: bool) -> Sequence[PurePosixPath]:
        """Return the files, or the folders, in `folder` that `name` may mean."""
        listed = self._list(folder)
        if listed is None or name == "..":
            return [folder / name] if self._is_there(folder / name, folders) else []
        names = listed[folders]
        if name in names:
            return [folder / name]
        by_fold = self._folded.get((folder, folders))
        if by_fold is None:
            by_fold = self._folded[folder, folders] = defaultdict(list)
            for one in sorted(names):
                by_fold[fold_spelling(one)].append(one)
        return [folder / one for one in by_fold.get(fold_spelling(name), ())]

    def _list(self, folder: PurePosixPath) -> tuple[Set[str], Set[str]] | None:
        """Return the names of the files and of the folders in `folder`; None if they cannot be listed."""
        if folder not in self._listed:
            names: tuple[set[str], set[str]] = set(), set()
            try:
                with os.scandir(self._root / folder) as entries:
                    for entry in entries:
                        names[is_folder(entry)].add(entry.name)
                self._listed[folder] = names
            except PermissionError:
                self._listed[folder] = None
            except (OSError, ValueError):  # no such folder, or an impossible path
                self._listed[folder] = set(), set()
        return self._listed[folder]

    def _is_there(self, path: PurePosixPath, is_folder: bool) -> bool:
        place = self._root / path
        try:
            place.stat()
        except (OSError, ValueError):
            return False
        return place.is_dir() if is_folder else place.is_file()
