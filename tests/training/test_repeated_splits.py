"""train(repeats=…): the confidence interval against scipy and a simulation; refusals; what varies."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from svertka.errors import UsageError
from svertka.run import Run
from svertka.training.repeated_splits import confidence_interval
from svertka.training.train import train

QUICK = {"model": "mlp", "size": 8, "epochs": 2, "threads": 1}


def test_each_repeat_has_its_own_split(digit_folder: Path, tmp_path: Path) -> None:
    made = train(digit_folder, repeats=3, output=tmp_path / "runs", test=0.3, **QUICK)
    assert made.part == "test"
    assert [run.folder.name for run in made.runs] == ["0", "1", "2"]
    assert len({run.settings()["fingerprint"] for run in made.runs}) == 3
    assert list(made.errors) == [run.result()["test_error"] for run in made.runs]
    assert made.mean == pytest.approx(np.mean(made.errors))
    assert json.loads((tmp_path / "runs" / "repeats.json").read_text()) == made.to_dict()


def test_repeats_without_images_to_evaluate_on_are_refused(digit_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="left to evaluate on; set --test"):
        train(digit_folder, repeats=3, output=tmp_path / "runs", val=0, **QUICK)
    with pytest.raises(UsageError, match="repeats=1 must be from 2 to 1000; use 5 or 10"):
        train(digit_folder, repeats=1, output=tmp_path / "one")


def test_repeats_are_advised_only_to_single_trainings(
    digit_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in sorted(digit_folder.rglob("*.png")):
        if int(path.stem) < 8:
            place = tmp_path / "few" / path.relative_to(digit_folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place)
    train(tmp_path / "few", repeats=2, output=tmp_path / "runs", **QUICK)
    said = capsys.readouterr().err
    assert said.count("the result depends on which these are\n") == 2
    assert "--repeats" not in said
    assert "split 1 of 2; the time below is that of one split\n" in said
    assert "split 2 of 2, about " in said
    train(tmp_path / "few", output=tmp_path / "alone", **QUICK)
    assert "depends on which these are; --repeats 10 --test 0.3 shows how much" in capsys.readouterr().err


def in_parts(source: Path, target: Path, *parts: str) -> Path:
    for number, path in enumerate(sorted(source.rglob("*.png"))):
        place = target / parts[number % len(parts)] / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    return target


@pytest.mark.parametrize(
    ("parts", "options", "advice"),
    [
        (("train", "train", "val"), {}, "has its own val images, .* the same; give --test 0.3"),
        (("train", "train", "test"), {"val": 0}, "has its own test images, .* the same; give --val 0.1"),
        (
            ("train", "val", "test"),
            {"test": 0.3},
            "has its own val and test images, .* the same; put all images",
        ),
    ],
)
def test_repeats_that_would_be_the_same_are_refused_before_any_training(
    digit_folder: Path, tmp_path: Path, parts: tuple[str, ...], options: dict[str, float], advice: str
) -> None:
    source = in_parts(digit_folder, tmp_path / "parts", *parts)
    with pytest.raises(UsageError, match=advice):
        train(source, repeats=3, output=tmp_path / "runs", **QUICK, **options)
    assert not (tmp_path / "runs").exists()


def test_what_varies_is_stated(digit_folder: Path, tmp_path: Path) -> None:
    source = in_parts(digit_folder, tmp_path / "parts", "train", "train", "test")
    made = train(source, repeats=2, output=tmp_path / "runs", **QUICK)
    assert (made.part, made.varies) == ("test", "trained on")
    assert "the images trained on; the test images, which the source names, are the same" in made.sentence
    assert len({run.settings()["fingerprint"] for run in made.runs}) == 2
    source = in_parts(digit_folder, tmp_path / "own-val", "train", "train", "val")
    made = train(source, repeats=2, output=tmp_path / "tested", test=0.3, **QUICK)
    assert (made.part, made.varies) == ("test", "trained and judged on")
    assert made.to_dict()["varies"] == made.varies


def test_equal_splits_are_refused(digit_folder: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / "few" / name).mkdir(parents=True)
        for path in sorted((digit_folder / name).iterdir())[:2]:
            shutil.copy(path, tmp_path / "few" / name)
    with pytest.raises(UsageError, match="has too few images for 40 splits: those of .* are the same"):
        train(tmp_path / "few", repeats=40, output=tmp_path / "runs", test=0.3, **QUICK | {"epochs": 1})


def test_equal_errors_have_the_interval_of_one_split(
    digit_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = Run.result
    monkeypatch.setattr(Run, "result", lambda self: result(self) | {"test_error": 0.0})
    low, high = train(digit_folder, repeats=2, output=tmp_path / "runs", test=0.3, **QUICK).interval
    assert low == 0
    assert 0.03 < high < 0.1


def test_the_interval_covers_the_true_error_in_95_of_100_simulations() -> None:
    # Splits of one set of numbers, "trained" by taking the mean: the error is that of a threshold at it.
    random, held, times = np.random.default_rng(0), 0, 300
    for _ in range(times):
        values, labels = random.normal(size=60), random.integers(0, 2, 60)
        values = values + labels
        errors = []
        for _ in range(10):
            order = random.permutation(60)
            train, judged = order[:40], order[40:]
            threshold = (values[train][labels[train] == 0].mean() + values[train][labels[train] == 1].mean()) / 2
            errors.append(float(((values[judged] > threshold) != labels[judged]).mean()))
        low, high = confidence_interval(tuple(errors), 20 / 40)
        held += low <= stats.norm.cdf(-0.5) + 0.01 and high >= stats.norm.cdf(-0.5)  # 40 numbers find nearly the best
    assert 0.88 < held / times <= 1


def test_the_interval_of_independent_errors_is_that_of_scipy() -> None:
    errors = (0.1, 0.2, 0.15, 0.12)
    expected = stats.t.interval(0.95, 3, loc=np.mean(errors), scale=stats.sem(errors))
    assert confidence_interval(errors, 0.0) == pytest.approx(expected)


def test_a_test_part_of_copies_is_drawn_anew_for_each_repeat(digit_folder: Path, tmp_path: Path) -> None:
    for part in ("train", "test"):
        shutil.copytree(digit_folder, tmp_path / "parts" / part)
    made = train(tmp_path / "parts", repeats=2, output=tmp_path / "runs", **QUICK)
    assert (made.part, made.varies) == ("val", "trained and judged on")
