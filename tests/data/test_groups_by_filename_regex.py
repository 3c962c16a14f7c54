"""Groups from a column or from file names."""

from pathlib import Path

import numpy as np
import pytest

from svertka.data.dataset import Dataset, FileImages
from svertka.data.folder_and_table_sources import open_folder
from svertka.data.groups_by_filename_regex import assign_groups
from svertka.errors import UsageError


def files(tmp_path: Path, *paths: str) -> Dataset:
    nothing = np.zeros(len(paths), np.int64)
    return Dataset(str(tmp_path), ("a", "b"), FileImages(tmp_path, paths), nothing, np.full(len(paths), "", "<U5"))


@pytest.mark.parametrize(
    ("pattern", "groups"),
    [
        ("p[0-9]+", ["p1", "p1", "p22"]),
        ("(p)([0-9]+)", ["p", "p", "p"]),
        ("_(.+)[.]", ["x", "y", "x"]),
        ("x|(y)", ["x", "y", "x"]),
        ("/([ab])/", ["a", "b", "a"]),
    ],
)
def test_the_group_is_the_match_of_the_pattern(tmp_path: Path, pattern: str, groups: list[str]) -> None:
    dataset = files(tmp_path, "a/p1_x.jpg", "b/p1_y.jpg", "a/p22_x.jpg")
    if len(set(groups)) == 1:
        with pytest.raises(UsageError, match="finds only one group, p; it must find several"):
            assign_groups(dataset, pattern)
        return
    found = assign_groups(dataset, pattern).groups
    assert found is not None
    assert found.tolist() == groups


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(p", "is not a regular expression: missing"),
        ("p" * 10 + "{99999999999}", "is not a regular expression"),
        ("q[0-9]", "does not match 3 of 3 names: p1_x.jpg, p1_y.jpg, p22_x.jpg"),
        ("p1", "does not match 1 of 3 names: p22_x.jpg"),
        ("z*", "finds nothing in p1_x.jpg"),
    ],
)
def test_a_pattern_that_cannot_be_is_one_sentence(tmp_path: Path, pattern: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        assign_groups(files(tmp_path, "a/p1_x.jpg", "b/p1_y.jpg", "a/p22_x.jpg"), pattern)


@pytest.mark.parametrize("column", ["Patient", "group", "video_id", "Site"])
def test_a_column_assigns_groups(tmp_path: Path, column: str) -> None:
    file = tmp_path / "x.csv"
    file.write_text(f"path,label,{column}\n1.png,a,p1\n2.png,b,p2\n3.png,b,\n")
    groups = open_folder(file).groups
    assert groups is not None
    assert groups.tolist() == ["p1", "p2", ""]
    assert open_folder(file).take(np.array([1])).groups.tolist() == ["p2"]  # type: ignore[union-attr]


def test_one_column_counts_and_others_may_be_named(tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    file.write_text("path,label,site,patient,film\n1.png,a,s,p1,f\n2.png,b,s,p2,g\n")
    assert open_folder(file).groups.tolist() == ["p1", "p2"]  # type: ignore[union-attr]
    assert open_folder(file, columns={"group": "film"}).groups.tolist() == ["f", "g"]  # type: ignore[union-attr]


def test_a_note_names_the_column_that_was_taken_for_groups(tmp_path: Path) -> None:
    file, note = tmp_path / "x.csv", "the column Site of {} is read as the group of each image"
    file.write_text("path,label,Site\n1.png,a,s\n2.png,b,t\n")
    assert note.format(file) in open_folder(file).account.notes
    assert open_folder(file, columns={"group": "Site"}).account.notes == ()
    lines = tmp_path / "x.jsonl"
    lines.write_text('{"path": "1.png", "label": "a", "Site": "s"}\n{"path": "2.png", "label": "b", "Site": "t"}\n')
    assert note.format(lines) in open_folder(lines).account.notes


def test_a_column_of_one_group_is_a_warning(tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    file.write_text("path,label,site\n1.png,a,here\n2.png,b,here\n")
    dataset = open_folder(file)
    assert dataset.groups is None
    assert dataset.account.warnings == (f"all images of {file} are of one group, here; they are split individually",)
