"""serve(): runs as a page and an HTTP API."""

import contextlib
import ipaddress
import re
import secrets
import socket
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any

from torch import nn

from svertka.classifier import Classifier
from svertka.device import choose_device, set_threads, with_preserved_settings
from svertka.errors import UsageError
from svertka.progress import say
from svertka.serving.served_model import ServedModel
from svertka.type_checking import check_types


@dataclass(frozen=True)
class ServerAddress:
    """Address of a server: the `url` to open, the `token` if remote clients can connect, and the keys of `runs`."""

    url: str
    token: str | None
    runs: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


@check_types
@with_preserved_settings
def serve(
    *runs: str | PathLike[str] | Classifier | nn.Module,
    host: str = "127.0.0.1",
    port: int = 8000,
    device: str = "auto",
    threads: int | None = None,
    root_path: str = "",
    allow_host: str | Sequence[str] = (),
    trust_builder: bool = False,
    precision: str | None = None,
    ready: Callable[[ServerAddress], object] = lambda place: say(f"open {place.url}"),
) -> None:
    """Serve runs as a page and an HTTP API until SIGINT, SIGTERM or SIGHUP; requests in progress are finished.

    Args:
        *runs: Run folders, or networks with weights, as for `Classifier.load`; Classifiers or nn.Modules.
        host: Address to bind to. Any other than a loopback address requires a token, which is new for each server.
        port: Port, 0 for any free one.
        device: "auto", "cpu", "cuda" or "cuda:1".
        threads: CPU threads, at least 1. None: all cores.
        root_path: Path under which a proxy publishes the server, such as "/svertka"; the proxy may strip it or not.
        allow_host: Further host names accepted in requests, such as that of the proxy, "photos.example.org".
        trust_builder: As for `Classifier.load`.
        precision: "fp32" to use the weights of a run even if it has an optimized network, which is used on the CPU
            otherwise.
        ready: Called with the address as soon as the server answers.

    Raises:
        RunError: A run is missing or damaged, or computes NaN.
        UsageError: There is no run; weights do not exist; the address is in use or not one of this machine; or a
            package is missing.
    """
    if not runs:
        raise UsageError("name a RUN to serve")
    names = [allow_host] if isinstance(allow_host, str) else allow_host
    root, allowed = _parse_root_path(root_path), frozenset(map(_parse_host_name, names))
    try:
        from svertka.serving.access_control import LOOPBACK
        from svertka.serving.app import App
        from svertka.serving.uvicorn_server import bind_socket, run_server
    except ImportError as error:
        raise UsageError(f"{error.name} is not installed; pip install 'svertka[serve]'") from error
    place, count = choose_device(device), set_threads(threads)
    with contextlib.closing(bind_socket(host, port)) as sock:  # first, so that a wrong address is said at once
        served: list[ServedModel] = []
        for run in runs:
            keys = [one.key for one in served]
            served.append(ServedModel(run, place, keys, trust_builder=trust_builder, precision=precision))
        for one in served:
            one.warm_up()
        here = ipaddress.ip_address(sock.getsockname()[0]).is_loopback
        token = None if here else secrets.token_urlsafe(24)
        hosts = LOOPBACK if here else None
        api = App(served, hosts=hosts, allowed=allowed, token=token, threads=count, root=root)
        run_server(api.asgi, sock, lambda: ready(server_address(sock, host, token, list(api.runs))))


def _parse_root_path(path: str) -> str:
    """Return `path` with a slash before it and none after it; "" is the root."""
    root = f"/{path.strip('/')}" if path.strip("/") else ""
    if re.fullmatch(r"[A-Za-z0-9._~/-]*", root) is None or "//" in root:
        raise UsageError(f"root_path={path} is not a URL path; use one such as /svertka")
    return root


def _parse_host_name(name: object) -> str:
    """Return the host name in lowercase, without a port."""
    if not isinstance(name, str):  # the type check of `serve` looks at one item of a list
        raise UsageError(f"allow_host= has {name!r}, which is not a host name; use one such as photos.example.org")
    found = re.fullmatch(r"([a-z0-9_.-]{1,253}|\[[0-9a-f:.]+\])(:[0-9]+)?", name.lower())
    if found is None:
        raise UsageError(f"allow_host={name} is not a host name; use one such as photos.example.org")
    return found[1].rstrip(".")


def server_address(sock: socket.socket, host: str, token: str | None, runs: Sequence[str]) -> ServerAddress:
    """Return the address of a server that listens on `sock`, which was bound to `host`."""
    address = ipaddress.ip_address(sock.getsockname()[0])
    # 0.0.0.0 cannot be opened in a browser; the name of the machine can.
    name = socket.gethostname() if address.is_unspecified else f"[{address}]" if address.version == 6 else host
    return ServerAddress(
        url=f"http://{name}:{sock.getsockname()[1]}/" + (f"?token={token}" if token else ""),
        token=token,
        runs=tuple(runs),
    )
