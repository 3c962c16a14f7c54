"""Tables that label images: CSV with any common separator and encoding, JSON lines, and lines of name and label.

photos.csv              path,label[,part][,group]; paths are relative to the table's folder
metadata.csv, .jsonl    file_name and label, as on Hugging Face
train.csv               id,label, as on Kaggle: images/ID.jpg or train/ID.jpg beside it
val_annotations.txt     name, tab, class, as in Tiny-ImageNet; a table without a header whose first column names files

The label may be several labels or a number: see `target_columns`.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from svertka.data.split_names import match_split_name
from svertka.data.table_image_paths import is_row, locate_images
from svertka.data.target_columns import KINDS, Kind, TargetColumns, find_target_columns
from svertka.errors import DataError, UsageError
from svertka.escaping import join_first, shell_quote
from svertka.files import error_reason, read_regular_file
from svertka.pages.number_format import count_with_noun
from svertka.tasks import SEPARATOR
from svertka.text_width import shorten

LARGEST = 2**28  # bytes of a table, several million rows
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".txt")
SEPARATORS = (",", ";", "\t", "|")
MEANINGS = ("path", *KINDS, "part", "group")
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
    # Images of one group are similar, so they stay in one part.
    "group": (
        *("group", "group_id", "patient", "patient_id", "patientid", "subject", "subject_id", "participant"),
        *("person", "person_id", "case", "case_id", "individual", "animal_id", "video", "video_id", "clip"),
        *("sequence", "scene", "burst", "slide", "slide_id", "site", "hospital", "location", "camera"),
    ),
}
# Names that are only suggested in messages, because such a column is not always what it seems.
LIKELY = {
    "path": ("img", "name", "image_file", "picture", "photo", "url", "fname", "img_path", "img_name", "images"),
    "label": ("labels", "class", "classes", "category", "target", "species", "breed", "diagnosis", "class_name", "y"),
}
UNKNOWN = ("nan", "na", "n/a", "null", "none")  # in place of a group: the image has none
BOOLEAN = {"true", "false", "0", "1", "yes", "no"}


@dataclass(frozen=True)
class LabelRow:
    """Row of a table.

    Attributes:
        path: Path of the image as the table has it.
        label: Class name; several labels, joined by |; or a number.
        part: "train", "val", "test" or "".
        group: Group, or "".
        where: Place of the row for messages: "line 2 of photos.csv".
        line: Number of its last line, from 1.
    """

    path: str
    label: str
    part: str
    group: str
    where: str
    line: int


@dataclass(frozen=True)
class Table:
    """Rows of a table, their paths relative to `root`, and sentences on how it was interpreted.

    Attributes:
        file: The table.
        root: Its folder.
        rows: The rows, without repetitions.
        notes: The sentences.
        paths: Path of the image in each line, by the number of the line, repetitions included.
        label: Where a line has its label: the place of a cell, or a key of JSON. None: in several columns.
        separator: What separates cells.
        kind: What the label of a row is, as in `tasks`.
        target: The column of a number; "" for other labels.
        between: What separates several labels in a cell.
    """

    file: Path
    root: Path
    rows: tuple[LabelRow, ...]
    notes: tuple[str, ...] = ()
    paths: Mapping[int, str] = field(default_factory=dict)
    label: int | str | None = 1
    separator: str = ","
    kind: Kind = "single-label"
    target: str = ""
    between: str = SEPARATOR


def parse_columns(text: str | None) -> dict[str, str]:
    """Parse the meanings of columns, such as "path=file,label=class".

    Returns:
        Meaning -> column; empty for None.

    Raises:
        UsageError: The text has another form, or a meaning that is not one of MEANINGS.
    """
    found: dict[str, str] = {}
    for pair in text.split(",") if text is not None else ():
        meaning, equals, column = (piece.strip() for piece in pair.partition("="))
        if meaning not in MEANINGS or not equals or not column or meaning in found:
            raise UsageError(
                f"columns={text} cannot be parsed at {pair or 'its end'}; "
                f"write --columns path=COLUMN,label=COLUMN, each of {', '.join(MEANINGS)} at most once"
            )
        found[meaning] = column
    return found


def read_table(file: Path, columns: Mapping[str, str] | None = None) -> Table:
    """Read a table of labeled images.

    Args:
        file: The table.
        columns: Meaning -> column, for columns with other names.

    Raises:
        DataError: The table cannot be read, lacks a column, or has a row that lacks a path or a label or contradicts
            another.
    """
    text, encoding = read_text_and_encoding(file)
    notes = [] if encoding == "UTF-8" else [f"{file} is in {encoding}"]
    label: int | str | None
    separator = ""
    if file.suffix.lower() in (".jsonl", ".ndjson"):
        rows, targets, unused = _json_rows(text, file, columns or {})
        label = None if targets.is_one_hot else targets.columns[0]
    else:
        rows, targets, label, separator, unused = _delimited_rows(text, file, columns or {})
        if separator != ",":
            named = {"\t": "a tab", " ": "a space"}.get(separator, separator)
            notes.append(f"the columns of {file} are separated by {named}")
    notes += [*targets.note(file), *unused]
    if not rows:
        raise DataError(f"{file} has only a first line; write a line of path,label for each image")
    if targets.kind == "multi-label" and (bare := sum(not row.label for row in rows)):
        notes.append(f"{bare:,} of {len(rows):,} rows of {file} have no label, which counts as an image without any")
    located, where = locate_images(file, [_without_detours(row.path) for row in rows])
    found = [replace(row, path=path) for row, path in zip(rows, located, strict=True)]
    kept = _without_repetitions(found)
    if len(kept) < len(rows):
        repeated = count_with_noun(len(rows) - len(kept), "repeated row")
        notes.append(f"{file} has {repeated}; each row counts once")
    paths = {row.line: row.path for row in found}
    target = targets.columns[0] if targets.kind == "regression" else ""
    return Table(
        file,
        file.parent,
        tuple(kept),
        (*notes, *where),
        paths,
        label,
        separator,
        targets.kind,
        target,
        targets.separator,
    )


def _without_detours(path: str) -> str:
    """Return a path without what leads nowhere, as in ./a.jpg and x//a.jpg, so that a file has one path."""
    return str(PurePosixPath(path)) if path.startswith("./") or "//" in path or "/./" in path else path


