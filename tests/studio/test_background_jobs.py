"""Work in the background is stopped by request, and ends with the server."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from svertka.studio.background_jobs import BackgroundJobs

ENDLESS = ["http.server", "--bind", "127.0.0.1", "0"]


def test_a_job_is_stopped(tmp_path: Path) -> None:
    jobs = BackgroundJobs(tmp_path)
    jobs.start("endless", ENDLESS)
    assert jobs.state("endless").kind == "running"
    assert jobs.has_running()
    jobs.stop("endless")
    jobs.stop("unknown")
    assert jobs.state("endless").kind == "stopped"
    assert not jobs.has_running()
    (tmp_path / "value.json").write_text("1")
    jobs.start("short", ["json.tool", str(tmp_path / "value.json")])
    while jobs.is_running("short"):
        time.sleep(0.01)
    jobs.stop("short")  # which has ended: its result stays
    assert jobs.state("short").kind == "done"
    assert jobs.state("short").result == 1
    jobs.stop_all()


def test_a_job_ends_with_a_killed_server() -> None:
    command = [sys.executable, "-m", "svertka.studio.job_process", *ENDLESS]
    process: Any = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert b"Serving" in process.stdout.readline()
    process.stdin.close()  # as the system does with the pipes of a killed process
    assert process.wait(120) == -15
    process.stdout.close()
