"""A run is optimized on its own images; commands then use the file, as long as it fits the weights."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import svertka
from svertka.classifier import Classifier
from svertka.cli.app import main
from svertka.compiler.accuracy_bound import ValidationImages
from svertka.compiler.optimize import Optimized
from svertka.conv import native_support
from svertka.data.split_manifest import Manifest
from svertka.errors import RunError, UsageError
from svertka.evaluation.optimize_run import OptimizedRun, describe_too_few_images
from svertka.optimized_file import OPTIMIZED
from svertka.run import Run
from svertka.serving.served_model import ServedModel
from svertka.tensor_files import read_tensors_and_header, write_tensors

pytestmark = [
    pytest.mark.skipif(bool(native_support.why_not()), reason="no kernels here"),
    pytest.mark.usefixtures("quiet"),
    pytest.mark.filterwarnings("ignore:calibration= has"),
]


@pytest.fixture(scope="module")
def trained(digit_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    place = tmp_path_factory.mktemp("runs") / "digits"
    return svertka.train(
        digit_folder, output=place, model="resnet20", size=16, batch_size=32, epochs=10, val=0.3, test=0.2, threads=1
    )


@pytest.fixture(scope="module")
def made(trained: Run) -> OptimizedRun:
    return svertka.optimize_run(trained, precision="int8", threads=1)


@pytest.fixture
def copied(made: OptimizedRun, tmp_path: Path) -> Run:
    shutil.copytree(made.run, tmp_path / "run")
    return Run(tmp_path / "run")


def float_classes(run: Run, paths: list[Path]) -> list[int]:
    classifier = Classifier.load(run)
    with torch.no_grad():
        return classifier.network(torch.stack([classifier.preprocess(path) for path in paths])).argmax(1).tolist()


def paths_of_part(run: Run, folder: Path, part: str) -> list[Path]:
    """The files of a part, by content, read from the manifest without svertka's own selection."""
    manifest = Manifest.read(run.manifest)
    from svertka.data.dataset import FileImages

    paths = sorted(folder.rglob("*.png"))
    digests = [FileImages(Path(), [str(path)]).digest(0) for path in paths]
    return [path for path, its in zip(paths, manifest.parts_of(digests), strict=True) if its == part]


def test_the_loss_is_that_on_the_validation_images(trained: Run, made: OptimizedRun, digit_folder: Path) -> None:
    paths, names = paths_of_part(trained, digit_folder, "val"), Classifier.load(trained).names
    labels = [names.index(path.parent.name) for path in paths]
    before = np.array(float_classes(trained, paths)) == labels
    network, preprocess = Optimized.load(made.path), Classifier.load(trained).preprocess
    after = network(torch.stack([preprocess(path) for path in paths])).argmax(1).numpy() == labels
    report = made.accuracy
    assert (report.images, report.right) == (len(paths), int(before.sum()))
    assert (report.only_float, report.only_mixed) == (int((before & ~after).sum()), int((after & ~before).sum()))
    assert made.path == trained.folder / OPTIMIZED
    assert made.calibration_images == len(paths_of_part(trained, digit_folder, "train"))
    assert report.seconds > 0
    assert network.info.instructions == native_support.selected_instruction_set()
    json.dumps(made.to_dict(), allow_nan=False)


def test_auto_keeps_its_bound(copied: Run) -> None:
    (copied.folder / OPTIMIZED).unlink()
    made = svertka.optimize_run(copied, precision="auto", max_loss=0.1, threads=1)
    assert made.accuracy.loss <= made.accuracy.max_loss == 0.1
    assert made.network.precision.startswith("auto (")
    assert Optimized.load(made.path).accuracy == made.accuracy


def test_commands_use_the_optimized_network(copied: Run, digit_folder: Path) -> None:
    path = digit_folder / "one" / "00.png"
    optimized = Optimized.load(copied.folder / OPTIMIZED)
    classifier = Classifier.load(copied)
    expected = optimized(classifier.preprocess(path)[None]).softmax(1)[0]
    (found,) = svertka.predict(copied, path, threads=1)
    assert found["precision"] == "int8"
    assert {one["name"]: one["probability"] for one in found["labels"]} == pytest.approx(
        dict(zip(classifier.names, expected.tolist(), strict=True))
    )
    (plain,) = svertka.predict(copied, path, precision="fp32", threads=1)
    assert "precision" not in plain
    assert plain["labels"] != found["labels"]
    scope = svertka.evaluate(copied, digit_folder, threads=1).to_dict()
    assert scope["optimized"] == [f"{copied.folder} computes with its optimized network, int8"]
    assert svertka.evaluate(copied, digit_folder, precision="fp32", threads=1).to_dict()["optimized"] == []
    assert svertka.evaluate(copied, digit_folder, crops="dense", threads=1).to_dict()["optimized"] == []
    served = ServedModel(copied, torch.device("cpu"), precision=None)
    assert served.sentence.endswith("It computes in int8.")
    torch.testing.assert_close(served.answer([classifier.preprocess(path)])[0][0], expected)


def test_compare_tables_the_two_networks_of_a_run(copied: Run, digit_folder: Path, tmp_path: Path) -> None:
    result = svertka.compare([copied], digit_folder, threads=1, output=tmp_path / "page.html")
    assert [one.precision for one in result.runs] == ["fp32", "int8"]
    assert result.runs[1].difference is not None
    told = result.to_dict()
    assert [(one["precision"], one["optimized"]) for one in told["runs"]] == [("fp32", False), ("int8", True)]
    assert told["together"] is None
    page = (tmp_path / "page.html").read_text()
    assert ", optimized (int8)" in page
    assert "ensemble" not in page.lower()
    with pytest.raises(
        UsageError, match="; name two runs or more, or one with an optimized network, which svertka opt"
    ):
        svertka.compare([copied], digit_folder, precision="fp32", threads=1)


