"""Ctrl-C, SIGTERM and SIGHUP in every phase of a training: what there is goes on to the same weights."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import svertka
from svertka.classifier import Classifier
from svertka.cli.app import main
from svertka.run import Run
from svertka.training import checkpoint, metrics_log, resume, run_recorder, single_run, training_loop

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
PLAIN = ["--model", "mlp", "--size", "8", "--epochs", "2", "--threads", "1"]
COMPUTED = ["--model", "resnet20", "--recipe", "frozen", "--head", "nearest-mean", "--size", "8", "--threads", "1"]
STOPPED_EARLY = [*PLAIN, "--epochs", "9", "--early-stop", "1", "--lr", "1e-6"]

# Where a signal comes: owner and name of what is called in this phase, at which call.
PHASES: dict[str, tuple[Any, str, int]] = {
    "reading": (single_run, "open_source", 1),
    "decoding": (single_run, "decode_and_split", 1),
    "timing": (single_run.time_estimate, "time_training_steps", 1),
    "making the run": (single_run, "write_new_run", 1),
    "first checkpoint": (checkpoint, "write_tensors", 1),
    "the optimizer": (resume, "build_optimizer", 1),
    "computing the head": (resume, "compute_head", 1),
    "computing features": (resume, "build_training_inputs", 1),
    "a step": (training_loop, "take_step", 9),
    "scoring val": (run_recorder, "evaluate_network", 2),
    "last checkpoint": (checkpoint, "save", 2),
    "loading what was kept": (Classifier, "load", 1),
    "scoring": (resume, "prepare_evaluation_network_and_batches", 1),
    "the result": (metrics_log.MetricsLog, "close", 1),
    "the report": (resume.training_report, "write_training_report", 1),
}


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that a frozen network starts from."""
    import torch

    from svertka.models.registry import MODELS

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "x.pth"
    torch.save(MODELS["resnet20"].build().state_dict(), path)
    return path


@pytest.fixture(scope="module")
def whole(digit_folder: Path, starts: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """The same trainings, undisturbed."""
    runs = {}
    for name, options in (
        ("plain", PLAIN),
        ("computed", [*COMPUTED, "--weights", str(starts)]),
        ("early", STOPPED_EARLY),
    ):
        run = tmp_path_factory.mktemp("whole") / name
        assert main(["train", str(digit_folder), *options, "--output", str(run)]) == 0
        runs[name] = Run(run)
    return runs


def signalled(patch: pytest.MonkeyPatch, phase: str, number: int, *, after: bool) -> list[str]:
    """Let `number` be sent in `phase`, once, when it begins or has ended; what is returned then holds its name."""
    owner, name, call = PHASES[phase]
    original = vars(owner)[name]
    function = original.__func__ if isinstance(original, classmethod) else original
    calls: list[int] = []
    sent: list[str] = []

    def send() -> None:
        if len(calls) == call and not sent:
            sent.append(phase)
            os.kill(os.getpid(), number)
            time.sleep(0)  # the handler runs between two instructions of this thread

    def hooked(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if not after:
            send()
        result = function(*args, **options)
        if after:
            send()
        return result

    patch.setattr(owner, name, classmethod(hooked) if isinstance(original, classmethod) else hooked)
    return sent


@pytest.mark.sample(14)
@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("kind", ["plain", "computed", "early"])
@pytest.mark.parametrize("phase", list(PHASES))
def test_a_signal_in_any_phase_loses_nothing(
    digit_folder: Path,
    tmp_path: Path,
    starts: Path,
    whole: dict[str, Run],
    kind: str,
    phase: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    digest: Callable[[Run], str],
    large_count: Callable[[int, int], int],
) -> None:
    number_of = list(PHASES).index(phase)
    if kind != ("plain", "computed", "early")[number_of % 3] and not large_count(0, 1):
        pytest.skip("every phase of every kind of training: make test-full")
    options = {"plain": PLAIN, "computed": [*COMPUTED, "--weights", str(starts)], "early": STOPPED_EARLY}[kind]
    moments = [(number, after) for number in CODES for after in (False, True)]
    first = number_of % len(moments)
    for attempt in range(large_count(1, len(moments))):
        number, after = moments[(first + attempt) % len(moments)]
        run = Run(tmp_path / f"my run {attempt}")
        capsys.readouterr()
        with monkeypatch.context() as patch:
            sent = signalled(patch, phase, number, after=after)
            code = main(["train", str(digit_folder), *options, "--output", str(run.folder)])
        error = capsys.readouterr().err
        if not sent:
            pytest.skip("that phase does not come")
        assert "Traceback" not in error
        if code == 0:  # it came when all was done
            assert after
            assert run.is_finished
            continue
        assert code == CODES[signal.Signals(number)], error
        if run.training.exists():
            command = re.search(r"continue with: svertka (.*)", error)
            assert command, error
            assert main(shlex.split(command[1])) == 0
        else:
            assert "stopped; run the same command again" in error
            assert not list(tmp_path.glob(f"my run {attempt}*"))
            assert not list(tmp_path.glob(".*"))
            assert main(["train", str(digit_folder), *options, "--output", str(run.folder)]) == 0
        assert digest(run) == digest(whole[kind])
        lines = [entry["epoch"] for entry in run.history() if entry["kind"] == "epoch"]
        assert lines == [entry["epoch"] for entry in whole[kind].history() if entry["kind"] == "epoch"]
        assert run.result()["val_error"] == whole[kind].result()["val_error"]
        assert not run.lock.exists()


def test_ctrl_c_in_a_notebook_stays_ctrl_c_until_there_is_a_run(
    digit_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(single_run, "decode_and_split", interrupted)
    with pytest.raises(KeyboardInterrupt):
        svertka.train(digit_folder, output=tmp_path / "run", model="mlp", size=8, epochs=1, threads=1)
    assert not list(tmp_path.iterdir())


FAST = f"{sys.executable} -m svertka train %s --model mlp --size 8 --epochs 2 --threads 1 --output %s"


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    "stderr", ["2>&-", "2>/dev/full", "2> >(exec 0<&-; sleep 0)", ">&- 2>&-", "</dev/null >/dev/null 2>&-"]
)
def test_a_training_goes_on_when_nobody_hears_it(
    digit_folder: Path, tmp_path: Path, stderr: str, large_count: Callable[[int, int], int]
) -> None:
    if stderr not in ("2>/dev/full", ">&- 2>&-") and not large_count(0, 1):
        pytest.skip("every way to be unheard: make test-full")
    run = Run(tmp_path / "run")
    command = FAST % (digit_folder, run.folder) + f" {stderr}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert done.returncode == (1 if stderr == ">&- 2>&-" else 0), done.stderr
    assert run.result()["epochs"] == 2
    said = [entry["sentence"] for entry in run.history() if entry.get("finding") == "unseen"]
    assert len(said) == 1
    assert said[0].startswith("stderr cannot be written (")
