"""A studio on a folder with real images."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from svertka.classifier import Config
from svertka.data.preprocessing import Preprocess
from svertka.run import Run
from svertka.tasks import SINGLE_LABEL, AnyTask

pytest.importorskip("fastapi")


def encode(side: int, shade: int, kind: str = "JPEG") -> bytes:
    """A crop of a photograph; each `shade` gives other bytes."""
    buffer = io.BytesIO()
    picture = Image.fromarray(load_sample_image("flower.jpg")).crop((shade, 0, shade + 320, 320))
    picture.resize((side, side)).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def photograph() -> Callable[..., bytes]:
    """`photograph(side, shade, kind)`: the bytes of an image file."""
    return encode


def write_run(runs: Path, name: str, *, finished: bool, task: AnyTask = SINGLE_LABEL) -> Run:
    """A run folder as a training leaves it."""
    run = Run(runs / name)
    run.folder.mkdir(parents=True)
    run.training.write_text(json.dumps({"format": 1, "source": "photos", "model": "m", "recipe": {"epochs": 4.0}}))
    preprocess = Preprocess(size=32, resize=32, mean=(0.5,) * 3, std=(0.5,) * 3)
    config = Config(model="lenet5", names=("age",), preprocess=preprocess, task=task)
    run.config.write_text(config.model_dump_json())
    epochs = [
        {"kind": "epoch", "epoch": k, "step": k, "train_loss": 1 / k, "train_error": 0.1, "val_loss": 1 / k,
         "val_error": 0.2, "kept": True, "learning_rate": 0.1, "images_per_second": 5, "seconds": 2.0 * k,
         "gradients": {}}
        for k in (1, 2)
    ]  # fmt: skip
    lines: list[dict[str, object]] = [
        *epochs,
        {"kind": "health", "epoch": 2, "finding": "x", "sentence": "It <b>overfits."},
    ]
    if finished:
        run.report.write_text("report")
        result = {"val_error": 0.2, "test_error": None, "epochs": 2, "seconds": 4.0, "images_per_second": 5}
        lines.append({"kind": "result"} | result)
    run.metrics.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return run


@pytest.fixture(scope="session")
def make_run() -> Callable[..., Run]:
    """`make_run(runs, name, finished=…)`: a run folder as a training leaves it."""
    return write_run


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three images of cat and two of dog, and a secret beside the folder."""
    folder = tmp_path / "photos"
    for number, label in enumerate(("cat", "cat", "cat", "dog", "dog")):
        (folder / label).mkdir(parents=True, exist_ok=True)
        (folder / label / f"{number}.jpg").write_bytes(encode(48, number))
    (tmp_path / "secret.jpg").write_bytes(encode(48, 9))
    return folder


@pytest.fixture
def client(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of a studio on `photos`, whose paths are relative to its pages."""
    httpx_client = pytest.importorskip("starlette.testclient").TestClient
    from svertka.serving.access_control import LOOPBACK
    from svertka.studio.app import StudioApp

    monkeypatch.chdir(tmp_path)
    app = StudioApp([photos], hosts=LOOPBACK, token=None, threads=1)
    with httpx_client(app.asgi, base_url="http://127.0.0.1/photos/") as client:
        yield client
