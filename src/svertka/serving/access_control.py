"""The door of the server: who may ask, from which page, under which name; and what browsers are told to forbid.

- Host: a page on the internet whose name is made to point to 127.0.0.1 (DNS rebinding) still sends its own name.
- Origin, Sec-Fetch-Site: a foreign page may not ask at all, so that it neither reads answers nor spends the processor.
- Token: beyond the loopback address everybody needs it, as a header or, after one visit with ?token=, as a cookie.
- Files of a run are not ours to trust: they lie under an address that only the page knows, in a sandbox (`served`).
"""

import asyncio
import hmac
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from svertka.serving.connection_limits import MAX_HEADER_BYTES

LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})
MAX_DRAIN_BYTES = (
    64 << 20
)  # bytes of a refused body that are read and thrown away, so that the client hears the refusal
DRAIN_SECONDS = 5.0
MAX_REQUESTS = 512  # that are answered at a time, and
MAX_REQUESTS_PER_ADDRESS = 256  # of one address; the next one is told to come again
MAX_URL_BYTES = 8 << 10  # of a path with its query
HOST_PATTERN = re.compile(r"(\[[0-9a-f:.]{2,45}\]|[a-z0-9_][a-z0-9_.-]{0,252})(?::[0-9]{1,5})?", re.IGNORECASE)
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}


