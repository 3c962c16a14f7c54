"""What tests of whole trainings share: what was reached, and how they are stopped."""

import hashlib
import json
import os
import signal
from collections.abc import Callable

import pytest

from svertka.run import Run
from svertka.training.run_recorder import Recorder


@pytest.fixture
def digest() -> Callable[[Run], str]:
    """`digest(run)`: of the weights that were reached: the last ones, not the best."""
    from svertka.tensor_files import read_tensors_and_header

    def of(run: Run) -> str:
        tensors, header = read_tensors_and_header(run.checkpoint)
        kept = sorted(name for name in tensors if name.startswith(("network.", "average.")))
        content = b"".join(tensors[name].numpy().tobytes() for name in kept)
        return hashlib.sha256(content + json.dumps(header["state"]["val_errors"]).encode()).hexdigest()

    return of


@pytest.fixture
def stop_at() -> Callable[[pytest.MonkeyPatch, int], None]:
    """`stop_at(monkeypatch, step)` asks for a stop after `step`, by the signal that Ctrl-C sends."""

    def stop(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
        wants_stop = Recorder.wants_stop

        def asked(self: Recorder) -> bool:
            if self.state.step == step:
                os.kill(os.getpid(), signal.SIGINT)
            return wants_stop(self)

        monkeypatch.setattr(Recorder, "wants_stop", asked)

    return stop
