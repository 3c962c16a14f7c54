import json
from pathlib import Path

import numpy as np
import pytest

from svertka.data.folder_and_table_sources import open_folder
from svertka.data.label_tables import parse_columns, read_table, replace_labels
from svertka.errors import DataError
from svertka.tasks import MultiLabel, Regression

# Header, rows and columns of tables as they are published, with the labels that their images have.
MULTI_LABEL = {
    "cells with |": ("path,label", ["a.jpg,cat|dog", "b.jpg,dog", "c.jpg,"], None, ["cat|dog", "dog", ""]),
    "NIH chest X-ray": (
        "Image Index,Finding Labels,Patient ID",
        ["a.jpg,Cardiomegaly|Emphysema,1", "b.jpg,No Finding,2", "c.jpg,Emphysema,3"],
        "path=Image Index,label=Finding Labels",
        ["Cardiomegaly|Emphysema", "No Finding", "Emphysema"],
    ),
    "Planet": (
        "image_name,tags",
        ["a,haze primary", "b,agriculture clear primary", "c,clear"],
        "path=image_name,labels=tags",
        ["haze|primary", "agriculture|clear|primary", "clear"],
    ),
    "HPA": ("Id,Target", ["a,16 0", "b,7", "c,0"], "path=Id,labels=Target", ["0|16", "7", "0"]),
    "one-hot columns": (
        "filename,Agency,Crime,Drama",
        ["a.jpg,1,0,1", "b.jpg,0,0,1", "c.jpg,0,1,0"],
        None,
        ["Agency|Drama", "Drama", "Crime"],
    ),
}


def table(tmp_path: Path, header: str, rows: list[str], name: str = "all.csv") -> Path:
    for image in ("a", "b", "c"):
        (tmp_path / f"{image}.jpg").write_bytes(image.encode())
    (tmp_path / name).write_text("\n".join([header, *rows]) + "\n")
    return tmp_path / name


@pytest.mark.parametrize(("header", "rows", "columns", "labels"), MULTI_LABEL.values(), ids=MULTI_LABEL)
def test_several_labels(header: str, rows: list[str], columns: str | None, labels: list[str], tmp_path: Path) -> None:
    dataset = open_folder(table(tmp_path, header, rows), columns=parse_columns(columns))
    assert isinstance(dataset.task, MultiLabel)
    assert [dataset.label_text(index) for index in range(3)] == labels
    assert dataset.labels.sum() == sum(len(one.split("|")) for one in labels if one)


def test_a_number_beside_one_hot_columns_is_named(tmp_path: Path) -> None:
    rows = [f"a{number}.jpg,{number % 2},{number % 3 // 2},{number}" for number in range(30)]
    (tmp_path / "a1.jpg").write_bytes(b"")
    dataset = open_folder(table(tmp_path, "Id,Eyes,Face,Pawpularity", rows), to_train=False)
    assert dataset.names == ("Eyes", "Face")
    assert "to predict Pawpularity instead: --columns target=Pawpularity" in " ".join(dataset.account.notes)


def test_classes_that_are_many_fractions_are_told(tmp_path: Path) -> None:
    (tmp_path / "a1.jpg").write_bytes(b"")
    rows = [f"a{number}.jpg,{number / 4}" for number in range(30)]
    dataset = open_folder(table(tmp_path, "path,label", rows), to_train=False)
    said = " ".join(dataset.account.notes)
    assert "are taken for names of classes; to predict label instead: --columns target=label" in said
    rows = [f"a{number}.jpg,{number}" for number in range(30)]
    dataset = open_folder(table(tmp_path, "path,label", rows), to_train=False)
    assert "taken for names of classes" not in " ".join(dataset.account.notes)


def test_lists_in_json_lines_are_several_labels(tmp_path: Path) -> None:
    rows = ['{"file_name": "b.jpg", "labels": []}', '{"file_name": "c.jpg", "labels": ["dog"]}']
    dataset = open_folder(table(tmp_path, '{"file_name": "a.jpg", "labels": ["dog", "cat"]}', rows, "metadata.jsonl"))
    assert dataset.names == ("cat", "dog")
    np.testing.assert_array_equal(dataset.labels, [[1, 1], [0, 0], [0, 1]])


def test_true_and_false_in_json_lines_are_classes_as_they_are_written(tmp_path: Path) -> None:
    rows = ['{"file_name": "b.jpg", "label": false}', '{"file_name": "c.jpg", "label": "true"}']
    file = table(tmp_path, '{"file_name": "a.jpg", "label": true}', rows, "metadata.jsonl")
    dataset = open_folder(file)
    assert dataset.names == ("false", "true")
    found = {dataset.images.name(index): dataset.label_text(index) for index in range(3)}
    assert {Path(name).name: label for name, label in found.items()} == {
        "a.jpg": "true",
        "b.jpg": "false",
        "c.jpg": "true",
    }
    corrected = replace_labels(read_table(file), {"a.jpg": "false", "c.jpg": "false"}).splitlines()
    assert [json.loads(line)["label"] for line in corrected] == [False, False, "false"]


