"""The uvicorn server: its configuration, its socket, and a graceful shutdown."""

import asyncio
import contextlib
import errno
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator

import uvicorn
from starlette.types import ASGIApp

from svertka.errors import UsageError
from svertka.serving.connection_limits import MAX_CONNECTIONS, MAX_HEADER_BYTES, LimitedConnection

STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
STOP_SECONDS = 20  # for requests in progress to end
BACKLOG = 1024


def run_server(
    app: ASGIApp, sock: socket.socket, ready: Callable[[], object], stopping: Callable[[], object] = lambda: None
) -> None:
    """Serve `app` on `sock` until SIGINT, SIGTERM or SIGHUP.

    Call `ready` at the start and `stopping` at the end, and then finish the requests in progress.
    """
    _raise_file_limit(4 * MAX_CONNECTIONS)
    server = ServerReturningOnSignal(build_config(app), ready, stopping)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(server.serve([sock]))


def _raise_file_limit(count: int) -> None:
    """Raise the limit of open files of this process to `count`, as far as the system allows."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class ServerReturningOnSignal(uvicorn.Server):
    """uvicorn's server, which returns after a signal instead of raising it again."""

    def __init__(
        self, config: uvicorn.Config, ready: Callable[[], object], stopping: Callable[[], object] = lambda: None
    ) -> None:
        super().__init__(config)
        self.ready, self.stopping = ready, stopping

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to serve, and call `ready`."""
        await super().startup(sockets)
        if not self.should_exit:
            self.ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Call `stopping`, so that endless responses end, and finish the requests in progress."""
        self.stopping()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Let signals stop the server during the body."""
        if threading.current_thread() is not threading.main_thread():  # only the main thread receives signals
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def build_config(app: ASGIApp) -> uvicorn.Config:
    """Return the configuration of uvicorn for `app`."""
    # Without warnings such as "Invalid HTTP request", which are the client's fault; errors of the server are logged.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    return uvicorn.Config(
        app,
        http=LimitedConnection,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        timeout_keep_alive=10,
        timeout_graceful_shutdown=STOP_SECONDS,
    )


def bind_socket(host: str, port: int) -> socket.socket:
    """Return a socket that listens on `host` and `port`.

    Raises:
        UsageError: The port is in use, or the address does not belong to this machine.
    """
    if not 0 <= port <= 65535:
        raise UsageError(f"port={port} must be 1 to 65535, or 0 for any that is free")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        if not host:
            raise ValueError("no name")
        (family, kind, protocol, _, address), *_ = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        sock = socket.socket(family, kind, protocol)
    except (OSError, ValueError, OverflowError) as error:  # UnicodeError is a ValueError
        raise UsageError(f"host={host} is not an address of this machine; use 127.0.0.1") from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise UsageError(f"port={port} is taken; choose another --port, or 0 for any that is free") from error
        if error.errno == errno.EACCES:
            raise UsageError(f"port={port} is not allowed; choose one above 1023") from error
        raise UsageError(f"host={host} is not an address of this machine; use 127.0.0.1") from error
    return sock
