"""Bounding boxes of objects in images, from VOC XML, COCO JSON or CSV.

annotations/*.xml       VOC: one file per image; pixels count from 1, and the last one is inside the box
instances.json          COCO: images, categories and annotations, bbox = [left, top, width, height]
boxes.csv               path,label,xmin,ymin,xmax,ymax: one box per row, edges in pixels from the upper left corner;
                        filename and class are accepted for path and label
"""

import csv
import io
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree

from svertka.data.file_spelling import fold_spelling
from svertka.data.label_tables import read_text_and_encoding
from svertka.errors import DataError, UsageError
from svertka.escaping import join_first
from svertka.files import error_reason, parse_path, read_json, read_regular_file
from svertka.text_width import shorten

LARGEST_XML, LARGEST_JSON = 2**24, 2**30  # bytes
LARGEST_SIDE = 10**7  # pixels
COLUMNS = ("path", "label", "xmin", "ymin", "xmax", "ymax")
ALSO_CALLED = {"filename": "path", "image": "path", "class": "label"}  # names of columns in other tools
BACKGROUND = "background"  # the class of images without objects


@dataclass(frozen=True)
class Box:
    """Object of class `name` between four edges, in pixels from the upper left corner of the upright image."""

    name: str
    left: float
    top: float
    right: float
    bottom: float

    @property
    def area(self) -> float:
        """Area in square pixels."""
        return (self.right - self.left) * (self.bottom - self.top)

    def contains(self, x: float, y: float) -> bool:
        """Return whether the point (x, y) lies in the box."""
        return self.left <= x < self.right and self.top <= y < self.bottom


@dataclass(frozen=True)
class Annotation:
    """All objects in one image.

    Attributes:
        image: Path of the image as far as the file states it, or only its name.
        where: The file, or the line in it, for messages.
        size: (width, height) as the file states it, or None.
        boxes: The objects.
    """

    image: str
    where: str
    size: tuple[int, int] | None
    boxes: tuple[Box, ...]

    def check(self, width: int, height: int) -> None:
        """Check that the boxes fit an image of this size.

        Raises:
            DataError: The file states another size, or a box exceeds the image.
        """
        if self.size not in (None, (width, height)):
            stated = "×".join(map(str, self.size or ()))
            raise DataError(
                f"{self.where} states {stated} pixels for {self.image}, which upright has {width}×{height}; "
                "draw the boxes again"
            )
        for box in self.boxes:
            if box.left < 0 or box.top < 0 or box.right > width or box.bottom > height:
                raise DataError(
                    f"{self.where}: the {box.name} at {box.left:g},{box.top:g} to {box.right:g},{box.bottom:g} lies "
                    f"outside {self.image}, which has {width}×{height} pixels; correct the box"
                )


def read_boxes(path: str | Path) -> list[Annotation]:
    """Read the objects in each image from a folder of .xml files, an .xml, a .json or a .csv file.

    In a folder without .xml files, those of its subfolders are read; without any, its .json file.

    Raises:
        UsageError: There is no such file or folder, or its format is unknown.
        DataError: A file is damaged, or a box is empty or lacks an edge.
    """
    path = parse_path(path)
    if not path.exists():
        raise UsageError(f"there is no file or folder {path}; check the path of the boxes")
    if path.is_dir():
        return _read_folder(path)
    readers = {".xml": lambda file: [_read_voc(file)], ".json": _read_coco, ".csv": _read_csv}
    if path.suffix.lower() not in readers:
        raise UsageError(f"boxes={path} has an unknown format; give a folder of VOC .xml files, a COCO .json or a .csv")
    return readers[path.suffix.lower()](path)


def find_annotation_files(folder: Path) -> Iterator[Path]:
    """Yield every .xml file below `folder`, except in subfolders that cannot be listed."""
    for place, _, names in os.walk(folder):
        yield from (Path(place, name) for name in names if name.endswith(".xml"))


