"""Processes that form a group, with and without torchrun. One that does not end fails its test with its stacks."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch.distributed import TCPStore

from fork_server import DISTRIBUTED, Python

PATIENCE = 200  # seconds; less than pytest's, so that a test shows what a process printed that does not end


@contextmanager
def rendezvous(count: int) -> Iterator[list[dict[str, str]]]:
    """Variables for `count` processes that meet at a store of this process, whose port the system chose."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    common = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    common |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
    yield [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
    del store


def run_ranks(script: str, folder: Path, *arguments: str, count: int = 2) -> None:
    """Run a Python script in `count` processes; raise AssertionError with their output if one fails."""
    path = folder / "script.py"
    path.write_text(script)
    run_in_group(str(path), *arguments, count=count)


def run_in_group(*arguments: str, count: int = 2) -> list[str]:
    """Run `arguments` (a script, or -m and a module, and what follows) in `count` processes, without torchrun.

    Returns:
        What each process printed on stdout.

    Raises:
        AssertionError: A process failed; the message is what all printed.
    """
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with rendezvous(count) as found:
        processes = [Python(arguments, modules=DISTRIBUTED, env=os.environ | one, **pipes) for one in found]
        try:
            printed = [wait_for_end(process) for process in processes]
        finally:
            for process in processes:
                process.kill()
    assert all(process.returncode == 0 for process in processes), "\n".join("".join(both) for both in printed)
    return [stdout for stdout, _ in printed]


def start_torchrun(*arguments: str) -> subprocess.Popen[str]:
    """Start `arguments` (a script, or -m and a module, and what follows) in two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0"]
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])  # as pytest's
    logs = Path(os.environ["XDG_CACHE_HOME"]) / "torchrun"  # of this session, not /tmp
    logs.mkdir(parents=True, exist_ok=True)
    return subprocess.Popen(
        [*command, f"--log-dir={logs}", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1", "PYTHONPATH": path},
    )


def wait_for_end(process: subprocess.Popen[str]) -> Sequence[str]:
    """Return what a process printed on stdout and stderr; end it and its children if it takes longer than PATIENCE."""
    try:
        return process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        for number in [*child_processes(process), process.pid]:
            with suppress(OSError):
                os.kill(number, signal.SIGABRT)  # on which Python writes the stack of each thread
        printed = process.communicate(timeout=120)
        raise AssertionError("\n".join(["it did not end", *(text or "" for text in printed)])) from None


def child_processes(process: subprocess.Popen[str]) -> list[int]:
    """Return the numbers of the processes that a process has started; none where /proc does not say."""
    with suppress(OSError):
        return [int(one) for one in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    return []
