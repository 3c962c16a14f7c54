"""Runs as files to take home."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def test_a_run_is_downloaded_without_what_only_a_training_needs(
    client: Any, tmp_path: Path, make_run: Callable[..., Any]
) -> None:
    run = make_run(tmp_path / "runs", "photos-1", finished=True)
    run.checkpoint.parent.mkdir()
    run.checkpoint.write_bytes(b"state")
    (run.folder / "link").symlink_to(tmp_path / "secret.jpg")
    assert "photos-1" in client.get("ship").text
    answer = client.get("download", params={"run": "photos-1", "what": "run"})
    names = zipfile.ZipFile(io.BytesIO(answer.content)).namelist()
    assert names == [f"photos-1/{name}" for name in ("config.json", "metrics.jsonl", "report.html", "training.json")]
    assert client.get("download", params={"run": "photos-1", "what": "onnx"}).status_code == 404
    assert client.get("download", params={"run": "../photos", "what": "run"}).status_code == 409


def test_an_export_that_is_there_is_offered(client: Any, tmp_path: Path, make_run: Callable[..., Any]) -> None:
    make_run(tmp_path / "runs", "photos-1", finished=True)
    jobs = tmp_path / "runs" / ".studio" / "jobs"
    (jobs / "photos-1.onnx").mkdir(parents=True)
    (jobs / "photos-1.onnx" / "model.onnx").write_bytes(b"network")
    (jobs / "photos-1.onnx.json").write_text("{}")
    assert "what=onnx" in client.get("ways", params={"run": "photos-1"}).text
    answer = client.get("download", params={"run": "photos-1", "what": "onnx"})
    assert answer.content == b"network"
    assert "photos-1-model.onnx" in answer.headers["content-disposition"]
