"""A data set on disk, one folder per class: images are added, moved and deleted, and each change can be undone."""

import json
import os
import re
import shutil
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svertka.curation.corrections import number_until_free
from svertka.data.file_tree import is_junk_file_name
from svertka.data.image_io import SUFFIXES, detect_format
from svertka.errors import DataError, ImageFormatError, StorageError, UsageError
from svertka.escaping import to_printable
from svertka.files import os_error_to_storage_error, parse_path, rename_to_new, write_atomic
from svertka.pages.number_format import count_with_noun
from svertka.text_width import shorten

TRASH = ".svertka-trash"  # hidden, so that training does not read it
CHANGES = "changes.jsonl"
MAX_NAME_LENGTH = 80  # characters of a class name or of the name of an added file
MAX_CLASSES = 1000
# What Windows forbids in names, so that a data set can be copied anywhere.
FORBIDDEN = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*]')
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
FORMAT_SUFFIXES = {name: suffix for suffix, name in reversed(SUFFIXES.items())}


@dataclass(frozen=True)
class CollectedImage:
    """An image of the data set.

    Attributes:
        path: Path in the folder, "class/name".
        stamp: Changes whenever the file does.
    """

    path: str
    stamp: str

    @property
    def label(self) -> str:
        """Its class."""
        return self.path.partition("/")[0]

    @property
    def name(self) -> str:
        """Its file name."""
        return self.path.partition("/")[2]


@dataclass(frozen=True)
class Change:
    """A change of the data set that can be undone.

    Attributes:
        key: Identifies it.
        sentence: What was done, such as "3 images moved to cat".
        moves: Pairs of paths in the folder, from and to; from "" for a new file.
    """

    key: str
    sentence: str
    moves: tuple[tuple[str, str], ...]


