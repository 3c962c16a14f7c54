"""Boxes in the three formats, and what is said of bad ones."""

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image

from hostile import DEVICES, PATHS, csv_documents, files, json_documents, xml_documents
from svertka.data.box_annotations import Annotation, Box, check_box_classes, match_to_images, read_boxes
from svertka.errors import DataError, SvertkaError, UsageError

VOC = """<annotation><filename>a.jpg</filename><size><width>60</width><height>40</height></size>
<object><name>cat</name><bndbox><xmin>1</xmin><ymin>11</ymin><xmax>20</xmax><ymax>40</ymax></bndbox></object>
</annotation>"""
COCO = {
    "images": [{"id": 7, "file_name": "a.jpg", "width": 60, "height": 40}, {"id": 8, "file_name": "b.jpg"}],
    "categories": [{"id": 3, "name": "cat"}],
    "annotations": [{"id": 1, "image_id": 7, "category_id": 3, "bbox": [0, 10, 20, 30]}],
}
CSV = "path,label,xmin,ymin,xmax,ymax\na.jpg,cat,0,10,20,40\n"
CAT = Box("cat", 0, 10, 20, 40)


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_the_same_box_in_three_formats(tmp_path: Path) -> None:
    voc, coco = written(tmp_path, "a.xml", VOC), written(tmp_path, "boxes.json", json.dumps(COCO))
    table = written(tmp_path, "boxes.csv", CSV)
    assert read_boxes(voc) == [Annotation("a.jpg", str(voc), (60, 40), (CAT,))] == read_boxes(tmp_path)
    assert read_boxes(coco) == [
        Annotation("a.jpg", str(coco), (60, 40), (CAT,)),
        Annotation("b.jpg", str(coco), None, ()),
    ]
    assert read_boxes(table) == [Annotation("a.jpg", str(table), None, (CAT,))]
    assert CAT.area == 600
    held = [CAT.contains(*point) for point in ((0, 10), (19.9, 39.9), (20, 20), (5, 9))]
    assert held == [True, True, False, False]


