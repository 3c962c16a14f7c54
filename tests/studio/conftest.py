"""A studio on a folder with real images."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

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
