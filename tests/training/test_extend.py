"""A class added to a run: what is kept, what is stated, and what is refused."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

import svertka
from svertka.classifier import Classifier
from svertka.cli.app import main
from svertka.data.dataset import FileImages
from svertka.errors import DataError, RunError, UsageError
from svertka.evaluation.held_out import read_manifest
from svertka.run import Run
from svertka.training.extend import Extension

OPTIONS = {"unfreeze": "head", "head": "nearest-mean", "augment": False, "val": 0.2, "threads": 1}


def copy_digits(digits: Path, folder: Path, names: tuple[str, ...], numbers: range) -> Path:
    """Copy some digits of each class into class folders."""
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in numbers:
            shutil.copy(digits / name / f"{number:02}.png", folder / name)
    return folder


@pytest.fixture(scope="module")
def weights(made: Callable[..., Classifier], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights that runs start from."""
    folder = tmp_path_factory.mktemp("weights") / "weights"
    made("resnet20", 16, 16).save(folder)
    return folder


@pytest.fixture(scope="module")
def base(weights: Path, digit_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on ones and twos with a frozen network."""
    folder = tmp_path_factory.mktemp("base")
    copy_digits(digit_folder, folder / "photos", ("one", "two"), range(30))
    return svertka.train(folder / "photos", weights=str(weights), output=folder / "run", **OPTIONS)


@pytest.fixture
def new(digit_folder: Path, tmp_path: Path) -> Path:
    """Threes, and five more ones."""
    copy_digits(digit_folder, tmp_path / "new", ("three",), range(20))
    return copy_digits(digit_folder, tmp_path / "new", ("one",), range(30, 35))


@pytest.fixture(scope="module")
def extended(base: Run, digit_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Extension, Path]:
    """The run with threes and more ones, and the folder of these."""
    folder, before = tmp_path_factory.mktemp("extended"), contents(base.folder)
    copy_digits(digit_folder, folder / "new", ("three",), range(20))
    copy_digits(digit_folder, folder / "new", ("one",), range(30, 35))
    made = svertka.extend(base, folder / "new", output=folder / "run", threads=1)
    assert contents(base.folder) == before
    return made, folder / "new"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_head_that_was_fitted_at_once_has_no_learning_rate_no_epochs_and_no_curves(base: Run) -> None:
    (epoch,) = (line for line in base.history() if line["kind"] == "epoch")
    assert epoch["learning_rate"] is None
    report = (base.folder / "report.html").read_text()
    assert ", last layer fitted without steps." in report.replace("\u00a0", " ")
    for untrue in ("Training curves", "Learning rate", "The weights are those of epoch", "after 1"):
        assert untrue not in report
    with pytest.raises(UsageError, match="has no training curves: its last layer was fitted at once, without steps"):
        svertka.plot.learning_curves(base)


def test_a_class_is_added_and_the_accuracies_are_those_on_the_held_out_images(
    base: Run, extended: tuple[Extension, Path]
) -> None:
    made, new = extended
    assert made.added == ("three",)
    assert sum(made.new_images.values()) == 25
    assert made.run.classifier().names == ("one", "two", "three")
    photos = base.settings()["source"]
    assert made.before is not None
    assert made.after is not None
    for run, accuracy in ((base, made.before), (made.run, made.after)):
        judged = svertka.evaluate(run, photos, part="val", threads=1)
        assert accuracy.images == judged.images
        assert accuracy.right == judged.images - int(judged.wrong.sum())
    assert made.before.right - made.lost + made.gained == made.after.right
    held = svertka.evaluate(made.run, new, part="val", threads=1)
    assert made.added_accuracy is not None
    assert (made.added_accuracy.images, made.added_accuracy.right) == (held.images, held.images - held.wrong.sum())


def test_images_keep_their_parts_and_the_new_run_knows_where_they_are(
    base: Run, extended: tuple[Extension, Path], tmp_path: Path
) -> None:
    made, _ = extended
    old, now = read_manifest(base), read_manifest(made.run)
    assert old is not None
    assert now is not None
    assert all(old.parts[part] <= now.parts[part] for part in ("train", "val", "test"))
    source = made.run.settings()["source"]
    assert source == str(made.run.folder / "images.csv")
    assert svertka.evaluate(made.run, source, part="val", threads=1).images == len(now.parts["val"])
    again = svertka.extend(made.run, copy_digits_four(base, tmp_path), output=tmp_path / "again", threads=1)
    assert again.run.classifier().names == ("one", "two", "three", "four")


def copy_digits_four(base: Run, tmp_path: Path) -> Path:
    """Return a folder of mirrored ones, as a further class."""
    (tmp_path / "more" / "four").mkdir(parents=True)
    for path in sorted((Path(base.settings()["source"]) / "one").iterdir())[:12]:
        with Image.open(path) as opened:
            opened.rotate(90).save(tmp_path / "more" / "four" / path.name)
    return tmp_path / "more"


def test_the_source_may_be_that_of_the_run_with_one_more_folder(
    weights: Path, digit_folder: Path, tmp_path: Path
) -> None:
    photos = copy_digits(digit_folder, tmp_path / "photos", ("one", "two"), range(12))
    run = svertka.train(photos, weights=str(weights), output=tmp_path / "run", **OPTIONS)
    copy_digits(digit_folder, photos, ("three",), range(12))
    made = svertka.extend(run, photos, threads=1)
    assert made.run.folder == tmp_path / "run-extended"
    assert made.run.settings()["source"] == str(photos)
    assert sum(made.new_images.values()) == 12
    assert any("24 images" in note and "are of the run already" in note for note in made.notes)
    assert svertka.extend(run, photos, threads=1).run.folder == tmp_path / "run-extended-2"


def test_a_new_image_that_looks_like_one_of_the_run_gets_its_part(base: Run, new: Path, tmp_path: Path) -> None:
    photos, manifest = Path(base.settings()["source"]), read_manifest(base)
    assert manifest is not None
    for number, path in enumerate(sorted((photos / "one").iterdir())):
        info = PngImagePlugin.PngInfo()
        info.add_text("comment", "the same pixels")
        with Image.open(path) as opened:
            opened.save(new / "one" / f"same-{number}.png", pnginfo=info)
    made = svertka.extend(base, new, output=tmp_path / "extended", threads=1)
    now = read_manifest(made.run)
    assert now is not None
    for number, path in enumerate(sorted((photos / "one").iterdir())):
        files = FileImages(Path(), [str(path), str(new / "one" / f"same-{number}.png")])
        assert now.part_of(files.digest(1)) == manifest.part_of(files.digest(0))


def test_arrays_are_extended_by_arrays(weights: Path, digit_folder: Path, tmp_path: Path) -> None:
    def arrays(name: str, count: int) -> np.ndarray:
        paths = sorted((digit_folder / name).iterdir())[:count]
        return np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])

    old = np.concatenate([arrays("one", 10), arrays("two", 10)]), ["one"] * 10 + ["two"] * 10
    run = svertka.train(old, weights=str(weights), output=tmp_path / "run", **OPTIONS)
    new = arrays("three", 10), ["three"] * 10
    with pytest.raises(UsageError, match="was trained on images in memory; give them again as original"):
        svertka.extend(run, new, threads=1)
    made = svertka.extend(run, new, original=old, threads=1)
    assert made.added == ("three",)
    with pytest.raises(UsageError, match="give arrays of that shape"):
        svertka.extend(run, (new[0][:, :6], new[1]), original=old, threads=1)
    with pytest.raises(UsageError, match="are not both image files or both arrays"):
        svertka.extend(run, copy_digits(digit_folder, tmp_path / "files", ("three",), range(5)), original=old)


def test_what_cannot_be_extended_is_refused_and_leaves_nothing(
    base: Run, weights: Path, new: Path, digit_folder: Path, tmp_path: Path
) -> None:
    photos = Path(base.settings()["source"])
    with pytest.raises(UsageError, match="adds nothing: the run knows all of its 60 images"):
        svertka.extend(base, photos, threads=1)
    with pytest.raises(UsageError, match="exists; .*choose another --output"):
        svertka.extend(base, new, output=base.folder, threads=1)
    with pytest.raises(RunError, match="holds no training.json"):
        svertka.extend(weights, new, threads=1)
    shutil.copytree(photos, tmp_path / "fewer")
    (tmp_path / "fewer" / "one" / "03.png").unlink()
    with pytest.raises(DataError, match="1 of 60 images of the run are no longer in"):
        svertka.extend(base, new, original=tmp_path / "fewer", threads=1)
    copied = Run(shutil.copytree(base.folder, tmp_path / "copied"))
    for changed, error, sentence in (
        ({"recipe": base.settings()["recipe"] | {"unfreeze": "all"}}, UsageError, "trained all of its layers"),
        ({"group": "(.)"}, UsageError, r"kept groups of images in one part \(--group"),
        ({"boxes": "boxes/"}, UsageError, "trained on patches of images"),
    ):
        copied.training.write_text(json.dumps(base.settings() | changed))
        with pytest.raises(error, match=sentence):
            svertka.extend(copied, new, threads=1)
    copied.training.write_text(json.dumps(base.settings()))
    copied.manifest.unlink()
    with pytest.raises(RunError, match="does not record which images it was trained on"):
        svertka.extend(copied, new, threads=1)
    assert not list(tmp_path.glob("*-extended*"))


def test_new_images_that_cannot_be_read_are_not_counted_as_added(base: Run, tmp_path: Path) -> None:
    shutil.copytree(Path(base.settings()["source"]), tmp_path / "photos")
    bad = tmp_path / "photos" / "one" / "bad.png"
    bad.write_bytes(b"not an image")
    with pytest.raises(UsageError, match=r"photos adds nothing: the images that .* does not know cannot be read"):
        svertka.extend(base, tmp_path / "photos", output=tmp_path / "run", threads=1)
    assert not (tmp_path / "run").exists()
    for name in ("one", "two"):
        shutil.copy(bad, tmp_path / "photos" / name / "other.png")
    Image.new("L", (28, 28), 90).save(tmp_path / "photos" / "two" / "gray.png")
    made = svertka.extend(base, tmp_path / "photos", output=tmp_path / "run", threads=1)
    assert sum(made.new_images.values()) == 1
    assert made.sentences()[0] == "no new class; 1 image added"


def test_the_result_in_words_and_the_command_as_json(
    base: Run, extended: tuple[Extension, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, new = extended
    first, second, *_ = made.sentences()
    assert first == "new classes: three; 25 images added"
    assert second.startswith("old classes: ")
    assert (
        main(["extend", str(base.folder), str(new), "--threads", "1", "--output", str(tmp_path / "x"), "--json"]) == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert found == made.to_dict() | {"run": str(tmp_path / "x"), "base": str(base.folder)}
    assert set(found["before"]) == {"images", "right", "share", "interval"}


def test_notes_are_printed_once_and_a_path_that_no_table_can_hold_is_named(
    base: Run, new: Path, digit_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy_digits(digit_folder, new, ("two",), range(3))  # which the run knows
    (new / "three" / "00.png").rename(new / "three" / "a\nb.png")
    assert main(["extend", str(base.folder), str(new), "--threads", "1", "--output", str(tmp_path / "x")]) == 0
    printed = capsys.readouterr()
    said = printed.err + printed.out
    for note in ("are of the run already", r"images\.csv is not written, because .*a\\nb\.png cannot"):
        assert len(re.findall(note, said)) == 1, said
    assert not (tmp_path / "x" / "images.csv").exists()
