"""Where objects are in images: boxes from VOC XML, COCO JSON or CSV.

annotations/*.xml       VOC: a file an image; its pixels count from 1, and the last one belongs to the box
instances.json          COCO: images, categories and annotations, bbox = [left, top, width, height]
boxes.csv               path,label,xmin,ymin,xmax,ymax: a box a row, edges in pixels from the upper left corner;
                        filename and class do for path and label
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

from svertka.data.label_tables import read_text
from svertka.errors import DataError, UsageError
from svertka.escaping import join_first
from svertka.files import error_reason, parse_path, read_json, read_regular, shorten

LARGEST_XML, LARGEST_JSON = 2**24, 2**30  # bytes
LARGEST_SIDE = 10**7  # pixels
COLUMNS = ("path", "label", "xmin", "ymin", "xmax", "ymax")
ALSO_CALLED = {"filename": "path", "image": "path", "class": "label"}  # columns, by other tools
BACKGROUND = "background"  # the class of what shows no object


@dataclass(frozen=True)
class Box:
    """An object of class `name` between four edges, in pixels from the upper left corner of the upright image."""

    name: str
    left: float
    top: float
    right: float
    bottom: float

    @property
    def area(self) -> float:
        """Square pixels."""
        return (self.right - self.left) * (self.bottom - self.top)

    def contains(self, x: float, y: float) -> bool:
        """Whether the point (x, y) lies in it."""
        return self.left <= x < self.right and self.top <= y < self.bottom


@dataclass(frozen=True)
class Annotation:
    """All objects in one image.

    `image`: its path as far as the file says, or its name alone. `where`: the file, or the line in it. `size`:
    (width, height) as the file says, or None.
    """

    image: str
    where: str
    size: tuple[int, int] | None
    boxes: tuple[Box, ...]

    def check(self, width: int, height: int) -> None:
        """Nothing, if the boxes can be of an image of that size.

        Raises:
            DataError: the file states another size, or a box reaches over an edge.
        """
        if self.size not in (None, (width, height)):
            stated = "×".join(map(str, self.size or ()))
            raise DataError(
                f"{self.where} is about {self.image} of {stated} pixels, but upright it has {width}×{height}; "
                "draw the boxes anew"
            )
        for box in self.boxes:
            if box.left < 0 or box.top < 0 or box.right > width or box.bottom > height:
                raise DataError(
                    f"{self.where}: the {box.name} at {box.left:g},{box.top:g} to {box.right:g},{box.bottom:g} lies "
                    f"outside {self.image}, which has {width}×{height} pixels; correct the box"
                )


def read_boxes(path: str | Path) -> list[Annotation]:
    """The objects in each image that `path` is about: a folder of .xml files, an .xml, a .json or a .csv file.

    Where no .xml file lies in the folder itself, those in the folders below are read; without any, its .json file.

    Raises:
        UsageError: no such file or folder, or none of these formats.
        DataError: it is damaged, or a box is empty or lacks an edge.
    """
    path = parse_path(path)
    if not path.exists():
        raise UsageError(f"there is no file or folder {path}; check the path of the boxes")
    if path.is_dir():
        return _read_folder(path)
    readers = {".xml": lambda file: [_read_voc(file)], ".json": _read_coco, ".csv": _read_csv}
    if path.suffix.lower() not in readers:
        raise UsageError(f"boxes={path} is of no known format; give a folder of VOC .xml files, a COCO .json or a .csv")
    return readers[path.suffix.lower()](path)


def find_annotation_files(folder: Path) -> Iterator[Path]:
    """Yield every .xml file below `folder`; a subfolder that cannot be listed, or vanishes meanwhile, has none."""
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
        raise UsageError(f"{path} holds several .json files, {named}; give one of them")
    if not tables:
        raise UsageError(f"{path} holds no .xml file; give a folder of VOC annotations, a COCO .json or a .csv")
    return _read_coco(tables[0])


def check_classes(annotations: Iterable[Annotation], names: Sequence[str]) -> None:
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


def match_to_images(annotations: Iterable[Annotation], paths: Sequence[str]) -> dict[int, Annotation]:
    """The annotations by the index of their image in `paths`; those of no image there are left out.

    An image is found by its file name, or else by that without the suffix, which converted images have changed, or
    else by that of the .xml file. Where several have that name, by the folders that the annotation names, or in which
    it lies itself.

    Raises:
        DataError: two images, or two annotations, could be meant.
    """
    by_name: dict[str, list[int]] = defaultdict(list)
    by_stem: dict[str, list[int]] = defaultdict(list)
    for index, path in enumerate(paths):
        by_name[Path(path).name].append(index)
        by_stem[Path(path).stem].append(index)
    found: dict[int, Annotation] = {}
    for annotation in annotations:
        said = PurePosixPath(annotation.image.replace("\\", "/"))
        there: Sequence[int] = by_name.get(said.name) or by_stem.get(said.stem) or by_stem.get(said.name) or ()
        file = Path(annotation.where)
        if not there and file.suffix.lower() == ".xml":
            there = by_stem.get(file.stem, ())
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
    """Of images that have one name, those in the folders that an annotation names, or in that of its own `file`."""
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
    """The box between `edges` (left, top, right, bottom)."""
    if not name:
        raise DataError(f"{where} has a box without a class; name it")
    said = ", ".join(f"{edge:g}" for edge in edges)
    if all(map(math.isfinite, edges)) and max(map(abs, edges)) > LARGEST_SIDE:
        raise DataError(
            f"{where} has a {shorten(name)} between the edges {said}; an edge may be at most {LARGEST_SIDE:,} pixels "
            "from the corner of the image; correct or remove the box"
        )
    if not all(map(math.isfinite, edges)) or edges[2] <= edges[0] or edges[3] <= edges[1]:
        raise DataError(
            f"{where} has a {shorten(name)} between the edges {said}, which hold nothing; correct or remove the box"
        )
    return Box(name, *edges)


def _read_voc(path: Path) -> Annotation:
    root = _xml(path)
    image = _file_name(_text(root, "filename", path), str(path))
    size = None
    if root.find("size") is not None:
        width, height = (_side(_number(root, f"size/{side}", path), side, str(path)) for side in ("width", "height"))
        size = (width, height) if width and height else None  # 0: some tools did not know
    boxes = []
    for thing in root.iter("object"):
        left, top, right, bottom = (_number(thing, f"bndbox/{edge}", path) for edge in COLUMNS[2:])
        # Pixels count from 1; the tools that count from 0 are not told apart, but for a first pixel.
        boxes.append(_box(_text(thing, "name", path), (max(left - 1, 0), max(top - 1, 0), right, bottom), str(path)))
    return Annotation(image, str(path), size, tuple(boxes))


def _xml(path: Path) -> ElementTree.Element:
    """The root of an XML file, in whatever encoding it declares."""
    try:
        content = read_regular(path, LARGEST_XML)
        declared = re.match(rb"""\s*<\?xml[^>]*?encoding\s*=\s*["']([\w.:-]+)["'][^>]*\?>""", content)
        if declared is None:
            text: str | bytes = content
        else:  # the parser itself knows no encoding of Chinese and Japanese texts
            text = content[declared.end() :].decode(declared[1].decode())
        kind = "<!DOCTYPE" if isinstance(text, str) else b"<!DOCTYPE"
        if kind in text:  # type: ignore[operator]
            raise ValueError("it declares a document type, as no annotation does")
        return ElementTree.fromstring(text)
    except (OSError, ValueError, LookupError, ElementTree.ParseError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{path} cannot be read as XML: {shorten(reason, 200)}; write it again or remove it") from error


def _file_name(said: str, where: str) -> str:
    """The path of an image as an annotation has it, if it can be one."""
    name = PurePosixPath(said.replace("\\", "/")).name
    if not name or "\0" in said:
        raise DataError(f"{where} has the file name {shorten(repr(said))}, which is that of no image; correct it")
    return said


def _side(number: float, name: str, where: str) -> int:
    """A width or height in pixels, 0 where a tool did not know."""
    if not 0 <= number <= LARGEST_SIDE or number != int(number):
        raise DataError(f"{where} has {name}={number:g}; give a number of pixels, or 0 if it is not known")
    return int(number)


def _text(element: ElementTree.Element, name: str, path: Path) -> str:
    text = (element.findtext(name) or "").strip()
    if not text:
        raise DataError(f"{path} has no <{name.replace('/', '><')}>; is it a VOC annotation?")
    return text


def _number(element: ElementTree.Element, name: str, path: Path) -> float:
    return _as_number(_text(element, name, path), f"<{name.rpartition('/')[2]}>", str(path))


def _as_number(text: object, name: str, where: str) -> float:
    try:
        if isinstance(text, str | int | float) and not isinstance(text, bool):
            return float(text)
    except (ValueError, OverflowError):
        pass
    raise DataError(f"{where} has {name}={shorten(str(text))}, which is no number; correct it")


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
        raise DataError(f"{path} has no list {name}; is it a COCO file of instances?")
    return rows


def _by_id(content: Any, name: str, path: Path) -> dict[Any, dict[str, Any]]:
    found: dict[Any, dict[str, Any]] = {}
    for row in _rows(content, name, path):
        if not _is_id(row.get("id")):
            raise DataError(
                f"{path} has an entry of {name} with id={shorten(str(row.get('id')))}; give a number or a text"
            )
        if row["id"] in found:
            raise DataError(f"{path} has two entries of {name} with id={shorten(str(row['id']))}; number them apart")
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
        with io.StringIO(read_text(path)[0], newline="") as file:
            for image, box in _csv_rows(csv.DictReader(file, strict=True), path):
                boxes[image].append(box)
    except csv.Error as error:
        raise DataError(f"{path} cannot be read as CSV in UTF-8: {error}; save it as such") from error
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
