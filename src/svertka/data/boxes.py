"""Where objects are in pictures: boxes from VOC XML, COCO JSON or CSV.

annotations/*.xml       VOC: a file a picture; its pixels count from 1, and the last one belongs to the box
instances.json          COCO: images, categories and annotations, bbox = [left, top, width, height]
boxes.csv               path,label,xmin,ymin,xmax,ymax: a box a row, edges in pixels from the upper left corner
"""

import csv
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree

from svertka.errors import DataError, UsageError

COLUMNS = ("path", "label", "xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class Box:
    """An object of class `name` between four edges, in pixels from the upper left corner of the upright picture."""

    name: str
    left: float
    top: float
    right: float
    bottom: float

    @property
    def area(self) -> float:
        """Square pixels."""
        return (self.right - self.left) * (self.bottom - self.top)

    def holds(self, x: float, y: float) -> bool:
        """Whether the point (x, y) lies in it."""
        return self.left <= x < self.right and self.top <= y < self.bottom


@dataclass(frozen=True)
class Annotation:
    """All objects in one picture.

    `picture`: its path as far as the file says, or its name alone. `where`: the file, or the line in it. `size`:
    (width, height) as the file says, or None.
    """

    picture: str
    where: str
    size: tuple[int, int] | None
    boxes: tuple[Box, ...]

    def check(self, width: int, height: int) -> None:
        """Nothing, if the boxes can be of a picture of that size.

        Raises:
            DataError: the file states another size, or a box reaches over an edge.
        """
        if self.size not in (None, (width, height)):
            stated = "×".join(map(str, self.size or ()))
            raise DataError(
                f"{self.where} is about {self.picture} of {stated} pixels, but upright it has {width}×{height}; "
                "draw the boxes anew"
            )
        for box in self.boxes:
            if box.left < 0 or box.top < 0 or box.right > width or box.bottom > height:
                raise DataError(
                    f"{self.where}: the {box.name} at {box.left:g},{box.top:g} to {box.right:g},{box.bottom:g} lies "
                    f"outside {self.picture}, which has {width}×{height} pixels; correct the box"
                )


def read_boxes(path: str | Path) -> list[Annotation]:
    """The objects in each picture that `path` is about: a folder of .xml files, an .xml, a .json or a .csv file.

    Raises:
        UsageError: no such file or folder, or none of these formats.
        DataError: it is damaged, or a box is empty or lacks an edge.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise UsageError(f"there is no file or folder {path}; check the path of the boxes")
    if path.is_dir():
        files = sorted(path.glob("*.xml"))
        if not files:
            raise UsageError(f"{path} holds no .xml file; give a folder of VOC annotations, a COCO .json or a .csv")
        return [_read_voc(file) for file in files]
    readers = {".xml": lambda file: [_read_voc(file)], ".json": _read_coco, ".csv": _read_csv}
    if path.suffix.lower() not in readers:
        raise UsageError(f"boxes={path} is of no known format; give a folder of VOC .xml files, a COCO .json or a .csv")
    return readers[path.suffix.lower()](path)


def refuse_unknown(annotations: Iterable[Annotation], names: Sequence[str]) -> None:
    """Nothing, if every box is of one of the classes `names`.

    Raises:
        DataError: one is not.
    """
    for annotation in annotations:
        for box in annotation.boxes:
            if box.name not in names:
                raise DataError(
                    f"{annotation.where} has a box of class {box.name}, and the classes are {', '.join(names)}; "
                    "rename it or remove the box"
                )


def of_pictures(annotations: Iterable[Annotation], paths: Sequence[str]) -> dict[int, Annotation]:
    """The annotations by the index of their picture in `paths`; those of no picture there are left out.

    A picture is found by its file name and, where several have that, by the folders that the annotation names.

    Raises:
        DataError: two pictures, or two annotations, could be meant.
    """
    by_name: dict[str, list[int]] = defaultdict(list)
    for index, path in enumerate(paths):
        by_name[Path(path).name].append(index)
    found: dict[int, Annotation] = {}
    for annotation in annotations:
        said = PurePosixPath(annotation.picture.replace("\\", "/")).parts
        there = by_name.get(said[-1], [])
        if len(there) > 1:
            there = [index for index in there if Path(paths[index]).parts[-len(said) :] == said]
        if len(there) > 1:
            raise DataError(
                f"{annotation.where} is about {annotation.picture}, which may be {paths[there[0]]} or "
                f"{paths[there[1]]}; give pictures names of their own"
            )
        for index in there:
            if index in found:
                raise DataError(
                    f"{found[index].where} and {annotation.where} are both about {paths[index]}; remove one of them"
                )
            found[index] = annotation
    return found


def _box(name: str, edges: Sequence[float], where: str) -> Box:
    """The box between `edges` (left, top, right, bottom)."""
    if not name:
        raise DataError(f"{where} has a box without a class; name it")
    if not all(map(math.isfinite, edges)) or edges[2] <= edges[0] or edges[3] <= edges[1]:
        said = ", ".join(f"{edge:g}" for edge in edges)
        raise DataError(f"{where} has a {name} between the edges {said}, which hold nothing; correct or remove the box")
    return Box(name, *edges)


def _read_voc(path: Path) -> Annotation:
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise DataError(f"{path} cannot be read as XML: {error}; write it again or remove it") from error
    picture = _text(root, "filename", path)
    size = None
    if root.find("size") is not None:
        width, height = (int(_number(root, f"size/{side}", path)) for side in ("width", "height"))
        size = (width, height) if width and height else None  # 0: some tools did not know
    boxes = []
    for thing in root.iter("object"):
        left, top, right, bottom = (_number(thing, f"bndbox/{edge}", path) for edge in COLUMNS[2:])
        # Pixels count from 1; the tools that count from 0 are not told apart, but for a first pixel.
        boxes.append(_box(_text(thing, "name", path), (max(left - 1, 0), max(top - 1, 0), right, bottom), str(path)))
    return Annotation(picture, str(path), size, tuple(boxes))


def _text(element: ElementTree.Element, name: str, path: Path) -> str:
    text = (element.findtext(name) or "").strip()
    if not text:
        raise DataError(f"{path} has no <{name.replace('/', '><')}>; is it a VOC annotation?")
    return text


def _number(element: ElementTree.Element, name: str, path: Path) -> float:
    return _as_number(_text(element, name, path), f"<{name.rpartition('/')[2]}>", str(path))


def _as_number(text: object, name: str, where: str) -> float:
    try:
        if isinstance(text, str | int | float):
            return float(text)
    except ValueError:
        pass
    raise DataError(f"{where} has {name}={text}, which is no number; correct it")


def _read_coco(path: Path) -> list[Annotation]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}; write it again") from error
    images, names = _by_id(content, "images", path), _by_id(content, "categories", path)
    boxes: dict[Any, list[Box]] = defaultdict(list)
    for number, one in enumerate(_rows(content, "annotations", path)):
        where = f"{path}, annotation {one.get('id', f'#{number}')},"
        image, category, edges = one.get("image_id"), one.get("category_id"), one.get("bbox")
        if image not in images:
            raise DataError(
                f"{where} has a box without a picture: image_id={image}; add it to images or remove the box"
            )
        if category not in names:
            raise DataError(f"{where} has category_id={category}, which is not among the categories; add it")
        if not isinstance(edges, list) or len(edges) != 4:
            raise DataError(f"{where} has bbox={edges}; give [left, top, width, height]")
        left, top, width, height = (_as_number(edge, "bbox", where) for edge in edges)
        box = _box(str(names[category].get("name", "")), (left, top, left + width, top + height), where)
        boxes[image].append(box)
    return [
        Annotation(str(image.get("file_name", "")), str(path), _coco_size(image), tuple(boxes[key]))
        for key, image in images.items()
    ]


def _rows(content: Any, name: str, path: Path) -> list[dict[str, Any]]:
    rows = content.get(name) if isinstance(content, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path} has no list {name}; is it a COCO file of instances?")
    return rows


def _by_id(content: Any, name: str, path: Path) -> dict[Any, dict[str, Any]]:
    return {row.get("id"): row for row in _rows(content, name, path)}


def _coco_size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    width, height = image.get("width"), image.get("height")
    return (width, height) if isinstance(width, int) and isinstance(height, int) else None


def _read_csv(path: Path) -> list[Annotation]:
    boxes: dict[str, list[Box]] = defaultdict(list)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            for picture, box in _csv_rows(csv.DictReader(file, strict=True), path):
                boxes[picture].append(box)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as CSV in UTF-8: {error}; save it as such") from error
    return [Annotation(picture, str(path), None, tuple(found)) for picture, found in boxes.items()]


def _csv_rows(rows: "csv.DictReader[str]", path: Path) -> Iterator[tuple[str, Box]]:
    rows.fieldnames = [name.strip().lower() for name in rows.fieldnames or ()]
    if missing := [column for column in COLUMNS if column not in rows.fieldnames]:
        raise DataError(f"{path} has no column {missing[0]}; its first line must be {','.join(COLUMNS)}")
    for row in rows:
        where = f"line {rows.line_num} of {path}"
        picture = (row["path"] or "").strip()
        if not picture:
            raise DataError(f"{where} has a box without a picture; fill in its path")
        edges = [_as_number(row[column], column, where) for column in COLUMNS[2:]]
        yield picture, _box((row["label"] or "").strip(), edges, where)
