"""The states of trainings, found from run folders, and what trainings say."""

import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from svertka.errors import RunError, UsageError
from svertka.files import lock_descriptor
from svertka.run import Run
from svertka.studio.live_progress import read_progress
from svertka.studio.run_list import RunList
from svertka.studio.training_process import TrainingProcesses, parse_training_log
from svertka.tasks import Regression

SAID = """decoded images will take about 10.3 MB in /cache, of at most 7.64 GB
timing the training …
data     photos: 53 train, 7 val; 3 classes
network  efficientnet_lite0, 224×224 RGB, 3,374,851 parameters
time     about 1 min 44 s
values from −1 to 1
values from −1 to 1
computing features: 20 of 53 images, 9.1 s left
epoch 1 of 30: val error 12.00%, train error 10.00%
warning: one class is small
svertka: stopped after step 3 (epoch 0.50) and saved; continue with: svertka train --resume runs/photos-1
"""


def test_what_a_training_says_becomes_plan_notes_and_error() -> None:
    log = parse_training_log(SAID.splitlines())
    assert [label for label, _ in log.plan] == ["data", "network", "time"]
    assert log.working == "computing features: 20 of 53 images, 9.1 s left"
    drawing = "drawing: 12%, blocks.15.expand_conv, 3 min left"
    assert parse_training_log([drawing]).working == drawing
    assert log.notes[1:] == ("values from −1 to 1", "one class is small")
    assert log.error.startswith("stopped after step 3")


def test_a_new_server_finds_what_trains_and_what_stopped(tmp_path: Path, make_run: Callable[..., Run]) -> None:
    runs = RunList(tmp_path / "runs")
    processes = TrainingProcesses(runs)
    make_run(runs.folder, "done", finished=True)
    stopped = make_run(runs.folder, "stopped", finished=False)
    assert {name: processes.state(name) for name in runs.names()} == {"done": "finished", "stopped": "stopped"}
    holder = json.dumps({"process": os.getpid(), "host": platform.node()})
    stopped.lock.write_text(holder)  # left behind by a killed process whose number is in use again
    assert processes.state("stopped") == "stopped"
    descriptor = os.open(stopped.lock, os.O_RDWR)
    assert lock_descriptor(descriptor)
    assert processes.state("stopped") == "training"
    for act in (lambda: runs.rename("stopped", "other"), lambda: runs.archive("stopped")):
        with pytest.raises(RunError, match="is being trained"):
            act()
    with pytest.raises(RunError, match="training"):
        processes.resume("stopped")
    os.close(descriptor)
    with pytest.raises(RunError, match="ended already"):
        processes.stop("stopped")


def test_progress_says_how_far_it_is_and_escapes_what_files_say(tmp_path: Path, make_run: Callable[..., Run]) -> None:
    runs = RunList(tmp_path / "runs")
    make_run(runs.folder, "stopped", finished=False)
    runs.log_file("stopped").parent.mkdir()
    runs.log_file("stopped").write_text(SAID)
    progress = read_progress(runs, TrainingProcesses(runs), "stopped")
    assert progress.state == "stopped"
    assert progress.values["share"] == 0.5
    assert "It &lt;b&gt;overfits." in progress.html
    assert 'class="curves"' in progress.html
    assert "Continue</button>" in progress.html
    make_run(runs.folder, "done", finished=True)
    done = read_progress(runs, TrainingProcesses(runs), "done")
    assert done.values["errors"] == ["20.0\u00a0% of the validation pictures are wrong"]


def test_progress_of_a_number_is_its_mean_absolute_error(tmp_path: Path, make_run: Callable[..., Run]) -> None:
    runs = RunList(tmp_path / "runs")
    make_run(runs.folder, "ages", finished=False, task=Regression())
    shown = read_progress(runs, TrainingProcesses(runs), "ages").html
    assert "Mean absolute error" in shown
    assert "Top-1 error" not in shown


def test_progress_before_the_first_checkpoint_is_no_problem(tmp_path: Path) -> None:
    runs = RunList(tmp_path / "runs")
    (runs.folder / "new").mkdir(parents=True)
    assert read_progress(runs, TrainingProcesses(runs), "new").values["error"] == ""


def test_runs_are_renamed_archived_and_restored(tmp_path: Path, make_run: Callable[..., Run]) -> None:
    runs = RunList(tmp_path / "runs")
    make_run(runs.folder, "one", finished=True)
    make_run(runs.folder, "two", finished=True)
    assert runs.free_name("../my photos") == "my-photos-1"
    assert runs.rename("one", "first run") == "first run"
    with pytest.raises(UsageError, match="there is a run two already"):
        runs.rename("first run", "two")
    for name in ("../x", "", ".x", "a/b", "x" * 90):
        with pytest.raises(UsageError, match="cannot be the name"):
            runs.rename("two", name)
        with pytest.raises(RunError, match="no run"):
            runs.run(name)
    runs.archive("two")
    assert runs.names() == ["first run"]
    assert runs.names(archived=True) == ["two"]
    runs.restore("two")
    assert sorted(runs.names()) == ["first run", "two"]


def test_a_request_does_not_choose_code_that_is_run(client: Any) -> None:
    for field, value in (
        ("model", "os:abort"),
        ("model", "evil.py:make"),
        ("epochs", "1 --resume x"),
        ("weights", "x"),
    ):
        answer = client.post("start", data={field: value})
        assert answer.status_code == 400, field
        assert f"the field {field} is wrong" in answer.json()["error"]