class Collection:
    """The data set in a folder. Its methods may be called by several threads.

    Args:
        folder: The folder, which is created if missing.
        former: Folders that it was in before it was renamed; results of other commands may name them.

    Raises:
        UsageError: It is a file.
        StorageError: It cannot be created.
    """

    def __init__(self, folder: str | os.PathLike[str], former: Sequence[Path] = ()) -> None:
        self.folder, self.former = parse_path(folder), list(former)
        if self.folder.exists() and not self.folder.is_dir():
            raise UsageError(f"{to_printable(str(self.folder))} is a file; name a folder, with one folder per class")
        with os_error_to_storage_error(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self.folder = self.folder.resolve()
        self._trash = self.folder / TRASH
        self._lock = threading.RLock()

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.folder.name or "images"

    def classes(self) -> list[str]:
        """Return the names of the classes in order."""
        return sorted((one.name for one in self._class_folders()), key=lambda name: (name.casefold(), name))

    def images(self, label: str) -> list[CollectedImage]:
        """Return the images of a class by name; empty if there is no such class."""
        if not self.has_class(label):
            return []
        found = [
            CollectedImage(f"{label}/{entry.name}", _stamp(entry.stat(follow_symlinks=False)))
            for entry in self._shown_files(label)
        ]
        return sorted(found, key=lambda one: one.path)

    def counts(self) -> dict[str, int]:
        """Return the number of images of each class."""
        return {label: sum(1 for _ in self._shown_files(label)) for label in self.classes()}

    def deeper_images(self) -> tuple[int, str]:
        """Return how many images are not in a folder of a class itself, and the path of one; they are not shown.

        Those are images beside the folders of the classes and in folders inside them.
        """
        found, example = 0, ""
        for place, folders, files in os.walk(self.folder):
            depth = len(Path(place).relative_to(self.folder).parts)
            folders[:] = sorted(one for one in folders if not is_junk_file_name(one))
            if depth != 1:
                files = [one for one in sorted(files) if not is_junk_file_name(one)]
                images = [one for one in files if Path(one).suffix.lower() in SUFFIXES]
                found += len(images)
                example = example or next((f"{place}/{one}" for one in images), "")
        return found, Path(example).relative_to(self.folder).as_posix() if example else ""

    def has_class(self, label: str) -> bool:
        """Return whether there is a class of this name."""
        return any(one.name == label for one in self._class_folders())

    def file(self, path: str) -> Path:
        """Return the file of the image "class/name".

        Raises:
            DataError: There is no such image; in particular, the path leads out of the folder.
        """
        label, _, name = path.partition("/")
        place = self.folder / label / name
        is_safe = bool(name) and "/" not in name and not FORBIDDEN.search(name) and not name.startswith(".")
        if not (is_safe and self.has_class(label) and place.is_file() and not place.is_symlink()):
            raise DataError(f"there is no image {shorten(to_printable(path))}; reload the page")
        return place

    def relative(self, path: str) -> str:
        """Return "class/name" for the path of an image as other commands print it; "" if it is not a shown image."""
        place = self.folder / path
        for base in (self.folder, *self.former):
            with suppress(ValueError, DataError):
                inside = place.relative_to(base).as_posix()
                self.file(inside)
                return inside
        return ""

    def relocate(self, move: Callable[[Path], Path]) -> None:
        """Call `move` with the folder, which returns its new place; no change is made meanwhile."""
        with self._lock:
            before = self.folder
            self.folder = move(before)
            if self.folder != before:
                self.former.append(before)
                self._trash = self.folder / TRASH

    def stamp(self, path: str) -> str:
        """Return what changes whenever the file of an image does; "" if there is no such file."""
        try:
            return _stamp((self.folder / path).lstat())
        except OSError:
            return ""

    def add_class(self, label: str) -> str:
        """Create a class and return its name, as `check_class_name` returns it.

        Raises:
            UsageError: The name is impossible or taken.
            StorageError: Its folder cannot be created.
        """
        with self._lock:
            label = self._free_class_name(label)
            with os_error_to_storage_error(self.folder / label):
                (self.folder / label).mkdir()
            return label

    def add_image(self, label: str, name: str, data: bytes | bytearray) -> str:
        """Write a new image into a class, which is created if missing, and return its path.

        The bytes are kept as they are. The name is kept as far as possible, with the suffix of the image's format.

        Raises:
            ImageFormatError: It is not an image, or of an unsupported format.
            UsageError: The class name is impossible.
            StorageError: The disk is full.
        """
        kind = detect_format(bytes(data[:64]))
        if kind is None:
            raise ImageFormatError("not an image in a supported format")
        with self._lock:
            if not self.has_class(label):
                label = self.add_class(label)
            suffix = Path(name).suffix.lower()
            suffix = suffix if SUFFIXES.get(suffix) == kind else FORMAT_SUFFIXES[kind]
            wanted = self.folder / label / f"{_safe_stem(name)}{suffix}"
            target = number_until_free(wanted, os.path.lexists)
            with os_error_to_storage_error(target):
                os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            try:
                write_atomic(target, bytes(data))
            except BaseException:
                target.unlink(missing_ok=True)
                raise
            return f"{label}/{target.name}"

    def record_added(self, paths: Sequence[str]) -> Change | None:
        """Make the addition of images one change that can be undone."""
        if not paths:
            return None
        labels = {path.partition("/")[0] for path in paths}
        where = f" to {next(iter(labels))}" if len(labels) == 1 else ""
        with self._lock:
            return self._record(f"{count_with_noun(len(paths), 'image')} added{where}", [("", path) for path in paths])

    def move(self, paths: Sequence[str], label: str) -> Change:
        """Move images to another class; names that are taken there get a number.

        Raises:
            DataError: An image or the class does not exist; nothing is moved then.
            StorageError: A file cannot be moved; those before it are moved back.
        """
        with self._lock:
            if not self.has_class(label):
                raise DataError(f"there is no class {shorten(to_printable(label))}; reload the page")
            for path in paths:
                self.file(path)
            wanted = [path for path in dict.fromkeys(paths) if path.partition("/")[0] != label]
            moves: list[tuple[str, str]] = []
            taken: set[str] = set()
            for path in wanted:
                place = number_until_free(
                    self.folder / label / path.partition("/")[2],
                    lambda place: place.name.casefold() in taken or os.path.lexists(place),
                )
                taken.add(place.name.casefold())
                moves.append((path, f"{label}/{place.name}"))
            return self._make(f"{count_with_noun(len(moves), 'image')} moved to {label}", moves)

    def delete(self, paths: Sequence[str]) -> Change:
        """Move images into the trash folder.

        Raises:
            DataError: An image does not exist; nothing is deleted then.
            StorageError: A file cannot be moved.
        """
        with self._lock:
            for path in paths:
                self.file(path)
            key = self._new_key()
            moves = [(path, f"{TRASH}/{key}/{path}") for path in dict.fromkeys(paths)]
            return self._make(f"{count_with_noun(len(moves), 'image')} deleted", moves, key)

    def delete_class(self, label: str) -> Change:
        """Move a class with all files in its folder into the trash folder.

        Raises:
            DataError: There is no such class. StorageError: The folder cannot be moved.
        """
        with self._lock:
            if not self.has_class(label):
                raise DataError(f"there is no class {shorten(to_printable(label))}; reload the page")
            count, key = len(self.images(label)), self._new_key()
            sentence = f"class {label} with {count_with_noun(count, 'image')} deleted"
            return self._make(sentence, [(label, f"{TRASH}/{key}/{label}")], key)

    def rename_class(self, label: str, to: str) -> Change:
        """Rename a class.

        Raises:
            DataError: There is no such class. UsageError: The name is impossible or taken.
        """
        with self._lock:
            if not self.has_class(label):
                raise DataError(f"there is no class {shorten(to_printable(label))}; reload the page")
            new = check_class_name(to)
            if new.casefold() != label.casefold():
                new = self._free_class_name(new)
            return self._make(f"class {label} renamed to {new}", [(label, new)])

    def last_change(self) -> Change | None:
        """Return the change that `undo` would revert; None if there is none."""
        changes: dict[str, Change] = {}
        for line in self._lines():
            if "undone" in line:
                changes.pop(str(line["undone"]), None)
            else:
                moves = tuple((str(one), str(other)) for one, other in line["moves"])
                changes[line["key"]] = Change(line["key"], line["sentence"], moves)
        return next(reversed(changes.values()), None)

    def undo(self, key: str) -> str:
        """Revert the last change and return what was reverted.

        Raises:
            DataError: `key` is not the last change.
            StorageError: A file cannot be moved.
        """
        with self._lock:
            change = self.last_change()
            if change is None or change.key != key:
                raise DataError("this is not the last change any more; reload the page")
            for before, after in reversed(change.moves):
                place = self.folder / after
                if not os.path.lexists(place):  # moved or removed by somebody else meanwhile
                    continue
                back = self.folder / (before or f"{TRASH}/{key}/{after}")
                with os_error_to_storage_error(place):
                    back.parent.mkdir(parents=True, exist_ok=True)
                    _rename(place, number_until_free(back, os.path.lexists))
            self._append({"undone": key})
            return f"undone: {change.sentence}"

    def trash_count(self) -> int:
        """Return the number of files in the trash."""
        return sum(len(files) for _, _, files in os.walk(self._trash)) - (self._trash / CHANGES).exists()

    def empty_trash(self, count: int) -> str:
        """Delete the files in the trash for good and return what was done; later changes can still be undone.

        Args:
            count: How many files the user agreed to delete.

        Raises:
            DataError: The trash has another number of files by now.
        """
        with self._lock:
            if count != self.trash_count():
                raise DataError(f"the trash has {count_with_noun(self.trash_count(), 'file')} by now; look again")
            shutil.rmtree(self._trash, ignore_errors=True)
            return f"{count_with_noun(count, 'file')} deleted for good"

    def _shown_files(self, label: str) -> Iterator["os.DirEntry[str]"]:
        with suppress(OSError), os.scandir(self.folder / label) as entries:
            for entry in entries:
                if _is_shown_file(entry):
                    yield entry

    def _class_folders(self) -> Iterator["os.DirEntry[str]"]:
        with suppress(OSError), os.scandir(self.folder) as entries:
            for entry in entries:
                if _is_class_folder(entry):
                    yield entry

    def _free_class_name(self, label: str) -> str:
        label = check_class_name(label)
        known = {one.casefold(): one for one in self.classes()}
        if label.casefold() in known:
            raise UsageError(f"there is a class {known[label.casefold()]} already; choose another name")
        if len(known) >= MAX_CLASSES:
            raise UsageError(f"there are {MAX_CLASSES:,} classes, which is the limit of the studio")
        return label

    def _make(self, sentence: str, moves: Sequence[tuple[str, str]], key: str | None = None) -> Change:
        """Move files, after recording it; move them back if one fails."""
        change = self._record(sentence, moves, key)
        done: list[tuple[Path, Path]] = []
        try:
            for before, after in moves:
                source, target = self.folder / before, self.folder / after
                with os_error_to_storage_error(target):
                    target.parent.mkdir(parents=True, exist_ok=True)
                    _rename(source, target)
                done.append((source, target))
        except BaseException:
            for source, target in reversed(done):
                _rename(target, source)
            self._append({"undone": change.key})
            raise
        return change

    def _record(self, sentence: str, moves: Sequence[tuple[str, str]], key: str | None = None) -> Change:
        change = Change(key or self._new_key(), sentence, tuple(moves))
        if moves:
            self._append({"key": change.key, "sentence": sentence, "moves": change.moves})
        return change

    def _append(self, line: dict[str, Any]) -> None:
        with os_error_to_storage_error(self._trash):
            self._trash.mkdir(exist_ok=True)
            with (self._trash / CHANGES).open("a", encoding="utf-8") as file:
                file.write("\n" + json.dumps(line) + "\n")  # after a line that a full disk cut short

    def _lines(self) -> Iterator[dict[str, Any]]:
        """Yield the recorded changes; lines that a full disk cut short are left out."""
        try:
            text = (self._trash / CHANGES).read_text(encoding="utf-8")
        except (OSError, ValueError):
            return
        for line in text.splitlines():
            with suppress(ValueError):
                value = json.loads(line)
                if isinstance(value, dict) and ("undone" in value or {"key", "sentence", "moves"} <= value.keys()):
                    yield value

    def _new_key(self) -> str:
        return f"{time.time_ns():x}"


def check_class_name(name: str) -> str:
    """Return `name` in NFC and without blanks around it, if it can be the name of a class.

    Raises:
        UsageError: It is empty or too long, or cannot be the name of a folder on every system.
    """
    label = unicodedata.normalize("NFC", name).strip()
    if not label:
        raise UsageError("a class needs a name, such as cat")
    if len(label) > MAX_NAME_LENGTH or len(label.encode(errors="replace")) > 200:
        raise UsageError(f"the class name {shorten(to_printable(label))} is too long; use {MAX_NAME_LENGTH} characters")
    if (
        FORBIDDEN.search(label)
        or to_printable(label) != label
        or label.startswith(".")
        or label.endswith(".")
        or is_junk_file_name(label)
        or RESERVED.fullmatch(label)
    ):
        raise UsageError(
            f"{shorten(to_printable(label))} cannot be the name of a folder on every system; use letters, digits, "
            "blanks, - and _"
        )
    return label


def _safe_stem(name: str) -> str:
    """Return the stem of a file name that somebody else chose, with _ in place of what a name should not have."""
    last = re.split(r"[/\\]", name)[-1]
    stem = Path(last).stem if Path(last).suffix.lower() in SUFFIXES else last
    safe = "".join("_" if FORBIDDEN.match(letter) or to_printable(letter) != letter else letter for letter in stem)
    safe = unicodedata.normalize("NFC", safe).strip(". ")[:MAX_NAME_LENGTH]
    while len(safe.encode(errors="replace")) > 200:
        safe = safe[:-1]
    return "image" if not safe or RESERVED.fullmatch(safe) or is_junk_file_name(f"{safe}.jpg") else safe


def _is_shown_file(entry: "os.DirEntry[str]") -> bool:
    name = entry.name
    return (
        not is_junk_file_name(name)
        and os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122 - ten times as fast
        and entry.is_file(follow_symlinks=False)
        and not FORBIDDEN.search(name)
        and _is_text(name)
    )


def _stamp(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns}-{status.st_size}"


def _is_class_folder(entry: "os.DirEntry[str]") -> bool:
    return entry.is_dir(follow_symlinks=False) and not is_junk_file_name(entry.name) and _is_text(entry.name)


def _is_text(name: str) -> bool:
    """Return whether a file name is UTF-8, so that a page can name it."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _rename(source: Path, target: Path) -> None:
    """Rename a file or a folder to `target`, which must not exist, except as another spelling of `source`.

    Raises:
        OSError: It cannot be moved.
    """
    if source.is_dir():
        if os.path.lexists(target) and not (target.exists() and target.samefile(source)):
            raise StorageError(f"cannot write {target}: it exists; choose another name")
        source.rename(target)
    else:
        rename_to_new(source, target)
