"""Corrections of labels from a CSV file, checked against a data set: what would be moved where."""

import csv
import difflib
import io
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import TypeVar

from svertka.data.builtin import NAMES
from svertka.data.folder_and_table_sources import FolderListing, list_folder
from svertka.data.folder_layout import normalize_unicode_name
from svertka.data.label_tables import parse_columns, read_text_and_encoding
from svertka.errors import DataError, UsageError
from svertka.escaping import escape_csv_cell, escape_csv_path, join_first, to_printable
from svertka.files import parse_path
from svertka.tasks import SEPARATOR, format_number
from svertka.text_width import shorten

AnyPath = TypeVar("AnyPath", bound=PurePath)

HEADER = ("path", "label", "corrected")
DESTINATION = "destination"  # column of files that undo moves: the path itself, not only the class
SEPARATORS = (",", ";", "\t")  # of cells, as spreadsheets write


@dataclass(frozen=True)
class Correction:
    """A row of the file: the image at `path` is of class `corrected`.

    Attributes:
        path: Path in the source.
        label: Its class now; its labels, joined by |; or its number.
        corrected: The same from now on.
        destination: Path to move it to. None: chosen by the class.
        where: Place of the row, for messages.
    """

    path: str
    label: str
    corrected: str
    destination: str | None
    where: str


@dataclass(frozen=True)
class Move:
    """A file that is moved, both paths relative to the source."""

    path: str
    destination: str
    label: str
    corrected: str


def list_correctable_source(source: str | os.PathLike[str], columns: str | None = None) -> FolderListing:
    """List the folder or table `source`, whose labels can be corrected.

    Raises:
        UsageError: It is a built-in data set, or there is no such folder or file.
        DataError: It has no labeled images, or cannot be read.
    """
    if str(source) in NAMES:
        raise UsageError(f"{source} is a built-in data set, which is not changed; give a folder or a table")
    listing = list_folder(parse_path(source), parse_columns(columns))
    if not listing.entries:
        raise DataError(listing.problems()[0])
    return listing


def read_corrections(file: Path, listing: FolderListing) -> list[Correction]:
    """Read a file of corrections; every row must be right, or nothing is returned.

    Args:
        file: CSV with the columns path and corrected, and perhaps label and destination.
        listing: The source that it corrects.

    Raises:
        UsageError: There is no such file.
        DataError: The file cannot be read, lacks a column, or has a row that cannot be applied.
    """
    if not file.exists():
        raise UsageError(f"there is no file {to_printable(str(file))}; save the corrections on the page of check first")
    spelling = _Spelling(listing)
    labels = {entry.path: spelling.read(entry.label) or "" for entry in listing.entries}
    paths = {escape_csv_path(path): path for path in labels} | {path: path for path in labels}
    found: dict[str, Correction] = {}
    for number, row in _rows(file):
        where = f"line {number} of {file}"
        path = _find(paths, row["path"]) or _find(paths, row["path"].strip().replace("\\", "/").removeprefix("./"))
        if path is None:
            if _is_undone(row, paths, labels, spelling):
                continue
            raise DataError(f"{where} names {shorten(row['path'])}, which is not an image of {listing.source}")
        if path in found:
            raise DataError(f"{where} names {path}, as {found[path].where} does; leave one of them")
        corrected = spelling.read(row["corrected"])
        if corrected is None:
            raise DataError(f"{where} has {spelling.noun} {shorten(row['corrected'])}; {spelling.suggest(row)}")
        label = row.get("label")
        if label and label.strip() and spelling.read(label) != labels[path]:
            is_, of = ("is", "of ") if listing.kind == "single-label" else ("has", "")
            raise DataError(
                f"{where} says that {path} {is_} {of}{spelling.noun.removeprefix('the ')} {shorten(label)}, but it "
                f"{is_} {of}{labels[path] or 'no label'}; check the source again"
            )
        found[path] = Correction(path, labels[path], corrected, row.get(DESTINATION) or None, where)
    return list(found.values())


