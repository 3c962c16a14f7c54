import os
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from svertka.data.folder_and_table_sources import list_folder, natural_sort_key, open_folder
from svertka.errors import DataError, ImageError, UsageError


def make(root: Path, *paths: str) -> Path:
    """Files at `paths` under `root`, and a folder for each that ends in a slash; images are not opened here."""
    for path in paths:
        place = root / path
        if path.endswith("/"):
            place.mkdir(parents=True, exist_ok=True)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(path.encode())
    return root


def facts(root: Path) -> list[tuple[str, str, str]]:
    """(path, class, part) of each image in order."""
    dataset = open_folder(root)
    paths = [str(Path(dataset.images.name(index)).relative_to(root)) for index in range(len(dataset))]
    labels = [dataset.names[label] for label in dataset.labels]
    return list(zip(paths, labels, dataset.parts.tolist(), strict=True))


def test_class_folders(tmp_path: Path) -> None:
    make(tmp_path, "dog/b.jpg", "dog/a.PNG", "cat/deep/er/c.webp", "cat/a.jpeg", "cat/notes.txt")
    assert facts(tmp_path) == [
        ("cat/a.jpeg", "cat", ""),
        ("cat/deep/er/c.webp", "cat", ""),
        ("dog/a.PNG", "dog", ""),
        ("dog/b.jpg", "dog", ""),
    ]
    dataset = open_folder(tmp_path)
    assert dataset.source == str(tmp_path)
    assert dataset.labels.dtype == np.int64
    assert dataset.images.digest(0) != dataset.images.digest(1)


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_part_folders(tmp_path: Path, val: str) -> None:
    make(tmp_path, *(f"{part}/{name}/1.jpg" for part in ("train", val, "test") for name in ("cat", "dog")))
    assert facts(tmp_path) == [
        ("train/cat/1.jpg", "cat", "train"),
        (f"{val}/cat/1.jpg", "cat", "val"),
        ("test/cat/1.jpg", "cat", "test"),
        ("train/dog/1.jpg", "dog", "train"),
        (f"{val}/dog/1.jpg", "dog", "val"),
        ("test/dog/1.jpg", "dog", "test"),
    ]


def test_a_train_folder_alone_is_a_part(tmp_path: Path) -> None:
    make(tmp_path, "train/cat/1.jpg", "train/dog/1.jpg")
    assert [part for _, _, part in facts(tmp_path)] == ["train", "train"]


def test_a_train_among_vehicles_is_a_class(tmp_path: Path) -> None:
    make(tmp_path, "train/1.jpg", "bus/1.jpg", "car/1.jpg")
    assert open_folder(tmp_path).names == ("bus", "car", "train")


def test_a_csv_gives_the_same_as_folders(tmp_path: Path) -> None:
    make(tmp_path, "train/cat/1.jpg", "train/dog/1.jpg", "valid/cat/1.jpg", "valid/dog/1.jpg", "train/cat/é, b.jpg")
    rows = ["Path, Label ,part", "train/dog/1.jpg,dog,train", "valid/dog/1.jpg,dog,Valid", "train/cat/1.jpg,cat,train"]
    rows += ["", "valid/cat/1.jpg,cat,validation", '"train/cat/é, b.jpg",cat,train']
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / "all.csv").write_text("\r\n".join(rows), encoding=encoding)
        dataset = open_folder(tmp_path / "all.csv")
        paths = [str(Path(dataset.images.name(index)).relative_to(tmp_path)) for index in range(len(dataset))]
        parts = dataset.parts.tolist()
        assert list(zip(paths, [dataset.names[label] for label in dataset.labels], parts, strict=True)) == facts(
            tmp_path
        )
        assert dataset.images.digest(0) == open_folder(tmp_path).images.digest(0)


