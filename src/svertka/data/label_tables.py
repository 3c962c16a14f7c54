"""Tables that label images: CSV with any usual separator and encoding, JSON lines, and lines of name and label.

photos.csv              path,label[,part][,group]; the path is from the table's folder
metadata.csv, .jsonl    file_name and label, as Hugging Face has them
train.csv               id,label, as Kaggle has them: images/ID.jpg or train/ID.jpg beside it
val_annotations.txt     name, tab, class: Tiny-ImageNet; a table without a header, whose first column names files
"""

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from svertka.data.image_io import SUFFIXES
from svertka.data.split_names import part_of
from svertka.errors import DataError, UsageError
from svertka.escaping import join_first, quote_words
from svertka.files import error_reason, read_regular, shorten

LARGEST = 2**28  # bytes of a table, some million rows
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".txt")
SEPARATORS = (",", ";", "\t", "|")
MEANINGS = ("path", "label", "part", "group")
KNOWN = {
    "path": (
        "path",
        "file_name",
        "filename",
        "file",
        "filepath",
        "image",
        "image_path",
        "image_name",
        "image_id",
        "id",
    ),
    "label": ("label",),
    "part": ("part", "split"),
    # Images of one such are alike: they are kept in one part.
    "group": (
        *("group", "group_id", "patient", "patient_id", "patientid", "subject", "subject_id", "participant"),
        *("person", "person_id", "case", "case_id", "individual", "animal_id", "video", "video_id", "clip"),
        *("sequence", "scene", "burst", "slide", "slide_id", "site", "hospital", "location", "camera"),
    ),
}
# What is only suggested: a column of such a name is most often what it says, but not always.
LIKELY = {
    "path": ("img", "name", "image_file", "picture", "photo", "url", "fname", "img_path", "img_name", "images"),
    "label": ("labels", "class", "classes", "category", "target", "species", "breed", "diagnosis", "class_name", "y"),
}
UNKNOWN = ("nan", "na", "n/a", "null", "none")  # instead of a group: the image stands by itself
BOOLEAN = {"true", "false", "0", "1", "yes", "no"}
TRIED = 64  # rows by which it is found where the images are
MOST_FOLDERS = 500  # beside a table in which they are looked for


@dataclass(frozen=True)
class LabelRow:
    """An image's path as the table has it, what the table says of it, and `where`: "line 2 of photos.csv"."""

    path: str
    label: str
    part: str
    group: str
    where: str


@dataclass(frozen=True)
class Table:
    """The rows of the table `file`, their paths from `root`; `notes`: what was understood, a sentence each."""

    file: Path
    root: Path
    rows: tuple[LabelRow, ...]
    notes: tuple[str, ...] = ()


def parse_columns(text: str | None) -> dict[str, str]:
    """What each column means, of "path=file,label=class"; `text` None: nothing.

    Raises:
        UsageError: it has another form, or a meaning that is not one of MEANINGS.
    """
    found: dict[str, str] = {}
    for pair in text.split(",") if text is not None else ():
        meaning, equals, column = (piece.strip() for piece in pair.partition("="))
        if meaning not in MEANINGS or not equals or not column or meaning in found:
            raise UsageError(
                f"columns={text} is not understood at {pair or 'its end'}; "
                f"write --columns path=COLUMN,label=COLUMN, each of {', '.join(MEANINGS)} at most once"
            )
        found[meaning] = column
    return found