def _find(known: Mapping[str, str], text: str) -> str | None:
    """Return what is known as `text`, or else as `text` without the spaces around it, which may belong to a name."""
    return known.get(text) or known.get(text.strip())


def _is_undone(
    row: Mapping[str, str], paths: Mapping[str, str], labels: Mapping[str, str], spelling: "_Spelling"
) -> bool:
    """Return whether the image of a row of an undo file is back, as if the command that moved it was killed before."""
    path = _find(paths, row.get(DESTINATION, ""))
    return path is not None and labels[path] == spelling.read(row["corrected"])


class _Spelling:
    """How a file of corrections writes the labels of a source.

    Args:
        listing: The source.
    """

    def __init__(self, listing: FolderListing) -> None:
        self.kind = listing.kind
        empty = (normalize_unicode_name(PurePosixPath(path).name) for path in listing.empty_classes)
        self.names = tuple(dict.fromkeys((*listing.names(), *empty)))
        self._known = {escape_csv_cell(name): name for name in self.names} | {name: name for name in self.names}

    @property
    def noun(self) -> str:
        """What a label is called."""
        return {"single-label": "the class", "multi-label": "the labels", "regression": "the number"}[self.kind]

    def read(self, text: str) -> str | None:
        """Return a class, labels in the order of their names, or a number as `check` writes it; None if it is none."""
        if self.kind == "regression":
            try:
                number = float(text.strip().removeprefix("'"))
            except ValueError:
                return None
            return format_number(number) if math.isfinite(number) else None
        if self.kind == "single-label" or text in self._known:
            return _find(self._known, text)
        names = text.strip().removeprefix("'").split(SEPARATOR)
        given = {_find(self._known, name) for name in names if name.strip()}
        if None in given:
            return None
        return SEPARATOR.join(name for name in self.names if name in given)

    def suggest(self, row: Mapping[str, str]) -> str:
        """Return what to write instead of what a row has."""
        if self.kind == "regression":
            return "write a finite number"
        names = row["corrected"].split(SEPARATOR) if self.kind == "multi-label" else [row["corrected"]]
        return _suggest(next(name for name in names if _find(self._known, name) is None).strip(), self.names)


def plan_moves(listing: FolderListing, corrections: Iterable[Correction]) -> list[Move]:
    """Return where the images of `corrections` that change their class are moved.

    An image keeps its name, or gets a free one, and its place below the folder of its class.

    Raises:
        DataError: The labels are not those of folders, a path is or passes a link, or a destination is not within the
            folder of its class.
    """
    wanted = [one for one in corrections if one.corrected != one.label]
    if not wanted:
        return []
    folders = _ClassFolders(listing)
    taken: set[str] = set()

    def is_taken(path: PurePosixPath) -> bool:
        return fold(path.as_posix()) in taken or os.path.lexists(listing.root / path)

    moves = []
    for one in wanted:
        # Names that differ only in case are one file on some disks; where undo returns files to, they are not.
        fold = str.casefold if one.destination is None else str
        _refuse_links(listing.root, one.path, one.where)
        if to_printable(one.path) != one.path:
            raise DataError(f"{one.where}: the name of {one.path} has invisible characters; rename the file first")
        destination = number_until_free(PurePosixPath(folders.destination(one)), is_taken).as_posix()
        _refuse_links(listing.root, destination, one.where)
        taken.add(fold(destination))
        moves.append(Move(one.path, destination, one.label, one.corrected))
    return moves