def replace_labels(table: Table, labels: Mapping[str, str]) -> str:
    """Return the text of a table with other labels; lines without a new label stay as they are.

    Args:
        table: The table, as `read_table` returned it.
        labels: Path of an image, as in the table's rows -> its new label, several joined by |.

    Raises:
        DataError: The table has changed since it was read, or has its labels in several columns.
    """
    if table.label is None:
        raise DataError(f"the labels of {table.file} are in several columns; correct them there by hand")
    text, _ = read_text_and_encoding(table.file)
    new = {line: labels[path] for line, path in table.paths.items() if path in labels}
    if isinstance(table.label, int) and table.kind == "multi-label":
        new = {line: label.replace(SEPARATOR, table.between) for line, label in new.items()}
    try:
        if isinstance(table.label, str):
            lines = text.splitlines(keepends=True)
            return "".join(
                _with_json_label(line, table.label, new[number], table.kind == "regression") if number in new else line
                for number, line in enumerate(lines, start=1)
            )
        return "".join(_with_labels(text, table.separator, table.label, new))
    except (csv.Error, ValueError, IndexError) as error:
        raise DataError(f"{table.file} changed while it was read; run the command again") from error


def _with_json_label(line: str, key: str, label: str, is_number: bool) -> str:
    value = json.loads(line)
    old: Any = value[key]
    new: Any = label
    if isinstance(old, list):
        new = label.split(SEPARATOR) if label else []
    elif isinstance(old, bool) and not is_number and label in ("true", "false"):
        new = label == "true"
    elif isinstance(old, int) and label.isdecimal():
        new = int(label)
    elif isinstance(old, int | float) and is_number:
        new = float(label)
    ending = line[len(line.rstrip("\r\n")) :]
    return json.dumps(value | {key: new}, ensure_ascii=False) + ending


