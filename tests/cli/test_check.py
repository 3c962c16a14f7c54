"""What svertka check --labels prints."""

import json
from pathlib import Path

import pytest

from svertka.cli import printing
from svertka.cli.app import main
from svertka.curation import dataset_check
from svertka.curation.label_check import AmbiguousPair, GlobalOutlier, LabelError, LabelFindings, Neighbor


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> LabelFindings:
    """Invented findings, which the check of labels returns."""
    long = "photos/holidays/of the year 2024/" * 3
    near = tuple(Neighbor(f"{long}{k}.jpg", "two" if k else "one", 0.9, k) for k in range(5))
    errors = tuple(LabelError(f"{long}{k}.jpg", "one", "two", 0.99 - k / 100, near, k) for k in range(12))
    outliers = (GlobalOutlier(f"{long}9.jpg", "three", 4.25, near, 9),)
    pairs = (AmbiguousPair(("one", "two"), 20, 120, (0.11, 0.243), ("a.jpg",), (1,)),)
    made = LabelFindings(240, 0.05, (0.03, 0.08), "efficientnet_lite0:bundled", errors, outliers, pairs, ("a note",))
    monkeypatch.setattr(dataset_check, "check_labels", lambda *_, **__: made)
    return made


def test_the_tables_fit_the_terminal(
    found: LabelFindings, digit_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(printing, "_terminal_width", lambda: 80)
    assert main(["check", str(digit_folder), "--labels"]) == 0
    lines = capsys.readouterr().out.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("label error"))
    assert max(map(len, lines[first:])) <= 80
    assert lines[first + 1].split()[-6:] == ["one", "two", "0.99", "4", "of", "5"]
    assert "and 2 more; --json or --output check.html lists them" in lines
    assert lines[-1].split() == ["one", "two", "20", "16.7%", "11.0%", "to", "24.3%"]
    assert "labels of 240 images checked: 12 suspicious (out-of-fold error 5.0%, 95 % interval 3.0% to 8.0%)" in lines
    assert "a note" in lines


def test_json_has_the_most_suspicious_first(
    found: LabelFindings, digit_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(digit_folder), "--labels", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert [one["score"] for one in value["label_errors"]] == [one.score for one in found.errors]
    first = value["label_errors"][0]
    assert (first["label"], first["suggested"], len(first["neighbors"])) == ("one", "two", 5)
    assert first["reason"] == "4 of the 5 most similar images are labeled two"
    assert value["outliers"][-1]["score"] == 4.25
    assert value["ambiguous"][0]["classes"] == ["one", "two"]
    assert value["labels"]["out_of_fold_error"] == 0.05


def test_without_labels_nothing_is_said_about_them(digit_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(digit_folder), "--json"]) == 0
    assert not {"labels", "label_errors", "ambiguous"} & set(json.loads(capsys.readouterr().out))
    assert main(["check", str(digit_folder), "--output", "check.html"]) == 2
    assert capsys.readouterr().err == (
        "svertka: output=check.html shows label errors; give labels=True (--labels), too\n"
    )
