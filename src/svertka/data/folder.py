"""A folder of pictures, or a CSV file that names them -> Dataset.

photos/cat/*.jpg, photos/dog/*.jpg                      class folders; folders inside them belong to the class
photos/train/cat/*.jpg, photos/val/cat/*.jpg            class folders in train/, val/ (or valid/, validation/), test/
photos.csv: path,label,part                             paths from the CSV's folder; the column part may lack
val/ILSVRC2012_val_00000001.JPEG and a label file       ImageNet's validation pictures, as `data.imagenet` says
"""

import csv
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from svertka.data import imagenet
from svertka.data.dataset import PARTS, Dataset, FilePictures
from svertka.data.images import SUFFIXES
from svertka.errors import DataError, UsageError

PART_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
HIDDEN = {"__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini"}  # and whatever begins with a dot


@dataclass(frozen=True, order=True)
class Entry:
    """A picture's path, its class and its part ("train", "val", "test" or "")."""

    path: str
    label: str
    part: str


@dataclass(frozen=True)
class Listing:
    """What a folder or a CSV holds, the ignored too; all paths are relative to `root`.

    `empty_classes`: class folders without a picture. `ignored`: empty folders and folders in no part, `hidden`: hidden
    files and folders, `others`: files that are not pictures, or lie outside every class folder.
    """

    source: Path
    root: Path
    entries: tuple[Entry, ...]
    empty_classes: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    def names(self) -> tuple[str, ...]:
        """The class names in order."""
        return tuple(sorted({entry.label for entry in self.entries}, key=natural_order))

    def problems(self) -> list[str]:
        """Why nothing can be trained on it, a sentence each; empty if nothing is in the way."""
        if not self.entries:
            return [
                f"{self.source} holds no picture ({', '.join(SUFFIXES)}) in a class folder; "
                "put the pictures of each class into a folder of its own, as photos/cat and photos/dog"
            ]
        found = [f"{self.root / path} holds no picture; add some or remove the folder" for path in self.empty_classes]
        if len(self.names()) < 2:
            found.append(f"{self.source} has one class only, {self.names()[0]}; a classifier needs two or more")
        classes = {part: {entry.label for entry in self.entries if (entry.part or "train") == part} for part in PARTS}
        if not classes["train"]:
            found.append(f"{self.source} has nothing to train on; put class folders into {self.root / 'train'}")
        for part in ("val", "test"):
            if classes["train"] and classes[part] and classes[part] != classes["train"]:
                only = [
                    f"{', '.join(sorted(here - there, key=natural_order))} is only in {name}"
                    for name, here, there in (
                        ("train", classes["train"], classes[part]),
                        (part, classes[part], classes["train"]),
                    )
                    if here - there
                ]
                found.append(
                    f"train and {part} of {self.source} must have the same classes, but {' and '.join(only)}; "
                    "add the missing pictures or rename the class"
                )
        return found

    def dataset(self) -> Dataset:
        """The pictures by class, part and path, whatever `problems` says."""
        names = self.names()
        index = {name: number for number, name in enumerate(names)}
        parts = ("", *PARTS)
        entries = sorted(self.entries, key=lambda entry: (index[entry.label], parts.index(entry.part), entry.path))
        return Dataset(
            source=str(self.source.absolute()),
            names=names,
            pictures=FilePictures(self.root, [entry.path for entry in entries]),
            labels=np.array([index[entry.label] for entry in entries], dtype=np.int64),
            parts=np.array([entry.part for entry in entries], dtype="<U5"),
        )


def open_folder(path: str | Path, *, to_train: bool = True) -> Dataset:
    """The pictures in a folder, or those that a CSV file names; `to_train`: whether they must do for training.

    Raises:
        UsageError: no such folder or file.
        DataError: no picture, a row without a label; or, to train on, one class only, an empty class, parts with
            different classes.
    """
    listing = list_folder(path)
    problems = listing.problems()
    if problems and (to_train or not listing.entries):
        raise DataError(problems[0])
    return listing.dataset()


