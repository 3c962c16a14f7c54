"""Training on more files than can be decoded, or read, before the first step."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import svertka
from svertka.curation.dataset_check import check
from svertka.data import content_hash, image_disk_cache
from svertka.data.dataset import FileImages
from svertka.data.file_tree import list_tree
from svertka.data.split_manifest import Manifest
from svertka.errors import DataError
from svertka.progress import Progress
from svertka.run import Run
from svertka.signals import Stopped
from svertka.training import data_splits, training_loop

OPTIONS = {"model": "mlp", "size": 8, "epochs": 2, "batch_size": 8, "threads": 1, "val": 0.25}
CLASSES, EACH = ("dark", "light"), 40


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("large") / "photos", np.random.default_rng(0)
    for number, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for index in range(EACH):
            pixels = rng.integers(100 * number, 100 * number + 150, (24, 24, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index:02}.jpg")
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, whose images are too many to be decoded before training."""
    monkeypatch.setattr(image_disk_cache, "STREAMED_ABOVE", 10)
    monkeypatch.setattr(data_splits, "MEASURED", 8)
    return Path(shutil.copytree(original, tmp_path / "photos"))


@pytest.fixture
def by_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, whose images are too many to be read before training."""
    for module, name in ((content_hash, "NAMED_ABOVE"), (data_splits, "MOST")):
        monkeypatch.setattr(module, name, 50)
    return folder


def damage(path: Path) -> None:
    """Overwrite the middle of a JPEG; its header and its end stay."""
    content = bytearray(path.read_bytes())
    middle = len(content) * 3 // 4
    content[middle : middle + 40] = b"\xff\xd9" * 20
    path.write_bytes(content)


def entries(run: Run, kind: str) -> list[dict[str, object]]:
    rows = map(json.loads, run.metrics.read_text().splitlines())
    return [row for row in rows if row["kind"] == kind]


def test_a_damaged_image_is_named_and_left_out(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (folder / "dark").iterdir():
        if path.stem < "03":
            damage(path)
    wanted = {str(folder / "dark" / f"{number:02}.jpg") for number in range(3)}
    run = svertka.train(folder, output=tmp_path / "run", **OPTIONS)
    said = capsys.readouterr().err
    assert all(f"left out: {path} cannot be read" in said for path in wanted)
    assert {one["path"] for one in run.to_dict()["bad"]} == wanted
    assert not any("not calibrated" in line for line in said.splitlines())
    split = run.settings()["parts"]
    assert sum(split.values()) == 2 * EACH
    counted = entries(run, "epoch")[0]
    assert counted["train_loss"] > 0


def test_the_same_steps_follow_after_a_resume(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damage(folder / "dark" / "05.jpg")
    damage(folder / "light" / "06.jpg")
    seen: dict[str, list[int]] = {"whole": [], "resumed": []}
    step, name, calls = training_loop.take_step, "whole", [0]

    def counted(network, optimizer, batch, *rest):
        seen[name].append(sorted(batch.indices.tolist()))
        return step(network, optimizer, batch, *rest)

    monkeypatch.setattr(training_loop, "take_step", counted)
    whole = svertka.train(folder, output=tmp_path / "whole", **OPTIONS)
    name = "resumed"
    with monkeypatch.context() as patch:
        patch.setattr(
            "svertka.training.run_recorder.Recorder.wants_stop",
            lambda self: calls.append(1) or len(calls) == 12,
        )
        with pytest.raises(svertka.SvertkaError, match="continue with"):
            svertka.train(folder, output=tmp_path / "resumed", **OPTIONS)
    resumed = svertka.resume(tmp_path / "resumed")
    assert seen["whole"] == seen["resumed"]
    weights, wanted = (one.classifier().network.state_dict() for one in (resumed, whole))
    assert all((weights[key] == wanted[key]).all() for key in wanted)
    assert resumed.to_dict()["bad"] == whole.to_dict()["bad"]


def test_more_than_a_tenth_that_cannot_be_read_end_the_training(folder: Path, tmp_path: Path) -> None:
    for path in (folder / "dark").iterdir():
        damage(path)
    with pytest.raises(DataError, match=r"of 60 images cannot be read, more than a tenth, such as .*dark"):
        svertka.train(folder, output=tmp_path / "run", **OPTIONS)


def test_files_are_told_apart_by_name_and_size(
    by_name: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read: list[str] = []
    whole = FileImages.read_bytes_and_status
    monkeypatch.setattr(
        FileImages, "read_bytes_and_status", lambda self, index: read.append(self.paths[index]) or whole(self, index)
    )
    monkeypatch.setattr(image_disk_cache, "SURVEYED", 5)

    def first(*arguments: object) -> object:
        raise Stopped(2)

    with monkeypatch.context() as patch:
        patch.setattr(training_loop, "take_step", first)
        with pytest.raises(svertka.SvertkaError, match="continue with"):
            svertka.train(by_name, output=tmp_path / "run", **OPTIONS | {"batch_size": 4, "epochs": 0.2})
    assert len(set(read)) < 70  # of 80: none of the validation images, but for a sample
    run = svertka.resume(tmp_path / "run")
    sentence = "80 files are too many to be read before training: they are told apart by folder, name and size"
    assert sentence in capsys.readouterr().err
    assert any(sentence in note for note in run.settings()["account"]["notes"])
    assert Manifest.read(run.manifest).by_name
    moved = Path(shutil.copytree(by_name, tmp_path / "elsewhere"))
    parts = run.settings()["parts"]
    assert svertka.evaluate(run, moved, threads=1).images == parts["val"]
    # One class alone is few enough to be hashed by content.
    alone = svertka.evaluate(run, moved / "dark" / "..", part="all", threads=1)
    assert alone.scope.training_images == parts["train"]
    evaluated = svertka.evaluate(run, moved, threads=1, include_training=True, part="all")
    assert evaluated.images == 80


def test_a_part_of_a_large_folder_is_known_by_name(by_name: Path, tmp_path: Path) -> None:
    run = svertka.train(by_name, output=tmp_path / "run", **OPTIONS | {"epochs": 0.2})
    few = tmp_path / "few"
    for name in CLASSES:
        (few / name).mkdir(parents=True)
        for number in range(10):
            shutil.copy(by_name / name / f"{number:02}.jpg", few / name)
    shutil.copy(by_name / "dark" / "00.jpg", few / "dark" / "renamed.jpg")
    manifest = Manifest.read(run.manifest)
    digests, _ = manifest.hash_images(svertka.data.source_opener.open_source(few).images, 1)
    assert (manifest.parts_of(digests) == "").sum() == 1  # the copy under another name


def test_listing_counts_images(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Progress("", 0)
    monkeypatch.setattr("svertka.data.file_tree.progress", lambda *arguments: nullcontext(shown))
    assert len(list_tree(original).images()) == 2 * EACH
    assert shown.title == "listing, 80 images"


def test_files_of_equal_name_and_size_are_told_apart_by_content(tmp_path: Path) -> None:
    for number, place in enumerate(("train/a", "test/a", "copy/a", "train/b")):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "0.bmp").write_bytes(bytes([number % 2]) * 50)
    images = FileImages(tmp_path, ["train/a/0.bmp", "test/a/0.bmp", "copy/a/0.bmp", "train/b/0.bmp", "gone/0.bmp"])
    digests, bad = content_hash.hash_names(images, 2)
    assert digests[0] == digests[2] != digests[1]
    assert digests[3] not in digests[:3]
    assert (digests[4], list(bad)) == (b"", [4])


def test_check_fast_reads_a_sample(
    by_name: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(by_name / "dark" / "00.jpg")
    monkeypatch.setattr("svertka.curation.dataset_check.SAMPLED", 30)
    findings = check(by_name, fast=True)
    assert sum(findings.classes.values()) == 80
    assert findings.read == 30
    assert sum(sum(counts.values()) for counts in findings.split.values()) >= 79
    whole = check(by_name)
    assert [path for path, _ in whole.bad] == [str(by_name / "dark" / "00.jpg")]
    assert whole.read == 80
