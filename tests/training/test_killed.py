"""Killed at random moments, saving included: what lies there is always a run, and goes on to the same weights."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

from fork_server import Python, run_python

# One process imports everything once and forks a child for each attempt. One thread: a pool would not survive a fork.
# A timer of CPU time kills it, so that other processes do not shift the moment: SIGPROF, which nothing handles.
SCRIPT = """
import os, random, shutil, signal, sys, time
from pathlib import Path
import torch
import svertka
from svertka import progress
from svertka.errors import SvertkaError
from svertka.run import Run
from svertka.tensor_files import read_tensors_and_header
from svertka.training import run_recorder, single_run, training_loop

source, folder, attempts = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
training_loop.LOG_EVERY = 1
run_recorder.CHECKPOINT_EVERY = run_recorder.CHECKPOINT_COST = 0  # look, and save, after every step
progress.say = single_run.say = lambda *text: None
progress.Progress.say = lambda *text: None
torch.set_num_threads(1)
options = dict(model="mlp", size=8, epochs=4, batch_size=32, lr=0.05, threads=1)

def weights(run):
    tensors, _ = read_tensors_and_header(run.checkpoint)
    return {name: value for name, value in tensors.items() if name.startswith("network.")}

def kill_later(step, seconds):
    looked, seen = run_recorder.Recorder.on_metrics, []

    def look(self, metrics):
        looked(self, metrics)
        seen.append(1)
        if len(seen) == step:
            signal.setitimer(signal.ITIMER_PROF, seconds)

    run_recorder.Recorder.on_metrics = look

whole = svertka.train(source, output=folder / "whole", **options)
began = time.process_time()  # of the second, which finds everything warm
svertka.train(source, output=folder / "again", **options)
seconds = time.process_time() - began
steps = sum(entry["kind"] == "step" for entry in whole.history())
expected = weights(whole)
random.seed(0)
begun = finished = 0
for attempt in range(attempts):
    run = Run(folder / "run")
    if run.training.exists():  # else it is free, whatever a killed process left there
        shutil.rmtree(run.folder)
    step = random.randint(1, round(0.8 * steps))
    child = os.fork()
    if not child:
        if attempt % 4:  # most while it learns and saves, some while it prepares and makes the folder
            kill_later(step, random.uniform(0.0001, 0.01))
        else:
            signal.setitimer(signal.ITIMER_PROF, random.uniform(0.01, seconds))
        try:
            svertka.train(source, output=run.folder, **options)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    if not run.training.exists():  # killed before the run was there
        assert not run.folder.exists() or {path.name for path in run.folder.iterdir()} <= {".lock"}
        continue
    begun += 1
    svertka.Classifier.load(run.folder)
    finished += any(entry["kind"] == "result" for entry in run.history())
    run = svertka.resume(run.folder)
    reached = weights(run)
    assert all(torch.equal(expected[name], reached[name]) for name in expected), attempt
    assert run.result()["epochs"] == 4
    svertka.Classifier.load(run.folder)
print("begun", begun, "finished", finished)
"""


def test_a_killed_training_can_always_be_continued(
    digit_folder: Path, tmp_path: Path, large_count: Callable[[int, int], int]
) -> None:
    attempts = large_count(4, 100)
    arguments = ["-c", SCRIPT, str(digit_folder), str(tmp_path), str(attempts)]
    done = run_python(arguments, text=True, timeout=3600 if attempts > 4 else 240)
    assert done.returncode == 0, done.stderr
    _, begun, _, finished = done.stdout.split()
    assert int(begun) > attempts / 2  # else the test would have tested nothing
    assert int(finished) <= attempts / 2


def test_sigterm_saves_and_prints_the_command_that_continues(digit_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ["-m", "svertka", "train", str(digit_folder), "--model", "mlp", "--size", "8"]
    command += ["--epochs", "10000", "--output", str(run), "--threads", "1"]
    with Python(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("epoch 3"):
                process.terminate()
                break
        rest = process.stderr.read()
    assert process.returncode == 143
    assert f"continue with: svertka train --resume {run}" in rest
    assert "Traceback" not in rest
    history = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert sum(line["kind"] == "epoch" for line in history) >= 3