def read_table(file: Path, columns: Mapping[str, str] | None = None) -> Table:
    """The labelled images that the table `file` names; `columns`: meaning -> column, where its names are others.

    Raises:
        DataError: it cannot be read, has other columns, or a row lacks a path or a label, or contradicts another.
    """
    text, encoding = read_text(file)
    notes = [] if encoding == "UTF-8" else [f"{file} is in {encoding}"]
    if file.suffix.lower() in (".jsonl", ".ndjson"):
        rows, unused = _json_rows(text, file, columns or {})
    else:
        rows, separator, unused = _delimited_rows(text, file, columns or {})
        if separator != ",":
            named = {"\t": "a tab", " ": "a space"}.get(separator, separator)
            notes.append(f"the columns of {file} are separated by {named}")
    notes += unused
    if not rows:
        raise DataError(f"{file} has a first line only; write a line of path,label for each image")
    found, where = _found(file, rows)
    kept = _once(found)
    if len(kept) < len(rows):
        notes.append(f"{len(rows) - len(kept)} rows of {file} are there twice; each counts once")
    return Table(file, file.parent, tuple(kept), (*notes, *where))


def _once(rows: Sequence[LabelRow]) -> list[LabelRow]:
    """Each row of one content once."""
    first: dict[str, LabelRow] = {}
    kept = []
    for row in rows:
        before = first.setdefault(row.path, row)
        if before.label != row.label:
            raise DataError(
                f"{row.where} gives {row.path} the label {row.label}, and {before.where} {before.label}; "
                "an image has one label: remove one of the lines"
            )
        if before is row or (before.part, before.group) != (row.part, row.group):
            kept.append(row)
    return kept


def read_text(file: Path) -> tuple[str, str]:
    """The text of the table `file`, and its encoding: UTF-8, or UTF-16 or UTF-32 as its first bytes say.

    Raises:
        DataError: it cannot be read, is too large, or is in another encoding.
    """
    try:
        content = read_regular(file, LARGEST)
    except (OSError, ValueError) as error:
        raise _unreadable(file, error) from error
    encoding = "UTF-8"
    for name, marks in (("UTF-32", (b"\xff\xfe\0\0", b"\0\0\xfe\xff")), ("UTF-16", (b"\xff\xfe", b"\xfe\xff"))):
        if content.startswith(marks):
            encoding = name
            break
    else:
        for name, start in (("UTF-16-LE", content[1:64:2]), ("UTF-16-BE", content[:64:2])):
            if len(start) > 1 and not start.strip(b"\0"):
                encoding = name
    try:
        return content.decode("utf-8-sig" if encoding == "UTF-8" else encoding), encoding
    except UnicodeDecodeError as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: Exception) -> DataError:
    reason = error_reason(error)
    if isinstance(error, OSError):
        return DataError(f"{file} cannot be read: {reason}; allow this user to read it, or copy it again")
    kind = "JSON lines" if file.suffix.lower() in (".jsonl", ".ndjson") else "CSV"
    return DataError(f"{file} cannot be read as {kind} in UTF-8: {shorten(reason, 200)}; save it as such")


def _json_rows(text: str, file: Path, columns: Mapping[str, str]) -> tuple[list[LabelRow], list[str]]:
    """The rows, and what to say of the keys that are not used."""
    objects = list(_json_objects(text, file))
    keys = list(dict.fromkeys(key for _, value in objects for key in value))  # an object may lack some
    meanings = _meanings(keys, columns, file) if objects else {}
    rows = [
        _row({meaning: _scalar(value.get(key), key, where) for meaning, key in meanings.items()}, where)
        for where, value in objects
    ]
    values = {key: {str(value.get(key, "")) for _, value in objects} for key in _unused(keys, meanings)}
    return rows, _on_unused(values, file)


