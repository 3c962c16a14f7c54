"""Suggestions about labels that are accepted, and cells of the confusion matrix that open their images."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def jobs(client: Any, tmp_path: Path, make_run: Callable[..., Any]) -> Path:
    """The folder where finished jobs have their results, and a run."""
    make_run(tmp_path / "runs", "photos-1", finished=True)
    folder = tmp_path / "runs" / ".studio" / "jobs"
    folder.mkdir(parents=True)
    return folder


def test_a_suggestion_is_accepted_or_declined_once(client: Any, photos: Path, jobs: Path) -> None:
    neighbor = {"path": str(photos / "dog" / "3.jpg"), "label": "dog", "similarity": 0.9}
    doubts = [
        {"path": str(photos / "cat" / f"{number}.jpg"), "label": "cat", "suggested": "dog", "score": 0.9,
         "reason": "1 of the 1 most similar images is labeled dog", "neighbors": [neighbor]}
        for number in (0, 1)
    ]  # fmt: skip
    (jobs / "photos.labels.json").write_text(json.dumps({"labels": {"checked": 5}, "label_errors": doubts}))
    rows = {row[0]: row[2:] for row in client.get("images", params={"label": "cat"}).json()["images"]}
    assert rows["0.jpg"] == ["doubt", "perhaps dog"]
    assert client.get("doubts").text.count("<h3>") == 2
    answer = client.post("decide", data={"path": "cat/0.jpg", "label": "dog"})
    assert answer.text.count("<h3>") == 1
    assert (photos / "dog" / "0.jpg").exists()
    answer = client.post("decide", data={"path": "cat/1.jpg", "label": "cat"})
    assert "<h3>" not in answer.text
    assert "Train again" in answer.text
    decided = json.loads((photos.parent / "photos.confirmed.json").read_text())
    assert decided == {"dog/0.jpg": "dog", "cat/1.jpg": "cat"}
    assert client.post("decide", data={"path": "../secret.jpg", "label": "cat"}).status_code == 409


def test_a_cell_opens_its_images(client: Any, photos: Path, jobs: Path) -> None:
    wrong = {"path": str(photos / "cat" / "0.jpg"), "label": 0, "predicted": 1, "probability": 0.75}
    found = {"names": ["cat", "dog"], "images": 5, "error": 0.2, "interval": [0.1, 0.5], "scope": "",
             "confusion": [[2, 1], [0, 2]], "mistakes": [wrong]}  # fmt: skip
    (jobs / "photos-1.mistakes.json").write_text(json.dumps(found))
    page = client.get("understand").text
    assert "20.0\u00a0% of 5\u00a0pictures" in page
    cell = client.get("cell", params={"run": "photos-1", "label": 0, "predicted": 1}).text
    assert "thumbnail?path=cat/0.jpg" in cell
    assert "75.0" in cell
    assert client.get("cell", params={"run": "photos-1", "label": 0, "predicted": 7}).status_code == 404
