"""run_studio(): the pages of the studio until a signal."""

import contextlib
import ipaddress
import secrets
from collections.abc import Callable, Sequence
from os import PathLike

from svertka.device import set_threads
from svertka.errors import UsageError
from svertka.serving.serve import ServerAddress, server_address


def run_studio(
    folders: Sequence[str | PathLike[str]],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    threads: int | None = None,
    ready: Callable[[ServerAddress], object],
) -> None:
    """Serve the studio until SIGINT, SIGTERM or SIGHUP.

    Args:
        folders: Folders of data sets, one folder per class; created if missing.
        host: Address to bind to. Any other than a loopback address requires a token.
        port: Port, 0 for any free one.
        threads: CPU threads, at least 1. None: all cores.
        ready: Called with the address as soon as the server answers.

    Raises:
        UsageError: A folder is a file; the address is in use or not one of this machine; or a package is missing.
        StorageError: A folder cannot be created.
    """
    try:
        from svertka.serving.access_control import LOOPBACK
        from svertka.serving.uvicorn_server import bind_socket, run_server
        from svertka.studio.app import StudioApp
    except ImportError as error:
        raise UsageError(f"{error.name} is not installed; pip install 'svertka[serve]'") from error
    count = set_threads(threads)
    with contextlib.closing(bind_socket(host, port)) as sock:
        here = ipaddress.ip_address(sock.getsockname()[0]).is_loopback
        token = None if here else secrets.token_urlsafe(24)
        app = StudioApp(folders, hosts=LOOPBACK if here else None, token=token, threads=count)
        keys = [workspace.key for workspace in app.workspaces]
        address = server_address(sock, host, token, keys)
        run_server(app.asgi, sock, lambda: ready(address), app.begin_shutdown)