def test_true_and_false_in_one_hot_columns_are_1_and_0(tmp_path: Path) -> None:
    rows = ['{"file_name": "b.jpg", "cat": false, "dog": true}', '{"file_name": "c.jpg", "cat": true, "dog": true}']
    file = table(tmp_path, '{"file_name": "a.jpg", "cat": true, "dog": false}', rows, "metadata.jsonl")
    dataset = open_folder(file)
    assert sorted(map(dataset.label_text, range(3))) == ["cat", "cat|dog", "dog"]


@pytest.mark.parametrize(
    ("header", "columns"), [("path,target", None), ("path,age", "target=age"), ("Id,Pawpularity", "target=Pawpularity")]
)
def test_a_number(header: str, columns: str | None, tmp_path: Path) -> None:
    rows = ["a.jpg,1.5", "b.jpg,-2", "c.jpg,1e3"]
    dataset = open_folder(table(tmp_path, header, rows), columns=parse_columns(columns))
    assert isinstance(dataset.task, Regression)
    assert dataset.names == (header.split(",")[1],)
    np.testing.assert_array_equal(dataset.labels, [1.5, -2.0, 1000.0])


@pytest.mark.parametrize(
    ("header", "rows", "columns", "said"),
    [
        (
            "path,target",
            ["a.jpg,0", "b.jpg,1", "c.jpg,1"],
            None,
            "2 different whole numbers, .* --columns label=target",
        ),
        (
            "path,age",
            ["a.jpg,0", "b.jpg,x", "c.jpg,1"],
            "target=age",
            "line 3 of .* has age=x, which is not a finite n",
        ),
        ("path,age", ["a.jpg,0", "b.jpg,nan", "c.jpg,1"], "target=age", "has age=nan, which is not a finite number"),
        ("path,age", ["a.jpg,0", "b.jpg,", "c.jpg,1"], "target=age", "line 3 of .* has no age; fill it in"),
        ("path;target", ["a.jpg;0,5", "b.jpg;1,0"], None, r"target=0,5, which is not a finite number; write 0\.5"),
        (
            "path,target",
            ["a.jpg,0", "b.jpg,?", "c.jpg,1"],
            None,
            "2 different whole numbers, .* --columns label=target",
        ),
        ("path,target", ["a.jpg,cat", "b.jpg,dog"], None, "has no column label, but path, target; name the columns"),
        ("path;age", ["a.jpg;0,5", "b.jpg;1,5"], "target=age", r"age=0,5, which is not a finite number; write 0\.5"),
        ("path,age", ["a.jpg,0", "b.jpg,-1e300"], "target=age", r"age=-1e300, beyond ±1e\+30; give it in a larger"),
        ("path,a,b", ["a.jpg,0,x"], "label=a,target=b", "label and target each say what an image shows; give one"),
        ("path,a", ["a.jpg,0"], "labels=b", "has no column b, but path, a"),
        ("path,age", ["a.jpg,0"], None, r"=COLUMN \(labels=COLUMN for several labels an image, target=COLUMN for a nu"),
        ("path,breed", ["a.jpg,0"], None, "--columns path=path,label=breed$"),
        (
            "path,label",
            ["a.jpg,\"['a', 'b']\"", "b.jpg,\"['b']\""],
            None,
            r"line 2 of .* has label=\['a', 'b'\], a list",
        ),
        (
            "path,tags",
            ["a.jpg,cat", "b.jpg,\"['b']\""],
            "labels=tags",
            r"line 3 of .* separate several labels by |, wi",
        ),
        ("path,label", ["a.jpg,cat|", "b.jpg,cat"], None, "has only one label, cat; several labels need two names"),
        ("path,label", ["a.jpg,cat", "a.jpg,dog"], None, "or write several labels into one, joined by |"),
    ],
)
def test_what_is_refused(header: str, rows: list[str], columns: str | None, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        open_folder(table(tmp_path, header, rows), columns=parse_columns(columns))


def test_tables_of_one_folder_must_label_images_in_one_way(tmp_path: Path) -> None:
    table(tmp_path, "path,label", ["a.jpg,cat|dog", "b.jpg,dog"], "train.csv")
    table(tmp_path, "path,label", ["c.jpg,dog"], "val.csv")
    assert isinstance(open_folder(tmp_path).task, MultiLabel)  # in val no image happens to have two
    table(tmp_path, "path,target", ["c.jpg,1.5"], "val.csv")
    with pytest.raises(DataError, match=r"in different ways .*train.csv has multi label; .*val.csv has target"):
        open_folder(tmp_path)
