"""Trainings as processes of their own: `svertka train` writes a run folder, which is the only state.

A training goes on if the server is killed, and a new server finds it by the lock of its run.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from svertka.errors import RunError
from svertka.files import os_error_to_storage_error
from svertka.run import Run
from svertka.studio.run_list import RunList
from svertka.training.run_lock import find_training_process

State = Literal["preparing", "training", "stopped", "finished", "failed"]
MAX_LOG_BYTES = 1 << 20  # that are read of what a training said
STOP_SECONDS = 30.0  # for a training to write its checkpoint
PLAN_LINE = re.compile(r"([a-z0-9][a-z0-9 ]{1,20}?) {2,}(\S.*)")  # as `progress.say_table` prints
PROGRESS_LINE = re.compile(r"(.{1,60}?): (\d+%.*|[\d,]+ of [\d,]+.*)")  # as `progress.Progress` prints
SAID_ELSEWHERE = ("svertka: ", "next: ", "the run is in ", "epoch ")  # the page shows this in other places


@dataclass(frozen=True)
class TrainingLog:
    """What a training said.

    Attributes:
        plan: Pairs of label and text: the data, the network, the estimated time.
        notes: Further sentences.
        working: What it is doing, such as "computing features: 20 of 53 images, 9 s left"; "" if it said nothing.
        error: Why it failed; "" if it did not.
    """

    plan: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    working: str
    error: str


class TrainingProcesses:
    """Starts, stops and finds trainings in a folder of runs.

    Args:
        runs: The runs.
    """

    def __init__(self, runs: RunList) -> None:
        self._runs = runs
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, source: Path, options: Mapping[str, str]) -> str:
        """Start a training on the images in `source` and return the name of its run.

        Args:
            source: The folder of images.
            options: Options of `svertka train` without dashes and their values; "" leaves one out.

        Raises:
            StorageError: The folder of runs cannot be written.
        """
        name = self._runs.free_name(source.name)
        given = [f"--{option}={value}" for option, value in options.items() if value]
        output = f"--output={self._runs.folder / name}"
        self._launch(name, ["train", output, *given, "--", str(source)], mode="wb")
        return name

    def resume(self, name: str) -> None:
        """Continue the training of the run `name`.

        Raises:
            RunError: There is no such run, or it is being trained. StorageError: The log cannot be written.
        """
        run = self._runs.run(name)
        if self.state(name) != "stopped":
            raise RunError(f"the training of {name} is {self.state(name)}, so that it cannot be continued")
        self._launch(name, ["train", f"--resume={run.folder}"], mode="ab")

    def stop(self, name: str) -> None:
        """Ask the training of the run `name` to write a checkpoint and end.

        Raises:
            RunError: It is not being trained.
        """
        pid = self._pid(name)
        if pid is None:
            raise RunError(f"the training of {name} has ended already; reload the page")
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)

    def stop_all(self) -> None:
        """Stop the trainings that this process started, and wait for their checkpoints."""
        stop_processes(self._processes.values(), STOP_SECONDS)

    def state(self, name: str) -> State:
        """Return the state of the training of the run `name`."""
        run = Run(self._runs.folder / name)
        if self._pid(name) is not None:
            return "training" if run.training.exists() else "preparing"
        if run.is_finished:
            return "finished"
        return "stopped" if run.training.exists() else "failed"

    def log(self, name: str) -> TrainingLog:
        """Return what the training of the run `name` said."""
        try:
            with self._runs.log_file(name).open("rb") as file:
                lines = file.read(MAX_LOG_BYTES).decode("utf-8", "replace").splitlines()
        except OSError:
            lines = []
        return parse_training_log(lines)

    def is_running(self) -> bool:
        """Return whether a training is running that this process started."""
        return any(process.poll() is None for process in self._processes.values())

    def _pid(self, name: str) -> int | None:
        process = self._processes.get(name)
        if process is not None and process.poll() is None:
            return process.pid
        return find_training_process(Run(self._runs.folder / name))

    def _launch(self, name: str, arguments: Sequence[str], *, mode: Literal["wb", "ab"]) -> None:
        log = self._runs.log_file(name)
        with os_error_to_storage_error(log):
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open(mode) as file:
                self._processes[name] = subprocess.Popen(
                    [sys.executable, "-P", "-m", "svertka", *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C in the terminal stops the server, which stops trainings itself
                )


def stop_processes(processes: Iterable[subprocess.Popen[bytes]], seconds: float) -> None:
    """Send SIGTERM to the processes that run, and wait for each at most `seconds`."""
    running = [process for process in processes if process.poll() is None]
    for process in running:
        process.terminate()
    for process in running:
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)


def parse_training_log(lines: Sequence[str]) -> TrainingLog:
    """Return the plan, sentences and errors in the lines that `svertka train` prints."""
    plan: dict[str, str] = {}
    notes: list[str] = []
    working = error = ""
    for line in lines:
        found, progress = PLAN_LINE.fullmatch(line), PROGRESS_LINE.fullmatch(line)
        if line.startswith("svertka: "):
            error = line.removeprefix("svertka: ")
        elif found is not None:
            plan[found[1]] = found[2]
        elif progress is not None or line.endswith("…"):
            working = line
        elif line.strip() and not line.startswith(SAID_ELSEWHERE) and line not in notes:
            notes.append(line.removeprefix("warning: "))
    return TrainingLog(tuple(plan.items()), tuple(notes), working, error)