def test_raccoon_annotations_are_read(shared_data: Path) -> None:
    annotations = read_boxes(shared_data / "raccoons" / "annotations")
    paths = sorted(str(path) for path in (shared_data / "raccoons" / "images").iterdir())
    found = match_to_images(annotations, paths)
    assert len(found) == len(annotations) == len(paths) == 200
    check_box_classes(annotations, ["raccoon"])
    inside = 0
    for index, annotation in found.items():
        with Image.open(paths[index]) as image:
            width, height = image.size
        annotation.check(width, height)
        inside += any(box.contains(width / 2, height / 2) for box in annotation.boxes)
    assert inside == 191  # 95.5 %, as counted from the XML by hand


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (("a.xml", VOC[:-10]), DataError, "a.xml cannot be read as XML"),
        (("a.xml", VOC.replace("filename", "file")), DataError, "a.xml has no <filename>; give a VOC annotation"),
        (("a.xml", VOC.replace("ymax", "yend")), DataError, "a.xml has no <bndbox><ymax>"),
        (("a.xml", VOC.replace(">20<", ">twenty<")), DataError, "a.xml has <xmax>=twenty, which is not a number"),
        (
            ("a.xml", VOC.replace(">20<", ">0<")),
            DataError,
            "a.xml has a cat between the edges 0, 10, 0, 40, which is empty",
        ),
        (("a.xml", VOC.replace(">20<", ">nan<")), DataError, "edges 0, 10, nan, 40"),
        (("a.xml", VOC.replace(">20<", ">1e300<")), DataError, "within 10,000,000 pixels of the image.s corner"),
        (("a.json", "{"), DataError, "a.json cannot be read as JSON"),
        (
            ("a.json", json.dumps(COCO).replace("3", "9" * 5000)),
            DataError,
            "JSON: a number has more than 4,300",
        ),
        (("a.json", "[]"), DataError, "a.json has no list images; give a COCO file"),
        (("a.json", json.dumps(COCO | {"images": []})), DataError, "1, has a box without an image: image_id=7"),
        (("a.json", json.dumps(COCO | {"categories": []})), DataError, "has category_id=3, which is not among"),
        (("a.json", json.dumps(COCO).replace("[0, 10, 20, 30]", "[0, 10]")), DataError, r"has bbox=\[0, 10\]; give"),
        (("a.csv", CSV.replace("xmin", "x")), DataError, "a.csv has no column xmin; its first line must be path,label"),
        (("a.csv", CSV.replace("a.jpg", "")), DataError, "line 2 of .*a.csv has a box without an image"),
        (("a.csv", CSV.replace("cat", "")), DataError, "line 2 of .*a.csv has a box without a class"),
        (("a.csv", CSV + "b.jpg,cat,1\n"), DataError, "line 3 of .*a.csv has ymin=None, which is not a number"),
        (("a.txt", CSV), UsageError, "a.txt has an unknown format; give a folder of VOC"),
    ],
)
def test_damaged_files_are_refused(
    change: tuple[str, str], error: type[SvertkaError], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        read_boxes(written(tmp_path, *change))


def test_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no .xml file"):
        read_boxes(tmp_path)
    with pytest.raises(UsageError, match="there is no file or folder .*boxes.json; check"):
        read_boxes(tmp_path / "boxes.json")
    with pytest.raises(UsageError, match="there is no file or folder .*annotations; check"):
        read_boxes(tmp_path / "annotations")


def test_a_box_outside_its_image_is_refused(tmp_path: Path) -> None:
    (annotation,) = read_boxes(written(tmp_path, "a.xml", VOC))
    annotation.check(60, 40)
    with pytest.raises(DataError, match="a.xml states 60×40 pixels for a.jpg, which upright has 40×60"):
        annotation.check(40, 60)
    (annotation,) = read_boxes(written(tmp_path, "a.csv", CSV))
    with pytest.raises(DataError, match="the cat at 0,10 to 20,40 lies outside a.jpg, which has 60×39 pixels"):
        annotation.check(60, 39)


def test_a_box_of_an_unknown_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a.csv has a box of class cat, but the classes are dog, bird; rename"):
        check_box_classes(read_boxes(written(tmp_path, "a.csv", CSV)), ["dog", "bird"])


def test_images_are_found_by_name_and_folder() -> None:
    first, second = (Annotation(name, f"{number}.xml", None, ()) for number, name in enumerate(("x/a.jpg", "b.jpg")))
    paths = ["photos/y/a.jpg", "photos/x/a.jpg", "photos/b.jpg", "photos/c.jpg"]
    assert match_to_images([first, second], paths) == {1: first, 2: second}
    assert match_to_images([Annotation("none.jpg", "3.xml", None, ())], paths) == {}
    with pytest.raises(DataError, match="a.jpg, which may be photos/y/a.jpg or photos/x/a.jpg; give"):
        match_to_images([Annotation("a.jpg", "4.xml", None, ())], paths)
    with pytest.raises(DataError, match="1.xml and 5.xml are both about photos/b.jpg"):
        match_to_images([second, Annotation("b.jpg", "5.xml", None, ())], paths)


GOOD_XML = (
    "<annotation><filename>a.jpg</filename><size><width>40</width><height>30</height></size><object><name>cat</name>"
    "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>20</xmax><ymax>20</ymax></bndbox></object></annotation>"
)
GOOD_COCO = {
    "images": [{"id": 1, "file_name": "a.jpg", "width": 40, "height": 30}],
    "categories": [{"id": 2, "name": "cat"}],
    "annotations": [{"id": 3, "image_id": 1, "category_id": 2, "bbox": [0, 0, 20, 20]}],
}
GOOD_CSV = "path,label,xmin,ymin,xmax,ymax\na.jpg,cat,0,0,20,20\n"


@pytest.mark.parametrize(
    ("name", "documents"),
    [
        ("a.xml", lambda: xml_documents(GOOD_XML)),
        ("a.json", lambda: json_documents(GOOD_COCO)),
        ("a.csv", lambda: csv_documents(GOOD_CSV)),
    ],
)
def test_hostile_annotations_are_read_or_refused(
    tmp_path: Path, name: str, documents: Callable[[], Iterator[bytes]]
) -> None:
    refused, read = [], 0
    for content in documents():
        (tmp_path / name).write_bytes(content)
        try:
            annotations = read_boxes(tmp_path / name)
            match_to_images(annotations, ["/x/a.jpg"])
            for one in annotations:
                with suppress(DataError):
                    one.check(40, 30)
            read += 1
        except SvertkaError as error:
            refused.append(len(str(error)))
    assert len(refused) > 50
    assert read > 5
    assert max(refused) < 1200


@pytest.mark.parametrize("encoding", ["shift_jis", "gbk", "big5", "utf-7", "utf-16", "euc-jp", "utf-8"])
def test_annotations_in_the_encodings_of_the_east(tmp_path: Path, encoding: str) -> None:
    text = f'<?xml version="1.0" encoding="{encoding}"?>\n{GOOD_XML.replace("cat", "犬")}'
    (tmp_path / "a.xml").write_bytes(text.encode(encoding))
    assert read_boxes(tmp_path / "a.xml")[0].boxes[0].name == "犬"


def test_annotations_that_are_no_files_are_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for suffix in (".xml", ".json", ".csv"):
        for kind, path in files(tmp_path / suffix, suffix).items():
            if kind != "folder":
                with pytest.raises(SvertkaError):
                    read_boxes(path)
    (tmp_path / "empty" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "empty" / "here")
    others = (value for name, value in PATHS.items() if name != "root")  # which is searched whole
    for path in (*others, *DEVICES.values()):
        with pytest.raises(SvertkaError):
            read_boxes(path)
