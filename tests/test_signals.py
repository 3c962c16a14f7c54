"""Requests to stop are never lost, whenever they come."""

import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from svertka.classifier import Classifier, Config
from svertka.data.preprocessing import Preprocess
from svertka.models.registry import MODELS
from svertka.signals import AGAIN_SECONDS, Stopped, raise_on_stop, record_stop

# Sends the signal when the module argv[1] is first looked for, before the command line argv[3:] runs.
SENT_WHILE_LOADING = """
import os, sys

class Sender:
    def find_spec(self, name, path, target=None):
        if name == wanted and sys.meta_path[0] is self:
            del sys.meta_path[0]
            os.kill(os.getpid(), number)

wanted, number = sys.argv[1], int(sys.argv[2])
del sys.argv[1:3]
sys.meta_path.insert(0, Sender())
from svertka.__main__ import run
sys.exit(run())
"""


def wait(seconds: float) -> None:
    """Let a request come that is repeated."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)


def test_an_import_does_not_swallow_a_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "swallowing_module.py").write_text(
        f"import os\ntry:\n    os.kill(os.getpid(), {signal.SIGTERM:d})\nexcept BaseException:\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    imported = []

    def imports() -> None:
        imported.append(importlib.import_module("swallowing_module"))
        wait(60)

    with raise_on_stop() as request, pytest.raises(Stopped):
        imports()
    assert imported
    assert request.exit_code == 143
    wait(10 * AGAIN_SECONDS)  # nothing is sent any more, which would end this process


def test_a_finalizer_does_not_swallow_a_request(capfd: pytest.CaptureFixture[str]) -> None:
    class Stopping:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGHUP)

    def finalizes() -> None:
        Stopping()
        wait(60)

    with raise_on_stop() as request, pytest.raises(Stopped):
        finalizes()
    assert request.exit_code == 129
    assert capfd.readouterr().err == ""


def test_a_request_that_was_raised_is_not_repeated() -> None:
    with raise_on_stop():
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGINT)
        with record_stop() as again:
            wait(10 * AGAIN_SECONDS)
    assert again.number is None


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    ("module", "number", "arguments"),
    [
        ("svertka.cli.time_convolutions", signal.SIGINT, ["--help"]),  # the command line itself
        ("numpy", signal.SIGHUP, ["models"]),  # which PyTorch imports, and can do without
        ("uvicorn", signal.SIGTERM, ["serve", "run"]),
    ],
)
def test_a_request_while_svertka_is_loaded_is_one_sentence(
    module: str, number: int, arguments: list[str], tmp_path: Path
) -> None:
    preprocess = Preprocess(size=28, resize=28, mean=(0.5,), std=(0.25,))
    network = MODELS["lenet5"].build(2, 1, 28)
    Classifier(network, Config(model="lenet5", names=("one", "two"), preprocess=preprocess)).save(tmp_path / "run")
    done = subprocess.run(
        [sys.executable, "-c", SENT_WHILE_LOADING, module, str(int(number)), *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.stderr == "svertka: stopped; run the same command again; cached data is kept\n"
    assert done.returncode == 128 + number
