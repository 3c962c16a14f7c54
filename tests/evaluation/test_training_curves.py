import html
import json
import math
import re
from typing import Any

import pytest

from svertka.evaluation.training_curves import (
    MAX_POINTS,
    TrainingCurves,
    bucket_means,
    format_epoch,
    subsample_log_lines,
)


def epoch(number: float, **changes: Any) -> dict[str, Any]:
    return {
        "kind": "epoch",
        "epoch": number,
        "step": int(number * 10),
        "train_loss": 2 / number,
        "train_error": 0.5 / number,
        "val_loss": 2.2 / number,
        "val_error": 0.6 / number,
        "learning_rate": 0.1,
        "images_per_second": 4000.0,
        "seconds": 3.0 * number,
    } | changes


def step(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "kind": "step",
        "step": number,
        "epoch": number / 10,
        "loss": 2.3,
        "error": 0.9,
        "learning_rate": 0.1,
        "images_per_second": 4000.0,
        "seconds": 0.3 * number,
    } | changes


def readings(drawn: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(html.unescape(re.search(r'data-readings="([^"]*)"', drawn)[1]))
    return found


def test_marked_epoch_is_the_best_epoch() -> None:
    history = TrainingCurves([epoch(1, kept=True), epoch(2, kept=True), epoch(3, kept=False), epoch(4, val_error=None)])
    assert history.best_epoch["epoch"] == 2
    assert "kept: epoch\u00a02" in history.curves_html()
    assert readings(history.curves_html())["rest"] == 1
    assert TrainingCurves([epoch(1, val_error=None, kept=True)]).best_epoch is None


def test_without_validation_set_nothing_is_marked() -> None:
    drawn = TrainingCurves([epoch(k, val_error=None, val_loss=None) for k in (1, 2, 3)]).curves_html()
    assert 'class="mark"' not in drawn
    assert ">val<" not in drawn
    assert readings(drawn)["texts"][-1] == ["train 0.667", "train 16.7\u00a0%", "0.1"]


@pytest.mark.parametrize("count", [1, 2, MAX_POINTS, MAX_POINTS + 1, 1000, 5000])
def test_subsample_keeps_the_last_and_the_best(count: int) -> None:
    lines = [epoch(k + 1) for k in range(count)]
    best = lines[count // 3]
    kept = subsample_log_lines(lines, keep=best)
    assert len(kept) <= MAX_POINTS + 1
    assert kept[-1] is lines[-1]
    assert any(line is best for line in kept)
    assert kept == sorted(kept, key=lambda line: line["epoch"])
    assert count > MAX_POINTS or kept == lines


def test_bucket_means_cover_all_steps() -> None:
    lines = [step(k, loss=float(k)) for k in range(MAX_POINTS * 3)]
    means = bucket_means(lines, ("loss",))["loss"]
    assert means == [3 * k + 1 for k in range(MAX_POINTS)]
    lines[4]["loss"] = None
    assert bucket_means(lines, ("loss",))["loss"][1] == (3 + 5) / 2
    assert math.isnan(bucket_means([step(1, loss=None)], ("loss",))["loss"][0])


def test_steps_are_drawn_before_the_first_epoch() -> None:
    history = TrainingCurves([step(k, loss=2.3 - 0.1 * k) for k in range(1, 8)])
    drawn = history.curves_html()
    assert readings(drawn)["names"][0] == "epoch\u00a00.10"
    assert 'class="solid"' in drawn
    assert history.table_html() == ""
    assert history.seconds == pytest.approx(2.1)


def test_a_head_that_was_fitted_at_once_draws_nothing() -> None:
    fitted = TrainingCurves([epoch(1, kept=True, learning_rate=None, fitted=True)])
    assert fitted.is_fitted
    assert (fitted.curves_html(), fitted.table_html(), fitted.best_epoch, fitted.seconds) == ("", "", None, 0.0)
    assert not TrainingCurves([epoch(1, learning_rate=None)]).is_fitted


def test_empty_history_draws_nothing() -> None:
    for lines in ([], [{"kind": "result"}], [{"no": "kind"}], [{"kind": "epoch"}], [{"kind": "range_test"}]):
        history = TrainingCurves(lines)
        assert (history.curves_html(), history.table_html(), history.lr_finder_html()) == ("", "", "")
        assert history.findings() == []
        assert history.seconds == 0


def test_missing_null_and_nan_values_leave_gaps() -> None:
    lines = [epoch(k) for k in range(1, 8)]
    lines[2]["train_loss"] = None
    lines[3]["val_error"] = math.nan
    del lines[4]["learning_rate"]
    drawn = TrainingCurves(lines).curves_html()
    assert "nan" not in drawn.lower().replace("nanc", "")
    solid = re.search(r'class="solid" d="([^"]*)"', drawn)[1]
    assert solid.count("M") == 2
    assert readings(drawn)["texts"][2][0].startswith("train –")
    assert readings(drawn)["texts"][4][2] == "–"


@pytest.mark.parametrize("rate", [None, math.nan])
def test_a_history_without_any_learning_rate_still_draws(rate: float | None) -> None:
    assert "Top-1 error" in TrainingCurves([epoch(k, learning_rate=rate) for k in (1, 2)]).curves_html()


def test_all_values_missing_still_draws() -> None:
    empty = dict.fromkeys(("train_loss", "train_error", "val_loss", "val_error", "learning_rate", "seconds"))
    history = TrainingCurves([epoch(k, **empty) for k in (1, 2)])
    assert "Top-1 error" in history.curves_html()
    assert "–" in history.table_html()


def test_findings_are_unique_and_in_order() -> None:
    lines = [
        {"kind": "health", "epoch": k, "step": k, "finding": "dead", "sentence": s} for k, s in enumerate("abcab", 1)
    ]
    assert TrainingCurves(lines).findings() == [("epoch\u00a01", "a"), ("epoch\u00a02", "b"), ("epoch\u00a03", "c")]


def test_lr_finder_marks_the_chosen_rate() -> None:
    rates = [10 ** (k / 10 - 6) for k in range(60)]
    drawn = TrainingCurves(
        [{"kind": "range_test", "learning_rate": rates, "loss": [2.3] * 59 + [None], "chosen": rates[30]}]
    ).lr_finder_html()
    assert readings(drawn)["rest"] == 30
    assert "chosen: 0.001" in drawn


def test_lr_finder_without_a_choice_draws_its_curve() -> None:
    drawn = TrainingCurves(
        [{"kind": "range_test", "learning_rate": [0.1, 1.0], "loss": [2.0, 1.0], "chosen": None}]
    ).lr_finder_html()
    assert "<path" in drawn
    assert 'class="mark"' not in drawn


def test_names_of_epochs() -> None:
    assert (format_epoch(14.0), format_epoch(2.371), format_epoch(2.5)) == (
        "epoch\u00a014",
        "epoch\u00a02.37",
        "epoch\u00a02.50",
    )
