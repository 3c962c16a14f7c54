import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("fastapi")
from svertka.serving import request_body_limits
from svertka.serving.served_model import ServedModel


def test_memory_of_large_bodies_is_given_back(
    small_run: Path, live: Callable[..., Any], jpeg: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_back = threading.Event()
    monkeypatch.setattr(request_body_limits, "give_back_freed_memory", given_back.set)
    monkeypatch.setattr(request_body_limits, "TRIM_DELAY_SECONDS", 0.0)
    with live(ServedModel(small_run, torch.device("cpu"))) as server:
        assert server.ask("POST", "/predict", jpeg).status == 200
        assert not given_back.is_set()
        assert server.ask("POST", "/predict", bytes(request_body_limits.TRIM_MIN_BYTES + 1)).status == 415
        assert given_back.wait(120)


def test_no_more_is_held_than_has_come(small_run: Path, live: Callable[..., Any]) -> None:
    with live(ServedModel(small_run, torch.device("cpu"))) as server:
        for size, status in (
            (0, 400),
            (1000, 415),
            (request_body_limits.MAX_BODY_BYTES, 415),
            (request_body_limits.MAX_BODY_BYTES + 1, 413),
        ):
            assert server.ask("POST", "/predict", bytes(size)).status == status
            assert server.bytes_held() == 0
