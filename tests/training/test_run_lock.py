"""Trainings that start together, and runs that another process trains."""

import fcntl
import json
import os
import platform
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import svertka
from fork_server import Python
from svertka.errors import DataError, Interrupted, RunError, UsageError
from svertka.run import Run
from svertka.training import run_lock as module
from svertka.training.run_lock import claim_run_folder, lock_run

OPTIONS = {"model": "mlp", "size": 8, "epochs": 1, "threads": 1}


@contextmanager
def held_by_another(code: str, *arguments: object, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that runs `code`, until it prints a line."""
    command = ["-c", code, *map(str, arguments)]
    with Python(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        yield process
        process.kill()


CLAIM = """
import sys
from svertka.training.run_lock import claim_run_folder
with claim_run_folder("digits", "mlp", sys.argv[1] if len(sys.argv) > 1 else None) as folder:
    print(folder, flush=True)
    sys.stdin.read()
"""
USE = """
import sys
from svertka.run import Run
from svertka.training.run_lock import lock_run
with lock_run(Run(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_each_takes_its_own_name_before_it_has_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with ExitStack() as stack:
        stack.enter_context(held_by_another(CLAIM, folder=tmp_path))
        names = [stack.enter_context(claim_run_folder("digits", "mlp", None)) for _ in range(3)]
        assert names == [Path(f"runs/digits-mlp-{number}") for number in (2, 3, 4)]
        with pytest.raises(RunError, match=rf"digits-mlp-3 is being trained by process {os.getpid()}; wait until"):
            stack.enter_context(claim_run_folder("digits", "mlp", names[1]))
        for name in names[:2]:
            (name / "config.json").write_text("")
    assert sorted(path.name for path in Path("runs").iterdir()) == ["digits-mlp", "digits-mlp-2", "digits-mlp-3"]
    assert [path.name for path in names[0].iterdir()] == ["config.json"]
    with claim_run_folder("digits", "mlp", None) as again:  # the name that a killed process had
        assert again == Path("runs/digits-mlp")


def test_the_name_is_short_enough_for_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("é" * 120).mkdir()
    with claim_run_folder("é" * 120, "mlp", None) as folder:
        assert folder.name == "é" * 80 + "-mlp"


def test_a_preparation_that_fails_leaves_nothing(tmp_path: Path, digit_folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="too small"):
        svertka.train(digit_folder, output=tmp_path / "run", **(OPTIONS | {"model": "resnet20", "size": 2}))
    with pytest.raises(UsageError, match="too small"):  # an empty folder may be taken, and goes with what failed
        svertka.train(digit_folder, output=tmp_path / "empty", **(OPTIONS | {"model": "resnet20", "size": 2}))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("what", ["file", "link", "full"])
def test_what_is_there_is_left_alone(tmp_path: Path, what: str) -> None:
    place = tmp_path / "place"
    if what == "file":
        place.write_text("mine")
    elif what == "link":
        place.symlink_to(tmp_path / "nowhere")
    else:
        place.mkdir()
        (place / "mine").write_text("mine")
    with pytest.raises(UsageError, match="place exists; choose another"), claim_run_folder("digits", "mlp", place):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["place"]


def begun(digit_folder: Path, run: Path, patch: pytest.MonkeyPatch, stop_at: Callable[..., None]) -> None:
    with patch.context() as patched:
        stop_at(patched, 1)
        with pytest.raises(Interrupted):
            svertka.train(digit_folder, output=run, **OPTIONS)


def test_a_run_in_training_is_refused_with_the_process_and_free_when_that_is_killed(
    digit_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: Callable[..., None]
) -> None:
    run = tmp_path / "run"
    begun(digit_folder, run, monkeypatch, stop_at)
    (tmp_path / "link").symlink_to(run)
    with held_by_another(USE, run, folder=tmp_path) as process:
        for attempt in (
            lambda: svertka.resume(run),
            lambda: svertka.resume(tmp_path / "link"),
            lambda: svertka.train(digit_folder, output=run, **OPTIONS),
        ):
            with pytest.raises(RunError, match=rf"is being trained by process {process.pid}; wait until it ends, or"):
                attempt()
    assert svertka.resume(run).result()["epochs"] == 1
    assert not Run(run).lock.exists()


def test_a_file_system_without_locks_is_said(
    digit_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def without(*_: object) -> None:
        raise OSError(module.errno.ENOLCK, "No locks available")

    from svertka import files

    real = files.lock_descriptor
    monkeypatch.setattr(module, "lock_descriptor", lambda *args, **options: without() if options else real(*args))
    run = svertka.train(digit_folder, output=tmp_path / "run", **OPTIONS)
    assert (
        f"{run.folder} is on a file system without locks; do not train it in two processes" in capsys.readouterr().err
    )
    assert not run.lock.exists()


@pytest.mark.parametrize("content", [b"", b"[1]", b"{}", b'{"process": "x", "host": 1}', b"[" * 10_000])
def test_a_lock_that_names_nobody_still_keeps_others_out(tmp_path: Path, content: bytes) -> None:
    run = Run(tmp_path)
    run.training.write_text("{}")
    with run.lock.open("wb") as file:
        file.write(content)
        file.flush()
        fcntl.flock(file.fileno(), fcntl.LOCK_EX)
        with pytest.raises(RunError, match="is being trained by another process"), lock_run(run):
            pass


def test_another_machine_is_named(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.lock.write_text(json.dumps({"process": 7, "host": "elsewhere"}))
    with pytest.raises(RunError, match="by process 7 on elsewhere; wait"):
        module.check_not_locked(run)
    run.lock.write_text(json.dumps({"process": 7, "host": platform.node()}))
    with pytest.raises(RunError, match="by process 7; wait"):
        module.check_not_locked(run)


# ---- going on when things have moved


def test_a_run_goes_on_with_pictures_that_were_moved(
    digit_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop_at: Callable[..., None],
    digest: Callable[[Run], str],
) -> None:
    import shutil

    data, elsewhere = tmp_path / "my data", tmp_path / "else where"
    shutil.copytree(digit_folder, data)
    whole = svertka.train(data, output=tmp_path / "whole", **OPTIONS)
    run = tmp_path / "a run"
    begun(data, run, monkeypatch, stop_at)
    data.rename(elsewhere)
    again = re.escape(f"svertka train --resume '{run}' SOURCE")
    with pytest.raises(UsageError, match=f"there is no folder .*; if the images were moved, say where .* {again}"):
        svertka.resume(run)
    other = tmp_path / "other"
    shutil.copytree(digit_folder, other)
    (other / "one" / "00.png").unlink()
    anew = re.escape(f"svertka train '{other}' --weights '{run}'".replace(f"'{other}'", str(other)))
    with pytest.raises(RunError, match=rf"\(239 now, 240 then\); put them back, or to train further, .*: {anew}"):
        svertka.resume(run, other)
    assert Run(run).settings()["source"] == str(data)
    resumed = svertka.resume(run, elsewhere)
    assert digest(resumed) == digest(whole)
    assert resumed.settings()["source"] == str(elsewhere)
    assert svertka.evaluate(resumed, elsewhere).top1_error == resumed.result()["val_error"]


def test_a_finished_run_says_how_to_train_further(
    digit_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    data = tmp_path / "data"
    shutil.copytree(digit_folder, data)
    run = svertka.train(data, output=tmp_path / "run", **OPTIONS)
    shutil.copytree(data / "one", data / "five")
    capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")}
    assert svertka.resume(run).result() == run.result()
    command = f"start a new run from its weights: svertka train {data} --weights {run.folder}"
    assert f"{run.folder} has finished already; to train further, also on other images, {command}" in (
        capsys.readouterr().err
    )
    assert {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")} == before
    svertka.train(data, weights=run, output=tmp_path / "further", epochs=1, threads=1)
    with pytest.raises(DataError):
        svertka.evaluate(run, data)
    moved = data.rename(tmp_path / "moved")
    svertka.resume(run, moved)
    assert f"svertka train {moved} --weights {run.folder}" in capsys.readouterr().err
