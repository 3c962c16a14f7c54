"""Images labeled by their boxes, in the layouts of VOC, of annotation tools and of object detection tutorials."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from svertka.data.dataset import Dataset
from svertka.data.source_opener import open_source
from svertka.errors import DataError

Boxes = Sequence[tuple[str, int, int, int, int]]
CAT, DOG = ("cat", 2, 2, 30, 30), ("dog", 1, 1, 12, 12)


def image(path: Path, shade: int = 90) -> None:
    """40×36 pixels of one gray."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((36, 40, 3), shade, np.uint8)).save(path)


def voc(path: Path, name: str, boxes: Boxes) -> None:
    """An annotation as labelImg writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    objects = "".join(
        f"<object><name>{label}</name><bndbox><xmin>{left}</xmin><ymin>{top}</ymin><xmax>{right}</xmax>"
        f"<ymax>{bottom}</ymax></bndbox></object>"
        for label, left, top, right, bottom in boxes
    )
    size = "<size><width>40</width><height>36</height><depth>3</depth></size>"
    path.write_text(f"<annotation><filename>{name}</filename>{size}{objects}</annotation>")


def labels(dataset: Dataset) -> dict[str, str]:
    """The class of each image by its file name."""
    return {
        Path(dataset.images.name(index)).name: dataset.names[label]
        for index, label in enumerate(dataset.labels.tolist())
    }


LAYOUTS = {  # images, annotations, SOURCE, --boxes
    "images beside annotations": ("images", "annotations", "", "annotations"),
    "the root twice": ("images", "annotations", "", ""),
    "folder and folder": ("images", "annotations", "images", "annotations"),
    "as VOC": ("VOC2007/JPEGImages", "VOC2007/Annotations", "VOC2007", "VOC2007/Annotations"),
    "VOC in a wrapper": ("VOCdevkit/VOC2007/JPEGImages", "VOCdevkit/VOC2007/Annotations", "", "VOCdevkit"),
    "together": ("photos", "photos", "photos", "photos"),
    "together in the root": ("", "", "", ""),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_usual_layouts_are_labeled_by_their_boxes(layout: str, tmp_path: Path) -> None:
    images, annotations, source, boxes = LAYOUTS[layout]
    for number, drawn in enumerate([[CAT], [DOG], [CAT, DOG], []]):
        image(tmp_path / images / f"{number}.jpg", 10 * number)
        voc(tmp_path / annotations / f"{number}.xml", f"{number}.jpg", drawn)
    image(tmp_path / images / "bare.jpg")
    voc(tmp_path / annotations / "gone.xml", "gone.jpg", [CAT])
    if "VOC" in layout:  # masks are no images to learn from
        image(tmp_path / images / "../SegmentationClass/0.png")
    dataset = open_source(tmp_path / source, boxes=tmp_path / boxes)
    assert labels(dataset) == {"0.jpg": "cat", "1.jpg": "dog", "2.jpg": "cat", "3.jpg": "background"}
    assert dataset.names == ("background", "cat", "dog")
    left_out = {Path(one.path).name: one.reason for one in dataset.account.left_out}
    assert left_out["bare.jpg"] == "no boxes"
    notes = " ".join(dataset.account.notes)
    assert "1 images of background, 2 images of cat, 1 images of dog" in notes
    assert "1 images show several classes" in notes


def test_parts_are_kept(tmp_path: Path) -> None:
    for number, part in enumerate(("train", "train", "valid", "test")):
        image(tmp_path / part / f"{number}.jpg")
        voc(tmp_path / part / f"{number}.xml", f"{number}.jpg", [CAT])
    dataset = open_source(tmp_path, boxes=tmp_path)
    assert dataset.names == ("cat",)
    assert dataset.parts.tolist() == ["train", "train", "val", "test"]


def test_folders_distinguish_equal_file_names(tmp_path: Path) -> None:
    for part, box in (("train", CAT), ("test", DOG)):
        image(tmp_path / part / "0.jpg")
        voc(tmp_path / part / "0.xml", "0.jpg", [box])
    dataset = open_source(tmp_path, boxes=tmp_path)
    assert dict(zip(dataset.parts.tolist(), dataset.labels.tolist(), strict=True)) == {"train": 0, "test": 1}


def test_one_class_folder_labels_images_without_boxes(tmp_path: Path) -> None:
    for number in range(3):
        image(tmp_path / "photos" / "cat" / f"{number}.jpg")
    voc(tmp_path / "xml" / "0.xml", "0.jpg", [CAT])
    dataset = open_source(tmp_path / "photos", boxes=tmp_path / "xml")
    assert labels(dataset) == {f"{number}.jpg": "cat" for number in range(3)}


def test_class_folders_label_their_images_themselves(tmp_path: Path) -> None:
    for number, name in enumerate(("cat", "dog", "images")):
        image(tmp_path / name / f"{number}.jpg")
    voc(tmp_path / "xml" / "0.xml", "0.jpg", [DOG])
    assert labels(open_source(tmp_path, boxes=tmp_path / "xml"))["0.jpg"] == "cat"
    shutil.rmtree(tmp_path / "images")
    assert labels(open_source(tmp_path, boxes=tmp_path / "xml"))["0.jpg"] == "cat"


@pytest.mark.parametrize(
    ("said", "file"), [("0.png", "7.xml"), ("0", "7.xml"), (r"C:\me\0.JPG", "7.xml"), ("IMG_1.jpg", "0.xml")]
)
def test_images_are_found_under_another_suffix_and_by_the_name_of_the_annotation(
    said: str, file: str, tmp_path: Path
) -> None:
    image(tmp_path / "images" / "0.jpg")
    voc(tmp_path / "annotations" / file, said, [CAT])
    assert labels(open_source(tmp_path, boxes=tmp_path / "annotations")) == {"0.jpg": "cat"}


def test_the_table_of_object_detection_tutorials(tmp_path: Path) -> None:
    image(tmp_path / "images" / "0.jpg")
    table = tmp_path / "labels.csv"
    table.write_text("filename,width,height,class,xmin,ymin,xmax,ymax\n0.jpg,40,36,cat,2,2,30,30\n")
    assert labels(open_source(tmp_path, boxes=table)) == {"0.jpg": "cat"}


def test_boxes_of_other_images_are_refused(tmp_path: Path) -> None:
    image(tmp_path / "images" / "0.jpg")
    voc(tmp_path / "annotations" / "1.xml", "1.jpg", [CAT])
    with pytest.raises(DataError, match="no box in .*annotations is of its images; check which folder"):
        open_source(tmp_path, boxes=tmp_path / "annotations")
