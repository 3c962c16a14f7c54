"""Several divisions of the same pictures, and how sure their mean error is."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from svertka.errors import UsageError
from svertka.training.repeats import interval, repeat

QUICK = {"model": "mlp", "size": 8, "epochs": 2, "threads": 1}


def test_every_repeat_divides_otherwise(digit_folder: Path, tmp_path: Path) -> None:
    made = repeat(digit_folder, 3, output=tmp_path / "runs", test=0.3, **QUICK)
    assert made.part == "test"
    assert [run.folder.name for run in made.runs] == ["0", "1", "2"]
    assert len({run.settings()["fingerprint"] for run in made.runs}) == 3
    assert list(made.errors) == [run.result()["test_error"] for run in made.runs]
    assert made.mean == pytest.approx(np.mean(made.errors))
    assert json.loads((tmp_path / "runs" / "repeats.json").read_text()) == made.summary()


def test_without_pictures_to_judge_by_there_is_nothing_to_say(digit_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="left to judge by; set --test"):
        repeat(digit_folder, 3, output=tmp_path / "runs", val=0, **QUICK)
    with pytest.raises(UsageError, match="repeats=1 gives no interval"):
        repeat(digit_folder, 1, output=tmp_path / "one")


def test_the_interval_holds_the_error_of_fresh_pictures_as_often_as_it_says() -> None:
    # Divisions of one set of numbers, "trained" by taking the mean: the error is that of a threshold at it.
    random, held, times = np.random.default_rng(0), 0, 300
    for _ in range(times):
        values, labels = random.normal(size=60), random.integers(0, 2, 60)
        values = values + labels
        errors = []
        for _ in range(10):
            order = random.permutation(60)
            learnt, judged = order[:40], order[40:]
            threshold = (values[learnt][labels[learnt] == 0].mean() + values[learnt][labels[learnt] == 1].mean()) / 2
            errors.append(float(((values[judged] > threshold) != labels[judged]).mean()))
        low, high = interval(tuple(errors), 20 / 40)
        held += low <= stats.norm.cdf(-0.5) + 0.01 and high >= stats.norm.cdf(-0.5)  # 40 numbers find nearly the best
    assert 0.88 < held / times <= 1


def test_the_interval_is_student_s_for_divisions_that_share_nothing() -> None:
    errors = (0.1, 0.2, 0.15, 0.12)
    expected = stats.t.interval(0.95, 3, loc=np.mean(errors), scale=stats.sem(errors))
    assert interval(errors, 0.0) == pytest.approx(expected)
