"""Decisions on labels: kept beside the source, and not doubted again."""

from pathlib import Path

import pytest
from PIL import Image

import svertka
from svertka.curation import dataset_check
from svertka.curation.apply_corrections import apply_corrections
from svertka.curation.confirmed_labels import change_confirmed, find_confirmed_file, read_confirmed
from svertka.curation.label_check import GlobalOutlier, LabelError, LabelFindings
from svertka.data.folder_and_table_sources import open_folder
from svertka.errors import DataError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of three images each."""
    for number, label in enumerate(("cat", "dog")):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for place in range(3):
            color = 40 * number + 10 * place
            Image.new("RGB", (8, 8), (color, 0, 255 - color)).save(tmp_path / "photos" / label / f"{place}.png")
    return tmp_path / "photos"


def fixes(folder: Path, *rows: str, name: str = "fixes.csv") -> Path:
    (folder / name).write_text("\n".join(["path,label,corrected", *rows, ""]), encoding="utf-8")
    return folder / name


@pytest.mark.parametrize(
    ("source", "file"),
    [("photos", "photos.confirmed.json"), ("photos/", "photos.confirmed.json"), ("a.b.csv", "a.b.confirmed.json")],
)
def test_the_file_is_beside_the_source(source: str, file: str, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    assert find_confirmed_file(f"{tmp_path}/{source}") == tmp_path / file


def test_images_in_memory_and_built_in_ones_have_none() -> None:
    assert find_confirmed_file("mnist") is None
    assert find_confirmed_file([("a.png", "cat")]) is None
    assert change_confirmed("mnist", [("a.png", "cat")]) is None
    assert read_confirmed("mnist") == {}


def test_later_decisions_replace_earlier_ones_on_the_same_path(photos: Path) -> None:
    change_confirmed(photos, [("cat/0.png", "cat"), ("cat/1.png", "cat")])
    assert change_confirmed(photos, []) is None
    file = change_confirmed(photos, [("cat/1.png", "dog"), ("=x,\udce9.png", "=cat")])
    assert file == photos.with_name("photos.confirmed.json")
    assert read_confirmed(photos) == {"cat/0.png": "cat", "cat/1.png": "dog", "=x,\udce9.png": "=cat"}


def test_applied_decisions_are_kept_by_the_new_path(photos: Path, tmp_path: Path) -> None:
    file = fixes(tmp_path, "cat/0.png,cat,cat", "cat/1.png,cat,dog")
    assert apply_corrections(photos, file).decisions == ()
    assert read_confirmed(photos) == {}
    found = apply_corrections(photos, file, write=True)
    assert found.decisions == (tmp_path / "photos.confirmed.json",)
    assert read_confirmed(photos) == {"cat/0.png": "cat", "dog/1-1.png": "dog"}
    assert found.undo is not None
    assert apply_corrections(photos, found.undo, write=True).decisions == ()
    assert read_confirmed(photos) == {"cat/0.png": "cat"}


def test_no_file_is_left_when_all_decisions_are_undone(photos: Path, tmp_path: Path) -> None:
    found = apply_corrections(photos, fixes(tmp_path, "cat/1.png,cat,dog"), write=True)
    assert (tmp_path / "photos.confirmed.json").exists()
    assert found.undo is not None
    apply_corrections(photos, found.undo, write=True)
    assert not (tmp_path / "photos.confirmed.json").exists()


def test_confirmed_labels_alone_are_kept(photos: Path, tmp_path: Path) -> None:
    file = fixes(tmp_path, "cat/0.png,cat,cat")
    assert "nothing is changed yet" in apply_corrections(photos, file).sentences()[1]
    found = apply_corrections(photos, file, write=True)
    assert found.sentences() == [
        "0 images changed, 1 confirmed",
        f"what was decided is not doubted again: {tmp_path / 'photos.confirmed.json'}",
    ]


def test_the_corrected_copy_of_a_table_has_all_decisions(photos: Path, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("path,label\n" + "".join(f"photos/cat/{n}.png,{'cat' if n else 'dog'}\n" for n in range(3)))
    file = fixes(tmp_path, "photos/cat/0.png,dog,cat", "photos/cat/1.png,cat,cat")
    apply_corrections(table, file, write=True)
    assert read_confirmed(table) == {"photos/cat/1.png": "cat"}
    corrected = tmp_path / "labels.corrected.csv"
    assert read_confirmed(corrected) == {"photos/cat/0.png": "cat", "photos/cat/1.png": "cat"}


def test_confirmed_images_are_counted_and_not_listed(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(*_: object, **__: object) -> LabelFindings:
        errors = [LabelError(str(photos / "cat" / f"{n}.png"), "cat", "dog", 0.9, (), n) for n in range(3)]
        outlier = GlobalOutlier(str(photos / "dog" / "0.png"), "dog", 3.0, (), 3)
        return LabelFindings(checked=6, error=0.5, interval=(0.4, 0.6), errors=tuple(errors), outliers=(outlier,))

    monkeypatch.setattr(dataset_check, "check_labels", found)
    change_confirmed(photos, [("cat/0.png", "cat"), ("cat/1.png", "dog"), ("dog/0.png", "dog"), ("gone.png", "cat")])
    labels = svertka.check(photos, labels=True).labels
    assert labels is not None
    assert [one.index for one in labels.errors] == [1, 2]  # 1 was decided to be a dog, and is a cat now
    assert labels.outliers == ()
    assert labels.confirmed == labels.to_dict()["confirmed"] == 2
    assert "not listed, because their labels were confirmed: 2 images" in labels.sentences()


@pytest.mark.parametrize("content", ["nothing", "[]", '{"cat/0.png": 1}', '{"cat/0.png"'])
def test_a_damaged_file_is_refused_in_a_sentence(photos: Path, content: str) -> None:
    photos.with_name("photos.confirmed.json").write_text(content)
    with pytest.raises(DataError, match=r"photos\.confirmed\.json .*; fix or remove it"):
        read_confirmed(photos)


def test_a_folder_with_a_table_can_still_be_opened(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for place in range(4):
        Image.new("RGB", (8, 8), (40 * place, 0, 0)).save(tmp_path / "photos" / f"{place}.png")
    table = fixes(tmp_path / "photos", "0.png,cat,", "1.png,cat,", "2.png,dog,", "3.png,dog,", name="labels.csv")
    table.write_text(table.read_text().replace(",corrected", "").replace(",\n", "\n"))
    assert len(open_folder(tmp_path / "photos")) == 4
    apply_corrections(table, fixes(tmp_path, "0.png,cat,cat"), write=True)
    assert read_confirmed(table) == {"0.png": "cat"}
    assert len(open_folder(tmp_path / "photos")) == 4