def _with_labels(text: str, separator: str, place: int, labels: Mapping[int, str]) -> Iterator[str]:
    """Yield the records of a table, those whose last line is in `labels` with the new label in column `place`."""
    read: list[str] = []

    def lines() -> Iterator[str]:
        for line in io.StringIO(text, newline=""):
            read.append(line)
            yield line

    rows = csv.reader(lines(), delimiter=separator, strict=True)
    for cells in rows:
        record = "".join(read)
        read.clear()
        if rows.line_num in labels:
            cells[place] = labels[rows.line_num]
            written = io.StringIO()
            ending = record[len(record.rstrip("\r\n")) :]
            csv.writer(written, delimiter=separator, lineterminator=ending).writerow(cells)
            record = written.getvalue()
        yield record


def _without_repetitions(rows: Sequence[LabelRow]) -> list[LabelRow]:
    """Return the rows without repetitions."""
    first: dict[str, LabelRow] = {}
    kept = []
    for row in rows:
        before = first.setdefault(row.path, row)
        if before.label != row.label:
            raise DataError(
                f"{row.where} gives {row.path} the label {row.label}, and {before.where} {before.label}; "
                "remove one of the lines, or write several labels into one, joined by |"
            )
        if before is row or (before.part, before.group) != (row.part, row.group):
            kept.append(row)
    return kept


def read_text_and_encoding(file: Path) -> tuple[str, str]:
    """Read the text of a table and its encoding: UTF-8, or UTF-16 or UTF-32 as its first bytes show.

    Raises:
        DataError: The file cannot be read, is too large, or has another encoding.
    """
    try:
        content = read_regular_file(file, LARGEST)
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
    return DataError(f"{file} cannot be read as {kind} in UTF-8: {shorten(reason, 200)}; save it in that format")


def _json_rows(text: str, file: Path, columns: Mapping[str, str]) -> tuple[list[LabelRow], TargetColumns, list[str]]:
    """Return the rows, the keys of the labels, and notes on other keys."""
    objects = list(_json_objects(text, file))
    keys = list(dict.fromkeys(key for _, value in objects for key in value))  # an object may lack some keys
    if not objects:
        return [], TargetColumns("single-label", ("label",)), []

    def cells(key: str) -> list[str]:
        return [_as_cell(value.get(key)) for _, value in objects]

    meanings, targets = _meanings(keys, columns, cells, file)
    used = (*meanings.values(), *targets.columns)
    rows = []
    for number, value in objects:
        where = f"line {number} of {file}"
        read = {key: _scalar(value.get(key), key, where, targets) for key in used}
        shown = [read[key] for key in targets.columns]
        rows.append(_row({meaning: read[key] for meaning, key in meanings.items()}, shown, targets, number, file))
    values = {key: {str(value.get(key, "")) for _, value in objects} for key in keys if key and key not in used}
    return rows, targets, [*_on_groups(meanings, columns, file), *_on_unused(values, file)]


def _as_cell(value: Any) -> str:
    """Return a value of JSON as a table would have it: a list as its items joined by |, true as 1."""
    if isinstance(value, list):
        return SEPARATOR.join(map(_item_text, value)) + SEPARATOR * (len(value) < 2)
    return "" if value is None else str(int(value)) if isinstance(value, bool) else str(value)


def _item_text(item: Any) -> str:
    """Return an item of a list as it is written in JSON, without the quotes of a string."""
    return json.dumps(item) if isinstance(item, bool) else str(item)