def _read_folder(path: Path) -> list[Annotation]:
    files = sorted(find_annotation_files(path))
    if files:
        here = [file for file in files if file.parent == path]
        return [_read_voc(file) for file in here or files]
    tables = sorted(path.glob("*.json"))
    if len(tables) > 1:
        named = join_first([table.name for table in tables])
        raise UsageError(f"{path} has several .json files, {named}; give one of them")
    if not tables:
        raise UsageError(f"{path} has no .xml file; give a folder of VOC annotations, a COCO .json or a .csv")
    return _read_coco(tables[0])


def check_box_classes(annotations: Iterable[Annotation], names: Sequence[str]) -> None:
    """Raise DataError if a box is not of one of the classes `names`."""
    for annotation in annotations:
        for box in annotation.boxes:
            if box.name not in names:
                raise DataError(
                    f"{annotation.where} has a box of class {box.name}, but the classes are {', '.join(names)}; "
                    "rename it or remove the box"
                )


def match_to_images(annotations: Iterable[Annotation], paths: Sequence[str]) -> dict[int, Annotation]:
    """Return the annotations by the index of their image in `paths`; those of no image there are left out.

    An image is found by its file name, or else by that without the suffix, which converted images have changed, or
    else by that of the .xml file, or else by one that differs only in letter case or accents. Where several have that
    name, by the folders that the annotation names, or in which it lies itself.

    Raises:
        DataError: Two images, or two annotations, could be meant.
    """
    by_name: dict[str, list[int]] = defaultdict(list)
    by_stem: dict[str, list[int]] = defaultdict(list)
    by_fold: dict[str, list[int]] = defaultdict(list)
    for index, path in enumerate(paths):
        by_name[Path(path).name].append(index)
        by_stem[Path(path).stem].append(index)
        by_fold[fold_spelling(Path(path).stem)].append(index)
    found: dict[int, Annotation] = {}
    for annotation in annotations:
        said = PurePosixPath(annotation.image.replace("\\", "/"))
        there: Sequence[int] = by_name.get(said.name) or by_stem.get(said.stem) or by_stem.get(said.name) or ()
        file = Path(annotation.where)
        if not there and file.suffix.lower() == ".xml":
            there = by_stem.get(file.stem, ())
        there = there or by_fold.get(fold_spelling(said.stem), ())
        there = _nearest(there, paths, said, file)
        if len(there) > 1:
            raise DataError(
                f"{annotation.where} is about {annotation.image}, which may be {paths[there[0]]} or "
                f"{paths[there[1]]}; give images names of their own"
            )
        for index in there:
            if index in found:
                raise DataError(
                    f"{found[index].where} and {annotation.where} are both about {paths[index]}; remove one of them"
                )
            found[index] = annotation
    return found


def _nearest(there: Sequence[int], paths: Sequence[str], said: PurePosixPath, file: Path) -> Sequence[int]:
    """Return those of several images of one name that are in the folders of the annotation's path or of its `file`."""
    if len(there) < 2:
        return there
    named = [index for index in there if Path(paths[index]).parts[-len(said.parts) :] == said.parts]
    if len(named) == 1:
        return named
    beside = [
        index
        for index in there
        if file.parent.parts[-len(Path(paths[index]).parts[:-1]) :] == Path(paths[index]).parts[:-1]
    ]
    return beside if len(beside) == 1 else named


def _box(name: str, edges: Sequence[float], where: str) -> Box:
    """Return the box between `edges` (left, top, right, bottom)."""
    if not name:
        raise DataError(f"{where} has a box without a class; name it")
    said = ", ".join(f"{edge:g}" for edge in edges)
    if all(map(math.isfinite, edges)) and max(map(abs, edges)) > LARGEST_SIDE:
        raise DataError(
            f"{where} has a {shorten(name)} between the edges {said}; an edge must be within {LARGEST_SIDE:,} pixels "
            "of the image's corner; correct or remove the box"
        )
    if not all(map(math.isfinite, edges)) or edges[2] <= edges[0] or edges[3] <= edges[1]:
        raise DataError(
            f"{where} has a {shorten(name)} between the edges {said}, which is empty; correct or remove the box"
        )
    return Box(name, *edges)


