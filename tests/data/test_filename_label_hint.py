from pathlib import Path

import pytest

from svertka.cli.app import main
from svertka.data.filename_label_hint import suggest_labeling

NAMES = {
    "Kaggle's dogs and cats": (["cat.0.jpg", "cat.1.jpg", "dog.0.jpg", "dog.12.jpg"], "cat, dog", "cat.0.jpg,cat"),
    "ImageNet": (
        ["n01440764_10026.JPEG", "n01440764_3.JPEG", "n01443537_7.JPEG", "n01443537_16.JPEG"],
        "n01440764, n01443537",
        "n01440764_10026.JPEG,n01440764",
    ),
    "Oxford's pets": (
        ["Abyssinian_1.jpg", "Abyssinian_100.jpg", "american_bulldog_10.jpg", "american_bulldog_2.jpg"],
        "Abyssinian, american_bulldog",
        "Abyssinian_1.jpg,Abyssinian",
    ),
    "numbers first": (["001_cat.png", "002_cat.png", "003-dog.png", "004 dog.png"], "cat, dog", "001_cat.png,cat"),
    "in brackets": (["x/cat (1).jpg", "x/cat (2).jpg", "x/owl (1).jpg", "x/owl (2).jpg"], "cat, owl", "x/cat (1).jpg"),
}


@pytest.mark.parametrize("names", NAMES)
def test_names_that_say_classes_show_how_to_label_by_them(names: str) -> None:
    paths, classes, row = NAMES[names]
    said = suggest_labeling(paths)
    assert said is not None
    assert f"their names contain {classes}: " in said
    assert f"such as {row}" in said


@pytest.mark.parametrize(
    "paths",
    [
        [],
        ["cat.0.jpg"],
        [f"IMG_{number}.jpg" for number in range(20)],
        [f"{number}.jpg" for number in range(20)],
        [f"{letter * 3}_{number}.jpg" for number, letter in enumerate("abcdefgh")],
    ],
)
def test_names_that_say_no_classes_suggest_none(paths: list[str]) -> None:
    assert suggest_labeling(paths) is None


@pytest.mark.parametrize("folder", ["", "train/", "photos/", "a/b/"])
def test_the_refusal_of_a_flat_folder_shows_the_way_out(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("cat.0.jpg", "cat.1.jpg", "dog.0.jpg", "dog.1.jpg"):
        path = tmp_path / f"{folder}{name}"
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(b"x")
    assert main(["train", str(tmp_path)]) == 1
    assert f"path,label with a line for each image, such as {folder}cat.0.jpg,cat, and" in capsys.readouterr().err
