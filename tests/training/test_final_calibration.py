"""The calibration at the end of a training reads the features that the training stored."""

from pathlib import Path
from typing import Any

import pytest

import svertka
from svertka.evaluation import unknown_threshold
from svertka.run import Run
from svertka.training import final_calibration


def test_stored_features_are_not_computed_again(
    digit_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []
    of_batches = unknown_threshold._Outputs._of

    def count(self: Any, batches: Any, advance: Any) -> Any:
        return of_batches(self, (computed.append(len(one)) or one for one in batches), advance)

    options: dict[str, Any] = {"epochs": 0.1, "batch_size": 32, "threads": 1}
    backbone = svertka.train(digit_folder, model="mlp", size=8, output=tmp_path / "backbone", **options)
    monkeypatch.setattr(unknown_threshold._Outputs, "_of", count)
    run = svertka.train(digit_folder, weights=backbone, recipe="frozen", test=0.2, output=tmp_path / "run", **options)
    assert isinstance(run, Run)
    at_the_end = run.classifier().calibration
    assert at_the_end is not None
    assert sum(computed) == len(at_the_end.set_scores)  # the test images among them are new
    again = svertka.calibrate(run, threads=1)
    assert sum(computed) > 200
    assert again.record.unknown.threshold == pytest.approx(at_the_end.threshold, abs=1e-3)
    assert again.record.set_images == len(at_the_end.set_scores)


def test_a_head_that_was_trained_in_steps_is_not_compared_with_one_that_is_solved(
    digit_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned: list[Any] = []
    monkeypatch.setattr(final_calibration, "plan_folds", lambda *given: planned.append(given))
    svertka.train(digit_folder, model="mlp", size=8, epochs=0.1, output=tmp_path / "run", threads=1)
    assert not planned


def test_features_before_a_head_that_is_no_linear_layer_are_computed(digit_folder: Path, tmp_path: Path) -> None:
    """What the training of a LeNet-5 stores is before its last stage, which has a layer more than the head."""
    options: dict[str, Any] = {"epochs": 0.1, "batch_size": 32, "threads": 1}
    backbone = svertka.train(digit_folder, model="lenet5", output=tmp_path / "backbone", **options)
    run = svertka.train(digit_folder, weights=backbone, recipe="frozen", output=tmp_path / "run", **options)
    at_the_end = run.classifier().calibration
    assert at_the_end is not None
    again = svertka.calibrate(run, threads=1)
    assert again.record.unknown.threshold == pytest.approx(at_the_end.threshold, abs=1e-3)