def list_folder(path: str | Path) -> Listing:
    """What the folder or the CSV file `path` holds.

    Raises:
        UsageError: no such folder or file.
        DataError: it cannot be read, or the CSV has another form than path,label,part.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        listing = _list_classes(path)
        file = imagenet.label_file(path) if not listing.entries else None
        return listing if file is None else _list_labelled(listing, file)
    if not path.exists():
        raise UsageError(f"there is no folder {path}; check the path")
    if path.suffix.lower() != ".csv":
        raise UsageError(f"{path} is a file; give a folder of class folders, or a .csv file of path,label,part")
    return _list_rows(path)


def natural_order(name: str) -> tuple[list[str | int], str]:
    """A key that sorts names as people do: case aside, numbers by value."""
    pieces = re.split(r"(\d+)", name.casefold())  # strings and numbers by turns, so that like meets like
    return [int(piece) if number % 2 else piece for number, piece in enumerate(pieces)], name


class _Walk:
    """Collects a Listing while folders are walked, each once, in the order of their names."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.entries: list[Entry] = []
        self.empty_classes: list[str] = []
        self.ignored: list[str] = []
        self.hidden: list[str] = []
        self.others: list[str] = []

    def subfolders(self, folder: Path) -> Iterator[Path]:
        """The visible folders in `folder`; its files are noted as others."""
        for path in _sorted(folder):
            if self._is_hidden(path):
                continue
            if path.is_dir():
                yield path
            else:
                self.others.append(self._relative(path))

    def add_class(self, folder: Path, part: str) -> None:
        """Every picture below `folder`, labelled with its name."""
        label = _clean(folder.name)
        before = len(self.entries)
        waiting, seen = [folder], {_identity(self.root), _identity(folder.parent)}
        while waiting:
            here = waiting.pop()
            if _identity(here) in seen:  # a link that leads back
                continue
            seen.add(_identity(here))
            paths = [path for path in _sorted(here) if not self._is_hidden(path)]
            if not paths and here != folder:
                self.ignored.append(self._relative(here))
            for path in paths:
                if path.is_dir():
                    waiting.append(path)
                # A broken link is named as a bad picture; a pipe would wait for ever.
                elif path.suffix.lower() in SUFFIXES and (path.is_file() or not path.exists()):
                    self.entries.append(Entry(self._relative(path), label, part))
                else:
                    self.others.append(self._relative(path))
        if len(self.entries) == before:
            self.empty_classes.append(self._relative(folder))

    def listing(self) -> Listing:
        """What was found."""
        return Listing(
            source=self.root,
            root=self.root,
            entries=tuple(sorted(self.entries)),
            empty_classes=tuple(self.empty_classes),
            ignored=tuple(sorted(self.ignored)),
            hidden=tuple(sorted(self.hidden)),
            others=tuple(sorted(self.others)),
        )

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _is_hidden(self, path: Path) -> bool:
        hidden = path.name.startswith(".") or path.name in HIDDEN
        if hidden:
            self.hidden.append(self._relative(path))
        return hidden


def _list_classes(root: Path) -> Listing:
    walk = _Walk(root)
    try:
        folders = list(walk.subfolders(root))
        parts = [folder for folder in folders if folder.name.lower() in PART_NAMES]
        kinds = {PART_NAMES[folder.name.lower()] for folder in parts}
        # "train" beside "bus" and "car" is a class, beside "val" it is a part.
        if kinds and (len(parts) == len(folders) or {"train"} < kinds):
            walk.ignored += [folder.name for folder in folders if folder not in parts]
            for folder in parts:
                classes = list(walk.subfolders(folder))
                if not classes:
                    walk.ignored.append(folder.name)
                for each in classes:
                    walk.add_class(each, PART_NAMES[folder.name.lower()])
        else:
            for folder in folders:
                walk.add_class(folder, "")
    except OSError as error:
        raise DataError(f"cannot list {error.filename or root}: {(error.strerror or str(error)).lower()}") from error
    return walk.listing()


def _list_labelled(listing: Listing, file: Path) -> Listing:
    """The pictures that lie in the folder itself, with the classes that `file` gives them."""
    pictures = [path for path in listing.others if Path(path).suffix.lower() in SUFFIXES and "/" not in path]
    if not pictures:
        return listing
    found = zip(pictures, imagenet.labels(file, pictures), strict=True)
    entries = tuple(Entry(path, label, "") for path, label in found)
    return replace(listing, entries=entries, others=tuple(sorted(set(listing.others) - set(pictures))))


def _sorted(folder: Path) -> list[Path]:
    return sorted(folder.iterdir(), key=lambda path: path.name)


def _identity(folder: Path) -> tuple[int, int]:
    facts = folder.stat()
    return facts.st_dev, facts.st_ino


def _clean(name: str) -> str:
    """`name` as text that can be written anywhere: composed, and bytes that are no UTF-8 as escapes."""
    # macOS decomposes é in file names; the same class made on two machines is one class.
    return unicodedata.normalize("NFC", name).encode("utf-8", "backslashreplace").decode()


def _list_rows(path: Path) -> Listing:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file, strict=True)
            rows.fieldnames = [name.strip().lower() for name in rows.fieldnames or ()]
            for column in ("path", "label"):
                if column not in rows.fieldnames:
                    raise DataError(
                        f"{path} has no column {column}; its first line must be path,label or path,label,part"
                    )
            entries = [_entry(row, f"line {rows.line_num} of {path}") for row in rows]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise DataError(f"{path} cannot be read as CSV in UTF-8: {reason}; save it as such") from error
    return Listing(source=path, root=path.parent, entries=tuple(entries))


def _entry(row: dict[str, str], where: str) -> Entry:
    values = {name: (row.get(name) or "").strip() for name in ("path", "label", "part")}
    for name in ("path", "label"):
        if not values[name]:
            raise DataError(f"{where} has no {name}; fill it in or remove the line")
    part = PART_NAMES.get(values["part"].lower(), values["part"])
    if part not in ("", *PARTS):
        raise DataError(f"{where} has part={part}; use train, val or test, or leave it empty")
    return Entry(values["path"], _clean(values["label"]), part)
