"""What is set for a whole process is afterwards as it was before, whatever public function was called."""

import inspect
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import svertka
from svertka.device import preserve_process_settings
from svertka.run import Run


def process_settings() -> dict[str, Any]:
    return {
        "threads": torch.get_num_threads(),
        "interop": torch.get_num_interop_threads(),
        "dtype": torch.get_default_dtype(),
        "benchmark": torch.backends.cudnn.benchmark,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "gradients": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "precision": torch.get_float32_matmul_precision(),
        "filters": list(warnings.filters),
    }


@pytest.fixture(scope="module")
def run(digit_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("run") / "run"
    return svertka.train(digit_folder, output=folder, model="resnet20", size=16, epochs=0.1, threads=1)


def failing(data: Path, out: Path) -> None:
    with pytest.raises(svertka.SvertkaError):
        svertka.train(data, output=out / "r", threads=3, batch_size=10**6)


def saved(run: Run, out: Path) -> Path:
    """Return a copy of the run that does not know its images."""
    run.classifier().save(out / "saved")
    return out / "saved"


def refused_extension(run: Run, data: Path) -> None:
    with pytest.raises(svertka.SvertkaError, match="trained all of its layers"):
        svertka.extend(run, data, threads=3)


CALLS: dict[str, Callable[[Run, Path, Path], Any]] = {
    "train": lambda run, data, out: svertka.train(
        data, output=out / "r", model="mlp", size=8, epochs=0.1, threads=3, bfloat16=True
    ),
    "resume": lambda run, data, out: svertka.resume(run),
    "predict": lambda run, data, out: svertka.predict(run, data / "one", threads=3),
    "evaluate": lambda run, data, out: svertka.evaluate(run, data, threads=3),
    "compare": lambda run, data, out: svertka.compare([run, shutil.copytree(run, out / "s")], data, threads=3),
    "locate": lambda run, data, out: svertka.locate(run, torch.zeros(40, 40, 3, dtype=torch.uint8).numpy(), threads=3),
    "optimize": lambda run, data, out: svertka.optimize(run.classifier().network, torch.zeros(1, 3, 16, 16)),
    "accelerate": lambda run, data, out: svertka.accelerate(run.classifier().network)(torch.zeros(2, 3, 16, 16)),
    "check": lambda run, data, out: svertka.check(data),
    "suggest": lambda run, data, out: svertka.suggest(saved(run, out), data, count=2, threads=3),
    "similar": lambda run, data, out: svertka.similar(run, data / "one" / "00.png", data, threads=3),
    "shard": lambda run, data, out: svertka.shard(data, out / "shards", threads=3),
    "extend": lambda run, data, out: refused_extension(run, data),
    "tune": lambda run, data, out: svertka.tune(shape=(1, 2, 4, 4), weight=(2, 2, 3, 3), threads=3),
    "a failure": lambda run, data, out: failing(data, out),
}


def test_every_function_that_sets_threads_restores_them() -> None:
    for name in svertka.__all__:
        function = getattr(svertka, name)
        if not inspect.isclass(function) and "threads" in inspect.signature(function).parameters:
            source = inspect.getsource(inspect.unwrap(function))
            assert "@with_preserved_settings" in source.splitlines(), name


@pytest.mark.sample(4)
@pytest.mark.parametrize("name", CALLS)
def test_public_functions_leave_them_alone(name: str, run: Run, digit_folder: Path, tmp_path: Path) -> None:
    before = process_settings()
    CALLS[name](run, digit_folder, tmp_path)
    assert process_settings() == before


def test_the_context_restores_what_was_changed_in_it() -> None:
    before = process_settings()
    with preserve_process_settings():
        torch.set_num_threads(before["threads"] + 1)
        torch.backends.cudnn.benchmark = not before["benchmark"]
    assert process_settings() == before


def test_a_classifier_on_a_gpu_leaves_the_mode_of_cudnn_alone(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, device: self)
    before = process_settings()
    svertka.Classifier.load(run, "cuda")
    assert process_settings() == before


def test_importing_sets_nothing_and_the_command_line_keeps_freed_memory() -> None:
    script = """
import ctypes
calls = []
class Library:
    def __init__(self, name): pass
    def mallopt(self, *arguments): calls.append(arguments)
ctypes.CDLL = Library
import svertka, svertka.malloc
from svertka.cli.app import main
assert not calls
main(["--help"])
assert {setting for setting, _ in calls} == {-1, -3, -8}  # trim and mmap thresholds, arenas
"""
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