def _read_voc(path: Path) -> Annotation:
    root = _xml(path)
    image = _file_name(_text(root, "filename", path), str(path))
    size = None
    if root.find("size") is not None:
        width, height = (_side(_number(root, f"size/{side}", path), side, str(path)) for side in ("width", "height"))
        size = (width, height) if width and height else None  # 0 means unknown in some tools
    boxes = []
    for thing in root.iter("object"):
        left, top, right, bottom = (_number(thing, f"bndbox/{edge}", path) for edge in COLUMNS[2:])
        # Pixels count from 1; tools that count from 0 are only detected by an edge of 0.
        boxes.append(_box(_text(thing, "name", path), (max(left - 1, 0), max(top - 1, 0), right, bottom), str(path)))
    return Annotation(image, str(path), size, tuple(boxes))


def _xml(path: Path) -> ElementTree.Element:
    """Return the root of an XML file in its declared encoding."""
    try:
        content = read_regular_file(path, LARGEST_XML)
        declared = re.match(rb"""\s*<\?xml[^>]*?encoding\s*=\s*["']([\w.:-]+)["'][^>]*\?>""", content)
        if declared is None:
            text: str | bytes = content
        else:  # the parser itself does not support Chinese and Japanese encodings
            text = content[declared.end() :].decode(declared[1].decode())
        kind = "<!DOCTYPE" if isinstance(text, str) else b"<!DOCTYPE"
        if kind in text:  # type: ignore[operator]
            raise ValueError("it declares a document type, which annotations do not")
        return ElementTree.fromstring(text)
    except (OSError, ValueError, LookupError, ElementTree.ParseError) as error:
        reason = error_reason(error)
        raise DataError(f"{path} cannot be read as XML: {shorten(reason, 200)}; write it again or remove it") from error


def _file_name(said: str, where: str) -> str:
    """Return the path of an image as an annotation states it.

    Raises:
        DataError: The path cannot be that of an image.
    """
    name = PurePosixPath(said.replace("\\", "/")).name
    if not name or "\0" in said:
        raise DataError(f"{where} has the file name {shorten(repr(said))}, which cannot be an image; correct it")
    return said


def _side(number: float, name: str, where: str) -> int:
    """Return a width or height in pixels, 0 if unknown."""
    if not 0 <= number <= LARGEST_SIDE or number != int(number):
        raise DataError(f"{where} has {name}={number:g}; give a number of pixels, or 0 if unknown")
    return int(number)


def _text(element: ElementTree.Element, name: str, path: Path) -> str:
    text = (element.findtext(name) or "").strip()
    if not text:
        raise DataError(f"{path} has no <{name.replace('/', '><')}>; give a VOC annotation")
    return text


def _number(element: ElementTree.Element, name: str, path: Path) -> float:
    return _as_number(_text(element, name, path), f"<{name.rpartition('/')[2]}>", str(path))


def _as_number(text: object, name: str, where: str) -> float:
    try:
        if isinstance(text, str | int | float) and not isinstance(text, bool):
            return float(text)
    except (ValueError, OverflowError):
        pass
    raise DataError(f"{where} has {name}={shorten(str(text))}, which is not a number; correct it")


