import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from svertka.data.file_accounting import NO_PART
from svertka.data.folder_and_table_sources import FolderListing, list_folder, open_folder
from svertka.data.folder_layout import normalize_class_name, normalize_unicode_name
from svertka.errors import DataError


def make(root: Path, *paths: str) -> Path:
    """Files at `paths` under `root`; images are not opened here."""
    for path in paths:
        place = root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(path.encode())
    return root


def each(*folders: str, images: int = 2) -> list[str]:
    return [f"{folder}/{number}.jpg" for folder in folders for number in range(images)]


def counted(listing: FolderListing) -> dict[str, dict[str, int]]:
    """Part -> class -> images."""
    found: dict[str, dict[str, int]] = {}
    for entry in listing.entries:
        part = found.setdefault(entry.part, {})
        part[entry.label] = part.get(entry.label, 0) + 1
    return found


BOTH = {"a": 2, "b": 2}
LAYOUTS: Mapping[str, tuple[list[str], dict[str, dict[str, int]]]] = {
    "Kaggle's names": (each("Training/a", "Training/b", "Testing/a", "Testing/b"), {"train": BOTH, "test": BOTH}),
    "doubled": (
        each(
            "seg_train/seg_train/a", "seg_train/seg_train/b", "seg_test/seg_test/a", "seg_test/seg_test/b", "seg_pred"
        ),
        {"train": BOTH, "test": BOTH},
    ),
    "upper case": (each("TRAIN/a", "TRAIN/b", "DEV/a", "DEV/b"), {"train": BOTH, "val": BOTH}),
    "valid": (each("train/a", "train/b", "valid/a", "valid/b"), {"train": BOTH, "val": BOTH}),
    "eval": (each("train/a", "train/b", "eval/a", "eval/b"), {"train": BOTH, "val": BOTH}),
    "evaluation beside validation": (
        each("training/a", "training/b", "validation/a", "validation/b", "evaluation/a", "evaluation/b"),
        {"train": BOTH, "val": BOTH, "test": BOTH},
    ),
    "words around": (each("train_images/a", "train_images/b", "test_images/a"), {"train": BOTH, "test": {"a": 2}}),
    "images inside parts": (
        each("train/images/a", "train/images/b", "val/images/a", "val/images/b"),
        {"train": BOTH, "val": BOTH},
    ),
    "wrapper": (["readme.txt", *each("PetImages/a", "PetImages/b")], {"": BOTH}),
    "wrappers": (each("archive/data/a", "archive/data/b"), {"": BOTH}),
    "wrapper around parts": (each("x/train/a", "x/train/b", "x/test/a", "x/test/b"), {"train": BOTH, "test": BOTH}),
    "boxes beside": ([*each("images/a", "images/b"), "annotations/1.xml"], {"": BOTH}),
    "boxes beside classes": ([*each("a", "b"), "annotations/1.xml"], {"": BOTH}),
    "folders in classes": (each("a/images", "b/images"), {"": BOTH}),
    "parts in classes": (each("a/train", "a/test", "b/train", "b/test"), {"train": BOTH, "test": BOTH}),
    "unlabeled test": ([*each("train/a", "train/b"), *each("test")], {"train": BOTH}),
    "loose images": ([*each("a", "b"), "loose.jpg"], {"": BOTH}),
    "parts and something else": (
        [*each("train/a", "train/b", "val/a", "val/b"), *each("extra/a")],
        {"train": BOTH, "val": BOTH},
    ),
    "words that mean parts among classes": (each("train", "bus"), {"": {"train": 2, "bus": 2}}),
    "numbered": (each("train2017/a", "train2017/b", "val2017/a"), {"train": BOTH, "val": {"a": 2}}),
    "test1 without classes": ([*each("train/a", "train/b"), *each("test1")], {"train": BOTH}),
    "test of unknown classes": ([*each("train/a", "train/b"), *each("test/unknown")], {"train": BOTH}),
    "unknown is a class": (each("train/a", "train/unknown"), {"train": {"a": 2, "unknown": 2}}),
    "valid and invalid": (each("valid", "invalid"), {"": {"valid": 2, "invalid": 2}}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_that_people_have(tmp_path: Path, layout: str) -> None:
    paths, wanted = LAYOUTS[layout]
    listing = list_folder(make(tmp_path, *paths))
    assert counted(listing) == wanted
    assert listing.problems() == []
    images = {path for path in paths if path.endswith(".jpg")}
    assert {entry.path for entry in listing.entries} | {one.path for one in listing.account.left_out} == images


def test_the_detected_layout_is_noted(tmp_path: Path) -> None:
    make(tmp_path, *each("x/Training/a", "x/Training/b", "x/Testing/Testing/a", "x/Testing/Testing/b", "x/pred"))
    said = list_folder(tmp_path).account.sentences()
    assert said == [
        f"the images are in {tmp_path}/x",
        f"parts of {tmp_path}/x: Testing is test, Training is train",
        f"the classes of {tmp_path}/x/Testing are in {tmp_path}/x/Testing/Testing",
        "left out: 2 .jpg, not in a part (train, val, test) (x/pred/0.jpg, x/pred/1.jpg)",
    ]


JUNK = (".git", "__MACOSX", "$RECYCLE.BIN", "System Volume Information", "lost+found", ".ipynb_checkpoints", "@eaDir")


@pytest.mark.parametrize("where", ["", "train/", "train/a/"])
@pytest.mark.parametrize("junk", JUNK)
def test_system_folders_are_never_classes(tmp_path: Path, where: str, junk: str) -> None:
    make(tmp_path, *each("train/a", "train/b", "val/a", "val/b"), f"{where}{junk}/a/0.jpg", f"{where}{junk}/x")
    listing = list_folder(tmp_path)
    assert counted(listing) == {"train": BOTH, "val": BOTH}
    assert listing.hidden == (f"{where}{junk}",)
    assert [(one.path, one.reason) for one in listing.account.left_out] == [
        (f"{where}{junk}/a/0.jpg", "hidden or a system file")
    ]
    assert dict(listing.account.not_images) == {"no suffix": 1}


@pytest.mark.parametrize("name", JUNK)
def test_empty_folders_of_the_system_do_not_refuse_the_source(tmp_path: Path, name: str) -> None:
    make(tmp_path, *each("a", "b"))
    (tmp_path / name).mkdir()
    assert len(open_folder(tmp_path)) == 4


def test_folders_that_all_classes_hold_are_questioned(tmp_path: Path) -> None:
    make(tmp_path, *each("2019/cat", "2019/dog", "2020/cat", "2020/dog"))
    (warning,) = list_folder(tmp_path).account.warnings
    assert "2019, 2020 have the same subfolders, cat, dog; if those are the classes" in warning
    assert list_folder(make(tmp_path / "x", *each("cat/in", "dog/in"))).account.warnings == ()


def test_names_that_are_one_number_are_a_warning(tmp_path: Path) -> None:
    make(tmp_path, *each("007", "7", "7.0", "8", "1e1", "10"))
    (warning,) = list_folder(tmp_path).account.warnings
    assert warning.startswith("the classes 007 and 7 and 7.0 are one number, written differently: if they are one")


def test_a_note_names_the_subfolders_that_are_one_class(tmp_path: Path) -> None:
    for root in (tmp_path / "x", tmp_path / "y" / "train"):
        make(root, *each("pets/cat", "pets/dog", "wild/raccoon"))
        notes = list_folder(tmp_path / root.relative_to(tmp_path).parts[0]).account.notes
        assert notes == ("the subfolders of a class folder are one class: pets (cat, dog)",)
    assert list_folder(make(tmp_path / "z", *each("cat/in", "dog/in", "dog"))).account.notes == ()


def test_a_class_folder_that_holds_the_others_is_questioned(tmp_path: Path) -> None:
    make(tmp_path, *each("yes", "no", "brain/yes", "brain/no"))
    (warning,) = list_folder(tmp_path).account.warnings
    assert f"{tmp_path}/brain has subfolders named like the classes beside it, no, yes" in warning


def test_names_that_differ_by_case_between_parts_are_one_class(tmp_path: Path) -> None:
    listing = list_folder(make(tmp_path, *each("train/Cat", "train/dog", "val/cat", "val/DOG")))
    assert listing.names() == ("Cat", "dog")
    assert len(listing.account.notes) == 2
    assert listing.problems() == []


def test_names_that_differ_by_case_in_one_part_are_two_classes_and_a_warning(tmp_path: Path) -> None:
    listing = list_folder(make(tmp_path, *each("Cat", "cat", "dog")))
    assert listing.names() == ("Cat", "cat", "dog")
    assert "Cat and cat differ only in case" in listing.account.warnings[0]


def test_normalized_class_names() -> None:
    assert (
        normalize_class_name("Golden Retriever")
        == normalize_class_name("golden_retriever ")
        == normalize_class_name("golden-retriever")
    )
    assert normalize_class_name("C++") != normalize_class_name("C")
    assert normalize_unicode_name(os.fsdecode(b"caf\xe9")) == "caf\\udce9"


def test_a_class_of_unsupported_formats_is_explained(tmp_path: Path) -> None:
    make(tmp_path, *each("a", "b"), "c/0.psd", "c/1.psd")
    with pytest.raises(DataError, match=r"c holds no image that can be used \(left out: 2 \.psd, unsupported format"):
        open_folder(tmp_path)


def refuse_listing(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let folders called `name` not be listed."""
    scandir = os.scandir

    def refusing(path: object) -> object:
        if str(path).endswith(name):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "scandir", refusing)


def test_a_folder_that_cannot_be_listed_is_left_out_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, *each("a", "b", "secret"))
    refuse_listing(monkeypatch, "secret")
    listing = list_folder(tmp_path)
    assert counted(listing) == {"": BOTH}
    assert [(one.path, one.reason) for one in listing.account.left_out] == [
        ("secret/", "cannot be listed: permission denied")
    ]
    assert listing.problems() == []
    assert listing.warnings() == [
        f"{tmp_path / 'secret'} holds no image that can be used (left out: 1 folder, cannot be listed: permission "
        "denied (secret/)), so that the class is not learned"
    ]


def test_a_part_that_cannot_be_listed_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, *each("train/a", "train/b", "test/a", "test/b"))
    refuse_listing(monkeypatch, "test")
    listing = list_folder(tmp_path)
    assert listing.problems() == []
    assert listing.warnings() == [f"{tmp_path / 'test'} cannot be listed, so that its test part is not used"]


def test_tiny_imagenet(tmp_path: Path) -> None:
    ids = ("n01443537", "n01629819", "n99999999")
    make(tmp_path, *(f"train/{one}/images/{one}_{k}.JPEG" for one in ids for k in range(2)))
    make(tmp_path, *(f"train/{one}/{one}_boxes.txt" for one in ids), "test/images/test_0.JPEG", "val/images/val_3.JPEG")
    make(tmp_path, *(f"val/images/val_{k}.JPEG" for k in range(3)))
    rows = "".join(f"val_{k}.JPEG\t{one}\t0\t32\t44\t62\n" for k, one in enumerate(ids))
    (tmp_path / "val" / "val_annotations.txt").write_text(rows)
    (tmp_path / "wnids.txt").write_text("\n".join(ids))
    (tmp_path / "words.txt").write_text("n01443537\tgoldfish, Carassius auratus\nn99999999\tthing, entity\n")
    listing = list_folder(tmp_path)
    classes = dict.fromkeys(("goldfish", "European fire salamander", "thing"), 2)
    assert counted(listing) == {"train": classes, "val": dict.fromkeys(classes, 1)}
    assert {(one.path, one.reason) for one in listing.account.left_out} == {
        ("test/images/test_0.JPEG", "not in a class folder"),
        ("val/images/val_3.JPEG", "no label in the table"),
    }
    assert listing.problems() == []


MASKS = {
    "beside": [*each("a", "b"), "a/0_mask.png", "b/1-segmentation.png", "b/1_mask_2.png"],
    "in a folder of each class": [*each("a", "b"), "a/masks/0.png", "b/masks/0.png", "b/masks/1.png"],
    "beside images": [*each("a/images", "b/images"), "a/masks/0.png", "b/Masks/0.png", "b/Masks/1.png"],
    "all together": [*each("images"), "masks/0.png", "masks/1.png", "masks/2.png"],
}


@pytest.mark.parametrize("masks", MASKS)
def test_segmentation_masks_are_a_warning(masks: str, tmp_path: Path) -> None:
    listing = list_folder(make(tmp_path, *MASKS[masks]))
    (said,) = [one for one in listing.warnings() if "masks" in one and "look like" in one]
    assert said.startswith(f"3 of {len(MASKS[masks])} images look like segmentation masks")


@pytest.mark.parametrize(
    "paths",
    [each("mask", "no_mask"), each("with_mask", "without_mask"), [*each("a", "b"), "a/batman_mask.jpg", "b/label.jpg"]],
)
def test_masks_that_people_wear_are_a_class(paths: list[str], tmp_path: Path) -> None:
    assert list_folder(make(tmp_path, *paths)).warnings() == []


def test_an_anomaly_data_set_is_questioned(tmp_path: Path) -> None:
    """MVTec's: products of which train/ holds good ones only, and masks of their faults."""
    for product in ("bottle", "cable"):
        folders = [f"{product}/{inside}" for inside in ("train/good", "test/good", "test/bent", "ground_truth/bent")]
        make(tmp_path, *each(*folders))
    listing = list_folder(tmp_path)
    assert counted(listing) == {"train": {"bottle": 2, "cable": 2}, "test": {"bottle": 4, "cable": 4}}
    (said,) = listing.warnings()
    assert "have subfolders, bent, good" in said
    assert "give one of the folders bottle, cable as SOURCE" in said
    assert {(one.path.split("/")[1], one.reason) for one in listing.account.left_out} == {("ground_truth", NO_PART)}
    assert "must be in train, but bent is only in test" in list_folder(tmp_path / "cable").problems()[0]
