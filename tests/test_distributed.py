"""Two processes on one machine, as torchrun starts them, or with the variables that it sets."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from PIL import Image

import svertka
from fork_server import DISTRIBUTED, Python, run_python
from ranks import PATIENCE, child_processes, rendezvous, run_in_group, run_ranks, start_torchrun, wait_for_end
from svertka import distributed
from svertka.distributed import _first_sentence
from svertka.errors import UsageError
from svertka.run import Run
from svertka.tensor_files import read_tensors_and_header
from svertka.training.time_estimate import check_images_per_process

MIXED = {"mixup": 0.3, "cutmix": 1.0, "ema": 0.9, "auto_augment": "trivial", "random_erasing": 0.3}
OPTIONS = ["--model", "mlp", "--size", "8", "--batch-size", "32", "--lr", "0.05", "--threads", "1"]
PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


def torchrun(*arguments: str) -> subprocess.Popen[str]:
    return start_torchrun("-m", "svertka", *arguments)


def losses(run: Run) -> list[float]:
    return [entry["loss"] for entry in run.history() if entry["kind"] == "step"]


@pytest.fixture(scope="module")
def uneven(digit_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits of which two processes cannot share every part evenly."""
    source = Path(shutil.copytree(digit_folder, tmp_path_factory.mktemp("uneven") / "digits"))
    for path in sorted((source / "one").iterdir())[:5]:
        path.unlink()
    return source


