"""A calibration is saved with a run, and is used only with the weights and the record that belong to it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from svertka.calibration_file import CALIBRATION, advise_on_sets
from svertka.classifier import Classifier, read_config
from svertka.errors import RunError
from svertka.tensor_files import read_tensors_and_header, write_tensors


@pytest.fixture
def run(calibrated: Callable[..., Classifier], tmp_path: Path) -> Path:
    calibrated("lenet5", 32, 32, 1).save(tmp_path / "run")
    return tmp_path / "run"


def test_it_is_read_as_it_was_written(run: Path, calibrated: Callable[..., Classifier]) -> None:
    written, read = calibrated("lenet5", 32, 32, 1), Classifier.load(run)
    assert read.calibration is not None
    assert written.calibration is not None
    assert read.calibration.threshold == written.calibration.threshold
    images = list(torch.randn(5, 1, 32, 32))
    for found, wanted in zip(
        read.probabilities_and_unknown_scores(images), written.probabilities_and_unknown_scores(images), strict=True
    ):
        torch.testing.assert_close(found, wanted)
    assert read_config(run).format == 2


def test_a_run_without_one_is_read_by_earlier_versions(made: Callable[..., Classifier], tmp_path: Path) -> None:
    made("lenet5", 32, 32, 1).save(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["format"] == 1
    assert "calibration" not in content
    assert Classifier.load(tmp_path).probabilities_and_unknown_scores([torch.zeros(1, 32, 32)])[1] is None


def test_it_is_not_used_with_other_weights(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors, _ = read_tensors_and_header(run / "model.safetensors")
    write_tensors(run / "model.safetensors", {name: tensor * 1.01 for name, tensor in tensors.items()})
    assert Classifier.load(run).calibration is None
    assert "was made for other weights than model.safetensors and is not used" in capsys.readouterr().err


def test_a_missing_damaged_or_other_file_is_refused(run: Path) -> None:
    path = run / CALIBRATION
    content = path.read_bytes()
    tensors, header = read_tensors_and_header(path)
    path.unlink()
    with pytest.raises(RunError, match=r"calibration.safetensors is missing; .* make it again: svertka calibrate"):
        Classifier.load(run)
    path.write_bytes(content[:-3])
    with pytest.raises(RunError, match="is damaged"):
        Classifier.load(run)
    header["unknown"] |= {"threshold": header["unknown"]["threshold"] * 2}
    write_tensors(path, tensors, header)
    with pytest.raises(RunError, match=r"is not the file that config.json describes; make both again"):
        Classifier.load(run)
    path.write_bytes(content)
    bad = tensors | {"means": tensors["means"][:, :5]}
    write_tensors(path, bad, read_config(run).calibration.model_dump())  # type: ignore[union-attr]
    with pytest.raises(RunError, match=r"is not the file that config.json describes"):
        Classifier.load(run)


def test_the_advice_on_sets_holds_whatever_share_the_test_set_has() -> None:
    advice = advise_on_sets("run")
    assert "train with a larger test set (--test), or give labeled images" in advice
    assert not any(letter.isdigit() for letter in advice)


def test_the_printed_command_takes_a_run_whose_name_begins_with_a_dash() -> None:
    assert advise_on_sets("-r").endswith("svertka calibrate ./-r --new SOURCE")