def _json_objects(text: str, file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number and the object of each line."""
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        where = f"line {number} of {file}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where} is not JSON: {_reason(error)}; correct or remove it") from error
        if not isinstance(value, dict):
            raise DataError(f'{where} is not a JSON object; write lines such as {{"file_name": …, "label": …}}')
        yield number, value


def _reason(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else shorten(str(error), 100)


def _scalar(value: Any, key: str, where: str, targets: TargetColumns) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if key in targets.columns:
        if isinstance(value, list) and targets.kind == "multi-label" and not targets.is_one_hot:
            if split := next((one for one in map(_item_text, value) if SEPARATOR in one), None):
                raise DataError(f"{where} has the label {shorten(split)}; rename it, as {SEPARATOR} separates labels")
            return _as_cell(value)
        if targets.is_one_hot and isinstance(value, float | bool):
            return _as_cell(value)
        if targets.kind == "regression" and isinstance(value, float):
            return _as_cell(value)
    if isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int) and abs(value) < 2**63:
        return str(value)
    raise DataError(f"{where} has {key}={shorten(repr(value))}; give a string or an integer")


def _delimited_rows(
    text: str, file: Path, columns: Mapping[str, str]
) -> tuple[list[LabelRow], TargetColumns, int | None, str, list[str]]:
    """Return the rows, the columns of the labels and their place, the separator, and notes on other columns."""
    told = text[:5].lower() == "sep=" + text[4:5] and text[5:6] in ("\r", "\n")  # written by Excel
    first = next((line for line in text.splitlines()[told:] if line.strip()), "")
    separator = text[4] if told else _separator(first, columns)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        if told:
            next(lines)
        header = next((line for line in lines if line), [])
        names = [name.strip() for name in header]
        first_line = lines.line_num
        numbered = [(lines.line_num, line) for line in lines if any(map(str.strip, line))]  # Excel writes empty rows
        headless = not columns and is_row(names, file.parent)
        if headless:
            numbered.insert(0, (first_line, header))
            shown: tuple[int, ...] = (1,)
            places = _places_without_header(names)
            targets, notes = TargetColumns("single-label", ("label",)), []
        else:
            body = [line for _, line in numbered]

            def cells(name: str) -> list[str]:
                place = names.index(name)
                return [line[place] if len(line) > place else "" for line in body]

            _check_repeated(names, body, file)
            meanings, targets = _meanings(names, columns, cells, file)
            places = {meaning: names.index(column) for meaning, column in meanings.items()}
            shown = tuple(names.index(column) for column in targets.columns)
            used = (*meanings.values(), *targets.columns)
            unused = {name: set(cells(name)) for name in names if name and name not in used}
            notes = [*_on_groups(meanings, columns, file), *_on_unused(unused, file)]
        rows = []
        for number, line in numbered:
            _check_width(line, names, {*places.values(), *shown}, number, file)
            padded = [*line, *[""] * (len(names) - len(line))]
            read = {meaning: padded[place] for meaning, place in places.items()}
            rows.append(_row(read, [padded[place] for place in shown], targets, number, file))
        return rows, targets, None if targets.is_one_hot else shown[0], separator, notes
    except csv.Error as error:
        unclosed = "a double quote is not closed" if "end of data" in str(error) else str(error)
        raise DataError(f"line {lines.line_num} of {file} is not CSV: {unclosed}; correct it") from error


def _separator(header: str, columns: Mapping[str, str]) -> str:
    """Return the separator that splits `header` into the most known columns, or else into the most columns."""
    wanted = {column.lower() for column in columns.values()} or {name for names in KNOWN.values() for name in names}

    def worth(separator: str) -> tuple[int, int]:
        names = [name.strip(' "').lower() for name in header.split(separator)]
        return len(wanted.intersection(names)), len(names)

    best = max(SEPARATORS, key=worth)  # the first of equals, so that a comma is preferred
    return " " if worth(best)[1] == 1 and " " in header.strip() else best


def _places_without_header(first: list[str]) -> dict[str, int]:
    """Return meaning -> column of a table without a header; the third column is the part if it names one."""
    return {"path": 0} | ({"part": 2} if len(first) > 2 and match_split_name(first[2]) else {})


def _check_repeated(names: Sequence[str], body: Sequence[Sequence[str]], file: Path) -> None:
    """Raise DataError if two columns have one name and different cells, so that it is not clear which is meant."""
    for name in dict.fromkeys(name for name in names if name and names.count(name) > 1):
        places = [place for place, other in enumerate(names) if other == name]
        if any(len({line[place].strip() for place in places if place < len(line)}) > 1 for line in body):
            raise DataError(f"{file} has {len(places)} columns {shorten(name)}; rename all but one of them")


def _check_width(line: list[str], names: Sequence[str], used: Set[int], number: int, file: Path) -> None:
    """Raise DataError if line `number` of a table has more columns than `names`, or ends before a `used` one."""
    if any(cell.strip() for cell in line[len(names) :]):
        advice = "quote cells that contain the separator"
    elif lost := sorted(place for place in used if len(line) <= place < len(names)):
        advice = f"fill in {names[lost[0]]}" if names[lost[0]] else "fill it in"
    else:
        return
    columns = "column" if len(line) == 1 else "columns"
    raise DataError(f"line {number} of {file} has {len(line)} {columns}, and the first line {len(names)}; {advice}")


def _on_groups(meanings: Mapping[str, str], columns: Mapping[str, str], file: Path) -> list[str]:
    """Return a note on the column of the groups, if nobody named it and its name leaves it open."""
    name = meanings.get("group")
    if name is None or "group" in columns or name.lower() == "group":
        return []
    return [f"the column {name} of {file} is read as the group of each image"]


def _on_unused(values: Mapping[str, set[str]], file: Path) -> list[str]:
    """Return notes on unused columns, given their `values`."""
    if not values:
        return []
    said = [f"unused columns of {file}: {shorten(', '.join(values), 200)}"]
    for name, found in values.items():
        words = {value.strip() for value in found} - {""}
        if words and all(map(match_split_name, words)):
            option = shell_quote("--columns", f"part={name}")
            said.append(
                f"the column {name} of {file} says {join_first(sorted(words))}: {option} splits the images by it"
            )
        elif match_split_name(name.lower().removeprefix("is_")) and {word.lower() for word in words} <= BOOLEAN:
            said.append(f"the column {name} of {file} is not used: to split by it, write train, val or test in it")
    return said


def _meanings(
    names: list[str], columns: Mapping[str, str], cells: Callable[[str], Sequence[str]], file: Path
) -> tuple[dict[str, str], TargetColumns]:
    """Return meaning -> column, for the columns in `names`, and the columns of the labels; `cells` returns a column."""
    lower = {name.lower(): name for name in reversed(names)}
    found: dict[str, str] = {}
    for meaning in ("path", "part", "group"):
        wanted = (columns[meaning],) if meaning in columns else KNOWN[meaning]
        column = next((lower[name.lower()] for name in wanted if name.lower() in lower), None)
        if column is not None:
            found[meaning] = column
        elif meaning in columns or meaning == "path":
            raise DataError(_missing(columns.get(meaning, meaning), names, found, file))
    targets = find_target_columns(names, columns, tuple(found.values()), LIKELY["label"], cells, file)
    if targets is None:
        wanted = tuple(columns[meaning] for meaning in KINDS if meaning in columns)
        raise DataError(_missing((*wanted, "label")[0], names, found, file))
    return found, targets


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
    kinds = "" if "label" in guesses else " (labels=COLUMN for several labels an image, target=COLUMN for a number)"
    return f"{file} has no column {column}, but {listed}; name the columns: {shell_quote('--columns', pairs)}{kinds}"


def _row(values: Mapping[str, str], shown: Sequence[str], targets: TargetColumns, number: int, file: Path) -> LabelRow:
    where = f"line {number} of {file}"
    path, part, group = (values.get(name, "").strip() for name in ("path", "part", "group"))
    if not path:
        raise DataError(f"{where} has no path; fill it in or remove the line")
    label = targets.text(shown, where)
    if "\0" in path:
        raise DataError(f"{where} has a NUL character in its path; correct it")
    known = match_split_name(part) if part else ""
    if known is None:
        raise DataError(f"{where} has part={shorten(part)}; use train, val, test or an empty cell")
    return LabelRow(path, label, known, "" if group.lower() in UNKNOWN else group, where, number)