class AccessControl:
    """ASGI around `app`: what is refused does not reach it.

    `hosts`: the names under which the server may be addressed; None: any, since the token tells friends. `allowed`:
    further names, under which a proxy shows it: pages of these may ask, too. `token`: what every request has to bring;
    None: nothing. `unguarded`: the beginning of the paths that are secrets by themselves. `root`: the path under which
    a proxy shows the server, "" or "/name"; requests may come with it or without.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: frozenset[str] | None,
        allowed: frozenset[str],
        token: str | None,
        unguarded: str,
        root: str,
    ) -> None:
        self.app, self.token, self.unguarded, self.root = app, token, unguarded, root
        self.hosts, self.allowed = None if hosts is None else hosts | allowed, allowed
        self.requests: Counter[str] = Counter()  # that are being answered, by address

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or hand it on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        scope = self._without_root(scope, headers)
        address = scope["client"][0] if scope["client"] else ""
        answer = self._crowded(address) or self._refused(scope, headers) or self._visit(scope) or self._page(scope)
        body = _RequestBody(receive, waiting="100-continue" in headers.get("expect", "").lower())

        async def answered(message: Message) -> None:
            if message["type"] == "http.response.start":
                if message["status"] >= 400 and message["status"] != 408:  # what is too slow is not waited for again
                    await body.drain()
                told = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    told.setdefault(name, value)
            await send(message)

        with self._counted(address):
            await (answer or self.app)(scope, body.receive, answered)

    @contextmanager
    def _counted(self, address: str) -> Iterator[None]:
        self.requests[address] += 1
        try:
            yield
        finally:
            self.requests[address] -= 1
            if not self.requests[address]:
                del self.requests[address]

    def _crowded(self, address: str) -> Response | None:
        if self.requests[address] < MAX_REQUESTS_PER_ADDRESS and self.requests.total() < MAX_REQUESTS:
            return None
        return _error_response(503, "too many requests are being answered", {"Retry-After": "2"})

    def _without_root(self, scope: Scope, headers: Headers) -> Scope:
        """`scope` with the path as the routes know it: behind `root`, and behind the name that proxies are sent."""
        path: str = scope["path"]
        if path.lower().startswith("http://"):  # the absolute form, which every server has to take
            host, rest = path[len("http://") :].partition("/")[::2]
            if host.lower() == headers.get("host", "").lower():
                path = f"/{rest}"
        if self.root and path.startswith(f"{self.root}/"):
            path = path.removeprefix(self.root)
        return dict(scope, path=path)

    def _refused(self, scope: Scope, headers: Headers) -> Response | None:
        if sum(len(name) + len(value) + 4 for name, value in scope["headers"]) > MAX_HEADER_BYTES:
            return _error_response(431, f"headers may have {MAX_HEADER_BYTES >> 10} KiB")
        if len(scope["raw_path"]) + len(scope["query_string"]) > MAX_URL_BYTES:
            return _error_response(414, f"an address may have {MAX_URL_BYTES >> 10} KiB")
        hosts = headers.getlist("host")
        if len(hosts) != 1 or (self.hosts is not None and _host_name(hosts[0]) not in self.hosts):
            return _misdirected(hosts)
        if HOST_PATTERN.fullmatch(hosts[0]) is None:
            return _error_response(400, "the header Host is not the name of a server")
        if any(value.lower() != "100-continue" for value in headers.getlist("expect")):
            return _error_response(417, "nothing but 100-continue can be expected")
        if "content-length" in headers and "transfer-encoding" in headers:
            return _error_response(400, "a body has a length or comes in chunks", {"Connection": "close"})
        if scope["path"].startswith(self.unguarded):
            return None
        for origin in headers.getlist("origin"):
            place = _parse_origin(origin)
            if place != hosts[0].lower() and _host_name(place) not in self.allowed:
                return _error_response(403, f"pages of {origin[:100]} may not ask this server{_allow_host_hint(place)}")
        navigates = headers.get("sec-fetch-mode") == "navigate" and scope["method"] in ("GET", "HEAD")
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not navigates:
            return _error_response(403, "pages of other sites may not ask this server")
        if self.token is not None and not self._knows(self.token, scope, headers):
            return _error_response(
                401,
                "the token is missing or wrong; send it as Authorization: Bearer TOKEN",
                {"WWW-Authenticate": "Bearer"},
            )
        return None

    def _knows(self, token: str, scope: Scope, headers: Headers) -> bool:
        scheme, _, brought = headers.get("authorization", "").partition(" ")
        candidates = [brought.strip()] if scheme.lower() == "bearer" else []
        # Not http.cookies, whose time grows with the square of the backslashes in a header.
        for cookie in ";".join(headers.getlist("cookie")).split(";"):
            name, _, value = cookie.strip().partition("=")
            if name == _cookie_name(scope):
                candidates.append(value)
        candidates += _query_token(scope)
        return any(hmac.compare_digest(one.encode(errors="replace"), token.encode()) for one in candidates)

    def _page(self, scope: Scope) -> Response | None:
        """Of `root` without its slash: where the page is, whose links are relative."""
        return RedirectResponse(f"{self.root}/") if self.root and scope["path"] == self.root else None

    def _visit(self, scope: Scope) -> Response | None:
        """Of a visit with ?token=: the cookie, and the address without the token."""
        if self.token is None or not _query_token(scope):
            return None
        response = RedirectResponse(f"{self.root}/", status_code=303)
        response.set_cookie(_cookie_name(scope), self.token, httponly=True, samesite="strict", path=f"{self.root}/")
        return response


class _RequestBody:
    """A request's body on its way: whether all of it has come."""

    def __init__(self, receive: Receive, *, waiting: bool) -> None:
        self._receive, self._waiting, self._ended = receive, waiting, False

    async def receive(self) -> Message:
        message = await self._receive()
        self._waiting = False
        self._ended = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    async def drain(self) -> None:
        """Throw away what is still to come: a connection that is closed on it would lose the answer, too."""
        left = MAX_DRAIN_BYTES
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                # A client that waits to be told to go on has sent nothing.
                while left > 0 and not self._ended and not self._waiting:
                    left -= len((await self.receive()).get("body", b""))
        except TimeoutError:
            pass


def _query_token(scope: Scope) -> list[str]:
    if scope["method"] not in ("GET", "HEAD"):
        return []
    return parse_qs(scope["query_string"].decode("latin-1"), max_num_fields=None).get("token", [])


def _cookie_name(scope: Scope) -> str:
    # Browsers keep the cookies of all ports of a machine together.
    return f"svertka-{scope['server'][1]}"


def _host_name(host: str) -> str:
    """Of "name:port", "name" in small letters."""
    name, colon, port = host.lower().rpartition(":")
    return (name if colon and port.isdigit() else host.lower()).rstrip(".")


def _parse_origin(origin: str) -> str:
    """The name and the port of an origin, in small letters; "" if it is none."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _misdirected(hosts: list[str]) -> Response:
    name = hosts[0][:100] if hosts else "nothing"
    return _error_response(
        421, f"this server is not called {name}" + (_allow_host_hint(name) if len(hosts) == 1 else "")
    )


def _allow_host_hint(host: str) -> str:
    """What to do where `host` should be allowed."""
    return f"; if it should, start it with --allow-host {_host_name(host)}" if HOST_PATTERN.fullmatch(host) else ""


def _error_response(status: int, sentence: str, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse({"error": sentence}, status, headers)
