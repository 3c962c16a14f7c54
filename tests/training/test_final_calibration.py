"""The calibration at the end of a training reads the features that the training stored."""

from pathlib import Path
from typing import Any

import pytest

import svertka
from svertka.evaluation import unknown_threshold
from svertka.run import Run


def test_stored_features_are_not_computed_again(
    digit_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []
    of_batches = unknown_threshold._Outputs._of

    def count(self: Any, batches: Any, advance: Any) -> Any:
        return of_batches(self, (computed.append(len(one)) or one for one in batches), advance)

    monkeypatch.setattr(unknown_threshold._Outputs, "_of", count)
    run = svertka.train(
        digit_folder, model="efficientnet_lite0", weights="bundled", size=32, epochs=1, test=0.2, threads=1,
        output=str(tmp_path / "run"),
    )  # fmt: skip
    assert isinstance(run, Run)
    at_the_end = run.classifier().calibration
    assert at_the_end is not None
    assert sum(computed) == len(at_the_end.set_scores)  # the test images among them are new
    again = svertka.calibrate(run, threads=1)
    assert sum(computed) > 200
    assert again.record.unknown.threshold == pytest.approx(at_the_end.threshold, abs=1e-3)
    assert again.record.set_images == len(at_the_end.set_scores)
