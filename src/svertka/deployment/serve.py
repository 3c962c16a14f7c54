"""serve(): runs as a page and an HTTP interface on this machine, until it is told to stop."""

import asyncio
import contextlib
import errno
import ipaddress
import logging
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any

import uvicorn

from svertka.deployment.api import Api
from svertka.deployment.connection import HEADER_BYTES, Connection
from svertka.deployment.guard import LOOPBACK
from svertka.deployment.served import Served
from svertka.device import choose_device, set_threads
from svertka.errors import UsageError
from svertka.progress import say

STOP_SECONDS = 20  # that requests which have begun may take to end
BACKLOG = 128


@dataclass(frozen=True)
class Place:
    """Where a server is: the address to open, which holds the `token` where one is needed, and the `runs` by key."""

    url: str
    token: str | None
    runs: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The same for a JSON file."""
        return asdict(self)


def serve(
    *runs: str | PathLike[str],
    host: str = "127.0.0.1",
    port: int = 8000,
    device: str = "auto",
    threads: int | None = None,
    ready: Callable[[Place], object] = lambda place: say(f"open {place.url}"),
) -> None:
    """Answer for `runs` on `host` and `port` until SIGINT or SIGTERM; what has begun by then is finished.

    `runs`: run folders, or networks with their weights, as for `Classifier.load`. `host`: other than a loopback address
    needs the token, which is drawn anew each time. `port`: 0 is any that is free. `ready`: told where the server is as
    soon as it answers.

    Raises:
        RunError: a run is missing or damaged. UsageError: no run is named, there are no such weights, the address is
        taken or not of this machine.
    """
    if not runs:
        raise UsageError("name a RUN to serve")
    place, count = choose_device(device), set_threads(threads)
    served: list[Served] = []
    for run in runs:
        served.append(Served(run, place, [one.key for one in served]))
    sock = _bound(host, port)
    with contextlib.closing(sock):
        for one in served:
            one.warm_up()
        loopback = _is_loopback(sock)
        token = None if loopback else secrets.token_urlsafe(24)
        api = Api(served, hosts=LOOPBACK if loopback else None, token=token, threads=count)
        server = _Server(_config(api))
        server.ready = lambda: ready(_place(sock, host, token, list(api.runs)))
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(server.serve([sock]))


class _Server(uvicorn.Server):
    """uvicorn's, which ends in peace where it was asked to end, rather than by the signal that asked."""

    ready: Callable[[], object]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self.should_exit:
            self.ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():  # where no signals arrive
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _config(api: Api) -> uvicorn.Config:
    # "Invalid HTTP request" is the client's affair; what goes wrong here is not kept quiet.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    return uvicorn.Config(
        api.app,
        http=Connection,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        h11_max_incomplete_event_size=HEADER_BYTES,
        timeout_keep_alive=10,
        timeout_graceful_shutdown=STOP_SECONDS,
    )


def _bound(host: str, port: int) -> socket.socket:
    try:
        (family, kind, protocol, _, address), *_ = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        sock = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError, OverflowError) as error:
        raise UsageError(f"host={host} is not an address of this machine; use 127.0.0.1") from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise UsageError(f"port={port} is taken; choose another --port, or 0 for any that is free") from error
        if error.errno == errno.EACCES:
            raise UsageError(f"port={port} is not allowed; choose one above 1023") from error
        raise UsageError(f"host={host} is not an address of this machine; use 127.0.0.1") from error
    return sock


def _is_loopback(sock: socket.socket) -> bool:
    return ipaddress.ip_address(sock.getsockname()[0]).is_loopback


def _place(sock: socket.socket, host: str, token: str | None, runs: Sequence[str]) -> Place:
    address = ipaddress.ip_address(sock.getsockname()[0])
    # Of "every address" people open the one of the machine itself.
    name = socket.gethostname() if address.is_unspecified else f"[{address}]" if address.version == 6 else host
    return Place(
        url=f"http://{name}:{sock.getsockname()[1]}/" + (f"?token={token}" if token else ""),
        token=token,
        runs=tuple(runs),
    )