@pytest.fixture(scope="module")
def alone(uneven: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("alone") / "run"
    changes = {"epochs": 3, "batch_size": 32, "lr": 0.05} | MIXED
    return svertka.train(uneven, output=folder, model="mlp", size=8, threads=1, test=0.13, **changes)


def test_two_processes_compute_what_one_does(uneven: Path, tmp_path: Path, alone: Run) -> None:
    run = Run(tmp_path / "run")
    mixed = [text for name, value in MIXED.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    printed = run_in_group(
        *("-m", "svertka", "train", str(uneven), "--output", str(run.folder), *OPTIONS, *mixed),
        *("--epochs", "3", "--test", "0.13", "--json"),
    )
    result = json.loads("".join(printed))  # printed once, not by each process
    # Float32 sums in another order: 1e-5 relative after 21 steps.
    assert losses(run) == pytest.approx(losses(alone), rel=1e-5)
    # 32 pictures a step over two processes is even; the last batch, val and test are not.
    sizes = run.settings()["parts"]
    assert sizes == alone.settings()["parts"]
    assert any(size % 2 for size in sizes.values())
    for part in ("val_error", "test_error"):
        assert result[part] == alone.result()[part]
    mine, theirs = (read_tensors_and_header(one.weights)[0] for one in (run, alone))
    assert all(torch.allclose(mine[name], theirs[name], rtol=1e-4, atol=1e-6) for name in mine)


ALONE = """
import pathlib, sys, threading, torch
from torch import nn
from svertka import distributed

def count_threads():
    return sum("gloo" in path.read_text() for path in pathlib.Path("/proc/self/task").glob("*/comm"))

def train(kind):
    network = distributed.data_parallel(nn.Linear(2, 2))
    assert distributed.all_gather(1) == [1]
    assert count_threads() > 0
    if kind is not None:
        raise kind("no luck")

def count_threads_after(kind):
    try:
        with distributed.process_group(torch.device("cpu")):
            train(kind)
    except BaseException as error:
        return str(error), count_threads()  # while the error is referred to
    return "trained", count_threads()

distributed.world_size = lambda: 2  # so that the only process makes a group
for kind in (None, RuntimeError, KeyboardInterrupt):
    print(*count_threads_after(kind), flush=True)
distributed.LEAVE_SECONDS = 0.1
distributed.dist.destroy_process_group = lambda: threading.Event().wait()
print(*count_threads_after(RuntimeError))
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="reads the names of threads from /proc")
def test_the_threads_of_a_process_group_end_with_it() -> None:
    # Otherwise a process now and then aborted at its end ("terminate called without an active exception"), or, after
    # an error, waited for a thread that waited for the lock of the interpreter.
    rendezvous = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    command = ["-W", "ignore", "-c", ALONE]
    process = run_python(command, modules=DISTRIBUTED, text=True, env=os.environ | rendezvous, timeout=PATIENCE)
    after_an_error = "process 0 of 2 failed: RuntimeError: no luck 0"
    assert process.stdout.splitlines() == ["trained 0", after_an_error, "no luck 0"], process.stderr
    # The last group is never left, which ends the process.
    assert process.returncode == 1
    assert "in process_group" in process.stderr


@pytest.mark.parametrize("by_torchrun", [False, pytest.param(True, marks=pytest.mark.large)])
def test_a_killed_worker_ends_the_job_and_one_process_continues_it(
    by_torchrun: bool, digit_folder: Path, tmp_path: Path
) -> None:
    run = Run(tmp_path / "run")
    arguments = ["-m", "svertka", "train", str(digit_folder), "--output", str(run.folder), *OPTIONS]
    with ExitStack() as stack:
        if by_torchrun:
            process = start_torchrun(*arguments, "--epochs", "100000")
        else:
            process, other = (
                Python([*arguments, "--epochs", "100000"], modules=DISTRIBUTED, env=os.environ | one, **pipes)
                for one, pipes in zip(stack.enter_context(rendezvous(2)), (PIPES, {}), strict=True)
            )
        assert process.stderr is not None
        seen = ""
        for line in process.stderr:
            seen += line
            if line.startswith("epoch 2"):
                break
        if by_torchrun:
            environments = {pid: Path(f"/proc/{pid}/environ").read_text() for pid in child_processes(process)}
            (killed,) = [pid for pid, text in environments.items() if "\0RANK=1\0" in text]
            os.kill(killed, signal.SIGKILL)
        else:
            other.kill()
            other.wait()
        _, stderr = wait_for_end(process)
    assert process.returncode != 0
    assert "was lost" in stderr or f"svertka train --resume {run.folder}" in stderr, seen + stderr
    # As if the plan had been shorter, so that the rest does not take long.
    settings = run.settings()
    settings["recipe"]["epochs"] = 20
    run.training.write_text(json.dumps(settings))
    assert svertka.resume(run).result()["epochs"] >= 20


VARIANTS = {
    "batch norm": ["--model", "resnet20", "--size", "8", "--batch-size", "37", "--epochs", "1"],
    "gradual, with batch norm": ["--gradual", "--unfreeze", "all", "--epochs", "2", "--batch-size", "32"],
    "frozen features, computed head": ["--unfreeze", "last", "--epochs", "1", "--batch-size", "32"],
    "head without a cache": ["--unfreeze", "head", "--no-cache", "--epochs", "1"],
    "head that is computed": ["--head", "logistic"],
    "a picture left over": ["--model", "resnet20", "--size", "8", "--batch-size", "215", "--epochs", "1"],
}


@pytest.fixture(scope="module")
def trained(digit_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("trained") / "run"
    return svertka.train(digit_folder, output=folder, model="resnet20", size=16, threads=1, epochs=0.1, batch_size=32)


@pytest.mark.parametrize("variant", VARIANTS)
def test_all_that_one_process_trains_two_do(
    digit_folder: Path, tmp_path: Path, trained: Run, variant: str, large_count: Callable[[int, int], int]
) -> None:
    if variant not in list(VARIANTS)[: large_count(0, len(VARIANTS))]:
        pytest.skip("all variants: make test-full")
    arguments = VARIANTS[variant]
    weights = [] if "--model" in arguments else ["--weights", str(trained.folder)]
    run = Run(tmp_path / "run")
    process = torchrun("train", str(digit_folder), "--output", str(run.folder), *arguments, *weights, "--threads", "1")
    _, stderr = wait_for_end(process)
    assert process.returncode == 0, stderr
    assert "process 1" not in stderr
    result = run.result()
    judged = svertka.evaluate(run.folder, digit_folder, part="val")  # of the weights that were kept
    assert result["val_error"] == pytest.approx(judged.top1_error)


def test_two_processes_train_with_boxes_and_gradual(
    digit_folder: Path, tmp_path: Path, trained: Run, large_count: Callable[[int, int], int]
) -> None:
    if not large_count(0, 1):
        pytest.skip("boxes: make test-full")
    source, rows = tmp_path / "source", []
    for path in sorted(digit_folder.rglob("*.png")):  # patches need 32 pixels a side
        larger = source / path.relative_to(digit_folder)
        larger.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            image.resize((48, 48)).save(larger)
        rows.append(f"{larger.relative_to(source)},{path.parent.name},6,6,42,42")
    boxes = tmp_path / "boxes.csv"
    boxes.write_text("\n".join(["path,label,xmin,ymin,xmax,ymax", *rows]))
    run = Run(tmp_path / "run")
    process = torchrun(
        "train", str(source), "--output", str(run.folder), "--boxes", str(boxes), "--gradual", "--epochs", "1",
        "--weights", str(trained.folder), "--threads", "1",
    )  # fmt: skip
    _, stderr = wait_for_end(process)
    assert process.returncode == 0, stderr
    assert stderr.count("--gradual changes nothing: with --boxes only the head is trained") == 1
    judged = svertka.evaluate(run.folder, source, part="val")
    assert run.result()["val_error"] == pytest.approx(judged.top1_error)


@pytest.mark.large  # the sentence: test_the_threads_of_a_process_group_end_with_it
def test_what_went_wrong_in_one_process_is_said_with_its_rank(digit_folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "fails.py"
    script.write_text(
        """
import sys
from svertka import distributed
from svertka.cli.app import main
from svertka.training.run_recorder import Recorder

looked = Recorder.on_metrics

def fails(self, look):
    if distributed.rank() == 1 and look.step > 5:
        raise RuntimeError("the second process has no luck")
    looked(self, look)

Recorder.on_metrics = fails
sys.exit(main())
"""
    )
    arguments = ["--output", str(tmp_path / "run"), *OPTIONS, "--epochs", "50"]
    process = start_torchrun(str(script), "train", str(digit_folder), *arguments)
    _, stderr = wait_for_end(process)
    assert process.returncode != 0
    assert "process 1 of 2 failed: RuntimeError: the second process has no luck" in stderr


def test_a_lost_process_is_reported_without_the_advice_of_gloo() -> None:
    said = "[/pytorch/gloo/pair.cc:553] Read error [127.0.0.1]:17070: Connection reset by peer. This is typically rare."
    assert _first_sentence(RuntimeError(said)) == "Read error [127.0.0.1]:17070: Connection reset by peer"
    assert _first_sentence(RuntimeError()) == "RuntimeError"


def test_too_little_for_all_processes_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UsageError, match="batch_size=2 is less than the 3 processes, .*; use at least 3"):
        check_images_per_process(2, 100)
    with pytest.raises(UsageError, match="2 training images are too few for 3 processes; start fewer processes"):
        check_images_per_process(2, 2)
    check_images_per_process(3, 3)


COLLECTIVES = """
import json, sys
import torch
from PIL import Image
from svertka import distributed
from svertka.errors import UsageError

def fails():
    raise UsageError("only the first process asked")

with distributed.process_group(torch.device("cpu")):
    rank = distributed.rank()
    rows = torch.full((rank + 2, 3), rank)
    try:
        distributed.call_on_first(fails)
        said = None
    except UsageError as error:
        said = str(error)
    found = {
        "sum": distributed.all_reduce(torch.tensor([1.0, rank])).tolist(),
        "rows": torch.cat(distributed.all_gather(rows)).tolist(),
        "values": distributed.all_gather(("rank", rank)),
        "first": distributed.broadcast({"rank": rank, "value": float("inf")}),
        "called": distributed.call_on_first(lambda: rank + 10),
        "said": said,
    }
    with open(f"{sys.argv[1]}/{rank}.json", "w") as file:
        json.dump(found, file)
"""


def test_collectives_give_every_process_the_same(tmp_path: Path) -> None:
    run_ranks(COLLECTIVES, tmp_path, str(tmp_path))
    expected = {
        "sum": [2, 1],
        "rows": [[0] * 3] * 2 + [[1] * 3] * 3,
        "values": [["rank", 0], ["rank", 1]],
        "first": {"rank": 0, "value": float("inf")},
        "called": 10,
        "said": "only the first process asked",
    }
    for rank in (0, 1):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == expected


def test_alone_everything_is_a_no_op() -> None:
    values = torch.tensor([1.0, 2.0])
    assert distributed.all_reduce(values) is values
    assert distributed.broadcast(3.5) == 3.5
    assert distributed.call_on_first(lambda: "y") == "y"
    assert distributed.all_gather("x") == ["x"]
    assert (distributed.rank(), distributed.world_size(), distributed.is_first()) == (0, 1, True)
    with distributed.process_group(torch.device("cpu")):
        distributed.barrier()
