"""Work that takes more than a moment, as processes: their results are files, which a new server finds again.

The processes end with the server, also with one that is killed.
"""

import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from svertka.files import os_error_to_storage_error, read_json
from svertka.studio.training_process import parse_training_log, stop_processes

MAX_RESULT_BYTES = 1 << 28
STOP_SECONDS = 10.0


@dataclass(frozen=True)
class JobState:
    """The state of a job.

    Attributes:
        key: Its key.
        kind: "new" if it was never started, "stopped" if a request stopped it.
        working: What it is doing.
        error: Why it failed.
        result: The JSON value that it printed; None if it has printed none.
    """

    key: str
    kind: Literal["new", "running", "stopped", "done", "failed"]
    working: str = ""
    error: str = ""
    result: Any = None


class BackgroundJobs:
    """Jobs by key, such as "photos-1.onnx".

    Args:
        folder: The folder of their outputs, which need not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._stopped: set[str] = set()

    def start(self, key: str, arguments: Sequence[str]) -> None:
        """Start a job, unless it is running: a Python module and its arguments, which prints one JSON value.

        Raises:
            StorageError: Its output cannot be written.
        """
        if self.is_running(key):
            return
        _close_input(self._processes.pop(key, None))
        with os_error_to_storage_error(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._output(key).open("wb") as output, self._log(key).open("wb") as log:
                self._processes[key] = subprocess.Popen(
                    [sys.executable, "-P", "-m", "svertka.studio.job_process", *arguments],
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=log,
                    start_new_session=True,
                )
        self._stopped.discard(key)

    def is_running(self, key: str) -> bool:
        """Return whether a job is running."""
        process = self._processes.get(key)
        return process is not None and process.poll() is None

    def has_running(self) -> bool:
        """Return whether any job is running."""
        return any(map(self.is_running, self._processes))

    def stop(self, key: str) -> None:
        """Stop a job, and wait for its end; one that is not running stays as it is."""
        if not self.is_running(key):
            return
        process = self._processes[key]
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        _close_input(process)
        self._stopped.add(key)
        with suppress(OSError):
            self._output(key).unlink()

    def stop_all(self) -> None:
        """Stop all running jobs."""
        stop_processes(self._processes.values(), STOP_SECONDS)
        for process in self._processes.values():
            _close_input(process)

    def state(self, key: str) -> JobState:
        """Return the state of a job and its result, if it has one by now."""
        result = None
        with suppress(OSError, ValueError):
            result = read_json(self._output(key), MAX_RESULT_BYTES)
        if self.is_running(key):
            return JobState(key, "running", parse_training_log(self._said(key)).working, "", result)
        if result is not None:
            return JobState(key, "done", result=result)
        if key in self._stopped:
            return JobState(key, "stopped")
        if key in self._processes:
            said = self._said(key)
            error = parse_training_log(said).error or (said[-1] if said else "it ended without a word")
            return JobState(key, "failed", error=error)
        return JobState(key, "new")  # also one that a server's end stopped

    def _said(self, key: str) -> list[str]:
        try:
            return self._log(key).read_text("utf-8", "replace").splitlines()[-100:]
        except OSError:
            return []

    def _output(self, key: str) -> Path:
        return self.folder / f"{key}.json"

    def _log(self, key: str) -> Path:
        return self.folder / f"{key}.log"


def _close_input(process: "subprocess.Popen[bytes] | None") -> None:
    if process is not None and process.stdin is not None:
        process.stdin.close()


def svertka_command(*arguments: str) -> list[str]:
    """Return the module and its arguments that run a command of svertka with --json."""
    return ["svertka", *arguments, "--json"]
