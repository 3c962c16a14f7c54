"""The same image is unknown, or is not, in Python, over HTTP, on the command line and in ONNX Runtime."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

import svertka
from svertka.calibration_file import CALIBRATION
from svertka.classifier import Classifier
from svertka.cli.app import main

pytest.importorskip("onnxruntime")
pytest.importorskip("fastapi")
import onnxruntime
import torch

from svertka.errors import ExportMismatchError
from svertka.exporters import int8_onnx
from svertka.exporters.onnx import check_onnx, convert_to_onnx
from svertka.serving.served_model import ServedModel

BOUND = 2e-3  # standard deviations: sums of float32 in another order; an image as near to the threshold may differ


@pytest.fixture(scope="module")
def run(calibrated: Callable[..., Classifier], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "calibrated"
    calibrated("resnet20", 32, 36, names=("cat", "dog", "cow")).save(folder)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Rectangles out of two photographs, noise, and one color."""
    folder, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(1)
    shown = [
        load_sample_image(name)[50 * k : 50 * k + 90, :120] for name in ("china.jpg", "flower.jpg") for k in range(6)
    ]
    shown += [generator.integers(256, size=(90, 120, 3)).astype(np.uint8), np.full((90, 120, 3), 200, np.uint8)]
    for number, pixels in enumerate(shown):
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    return sorted(folder.iterdir())


