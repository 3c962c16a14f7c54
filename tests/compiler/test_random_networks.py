"""Random networks compared with float64, in separate processes, so that a crash is reported as a failure."""

import contextlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fork_server import Python

SCRIPT = Path(__file__).with_name("random_networks.py")
FOUND = Path(__file__).with_name("random_networks.jsonl")  # those that were wrong once, made small
PATIENCE = 120  # seconds for one network


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("random_networks", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["random_networks"] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


networks = load()


class Worker:
    """A process that tries designs; another one after a crash."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def tried(self, design: Any) -> tuple[str, str]:
        """What becomes of it, and why; "crashed" if the process ends."""
        if self._process is None or self._process.poll() is not None:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            self._process = Python([str(SCRIPT)], text=True, **pipes)
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{design}\n")
        self._process.stdin.flush()
        for _ in range(2):
            answer = self._process.stdout.readline()
            if not answer:
                return "crashed", f"exit status {self._process.wait(PATIENCE)}"
        found = json.loads(answer)
        return found["what"], found["why"]

    def close(self) -> None:
        if self._process is not None:
            with contextlib.suppress(OSError):
                self._process.communicate(timeout=PATIENCE)


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker()
    yield made
    made.close()


def minimized(worker: Worker, design: Any) -> Any:
    """The smallest design found that is still wrong or crashes."""
    for less in networks.smaller(design):
        if worker.tried(less)[0] in ("wrong", "crashed"):
            return minimized(worker, less)
    return design


@pytest.mark.timeout(0)
def test_random_networks_give_what_they_give_in_float64(
    worker: Worker, large_count: Callable[[int, int], int], tmp_path: Path
) -> None:
    counts: dict[str, int] = {}
    wrong = []
    for seed in range(large_count(20, 10_000)):
        design = networks.design(seed)
        what, why = worker.tried(design)
        counts[what] = counts.get(what, 0) + 1
        if what in ("wrong", "crashed"):
            small = minimized(worker, design)
            wrong.append(f"{seed} {what} ({why}): {small}")
    print(counts)
    assert not wrong, "\n".join(wrong)  # a line for random_networks.jsonl each
    assert counts.get("refused", 0) + counts.get("useless", 0) < 0.2 * sum(counts.values())


@pytest.mark.parametrize("line", FOUND.read_text().splitlines())
def test_what_was_wrong_once_is_right(worker: Worker, line: str) -> None:
    what, why = worker.tried(networks.Design.read(line))
    assert what in ("right", "refused"), why


def test_designs_survive_their_text_and_get_smaller() -> None:
    design = networks.design(3)
    assert networks.Design.read(str(design)) == design
    less = list(networks.smaller(design))
    assert less
    for one in less:
        assert max(number for node in one.nodes for number in node.inputs) <= len(one.nodes) if one.nodes else True
        assert max(one.outputs) <= len(one.nodes)
        networks.Network(one)


def test_a_crash_is_found_and_made_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a worker that crashes on each network that has a pooling in it."""

    class Crashing:
        def tried(self, design: Any) -> tuple[str, str]:
            return ("crashed" if any(node.kind == "pool" for node in design.nodes) else "right"), ""

    seed = next(seed for seed in range(100) if len({node.kind for node in networks.design(seed).nodes} & {"pool"}))
    small = minimized(Crashing(), networks.design(seed))
    assert [node.kind for node in small.nodes] == ["pool"]
    assert small.outputs in ((0,), (1,))