def _rows(file: Path) -> Iterable[tuple[int, dict[str, str]]]:
    """Return the number and the cells of each row by column.

    Raises:
        DataError: The file is not CSV, or lacks a column.
    """
    text, _ = read_text_and_encoding(file)
    first = text.partition("\n")[0]
    separator = max(SEPARATORS, key=first.count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        header = [name.strip().lower() for name in next(rows, [])]
        repeated = [name for name, count in Counter(header).items() if count > 1]
        if "path" not in header or "corrected" not in header or repeated:
            raise DataError(f"{file} must begin with the line path,label,corrected")
        found = []
        for cells in rows:
            if not any(map(str.strip, cells)):
                continue
            if len(cells) != len(header):
                raise DataError(
                    f"line {rows.line_num} of {file} has {len(cells)} cells, and the first line {len(header)}; quote "
                    "cells that contain the separator"
                )
            found.append((rows.line_num, dict(zip(header, cells, strict=True))))
    except csv.Error as error:
        raise DataError(f"line {rows.line_num} of {file} is not CSV: {error}; save it again") from error
    return found


def _suggest(name: str, classes: Iterable[str]) -> str:
    known = sorted(classes)
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"use one of: {join_first(known, 10)}"


class _ClassFolders:
    """The folders of the classes of a source, by part.

    Raises:
        DataError: The labels are not the names of folders.
    """

    def __init__(self, listing: FolderListing) -> None:
        self.listing = listing
        self.depths: dict[str, int] = {}
        self.names: dict[str, Counter[str]] = {}
        for part in {entry.part for entry in listing.entries}:
            pairs = [(PurePosixPath(one.path).parts[:-1], one.label) for one in listing.entries if one.part == part]
            depth = _class_depth(pairs)
            if depth is None:
                raise DataError(
                    f"the labels of {listing.source} are not the names of its folders; correct them where they are "
                    "written"
                )
            self.depths[part] = depth
            for folders, label in pairs:
                self.names.setdefault(label, Counter())[folders[depth]] += 1
        for path in listing.empty_classes:
            name = PurePosixPath(path).name
            self.names.setdefault(normalize_unicode_name(name), Counter())[name] += 0
        self.parts = {entry.path: entry.part for entry in listing.entries}

    def destination(self, one: Correction) -> str:
        """Return the path of an image in the folder of its new class.

        Raises:
            DataError: The destination that the file gives is elsewhere.
        """
        depth = self.depths[self.parts[one.path]]
        places = list(PurePosixPath(one.path).parts)
        if one.destination is None:
            places[depth] = self.names[one.corrected].most_common(1)[0][0]
            return PurePosixPath(*places).as_posix()
        given = PurePosixPath(one.destination.removeprefix("./"))
        inside = len(given.parts) > depth + 1 and given.parts[:depth] == tuple(places[:depth])
        plain = not given.is_absolute() and ".." not in given.parts and "\\" not in one.destination
        if not (
            plain
            and inside
            and "\0" not in one.destination
            and given.parts[depth] in self.names[one.corrected]
            and given.suffix == PurePosixPath(one.path).suffix
        ):
            raise DataError(
                f"{one.where} has the destination {shorten(one.destination)}, which is not a place for {one.path} in "
                f"the folder of {one.corrected}"
            )
        return given.as_posix()


def _class_depth(pairs: Sequence[tuple[tuple[str, ...], str]]) -> int | None:
    """Return which folder of the paths names the class, from 0; None if none does.

    It is the first that equals the label, or else, for classes that are called otherwise than their folders, the first
    that always goes with the same label.
    """
    shortest = min(len(folders) for folders, _ in pairs)
    for depth in range(shortest):
        if all(normalize_unicode_name(folders[depth]) == label for folders, label in pairs):
            return depth
    for depth in range(shortest):
        labels: dict[str, str] = {}
        if all(labels.setdefault(folders[depth], label) == label for folders, label in pairs):
            return depth
    return None


def _refuse_links(root: Path, path: str, where: str) -> None:
    """Raise DataError if `path` or a folder that it passes is a link, which may lead out of `root`."""
    place = root
    for name in PurePosixPath(path).parts:
        place /= name
        if place.is_symlink():
            raise DataError(f"{where} needs {place}, which is a link; move what it links to, or replace it by a copy")


def number_until_free(path: AnyPath, is_taken: Callable[[AnyPath], bool]) -> AnyPath:
    """Return `path`, or the first of name-1.jpg, name-2.jpg, … that is not taken."""
    number, free = 0, path
    while is_taken(free):
        number += 1
        free = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return free


def labels_by_path(corrections: Iterable[Correction]) -> Mapping[str, str]:
    """Return path -> new class of the images that change their class."""
    return {one.path: one.corrected for one in corrections if one.corrected != one.label}
