"""A small run, a server of it, and requests to it."""

import asyncio
import contextlib
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from svertka.classifier import Classifier


@pytest.fixture(autouse=True)
def _long_limits_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits of CPU time and memory remain; those by the clock, and low priority, end requests on a busy machine."""
    pytest.importorskip("uvicorn")
    pytest.importorskip("fastapi")
    from svertka.serving import connection_limits, decoder_pool, request_body_limits

    monkeypatch.setattr(decoder_pool, "CLOCK_FACTOR", 100_000)
    monkeypatch.setattr(decoder_pool, "LARGE_LIMITS", decoder_pool.LARGE_LIMITS._replace(niceness=0))
    monkeypatch.setattr(connection_limits, "HEADER_SECONDS", 3600.0)
    monkeypatch.setattr(connection_limits, "REQUEST_SECONDS", 3600.0)
    monkeypatch.setattr(request_body_limits, "BODY_SECONDS", 3600.0)


@pytest.fixture(scope="session")
def jpeg() -> bytes:
    """A real photograph, 640×427."""
    buffer = io.BytesIO()
    Image.fromarray(load_sample_image("china.jpg")).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@dataclass(frozen=True)
class Answer:
    """Of a server: `status`, 0 where it hung up without one; `headers` with small letters; `body`."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Live:
    """A server in a thread, at `port` of 127.0.0.1."""

    api: Any
    port: int
    server: Any  # of uvicorn

    @property
    def is_stopping(self) -> bool:
        """Whether it has been told to stop."""
        return bool(self.server.should_exit)

    def wait_for_connection(self, sock: socket.socket, patience: float = 120.0) -> None:
        """Wait until the server has accepted `sock`, and so all that connected before it."""
        deadline = time.monotonic() + patience
        while sock.getsockname() not in [one.client for one in list(self.server.server_state.connections)]:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def raw(self, request: bytes, *, patience: float = 120.0, keep: bool = False) -> Answer:
        """The answer to the bytes `request`; the sending side is closed behind it unless `keep`."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=patience) as sock:
            with contextlib.suppress(ConnectionError):
                sock.sendall(request)
            if not keep:
                with contextlib.suppress(OSError):  # which it is, and no ConnectionError, if the server has hung up
                    sock.shutdown(socket.SHUT_WR)
            return self.read(sock, headers_only=request.startswith(b"HEAD "))

    def bytes_held(self, patience: float = 120.0) -> int:
        """Bytes of request bodies that the server holds, zero as soon as it is: a body goes just after its answer."""
        deadline = time.monotonic() + patience
        while self.api.service.bodies.held and time.monotonic() < deadline:
            time.sleep(0.01)
        held: int = self.api.service.bodies.held
        return held

    def ask(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None, **options: Any
    ) -> Answer:
        """The answer to a request in good order."""
        told = {"Host": f"127.0.0.1:{self.port}", "Content-Length": str(len(body))} | (headers or {})
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in told.items() if value)]
        return self.raw("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body, keep=True, **options)

    @staticmethod
    def read(sock: socket.socket, *, headers_only: bool = False) -> Answer:
        """One answer from an open connection."""
        with sock.makefile("rb") as stream:
            try:
                while (line := stream.readline()).startswith(b"HTTP/1.1 1"):
                    while stream.readline().strip():
                        pass
                headers = {}
                while text := stream.readline().decode("latin-1").strip():
                    name, _, value = text.partition(":")
                    headers[name.lower()] = value.strip()
                length = headers.get("content-length")
                whole = not headers_only and bool(line)
                body = (stream.read(int(length)) if length else stream.read()) if whole else b""
            except (ConnectionError, TimeoutError):
                return Answer(0, {}, b"")
        return Answer(int(line.split()[1]) if line else 0, headers, body)


@pytest.fixture(scope="session")
def live() -> Callable[..., contextlib.AbstractContextManager[Live]]:
    """`with live(*served, hosts=…, token=…) as server`: it runs while the block does."""
    pytest.importorskip("uvicorn")
    from svertka.serving import access_control, connection_limits
    from svertka.serving.access_control import LOOPBACK
    from svertka.serving.app import App
    from svertka.serving.uvicorn_server import ServerReturningOnSignal, bind_socket, build_config

    @contextlib.contextmanager
    def running(*runs: Any, hosts: frozenset[str] | None = LOOPBACK, **options: Any) -> Iterator[Live]:
        api = App(runs, hosts=hosts, threads=2, **({"token": None} | options))
        up = threading.Event()
        server = ServerReturningOnSignal(build_config(api.asgi), up.set)
        sock = bind_socket("127.0.0.1", 0)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([sock])))
        patience = pytest.MonkeyPatch()  # with clients that a busy machine lets read their answers late
        patience.setattr(connection_limits, "LINGER_SECONDS", 120.0)
        patience.setattr(access_control, "DRAIN_SECONDS", 120.0)
        thread.start()
        assert up.wait(120)
        try:
            yield Live(api, sock.getsockname()[1], server)
        finally:
            server.should_exit = True
            thread.join(120)
            sock.close()
            patience.undo()
        assert not thread.is_alive()

    return running


@pytest.fixture(scope="session")
def small_run(made: Callable[..., Classifier], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a small network for photographs, and something to read and not to read in it."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    made("resnet20", 32, 40, names=("cat", "dog", 'имя "x"\n<b>')).save(folder)
    (folder / "report.html").write_text("<h1>report</h1>")
    (folder / "atlas" / "data").mkdir(parents=True)
    (folder / "atlas" / "index.html").write_text("<h1>atlas</h1>")
    (folder.parent / "secret.txt").write_text("secret")
    (folder / "atlas" / "link.txt").symlink_to(folder.parent / "secret.txt")
    (folder / "atlas" / "ring").symlink_to(folder / "atlas" / "ring")
    return folder