def test_a_csv_without_parts(tmp_path: Path) -> None:
    (tmp_path / "all.csv").write_text("path,label,remark\na.jpg,cat,nice\nb.jpg,dog,\n")
    dataset = open_folder(tmp_path / "all.csv")
    assert dataset.parts.tolist() == ["", ""]
    with pytest.raises(ImageError, match="no such file"):  # named as bad when it is read, not here
        dataset.images.read(0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no column path"),
        ("path,class\na.jpg,cat\n", "has no column label"),
        ("path,label\na.jpg,cat\nb.jpg\n", "line 3 of .* has 1 column, and the first line 2; fill in label"),
        ("path,label\na.jpg,cat\nb.jpg,\n", "line 3 of .* has no label"),
        ("path,label\n,cat\n", "line 2 of .* has no path"),
        ("path,label,part\na.jpg,cat,holdout\n", "part=holdout; use train, val, test"),
        ('path,label\n"a.jpg,cat\n', "line 2 of .* is not CSV: a double quote is not closed"),
        ("path,label\n", "has only a first line"),
        ("path,label\na.jpg,cat\n", "only one class, cat"),
        (b"path,label\n\xff.jpg,cat\n", "cannot be read as CSV in UTF-8"),
        ("path,label,part\na.jpg,cat,train\nb.jpg,dog,\nc.jpg,hog,val\n", "hog is only in val"),
    ],
)
def test_invalid_csv_files_are_refused(tmp_path: Path, text: str | bytes, message: str) -> None:
    (tmp_path / "all.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=message) as caught:
        open_folder(tmp_path / "all.csv")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([], r"holds no image \(\.jpg"),
        (["a.jpg", "b.jpg"], "holds no image .* in a class folder"),
        (["cat/a.txt"], "holds no image"),
        (["cat/a.jpg"], "only one class, cat"),
        (["train/cat/a.jpg", "test/cat/a.jpg"], "only one class, cat"),
        (["pets/cat/a.jpg", "pets/dog/a.jpg", "banner.png"], r"in it \(cat, dog\) are .* give .*/pets as SOURCE"),
        (["cat/a.jpg", "bird/"], "bird holds no image; add some or remove the folder"),
        (["cat/a.jpg", "dog/a.jpg", "bird/a.psd"], "bird holds no image that can be used .left out: 1 .psd, unsupp"),
        (["train/cat/a.jpg", "train/dog/a.jpg", "val/cat/a.jpg", "val/hog/a.jpg"], "in train, but hog is only in val;"),
        (["train/cat/a.jpg", "train/dog/a.jpg", "test/hog/a.jpg"], "in train, but hog is only in test;"),
        (["test/cat/a.jpg", "test/dog/a.jpg"], "nothing to train on"),
    ],
)
def test_each_problem_is_one_sentence(tmp_path: Path, paths: list[str], message: str) -> None:
    make(tmp_path, *paths)
    with pytest.raises(DataError, match=message) as caught:
        open_folder(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("inside", ["", "a.txt", ".hidden.jpg", "deeper/"])
def test_an_empty_class_folder_is_a_warning(tmp_path: Path, inside: str) -> None:
    make(tmp_path, "cat/a.jpg", "dog/a.jpg", f"bird/{inside}")
    dataset = open_folder(tmp_path)
    assert dataset.names == ("cat", "dog")
    (warning,) = dataset.account.warnings
    assert warning.startswith(f"{tmp_path / 'bird'} holds no image")
    assert warning.endswith(", so that the class is not learned")


def test_an_empty_class_folder_in_one_part_is_reported_once(tmp_path: Path) -> None:
    make(tmp_path, *(f"train/{name}/a.jpg" for name in ("cat", "dog")), "val/cat/a.jpg", "val/dog/")
    (warning,) = open_folder(tmp_path).account.warnings
    assert warning.startswith(f"val of {tmp_path} has no image of dog")


def test_a_class_without_test_images_is_a_warning(tmp_path: Path) -> None:
    make(tmp_path, *(f"{part}/{name}/a.jpg" for part in ("train", "val") for name in ("cat", "dog")), "test/cat/a.jpg")
    dataset = open_folder(tmp_path)
    assert len(dataset) == 5
    assert dataset.account.warnings == (
        f"test of {tmp_path} has no image of dog, so it does not measure the error on it",
    )


def test_paths_that_are_not_folders_are_refused(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg")
    with pytest.raises(UsageError, match=r"there is no folder .*/nowhere"):
        open_folder(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"a\.jpg is a file; give a folder"):
        open_folder(tmp_path / "a.jpg")


def test_ignored_files_are_listed(tmp_path: Path) -> None:
    make(tmp_path, "cat/a.jpg", "cat/.b.jpg", "cat/Thumbs.db", "cat/empty/", "dog/a.jpg", "dog/a.svg", "loose.jpg")
    make(tmp_path, ".git/a.jpg", "__MACOSX/cat/a.jpg", "bird/")
    listing = list_folder(tmp_path)
    assert [entry.path for entry in listing.entries] == ["cat/a.jpg", "dog/a.jpg"]
    assert listing.hidden == (".git", "__MACOSX", "cat/.b.jpg", "cat/Thumbs.db")
    assert listing.ignored == ("cat/empty",)
    assert listing.empty_classes == ("bird",)
    assert listing.others == ("dog/a.svg", "loose.jpg")


def test_folders_in_no_part_are_named(tmp_path: Path) -> None:
    make(tmp_path, "train/cat/a.jpg", "train/dog/a.jpg", "val/", "test/b.jpg", "extra/c.jpg")
    listing = list_folder(tmp_path)
    assert listing.ignored == ("extra", "test", "val")
    assert listing.others == ("test/b.jpg",)
    assert len(open_folder(tmp_path)) == 2


def test_links_are_followed_once(tmp_path: Path) -> None:
    root = make(tmp_path / "photos", "cat/a.jpg", "dog/a.jpg")
    make(tmp_path / "elsewhere", "b.jpg")
    (root / "cat" / "more").symlink_to(tmp_path / "elsewhere")
    (root / "cat" / "loop").symlink_to(root / "cat")
    (root / "cat" / "up").symlink_to(root)
    (root / "dog" / "self").symlink_to("self")
    (root / "dog" / "gone.jpg").symlink_to("nowhere.jpg")
    assert [path for path, _, _ in facts(root)] == ["cat/a.jpg", "cat/more/b.jpg", "dog/a.jpg", "dog/gone.jpg"]
    with pytest.raises(ImageError, match="no such file"):
        open_folder(root).images.read(3)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    make(tmp_path, "cat/a.jpg", "dog/a.jpg")
    os.mkfifo(tmp_path / "cat" / "b.jpg")
    assert list_folder(tmp_path).others == ("cat/b.jpg",)


def test_names_sort_as_people_sort(tmp_path: Path) -> None:
    names = ["10", "9", "b", "B", "a10", "a2", "a", "Ж", "日本"]
    assert sorted(names, key=natural_sort_key) == ["9", "10", "a", "a2", "a10", "B", "b", "Ж", "日本"]
    make(tmp_path, *(f"{name}/1.jpg" for name in names))
    assert list(open_folder(tmp_path).names) == sorted(names, key=natural_sort_key)


def test_the_order_of_creation_does_not_matter(tmp_path: Path) -> None:
    paths = [f"class {number}/{image}.jpg" for number in range(12) for image in range(5)]
    first = facts(make(tmp_path / "one", *paths))
    assert facts(make(tmp_path / "two", *reversed(paths))) == first
    assert first[-1][0] == "class 11/4.jpg"


def test_a_class_made_on_two_systems_is_one(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    make(tmp_path, f"train/{composed}/a.jpg", "train/bar/a.jpg", f"val/{decomposed}/a.jpg", "val/bar/a.jpg")
    assert open_folder(tmp_path).names == ("bar", composed)


def test_names_that_are_no_text(tmp_path: Path) -> None:
    make(tmp_path, "cat/a.jpg")
    make(tmp_path, os.fsdecode(b"\xff\xfe/"))
    (tmp_path / os.fsdecode(b"\xff\xfe") / os.fsdecode(b"\xfd.jpg")).write_bytes(b"x")
    dataset = open_folder(tmp_path)
    assert dataset.names == ("\\udcff\\udcfe", "cat")
    assert dataset.images.digest(0) != dataset.images.digest(1)


def test_deep_folders(tmp_path: Path) -> None:
    place = tmp_path / "cat"
    for _ in range(300):
        place /= "d"
    place.mkdir(parents=True)
    (place / "a.jpg").write_bytes(b"x")
    make(tmp_path, "dog/a.jpg")
    assert len(open_folder(tmp_path)) == 2


@pytest.mark.parametrize("folders", [("train", "test"), ("Training", "Validation"), ("train",), ("images/train",)])
def test_parts_without_class_folders_are_no_classes(tmp_path: Path, folders: tuple[str, ...]) -> None:
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
        for name in ("cat.0.png", "dog.0.png"):
            Image.effect_noise((9, 9), 90).save(tmp_path / folder / name)
    with pytest.raises(
        DataError, match=r"outside class folders; (put those of each class|their names contain cat, dog)"
    ):
        open_folder(tmp_path)


@pytest.mark.parametrize(
    ("paths", "said"),
    [
        (["data/train-0.parquet", "readme.md"], "there are 1 .parquet: save the images in them as files first"),
        (["1.jpg", "labels.xlsx"], "there are 1 .xlsx: if they list the classes of the images, save them as CSV"),
        (["train.zip", "test.tar.gz"], "there are 1 .gz, 1 .zip: unpack them first"),
        (["a/1.npy", "a/2.npy", "b/1.npy"], "there are 3 .npy: save the images"),
    ],
)
def test_files_with_images_inside_are_named(tmp_path: Path, paths: list[str], said: str) -> None:
    make(tmp_path, *paths)
    for path in paths:
        if path.endswith(".npy"):  # images one behind another; with an axis less, each file would be an image
            np.save(tmp_path / path, np.zeros((2, 8, 8, 3), np.uint8))
    with pytest.raises(DataError, match=re.escape(said)):
        open_folder(tmp_path)


def test_loose_images_of_two_parts_are_no_classes(tmp_path: Path) -> None:
    """As Kaggle's dogs-vs-cats has them."""
    make(tmp_path, "train/cat.0.jpg", "train/cat.1.jpg", "train/dog.0.jpg", "train/dog.1.jpg", "test1/1.jpg")
    with pytest.raises(DataError, match=r"outside class folders; their names contain cat, dog"):
        open_folder(tmp_path)
