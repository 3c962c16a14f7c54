"""serve(): runs as a page and an HTTP interface on this machine, until it is told to stop."""

import contextlib
import ipaddress
import secrets
import socket
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any

from svertka.arguments import check_types
from svertka.deployment.served import Served
from svertka.device import choose_device, set_threads
from svertka.errors import UsageError
from svertka.progress import say


@dataclass(frozen=True)
class Place:
    """Where a server is: the address to open, which holds the `token` where one is needed, and the `runs` by key."""

    url: str
    token: str | None
    runs: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The same for a JSON file."""
        return asdict(self)


@check_types
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
        taken or not of this machine, or a package is missing.
    """
    if not runs:
        raise UsageError("name a RUN to serve")
    try:
        from svertka.deployment.api import Api
        from svertka.deployment.guard import LOOPBACK
        from svertka.deployment.server import answer, bound
    except ImportError as error:
        raise UsageError(f"{error.name} is not installed; pip install 'svertka[serve]'") from error
    place, count = choose_device(device), set_threads(threads)
    served: list[Served] = []
    for run in runs:
        served.append(Served(run, place, [one.key for one in served]))
    with contextlib.closing(bound(host, port)) as sock:
        for one in served:
            one.warm_up()
        here = ipaddress.ip_address(sock.getsockname()[0]).is_loopback
        token = None if here else secrets.token_urlsafe(24)
        api = Api(served, hosts=LOOPBACK if here else None, token=token, threads=count)
        answer(api, sock, lambda: ready(_place(sock, host, token, list(api.runs))))


def _place(sock: socket.socket, host: str, token: str | None, runs: Sequence[str]) -> Place:
    address = ipaddress.ip_address(sock.getsockname()[0])
    # Of "every address" people open the one of the machine itself.
    name = socket.gethostname() if address.is_unspecified else f"[{address}]" if address.version == 6 else host
    return Place(
        url=f"http://{name}:{sock.getsockname()[1]}/" + (f"?token={token}" if token else ""),
        token=token,
        runs=tuple(runs),
    )
