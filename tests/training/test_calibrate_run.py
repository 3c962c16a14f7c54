"""A run is calibrated at the end of its training, and again by calibrate()."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import svertka
from svertka.calibration_file import CALIBRATION
from svertka.classifier import Classifier, read_config
from svertka.cli.app import main
from svertka.data.split_manifest import Manifest
from svertka.errors import RunError, SvertkaError, UsageError
from svertka.run import Run

pytestmark = pytest.mark.usefixtures("quiet")


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 images of noise, which show no digit."""
    folder, generator = tmp_path_factory.mktemp("noise"), np.random.default_rng(0)
    for number in range(30):
        Image.fromarray(generator.integers(256, size=(20, 20)).astype(np.uint8)).save(folder / f"{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def trained(digit_folder: Path, noise: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    place = tmp_path_factory.mktemp("runs") / "digits"
    return svertka.train(
        digit_folder, output=place, model="lenet5", epochs=2, val=0.2, test=0.2, unknown=noise, threads=1
    )


@pytest.fixture
def run(trained: Run, tmp_path: Path) -> Run:
    shutil.copytree(trained, tmp_path / "run")
    return Run(tmp_path / "run")


def test_training_calibrates(trained: Run, noise: Path) -> None:
    record = read_config(trained.folder).calibration
    assert record is not None
    parts = Manifest.read(trained.manifest).parts
    assert (record.unknown.images, record.unknown.examples) == (len(parts["val"]), 30)
    assert record.set_images == len(parts["test"])  # the validation images chose the epoch
    predictions = svertka.predict(trained, noise, threads=1)
    assert np.mean([one["unknown"] for one in predictions]) == record.unknown.rejected


def test_calibrating_again_chooses_the_threshold_on_the_validation_images(run: Run, digit_folder: Path) -> None:
    made = svertka.calibrate(run, keep=0.8, threads=1)
    parts = Manifest.read(run.manifest).parts
    count = len(parts["val"])
    assert made.record.unknown.kept == pytest.approx(np.ceil((count + 1) * 0.8) / count)
    evaluated = svertka.evaluate(run, digit_folder, part="val", threads=1)
    assert evaluated.unknown_images == count - round(made.record.unknown.kept * count)
    assert made.to_dict()["set_images"] == len(parts["test"])
    kept = round(made.record.unknown.kept * count)
    assert f"{kept} of {count}\u00a0held-out images do not, and {kept / (count + 1):.1%} of new images" in repr(made)


def test_new_images_calibrate_the_sets(run: Run, digit_folder: Path, tmp_path: Path) -> None:
    for path in sorted(digit_folder.glob("*/*"))[::6]:
        target = tmp_path / "new" / path.parent.name / f"inverted-{path.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(255 - np.asarray(Image.open(path).convert("L"))).save(target)
    shutil.copytree(digit_folder, tmp_path / "new", dirs_exist_ok=True)  # which the run has seen
    made = svertka.calibrate(run, new=tmp_path / "new", threads=1)
    assert made.record.set_images == len(sorted(digit_folder.glob("*/*"))[::6])


def test_classes_without_new_images_are_named(run: Run, digit_folder: Path, tmp_path: Path) -> None:
    for name in ("one", "three"):
        (tmp_path / "new" / name).mkdir(parents=True)
        for number in range(20):
            picture = np.asarray(Image.open(digit_folder / name / f"{number:02}.png").convert("L"))
            Image.fromarray(255 - picture).save(tmp_path / "new" / name / f"{number:02}.png")
    made = svertka.calibrate(run, new=tmp_path / "new", threads=1)
    assert made.record.set_images == 40
    (note,) = made.to_dict()["notes"]
    assert note.startswith(f"{tmp_path / 'new'} has no new images of four, two: ")
    assert made.sentences[-1] == note
    assert svertka.calibrate(run, threads=1).notes == ()


def test_a_damaged_calibration_is_made_again(run: Run) -> None:
    (run.folder / CALIBRATION).write_bytes(b"damaged")
    with pytest.raises(RunError, match="make it again"):
        Classifier.load(run)
    svertka.calibrate(run, threads=1)
    assert Classifier.load(run).calibration is not None


def test_bad_examples_are_refused_in_one_sentence(
    run: Run, digit_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run.folder / CALIBRATION).read_bytes()
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    shutil.copy(next(iter(sorted(digit_folder.glob("*/*")))), mixed)
    for folder, sentence in (
        (tmp_path / "empty", "holds no image"),
        (tmp_path / "missing", "no image can be read"),
        (tmp_path / "broken", "no image can be read"),
        (mixed, "of the run's own"),
    ):
        with pytest.raises(SvertkaError, match=sentence):
            svertka.calibrate(run, unknown=folder, threads=1)
    for folder in (tmp_path / "empty", tmp_path / "missing", mixed):
        assert main(["train", str(digit_folder), "--model", "lenet5", "--unknown", str(folder), "--epochs", "1"]) in (
            1,
            2,
        )
        assert f"{folder}" in capsys.readouterr().err.splitlines()[-1]
    with pytest.raises(UsageError, match=r"keep=1.5 must be a share above 0 and below 1"):
        svertka.calibrate(run, keep=1.5, threads=1)
    assert (run.folder / CALIBRATION).read_bytes() == before


def test_a_run_without_validation_images_is_refused(run: Run) -> None:
    manifest = Manifest.read(run.manifest)
    Manifest({**manifest.parts, "val": frozenset()}).write(run.manifest)
    with pytest.raises(UsageError, match="has no validation images, from which the threshold for unknown images is"):
        svertka.calibrate(run, threads=1)


def test_a_saved_network_has_no_images(made: Callable[..., Classifier], tmp_path: Path) -> None:
    made("lenet5", 32, 32, 1).save(tmp_path)
    with pytest.raises(RunError, match="its training and validation images are unknown"):
        svertka.calibrate(tmp_path)


def test_the_command_prints_what_it_chose(run: Run, noise: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", str(run.folder), "--unknown", str(noise), "--json", "--threads", "1"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["unknown"]["examples"] == 30
    assert main(["calibrate", str(run.folder), "--threads", "1"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("unknown: images whose score exceeds ")
    assert second.startswith("prediction sets: calibrated on ")
