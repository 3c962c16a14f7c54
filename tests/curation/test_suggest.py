"""Suggestions of images to label: what is left out, what is copied, and how it is printed."""

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import svertka
from svertka.classifier import Classifier
from svertka.cli.app import main
from svertka.data.dataset import FileImages
from svertka.data.split_manifest import Manifest
from svertka.errors import DataError, UsageError

NAMES = ("one", "two", "three")


@pytest.fixture
def run(made: Callable[..., Classifier], tmp_path: Path) -> Path:
    """A run with random weights that does not know any image."""
    made("lenet5", 28, 28, channels=1, names=NAMES).save(tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def images(digit_folder: Path, tmp_path: Path) -> Path:
    """Ten different images, in two folders, and a copy of the first."""
    folder = tmp_path / "new"
    for name in ("one", "two"):
        (folder / name).mkdir(parents=True)
        for number in range(5):
            shutil.copy(digit_folder / name / f"{number:02}.png", folder / name)
    shutil.copy(folder / "one" / "00.png", folder / "copy.png")
    return folder


def know(run: Path, images: Path, paths: list[str], part: str) -> None:
    """Write into a run that the images at `paths` were in `part`."""
    digests = [FileImages(images, paths).digest(place) for place in range(len(paths))]
    parts = {name: frozenset(digests if name == part else ()) for name in ("train", "val", "test")}
    Manifest(parts).write(run / "manifest.safetensors")


def test_what_the_run_knows_copies_and_unreadable_images_are_left_out_and_counted(run: Path, images: Path) -> None:
    (images / "broken.png").write_bytes(b"nothing")
    know(run, images, ["one/01.png", "two/02.png"], "train")
    found = svertka.suggest(run, images, count=50, threads=1)
    assert (found.compared, found.known, found.copies, len(found.bad)) == (8, 2, 1, 1)
    names = {str(Path(one.path).relative_to(images)) for one in found.suggestions}
    assert len(names) == len(found.suggestions) == 8
    assert not names & {"one/01.png", "two/02.png", "broken.png"}
    assert found.sentences()[:3] == [
        "8 of 8 images suggested",
        f"left out: 2 images that {run} knows already",
        "left out: 1 image that is a copy of another one",
    ]


@pytest.mark.parametrize("part", ["val", "test"])
def test_images_that_judged_the_run_are_known_too(run: Path, images: Path, part: str) -> None:
    know(run, images, ["one/01.png"], part)
    assert svertka.suggest(run, images, threads=1).known == 1


def test_the_classes_and_scores_are_those_of_the_run(run: Path, images: Path) -> None:
    found = svertka.suggest(run, images, count=3, threads=1)
    assert len(found.suggestions) == 3
    assert [one.score for one in found.suggestions] == sorted((one.score for one in found.suggestions), reverse=True)
    for one in found.suggestions:
        predicted = svertka.predict(run, one.path, top=2, threads=1)[0]["labels"]
        assert [name for name, _ in one.classes] == [label["name"] for label in predicted]
        first, second = (label["probability"] for label in predicted)
        assert [share for _, share in one.classes] == pytest.approx([first, second], abs=1e-5)
        assert one.score == pytest.approx(1 - (first - second), abs=1e-5)
    first, second, _ = found.suggestions
    assert first.similarity is None
    assert first.reason == ", ".join(f"{name} {100 * share:.0f} %" for name, share in first.classes)
    assert second.reason.endswith(f"; at most {second.similarity:.2f} similar to the suggestions before it")
    assert all(-1 <= one.similarity <= 1.001 for one in found.suggestions[1:] if one.similarity is not None)


def test_copies_are_made_once_and_nothing_is_overwritten(run: Path, images: Path, tmp_path: Path) -> None:
    review = tmp_path / "review"
    before = {path: path.read_bytes() for path in images.rglob("*.png")}
    first = svertka.suggest(run, images, count=4, sort_into=review, threads=1)
    made = {Path(str(one.copy)): Path(one.path).read_bytes() for one in first.suggestions}
    assert {path.relative_to(review).parts[0] for path in made} <= set(NAMES)
    assert all(path.read_bytes() == content for path, content in made.items())
    again = svertka.suggest(run, images, count=4, sort_into=review, threads=1)
    assert sorted(path for path in review.rglob("*") if path.is_file()) == sorted(made)
    assert [one.copy for one in again.suggestions] == [one.copy for one in first.suggestions]
    taken = next(iter(made))
    taken.write_bytes(b"of somebody else")
    third = svertka.suggest(run, images, count=4, sort_into=review, threads=1)
    assert taken.read_bytes() == b"of somebody else"
    assert taken.with_name(f"{taken.stem}-1.png") in {Path(str(one.copy)) for one in third.suggestions}
    assert {path: path.read_bytes() for path in images.rglob("*.png")} == before


def test_what_cannot_be_done_is_refused(
    run: Path, images: Path, tmp_path: Path, made: Callable[..., Classifier]
) -> None:
    (tmp_path / "empty").mkdir()
    for bad, sentence in (
        ({"count": 0}, "count=0 must be at least 1"),
        ({"sort_into": images / "review"}, "is within"),
        ({"sort_into": images / "copy.png"}, "is a file; name a folder"),
        ({"unlabeled": tmp_path / "nowhere"}, "there is no folder"),
        ({"unlabeled": images / "copy.png"}, "is a file; give a folder of images"),
    ):
        given = {"unlabeled": images} | bad
        with pytest.raises(UsageError, match=sentence):
            svertka.suggest(run, threads=1, **given)
    with pytest.raises(DataError, match="holds no image"):
        svertka.suggest(run, tmp_path / "empty", threads=1)
    know(run, images, [str(path.relative_to(images)) for path in images.rglob("*.png")], "train")
    with pytest.raises(DataError, match="has nothing to suggest: 11 images known"):
        svertka.suggest(run, images, threads=1)
    made("lenet5", 28, 28, channels=1, names=("a/b", "..")).save(tmp_path / "odd")
    with pytest.raises(UsageError, match="the class a/b cannot be the name of a folder"):
        svertka.suggest(tmp_path / "odd", images, sort_into=tmp_path / "review", threads=1)
    assert not (tmp_path / "review").exists()


def test_the_command_prints_json_csv_and_a_table(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["suggest", str(run), str(images), "--count", "2", "--threads", "1"]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [set(one) for one in found["suggestions"]] == [
        {"path", "score", "classes", "similarity", "reason", "copy"}
    ] * 2
    assert main([*arguments, "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["path"] for row in rows] == [one["path"] for one in found["suggestions"]]
    assert [row["class"] for row in rows] == [one["classes"][0]["name"] for one in found["suggestions"]]
    assert main([*arguments, "--sort-into", str(tmp_path / "review")]) == 0
    shown = capsys.readouterr().out
    assert "2 of 10 images suggested" in shown
    assert "does not record which images it was trained on" in shown
