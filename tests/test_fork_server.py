"""A forked process does what one that is started does."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fork_server import Python, run_python

TELL = """
import os, sys, threading
print(sys.argv, os.getcwd(), sorted(os.environ), __name__, sys.path[0], threading.active_count())
print(os.getpgid(0) == os.getpid())
print(sys.stdin.read(), file=sys.stderr)
threading.Thread(target=lambda: (threading.Event().wait(0.1), print("thread"))).start()
sys.exit(7)
"""


def usual(arguments: list[str], **options: Any) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, *arguments], capture_output=True, check=False, **options)


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        (["-c", TELL, "one", "two"], {"ONE": "1"}),
        (["tell.py", "x"], {"ONE": "1"}),
        (["-m", "tell", "x"], {"PYTHONPATH": "."}),
        (["-W", "error", "-c", "import warnings; warnings.warn('no')"], {}),
        (["-c", "import sys; sys.exit('said')"], {}),
        (["-c", "import os; os.kill(os.getpid(), 15)"], {}),
        (["-c", "raise KeyError('one')"], {}),
    ],
)
def test_it_is_as_if_started(tmp_path: Path, arguments: list[str], environment: dict[str, str]) -> None:
    (tmp_path / "tell.py").write_text(TELL)
    options = {"cwd": tmp_path, "text": True, "env": {"PATH": os.environ["PATH"]} | environment}

    def found(run: Callable[..., Any]) -> tuple[Any, ...]:
        with (tmp_path / "tell.py").open() as stdin:
            done = run(arguments, stdin=stdin, start_new_session=True, **options)
        return done.returncode, done.stdout.replace("'LC_CTYPE', ", ""), done.stderr.strip().splitlines()[-1:]

    assert found(run_python) == found(usual)


def test_it_is_a_child_that_gets_signals(tmp_path: Path) -> None:
    with Python(["-c", "import time; print('began', flush=True); time.sleep(3600)"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"began\n"
        assert process.poll() is None
        process.terminate()
    assert process.returncode == -15
    with pytest.raises(ChildProcessError):
        os.waitpid(process.pid, 0)
