"""A load generator for serve.py: a server in its own process, and clients that send requests."""

import contextlib
import http.client
import io
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from PIL import Image

from shared_data import data_folder

KIND = {"Content-Type": "application/octet-stream"}


def photographs(size: int, count: int = 64) -> list[bytes]:
    """Return photographs of SVERTKA_DATA as JPEG files of about `size` bytes each."""
    found = []
    for path in sorted((data_folder() / "imagenet-samples").glob("*.JPEG"))[:count]:
        image = Image.open(path).convert("RGB")
        image = image.resize((500, round(500 * image.height / image.width)))
        for quality in (98, 96, 94, 92, 90, 85, 80, 70):
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=quality)
            if buffer.tell() <= 1.2 * size:
                break
        found.append(buffer.getvalue())
    return found


def free_port() -> int:
    """Return a port on which nothing listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def served(command: Callable[[int], list[str]], probe: bytes) -> Iterator[tuple[int, int]]:
    """Yield the port and the process of a server, as soon as it answers `probe`."""
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    process = subprocess.Popen(
        command(port), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment, process_group=0
    )
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                ask(port, probe)
                break
            except OSError:
                if time.monotonic() > deadline or process.poll() is not None:
                    raise SystemExit(f"{command(port)[:4]} does not answer") from None
                time.sleep(0.2)
        yield port, process.pid
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def ask(port: int, body: bytes) -> None:
    """Send one request on its own connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        _answered(connection, body)
    finally:
        connection.close()


def load(
    port: int,
    seconds: float,
    images: Sequence[bytes],
    clients: int,
    rate: float | None = None,
    even: bool = False,
) -> list[float]:
    """Return the latencies, in seconds, of all requests that began within `seconds`.

    `rate`: requests per second, at random times (Poisson) or, if `even`, evenly spaced; None: closed loop, in which
    each client sends a request as soon as it has a response. Raises OSError if a request fails.
    """
    latencies: list[float] = []
    failures: list[OSError] = []
    start = time.perf_counter()
    end = start + seconds

    def client(number: int) -> None:
        choose = random.Random(number)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        due = start + (0 if not rate else number / rate if even else choose.expovariate(rate / clients))
        while due < end and not failures:
            time.sleep(max(0, due - time.perf_counter()))
            began = due if rate else time.perf_counter()  # waiting for a free client counts as waiting
            try:
                _answered(connection, choose.choice(images))
            except OSError as error:
                failures.append(error)
            latencies.append(time.perf_counter() - began)
            if rate:
                due += clients / rate if even else choose.expovariate(rate / clients)
            else:
                due = time.perf_counter()
        connection.close()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return latencies


def resident(pid: int) -> float:
    """Return the resident memory of a process, MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith("VmRSS"))


def spent(pid: int) -> dict[str, float]:
    """Return the CPU seconds of each thread of a process, by name of the thread."""
    found: dict[str, float] = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        head, _, rest = (task / "stat").read_text().rpartition(")")
        name, fields = head.partition("(")[2], rest.split()
        found[f"{task.name} {name}"] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return found


def _answered(connection: http.client.HTTPConnection, body: bytes) -> None:
    connection.request("POST", "/predict", body, KIND)
    answer = connection.getresponse()
    answer.read()
    if answer.status != 200:
        raise OSError(f"answered {answer.status}")
