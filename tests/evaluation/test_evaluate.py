"""Evaluations of several runs together, and reports of runs that were not trained here."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import svertka
from svertka.classifier import Classifier
from svertka.errors import UsageError
from svertka.evaluation.evaluate import evaluate, evaluate_jointly


def test_ensemble_averages_probabilities(photographs: Path, fresh_run: Callable[..., Path]) -> None:
    """Of networks that want other sizes of picture, and have the same classes in another order."""
    runs = [
        fresh_run("resnet20", 32, 40, seed=1),
        fresh_run("resnet20", 24, 24, seed=2),
        fresh_run("mlp", 16, 20, seed=3, names=("flower", "china")),
    ]
    wrong, losses, alone = [], [], [[], [], []]
    for path in sorted(photographs.rglob("*.png")):
        said = []
        for number, run in enumerate(runs):
            classifier = Classifier.load(run)
            named = dict(classifier.predict(path))
            said.append(named)
            alone[number].append(max(named, key=lambda name: named[name]) != path.parent.name)
        mean = {name: np.mean([one[name] for one in said]) for name in said[0]}
        wrong.append(max(mean, key=lambda name: mean[name]) != path.parent.name)
        losses.append(-np.log(mean[path.parent.name]))
    judged = evaluate_jointly([*map(str, runs)], photographs)
    assert judged.ensemble.wrong.tolist() == wrong
    assert judged.ensemble.loss == pytest.approx(np.mean(losses), rel=1e-5)
    assert [one.wrong.tolist() for one in judged.per_run] == alone
    assert judged.ensemble.wrong.tolist() not in alone  # otherwise it would prove nothing


def test_runs_with_different_classes_or_parts_are_refused(
    photographs: Path, fresh_run: Callable[..., Path], digit_folder: Path, tmp_path: Path
) -> None:
    here, there = fresh_run("mlp", 16, 16, seed=1), fresh_run("mlp", 16, 16, seed=1, names=("china", "tulip"))
    with pytest.raises(UsageError, match="know different classes .flower only in .*; tulip only in .*same"):
        evaluate([here, there], photographs)
    with pytest.raises(UsageError, match="there is no run to evaluate"):
        evaluate([], photographs)
    run = svertka.train(digit_folder, model="mlp", size=8, epochs=1, output=tmp_path / "run", threads=1)
    other = fresh_run("mlp", 8, 8, seed=1, names=Classifier.load(run).names)
    with pytest.raises(UsageError, match="were trained on different parts of .*or on --part all"):
        evaluate([run, other], digit_folder)


def test_report_is_written_to_output(photographs: Path, fresh_run: Callable[..., Path], tmp_path: Path) -> None:
    runs = [fresh_run("mlp", 16, 20, seed=seed) for seed in (1, 2)]
    judged = evaluate(runs, photographs, crops=10, output=tmp_path / "judged.html")
    text = (tmp_path / "judged.html").read_text()
    assert f"mlp on {photographs}: {100 * judged.top1_error:.1f}" in text
    assert "12\u00a0all pictures" not in text
    for said in ("10 crops at 20 pixels", "their probabilities averaged", "Calibration"):
        assert said in text
