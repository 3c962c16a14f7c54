"""Two machines: network namespaces with a cable between them, and host names of their own."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

NETWORKS = Path("/etc/netns")  # whose files `ip netns exec` shows in /etc


class Machine:
    """A network namespace with a host name."""

    def __init__(self, name: str, host: str) -> None:
        self.name, self.host = name, host

    def start(self, command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        """Start a command on this machine."""
        return subprocess.Popen([*self.prefix, *command], text=True, **options)

    @property
    def prefix(self) -> list[str]:
        """What makes a command run on this machine."""
        named = f'hostname {self.host}; exec "$@"'
        return ["ip", "netns", "exec", self.name, "unshare", "--uts", "sh", "-c", named, "sh"]


@contextmanager
def two_machines(hosts: tuple[str, str], aliases: str = "") -> Iterator[tuple[Machine, Machine]]:
    """Two machines that reach each other by their host names; the test is skipped where they cannot be made.

    Args:
        hosts: Their host names.
        aliases: Further names of the first one.
    """
    missing = [tool for tool in ("ip", "unshare") if shutil.which(tool) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"needs {missing[0] if missing else 'root'} for network namespaces")
    names = [f"svertka{os.getpid()}{letter}" for letter in "ab"]
    cables = [f"sv{os.getpid()}{letter}" for letter in "ab"]
    addresses = "10.77.0.1", "10.77.0.2"
    table = f"127.0.0.1 localhost\n{addresses[0]} {hosts[0]} {aliases}\n{addresses[1]} {hosts[1]}\n"
    try:
        for name in names:
            _run("netns", "add", name)
            (NETWORKS / name).mkdir(parents=True)
            (NETWORKS / name / "hosts").write_text(table)
        _run("link", "add", cables[0], "netns", names[0], "type", "veth", "peer", cables[1], "netns", names[1])
        for name, cable, address in zip(names, cables, addresses, strict=True):
            _run("-n", name, "address", "add", f"{address}/24", "dev", cable)
            _run("-n", name, "link", "set", cable, "up")
            _run("-n", name, "link", "set", "lo", "up")
    except (subprocess.CalledProcessError, OSError) as error:
        _remove(names)
        pytest.skip(f"network namespaces cannot be made here: {error}")
    try:
        yield Machine(names[0], hosts[0]), Machine(names[1], hosts[1])
    finally:
        _remove(names)


def _run(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def _remove(names: Sequence[str]) -> None:
    for name in names:  # the cable goes with them
        inside = subprocess.run(["ip", "netns", "pids", name], check=False, capture_output=True, text=True).stdout
        for process in map(int, inside.split()):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)
        shutil.rmtree(NETWORKS / name, ignore_errors=True)