def test_every_way_gives_the_same_answer(
    run: Path, images: list[Path], live: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = svertka.predict(run, *images, threads=1)
    scores = np.array([one["unknown_score"] for one in wanted])
    threshold = wanted[0]["unknown_threshold"]
    assert [one["unknown"] for one in wanted] == (scores > threshold).tolist()
    assert {one["unknown"] for one in wanted} == {False, True}

    with live(ServedModel(run, torch.device("cpu"))) as server:
        for path, one in zip(images, wanted, strict=True):
            (entry,) = server.ask("POST", "/predict", path.read_bytes()).json()
            assert entry["unknown"] == one["unknown"]
            assert entry["unknown_threshold"] == threshold
            assert entry["unknown_score"] == pytest.approx(one["unknown_score"], abs=BOUND)

    capsys.readouterr()
    assert main(["predict", str(run), *map(str, images), "--json", "--threads", "1"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [one["unknown"] for one in told] == [one["unknown"] for one in wanted]
    assert main(["predict", str(run), *map(str, images), "--csv", "--top", "1", "--threads", "1"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["unknown"] == "true" for row in rows] == [one["unknown"] for one in wanted]
    assert [float(row["unknown_score"]) for row in rows] == pytest.approx(scores, rel=1e-5)
    assert main(["predict", str(run), *map(str, images), "--threads", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert ["unknown (score " in line for line in lines] == [one["unknown"] for one in wanted]


def test_the_exported_file_has_two_outputs_more(run: Path, images: list[Path]) -> None:
    classifier = Classifier.load(run)
    file = convert_to_onnx(classifier, preprocessing=True)
    pictures = [np.asarray(Image.open(path)) for path in images]
    check_onnx(file, classifier, pictures)
    session = onnxruntime.InferenceSession(file.SerializeToString(), providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_outputs()] == ["probabilities", "unknown_score", "unknown"]
    probabilities, scores, unknown = session.run(None, {"pictures": np.stack(pictures)})
    wanted = svertka.predict(run, *images, threads=1)
    assert probabilities.shape == (len(images), 3)
    expected = np.array([one["unknown_score"] for one in wanted])
    np.testing.assert_allclose(scores, expected, atol=BOUND)
    threshold = wanted[0]["unknown_threshold"]
    assert unknown.tolist() == (scores > np.float32(threshold)).tolist()
    assert unknown.tolist() == [one["unknown"] for one in wanted]
    assert float(session.get_modelmeta().custom_metadata_map["unknown_threshold"]) == threshold


def test_a_file_without_preprocessing_or_calibration_is_as_before(
    calibrated: Callable[..., Classifier], made: Callable[..., Classifier]
) -> None:
    for make, preprocessing, name in ((calibrated, False, "logits"), (made, True, "probabilities")):
        classifier = make("lenet5", 32, 36, channels=1, names=("cat", "dog", "cow"))
        file = convert_to_onnx(classifier, preprocessing=preprocessing)
        assert [one.name for one in file.graph.output] == [name]


@pytest.mark.filterwarnings("ignore:calibration= has")
def test_an_int8_file_tells_unknown_images_as_its_check_says(
    run: Path, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        int8_onnx, "LEAST_AGREEMENT", 0.5
    )  # half of the scores of a random network lie at the threshold
    made = svertka.export(
        run, tmp_path / "model.onnx", precision="int8", preprocessing=True, images=images, calibration=images
    )
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_outputs()] == ["probabilities", "unknown_score", "unknown"]
    _, scores, unknown = session.run(None, {"pictures": np.stack([np.asarray(Image.open(path)) for path in images])})
    wanted = svertka.predict(run, *images, threads=1)
    assert unknown.tolist() == (scores > np.float32(wanted[0]["unknown_threshold"])).tolist()
    expected = np.array([one["unknown_score"] for one in wanted])
    assert np.corrcoef(scores, expected)[0, 1] > 0.99
    assert abs((scores - expected).mean()) < 0.05  # without the correction 0.15
    same = np.mean([one["unknown"] == told for one, told in zip(wanted, unknown.tolist(), strict=True)])
    assert made.int8 is not None
    assert made.int8.unknown_agreement == pytest.approx(same)
    assert f"and {same:.1%} are called unknown or known as by it" in made.sentence


@pytest.mark.large
@pytest.mark.filterwarnings("ignore:calibration= has")
def test_an_int8_file_that_answers_otherwise_is_refused(
    run: Path, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8_onnx, "LEAST_AGREEMENT", 1.5)  # more than all images
    monkeypatch.setattr(int8_onnx, "measure_agreement", lambda *_: 2.0)  # of the classes
    with pytest.raises(
        ExportMismatchError, match="are called unknown or known as by the float network .* or without p"
    ):
        svertka.export(
            run, tmp_path / "model.onnx", precision="int8", preprocessing=True, images=images, calibration=images
        )
    assert not (tmp_path / "model.onnx").exists()


def test_a_folder_for_the_hub_answers_alike(run: Path, images: list[Path], tmp_path: Path) -> None:
    svertka.export(run, tmp_path / "hub")
    assert (tmp_path / "hub" / CALIBRATION).exists()
    assert svertka.predict(tmp_path / "hub", *images, threads=1) == svertka.predict(run, *images, threads=1)


def test_sets_list_the_most_probable_classes(run: Path, images: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    for one in svertka.predict(run, *images, sets=0.9, threads=1):
        probable = [label["name"] for label in one["labels"] if label["probability"] >= 0.1]  # the 90th of 99 is 0.9
        assert one["set"] == probable
    assert main(["predict", str(run), str(images[0]), "--csv", "--sets", "90%", "--threads", "1"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["in_set"] == "true" for row in rows] == [float(row["probability"]) >= 0.1 for row in rows]
    assert main(["predict", str(run), str(images[0]), "--sets", "99.5%"]) == 2
    assert "sets=0.995 needs at least 199\xa0calibration images, and the run has 99" in capsys.readouterr().err


def test_sets_need_a_calibration(made: Callable[..., Classifier], images: list[Path]) -> None:
    with pytest.raises(svertka.SvertkaError, match="has no calibration; make one: svertka calibrate"):
        svertka.predict(made("resnet20", 32, 36), images[0], sets=0.9)


def test_evaluate_counts_the_unknown(run: Path, images: list[Path], tmp_path: Path) -> None:
    for number, path in enumerate(images):
        folder = tmp_path / ("cat", "dog", "cow")[number % 3]
        folder.mkdir(exist_ok=True)
        (folder / path.name).write_bytes(path.read_bytes())
    wanted = sum(one["unknown"] for one in svertka.predict(run, *images, threads=1))
    made = svertka.evaluate(run, tmp_path, threads=1)
    assert made.unknown_images == wanted
    assert made.to_dict()["unknown_share"] == wanted / len(images)
    assert f"{wanted / len(images):.1%} called unknown" in made.sentence
    assert svertka.evaluate(run, tmp_path, crops=10, threads=1).unknown_images is None