def test_a_file_of_other_weights_is_not_used(
    copied: Run, digit_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors, header = read_tensors_and_header(copied.weights)
    tensors["linear.bias"] += 1
    write_tensors(copied.weights, tensors, header)
    (found,) = svertka.predict(copied, digit_folder / "one" / "00.png", threads=1)
    assert "precision" not in found
    said = capsys.readouterr().err
    assert f"{copied.folder / OPTIMIZED} was made from other weights than model.safetensors and is not used" in said


def test_a_file_made_for_another_cpu_is_used_and_said(
    copied: Run, digit_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copied.folder / OPTIMIZED
    tensors, header = read_tensors_and_header(path)
    header["optimized"]["sizes"][0]["instructions"] = "avx9"
    write_tensors(path, tensors, header)
    (found,) = svertka.predict(copied, digit_folder / "one" / "00.png", threads=1)
    assert found["precision"] == "int8"
    assert "was made for avx9 and this CPU uses" in capsys.readouterr().err


def test_a_file_of_another_network_is_refused(copied: Run, digit_folder: Path) -> None:
    path = copied.folder / OPTIMIZED
    info = Optimized.load(path).info
    other = svertka.optimize(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 256, 9)), (3, 16, 16))
    other.compiled[0].info = replace(other.info, weights_hash=info.weights_hash)
    other.save(path)
    with pytest.raises(RunError, match=r"optimized.safetensors does not fit the run; make it again: svertka optimize"):
        svertka.predict(copied, digit_folder / "one" / "00.png", threads=1)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, r"digits has 7\d.validation images, and a loss of 0.50% can be bounded with 553 or more; "
             r"use --max-loss 3\.[5-8]% \(max_loss=0\.03[5-8]\), or --precision int8, bf16 or fp32$"),
        ({"precision": "int4"}, "^there is no precision 'int4'; use one of fp32, bf16, int8, auto"),
        ({"max_loss": 1.5}, "^max_loss=1.5 must be a share above 0 and below 1"),
        ({"precision": "int8", "max_loss": 0.1}, "^max_loss=0.1 is a bound for precision=auto; leave it out with int8"),
    ],
)  # fmt: skip
def test_what_cannot_be_bounded_is_refused(trained: Run, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        svertka.optimize_run(trained, threads=1, **settings)


@pytest.mark.parametrize(("images", "advised"), [(4, None), (25, None), (26, 0.099), (75, 0.036)])
def test_no_bound_above_ten_points_is_advised(images: int, advised: float | None) -> None:
    expected = "" if advised is None else f", or at least max_loss={advised}"
    validation = torch.zeros(images, 3, 8, 8), torch.zeros(images, dtype=torch.int64)
    with pytest.raises(UsageError, match=rf"exceeds it even if no image changes its class; give more{expected}$"):
        ValidationImages(validation, (3, 8, 8), 0.005)
    sentence = describe_too_few_images("digits", images, 0.005)
    assert sentence.endswith("; train with more validation images, or use --precision int8, bf16 or fp32") == (
        advised is None
    )
    assert ("--max-loss" in sentence) == (advised is not None)


def test_images_that_the_run_does_not_know_are_refused(trained: Run, digit_folder: Path, tmp_path: Path) -> None:
    for number, path in enumerate(sorted(digit_folder.rglob("*.png"))[::8]):
        other = tmp_path / ("train", "val")[number % 2] / path.parent.name / path.name
        other.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(other)
    for source in (tmp_path, tmp_path / "train"):
        with pytest.raises(UsageError, match=rf"^{source} holds none of the images that .*digits was validated on; "):
            svertka.optimize_run(trained, source, precision="int8", threads=1)


def test_a_run_that_has_not_learned_is_told_to_train_longer(trained: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ValidationImages, "find_right", lambda images, *_: (torch.arange(len(images)) % 9 == 0, 9))
    with pytest.raises(UsageError, match=r"digits has not learned: .* no better than chance .*; train it longer or on"):
        svertka.optimize_run(trained, max_loss=0.1, threads=1)


def test_a_run_without_training_images_is_refused(trained: Run, tmp_path: Path) -> None:
    Classifier.load(trained).save(tmp_path / "saved")
    with pytest.raises(RunError, match=r"has no training.json, so its training and validation images are unknown"):
        svertka.optimize_run(tmp_path / "saved", threads=1)


def test_the_command_prints_layers_and_loss(copied: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["optimize", str(copied.folder), "--max-loss", "10%", "--threads", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["layer", "weights", "kernel", "precision"]
    assert lines[-2].startswith("auto (")
    assert "points, 95 % interval" in lines[-2]
    assert main(["optimize", str(copied.folder), "--precision", "bf16", "--threads", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["precision"] == "bf16"
    assert main(["optimize", str(copied.folder), "--max-loss", "much"]) == 2
    assert "much is not a share; write 0.5% or 0.005" in capsys.readouterr().err


def test_images_in_memory_of_another_size_keep_the_network(copied: Run) -> None:
    image = Image.fromarray(np.zeros((40, 30, 3), np.uint8))
    (found,) = svertka.predict(copied, image, threads=1)
    assert found["precision"] == "int8"