def _json_objects(text: str, file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each line is, and the object in it."""
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        where = f"line {number} of {file}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where} is not JSON: {_reason(error)}; correct or remove it") from error
        if not isinstance(value, dict):
            raise DataError(f'{where} is no JSON object; write lines such as {{"file_name": …, "label": …}}')
        yield where, value


def _reason(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else shorten(str(error), 100)


def _scalar(value: Any, key: str, where: str) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, int) and abs(value) < 2**63:
        return str(value)
    raise DataError(f"{where} has {key}={shorten(repr(value))}; give a text or a whole number")


def _delimited_rows(text: str, file: Path, columns: Mapping[str, str]) -> tuple[list[LabelRow], str, list[str]]:
    """The rows, the separator of their columns, and what to say of those that are not used."""
    told = text[:5].lower() == "sep=" + text[4:5] and text[5:6] in ("\r", "\n")  # a line that Excel writes
    first = next((line for line in text.splitlines()[told:] if line.strip()), "")
    separator = text[4] if told else _separator(first, columns)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        if told:
            next(lines)
        header = next((line for line in lines if line), [])
        names = [name.strip() for name in header]
        first_line = lines.line_num
        numbered = [(lines.line_num, line) for line in lines if any(map(str.strip, line))]  # Excel leaves empty rows
        headless = not columns and _is_row(names, file.parent)
        if headless:
            places = _places_without_header(names)
            numbered.insert(0, (first_line, header))
        else:
            body = [line for _, line in numbered]
            if not columns and (classes := _one_hot(names, body)):
                raise DataError(
                    f"{file} has a column for each class ({join_first(classes)}), of which one is 1 in each row; "
                    "write its "
                    "name into a column label instead"
                )
            meanings = _meanings(names, columns, file)
            places = {meaning: names.index(column) for meaning, column in meanings.items()}
            unused = _on_unused({name: _column(names.index(name), body) for name in _unused(names, meanings)}, file)
        rows = [_cells(line, len(names), places, f"line {number} of {file}") for number, line in numbered]
        return rows, separator, [] if headless else unused
    except csv.Error as error:
        unclosed = "a double quote is not closed" if "end of data" in str(error) else str(error)
        raise DataError(f"line {lines.line_num} of {file} is not CSV: {unclosed}; correct it") from error


def _separator(header: str, columns: Mapping[str, str]) -> str:
    """The separator by which `header` falls into columns that are known, or else into most."""
    wanted = {column.lower() for column in columns.values()} or {name for names in KNOWN.values() for name in names}

    def worth(separator: str) -> tuple[int, int]:
        names = [name.strip(' "').lower() for name in header.split(separator)]
        return len(wanted.intersection(names)), len(names)

    best = max(SEPARATORS, key=worth)  # the first of equals, a comma before others
    return " " if worth(best)[1] == 1 and " " in header.strip() else best


def _is_row(names: list[str], folder: Path) -> bool:
    """Whether what should be a header is a row: its first cell names an image that is there."""
    if len(names) < 2 or Path(names[0]).suffix.lower() not in SUFFIXES:
        return False
    return any(is_file(folder / base / names[0]) for base in ("", "images"))


def _places_without_header(first: list[str]) -> dict[str, int]:
    """Meaning -> column of a table whose first line `first` is a row; the third is the part if it names one."""
    return {"path": 0, "label": 1} | ({"part": 2} if len(first) > 2 and part_of(first[2]) else {})


def _cells(line: list[str], width: int, places: Mapping[str, int], where: str) -> LabelRow:
    """The row in `line` of a table of `width` columns."""
    if any(cell.strip() for cell in line[width:]):
        raise DataError(
            f"{where} has {len(line)} columns, and the first line {width}; "
            "put a text that holds the separator into double quotes"
        )
    return _row({meaning: line[place] if place < len(line) else "" for meaning, place in places.items()}, where)


def _unused(names: list[str], meanings: Mapping[str, str]) -> list[str]:
    """Those of `names` that mean nothing."""
    return [name for name in names if name and name not in meanings.values()]


def _column(place: int, lines: Sequence[Sequence[str]]) -> set[str]:
    """The values in the column at `place`."""
    return {line[place] for line in lines if len(line) > place}


def _on_unused(values: Mapping[str, set[str]], file: Path) -> list[str]:
    """What to say of columns that are not used, by their `values`."""
    if not values:
        return []
    said = [f"columns of {file} that are not used: {shorten(', '.join(values), 200)}"]
    for name, found in values.items():
        words = {value.strip() for value in found} - {""}
        if words and all(map(part_of, words)):
            option = quote_words("--columns", f"part={name}")
            said.append(f"the column {name} of {file} says {join_first(sorted(words))}: {option} divides the images so")
        elif part_of(name.lower().removeprefix("is_")) and {word.lower() for word in words} <= BOOLEAN:
            said.append(f"the column {name} of {file} is not used: to divide by it, write train, val or test into it")
    return said


def _one_hot(names: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """The columns of which in each row one is 1 and all others are 0, if there are two or more and none is a label."""
    lower = {name.lower() for name in names}
    if not lines or lower & {*KNOWN["label"], *LIKELY["label"]}:
        return []
    hot = [name for name in names if _column(names.index(name), lines) <= {"0", "1", "0.0", "1.0"}]
    places = [names.index(name) for name in hot]
    is_one = all(
        sum(float(line[place]) for place in places) == 1 for line in lines if len(line) > max(places, default=0)
    )
    return hot if len(hot) > 1 and is_one else []


def _meanings(names: list[str], columns: Mapping[str, str], file: Path) -> dict[str, str]:
    """Meaning -> column, of those that `names` holds."""
    lower = {name.lower(): name for name in reversed(names)}
    found: dict[str, str] = {}
    for meaning in MEANINGS:
        wanted = (columns[meaning],) if meaning in columns else KNOWN[meaning]
        column = next((lower[name.lower()] for name in wanted if name.lower() in lower), None)
        if column is not None:
            found[meaning] = column
        elif meaning in columns or meaning in ("path", "label"):
            raise DataError(_missing(columns.get(meaning, meaning), names, found, file))
    return found


def _missing(column: str, names: list[str], found: Mapping[str, str], file: Path) -> str:
    if not any(names):
        return f"{file} has no column {column}; its first line must be path,label or path,label,part"
    lower = {name.lower(): name for name in reversed(names)}
    guesses = dict(found)
    for meaning, likely in LIKELY.items():
        guess = next((lower[name] for name in (*KNOWN[meaning], *likely) if name in lower), None)
        if meaning not in guesses and guess is not None:
            guesses[meaning] = guess
    pairs = ",".join(f"{meaning}={guesses.get(meaning, 'COLUMN')}" for meaning in ("path", "label"))
    listed = shorten(", ".join(names), 400)
    return f"{file} has no column {column}, but {listed}; say which is which: {quote_words('--columns', pairs)}"


def _row(values: Mapping[str, str], where: str) -> LabelRow:
    path, label, part, group = (values.get(name, "").strip() for name in MEANINGS)
    for name, value in (("path", path), ("label", label)):
        if not value:
            raise DataError(f"{where} has no {name}; fill it in or remove the line")
    if "\0" in path:
        raise DataError(f"{where} has a NUL character in its path; correct it")
    known = part_of(part) if part else ""
    if known is None:
        raise DataError(f"{where} has part={shorten(part)}; use train, val or test, or leave it empty")
    return LabelRow(path, label, known, "" if group.lower() in UNKNOWN else group, where)


def _found(file: Path, rows: list[LabelRow]) -> tuple[list[LabelRow], list[str]]:
    """`rows` with the paths at which their images are, from the folder of `file`; and where that is, in words.

    Paths that lead to nothing anywhere stay as they are.
    """
    folder = file.parent
    tried = rows[:: max(1, len(rows) // TRIED)]
    notes: list[str] = []
    if any("\\" in row.path and not is_file(folder / row.path) for row in tried):
        rows = [replace(row, path=row.path.replace("\\", "/")) for row in rows]
        tried = rows[:: max(1, len(rows) // TRIED)]
        notes.append(f"the paths in {file} are written with backslashes")
    if not rows or any(is_file(folder / row.path) for row in tried):
        return rows, notes
    if cut := _leading(folder, [row.path for row in tried]):
        notes.append(f"the paths in {file} begin with {cut}, which is left out: the images are in {folder}")
        return [replace(row, path=_without(cut, row.path)) for row in rows], notes
    places = [_Place(folder, base) for base in ("", *_folders_beside(file))]
    hits = [(place, {row.path for row in tried if place.find(row.path) is not None}) for place in places]
    hits.sort(key=lambda hit: -len(hit[1]))
    (first, found), *others = hits
    if not found:
        return rows, notes
    used = [first]
    if not _belongs(first.base, file):
        twice = next((other for other, some in others if len(some) == len(found) and some & found), None)
        if twice is not None:
            raise DataError(
                f"{file} names images that are in {first.base or folder} as well as in {twice.base}; "
                "write the folder into its paths"
            )
        for other, some in others:  # of images that are in several folders
            if some - found:
                used.append(other)
                found |= some
    notes.append(f"the images of {file} are in {join_first([str(folder / place.base) for place in used])}")
    paths = (next(filter(None, (place.find(row.path) for place in used)), row.path) for row in rows)
    return [replace(row, path=path) for row, path in zip(rows, paths, strict=True)], notes


def _leading(folder: Path, paths: list[str]) -> PurePosixPath | None:
    """The folders with which all of `paths` begin and without which they lead to images in `folder`, if so."""
    try:
        common = PurePosixPath(os.path.commonpath([PurePosixPath(path).parent for path in paths]))
    except ValueError:  # some are absolute and others are not
        return None
    for cut in (*reversed(common.parents), common):
        if cut.name and any(is_file(folder / _without(cut, path)) for path in paths):
            return cut
    return None


def _without(cut: PurePosixPath, path: str) -> str:
    """`path` without the folders `cut` that it begins with."""
    place = PurePosixPath(path)
    return str(place.relative_to(cut)) if place.is_relative_to(cut) else path


class _Place:
    """The folder `base` beside a table, in which images are found by name, with or without their suffix."""

    def __init__(self, folder: Path, base: str) -> None:
        self.folder, self.base = folder, base
        self._by_stem: dict[str, str] | None = None

    def find(self, path: str) -> str | None:
        """Where the image `path` is, from the table's folder; None if it is not here."""
        straight = f"{self.base}/{path}" if self.base else path
        if is_file(self.folder / straight):
            return straight
        if "/" in path:  # further folders, of which the suffix alone is missing
            return next((straight + suffix for suffix in SUFFIXES if is_file(self.folder / (straight + suffix))), None)
        if self._by_stem is None:
            self._by_stem = {Path(name).stem: name for name in _images_in(self.folder / self.base)}
        name = self._by_stem.get(path)
        return None if name is None else f"{self.base}/{name}" if self.base else name


def _images_in(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as found:
            return sorted(one.name for one in found if Path(one.name).suffix.lower() in SUFFIXES)
    except OSError:
        return []


def _folders_beside(file: Path) -> list[str]:
    """The folders beside the table `file` and in these, those first that go by its name."""
    found: list[str] = []
    waiting = [""]
    while waiting and len(found) < MOST_FOLDERS:
        base = waiting.pop(0)
        try:
            with os.scandir(file.parent / base) as entries:
                names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
        except OSError:
            continue
        inside = [f"{base}/{name}" if base else name for name in names]
        found += inside
        if not base:
            waiting += inside
    return sorted(found, key=lambda base: (not _belongs(base, file), base.count("/"), base))


def _belongs(base: str, file: Path) -> bool:
    """Whether the folder `base` goes by the name of the table: train/ beside train.csv, images/ beside any."""
    first = base.partition("/")[0].lower()
    stem = file.stem.lower()
    return (
        first == stem or (part_of(stem) is not None and part_of(first) == part_of(stem)) or first in ("images", "img")
    )


def is_file(path: Path) -> bool:
    """Whether `path` leads to a file; False for one that no system can have."""
    try:
        path.stat()
    except (OSError, ValueError):
        return False
    return path.is_file()