def _read_coco(path: Path) -> list[Annotation]:
    try:
        content = read_json(path, LARGEST_JSON)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read as JSON: {shorten(error_reason(error), 200)}; write it again"
        ) from error
    images, names = _by_id(content, "images", path), _by_id(content, "categories", path)
    boxes: dict[Any, list[Box]] = defaultdict(list)
    for number, one in enumerate(_rows(content, "annotations", path)):
        where = f"{path}, annotation {shorten(str(one.get('id', f'#{number}')))},"
        image, category, edges = one.get("image_id"), one.get("category_id"), one.get("bbox")
        if not _is_id(image) or image not in images:
            raise DataError(
                f"{where} has a box without an image: image_id={shorten(str(image))}; add it to images or remove "
                "the box"
            )
        if not _is_id(category) or category not in names:
            raise DataError(
                f"{where} has category_id={shorten(str(category))}, which is not among the categories; add it"
            )
        if not isinstance(edges, list) or len(edges) != 4:
            raise DataError(f"{where} has bbox={shorten(str(edges))}; give [left, top, width, height]")
        left, top, width, height = (_as_number(edge, "bbox", where) for edge in edges)
        name = names[category].get("name")
        if not isinstance(name, str):
            raise DataError(f"{path} has the category {shorten(str(category))} without a name; give it one")
        boxes[image].append(_box(name, (left, top, left + width, top + height), where))
    return [
        Annotation(_coco_name(image, path), str(path), _coco_size(image, path), tuple(boxes[key]))
        for key, image in images.items()
    ]


def _rows(content: Any, name: str, path: Path) -> list[dict[str, Any]]:
    rows = content.get(name) if isinstance(content, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path} has no list {name}; give a COCO file of instances")
    return rows


def _by_id(content: Any, name: str, path: Path) -> dict[Any, dict[str, Any]]:
    found: dict[Any, dict[str, Any]] = {}
    for row in _rows(content, name, path):
        if not _is_id(row.get("id")):
            raise DataError(
                f"{path} has an entry of {name} with id={shorten(str(row.get('id')))}; give a number or a string"
            )
        if row["id"] in found:
            raise DataError(f"{path} has two entries of {name} with id={shorten(str(row['id']))}; make the ids unique")
        found[row["id"]] = row
    return found


def _is_id(value: object) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _coco_name(image: Mapping[str, Any], path: Path) -> str:
    name, where = image.get("file_name"), f"{path}, image {shorten(str(image['id']))},"
    if not isinstance(name, str):
        raise DataError(f"{where} has file_name={shorten(str(name))}; give the name of its file")
    return _file_name(name, where)


def _coco_size(image: Mapping[str, Any], path: Path) -> tuple[int, int] | None:
    sides = image.get("width"), image.get("height")
    if None in sides:
        return None
    where = f"{path}, image {shorten(str(image['id']))},"
    width, height = (
        _side(_as_number(side, name, where), name, where) for side, name in zip(sides, ("width", "height"), strict=True)
    )
    return (width, height) if width and height else None


def _read_csv(path: Path) -> list[Annotation]:
    boxes: dict[str, list[Box]] = defaultdict(list)
    try:
        with io.StringIO(read_text_and_encoding(path)[0], newline="") as file:
            for image, box in _csv_rows(csv.DictReader(file, strict=True), path):
                boxes[image].append(box)
    except csv.Error as error:
        raise DataError(f"{path} cannot be read as CSV in UTF-8: {error}; save it in that format") from error
    return [Annotation(image, str(path), None, tuple(found)) for image, found in boxes.items()]


def _csv_rows(rows: "csv.DictReader[str]", path: Path) -> Iterator[tuple[str, Box]]:
    names = [name.strip().lower() for name in rows.fieldnames or ()]
    rows.fieldnames = [name if ALSO_CALLED.get(name, name) in names else ALSO_CALLED[name] for name in names]
    if missing := [column for column in COLUMNS if column not in rows.fieldnames]:
        raise DataError(f"{path} has no column {missing[0]}; its first line must be {','.join(COLUMNS)}")
    for row in rows:
        where = f"line {rows.line_num} of {path}"
        image = (row["path"] or "").strip()
        if not image:
            raise DataError(f"{where} has a box without an image; fill in its path")
        _file_name(image, where)
        edges = [_as_number(row[column], column, where) for column in COLUMNS[2:]]
        yield image, _box((row["label"] or "").strip(), edges, where)
