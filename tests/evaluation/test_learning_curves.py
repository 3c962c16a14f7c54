import html
import json
import math
import re
from typing import Any

import pytest

from svertka.evaluation.learning_curves import POINTS, History, bucketed, epoch_name, thinned


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


def test_the_marked_epoch_is_the_last_that_was_kept() -> None:
    history = History([epoch(1, kept=True), epoch(2, kept=True), epoch(3, kept=False), epoch(4, val_error=None)])
    assert history.kept["epoch"] == 2
    assert "kept: epoch\u00a02" in history.figure()
    assert readings(history.figure())["rest"] == 1
    assert History([epoch(1, val_error=None, kept=True)]).kept is None


def test_without_a_val_part_nothing_is_marked_and_nothing_is_called_val() -> None:
    drawn = History([epoch(k, val_error=None, val_loss=None) for k in (1, 2, 3)]).figure()
    assert 'class="mark"' not in drawn
    assert ">val<" not in drawn
    assert readings(drawn)["texts"][-1] == ["train 0.667", "train 16.7\u00a0%", "0.1"]


@pytest.mark.parametrize("count", [1, 2, POINTS, POINTS + 1, 1000, 5000])
def test_thinning_keeps_the_last_and_the_best(count: int) -> None:
    lines = [epoch(k + 1) for k in range(count)]
    best = lines[count // 3]
    kept = thinned(lines, keep=best)
    assert len(kept) <= POINTS + 1
    assert kept[-1] is lines[-1]
    assert any(line is best for line in kept)
    assert kept == sorted(kept, key=lambda line: line["epoch"])
    assert count > POINTS or kept == lines


def test_buckets_are_means_and_miss_nothing() -> None:
    lines = [step(k, loss=float(k)) for k in range(POINTS * 3)]
    means = bucketed(lines, ("loss",))["loss"]
    assert means == [3 * k + 1 for k in range(POINTS)]
    lines[4]["loss"] = None
    assert bucketed(lines, ("loss",))["loss"][1] == (3 + 5) / 2
    assert math.isnan(bucketed([step(1, loss=None)], ("loss",))["loss"][0])


def test_before_the_first_epoch_the_steps_are_the_curve() -> None:
    history = History([step(k, loss=2.3 - 0.1 * k) for k in range(1, 8)])
    drawn = history.figure()
    assert readings(drawn)["names"][0] == "epoch\u00a00.10"
    assert 'class="solid"' in drawn
    assert history.table() == ""
    assert history.seconds == pytest.approx(2.1)


def test_nothing_to_draw_is_nothing() -> None:
    for lines in ([], [{"kind": "result"}], [{"no": "kind"}], [{"kind": "epoch"}], [{"kind": "range_test"}]):
        history = History(lines)
        assert (history.figure(), history.table(), history.range_test(), history.findings()) == ("", "", "", [])
        assert history.seconds == 0


def test_missing_null_and_nan_values_leave_gaps() -> None:
    lines = [epoch(k) for k in range(1, 8)]
    lines[2]["train_loss"] = None
    lines[3]["val_error"] = math.nan
    del lines[4]["learning_rate"]
    drawn = History(lines).figure()
    assert "nan" not in drawn.lower().replace("nanc", "")
    solid = re.search(r'class="solid" d="([^"]*)"', drawn)[1]
    assert solid.count("M") == 2
    assert readings(drawn)["texts"][2][0].startswith("train –")
    assert readings(drawn)["texts"][4][2] == "–"


@pytest.mark.parametrize("rate", [None, math.nan])
def test_a_history_without_any_learning_rate_still_draws(rate: float | None) -> None:
    assert "Top-1 error" in History([epoch(k, learning_rate=rate) for k in (1, 2)]).figure()


def test_all_values_missing_still_draws() -> None:
    empty = dict.fromkeys(("train_loss", "train_error", "val_loss", "val_error", "learning_rate", "seconds"))
    history = History([epoch(k, **empty) for k in (1, 2)])
    assert "Top-1 error" in history.figure()
    assert "–" in history.table()


def test_findings_come_once_each_in_order() -> None:
    lines = [
        {"kind": "health", "epoch": k, "step": k, "finding": "dead", "sentence": s} for k, s in enumerate("abcab", 1)
    ]
    assert History(lines).findings() == [("epoch\u00a01", "a"), ("epoch\u00a02", "b"), ("epoch\u00a03", "c")]


def test_the_finder_marks_the_rate_it_chose() -> None:
    rates = [10 ** (k / 10 - 6) for k in range(60)]
    drawn = History(
        [{"kind": "range_test", "learning_rate": rates, "loss": [2.3] * 59 + [None], "chosen": rates[30]}]
    ).range_test()
    assert readings(drawn)["rest"] == 30
    assert "chosen: 0.001" in drawn


def test_a_finder_without_a_choice_draws_its_curve() -> None:
    drawn = History(
        [{"kind": "range_test", "learning_rate": [0.1, 1.0], "loss": [2.0, 1.0], "chosen": None}]
    ).range_test()
    assert "<path" in drawn
    assert 'class="mark"' not in drawn


def test_names_of_epochs() -> None:
    assert (epoch_name(14.0), epoch_name(2.371), epoch_name(2.5)) == (
        "epoch\u00a014",
        "epoch\u00a02.37",
        "epoch\u00a02.50",
    )
