"""Access control of the server, as ASGI middleware that also adds security headers to each response.

- Host: a page whose name was made to point to 127.0.0.1 (DNS rebinding) still sends its own name, and is refused.
- Origin, Sec-Fetch-Site: pages of other sites are refused, so that they cannot read responses or use the CPU.
- Token: remote clients need it, as a header or, after one visit with ?token=, as a cookie.
- Files of a run may come from strangers: they have a secret path and are sandboxed.
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
MAX_DRAIN_BYTES = 64 << 20  # of a refused body are read and dropped, so that the client receives the response
DRAIN_SECONDS = 5.0
MAX_REQUESTS = 512  # at a time; further ones get 503
MAX_REQUESTS_PER_ADDRESS = 256
MAX_URL_BYTES = 8 << 10  # of path and query
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
    """Middleware around `app` that answers refused requests itself.

    Args:
        app: ASGI application.
        hosts: Accepted names of the server; None accepts any, which is safe with a token.
        allowed: Further accepted names, such as a proxy's, whose pages may send requests, too.
        token: Token that each request must carry. None: no token.
        unguarded: Prefix of paths that are secret themselves.
        root: Path prefix behind a proxy, "" or "/name"; requests may come with or without it.
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
        self.requests: Counter[str] = Counter()  # in progress, by address

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass it to the application."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        scope = self._without_root(scope, headers)
        address = scope["client"][0] if scope["client"] else ""
        answer = self._crowded(address) or self._refused(scope, headers) or self._visit(scope) or self._page(scope)
        body = _RequestBody(receive, waiting="100-continue" in headers.get("expect", "").lower())

        started = False

        async def answered(message: Message) -> None:
            nonlocal started
            started = True
            if message["type"] == "http.response.start":
                if (
                    message["status"] >= 400 and message["status"] != 408
                ):  # a client that was too slow is not waited for again
                    await body.drain()
                told = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    told.setdefault(name, value)
            await send(message)

        with self._counted(address):
            try:
                await (answer or self.app)(_without_cookies(scope), body.receive, answered)
            except asyncio.CancelledError:  # by a shutdown that has waited long enough
                if started:
                    raise
                stopping = _error_response(503, "the server is shutting down; try again later", {"Retry-After": "10"})
                await stopping(scope, body.receive, send)

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
        return _error_response(503, "too many requests; try again later", {"Retry-After": "2"})

    def _without_root(self, scope: Scope, headers: Headers) -> Scope:
        """Return `scope` with the path of the routes: without `root`, scheme and host."""
        path: str = scope["path"]
        if path.lower().startswith("http://"):  # absolute form, RFC 9112 §3.2.2
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
            return _error_response(414, f"a URL may have {MAX_URL_BYTES >> 10} KiB")
        hosts = headers.getlist("host")
        if len(hosts) != 1 or (self.hosts is not None and _host_name(hosts[0]) not in self.hosts):
            return _misdirected(hosts)
        if HOST_PATTERN.fullmatch(hosts[0]) is None:
            return _error_response(400, "the header Host is not a host name")
        if any(value.lower() != "100-continue" for value in headers.getlist("expect")):
            return _error_response(417, "the header Expect may only be 100-continue")
        if "content-length" in headers and "transfer-encoding" in headers:
            return _error_response(
                400, "the request has both Content-Length and Transfer-Encoding; send one", {"Connection": "close"}
            )
        if scope["path"].startswith(self.unguarded):
            return None
        for origin in headers.getlist("origin"):
            place = _parse_origin(origin)
            if place != hosts[0].lower() and _host_name(place) not in self.allowed:
                return _error_response(
                    403, f"pages of {origin[:100]} may not send requests to this server{_allow_host_hint(place)}"
                )
        navigates = headers.get("sec-fetch-mode") == "navigate" and scope["method"] in ("GET", "HEAD")
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not navigates:
            return _error_response(403, "pages of other sites may not send requests to this server")
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
        # Not http.cookies, whose time is quadratic in the backslashes of a header.
        for cookie in ";".join(headers.getlist("cookie")).split(";"):
            name, _, value = cookie.strip().partition("=")
            if name == _cookie_name(scope):
                candidates.append(value)
        candidates += _query_token(scope)
        return any(hmac.compare_digest(one.encode(errors="replace"), token.encode()) for one in candidates)

    def _page(self, scope: Scope) -> Response | None:
        """Redirect `root` without its slash to the page, whose links are relative."""
        return RedirectResponse(f"{self.root}/") if self.root and scope["path"] == self.root else None

    def _visit(self, scope: Scope) -> Response | None:
        """Answer a visit with ?token= by the cookie and a redirect to the URL without the token."""
        if self.token is None or not _query_token(scope):
            return None
        response = RedirectResponse(f"{self.root}/", status_code=303)
        response.set_cookie(_cookie_name(scope), self.token, httponly=True, samesite="strict", path=f"{self.root}/")
        return response


class _RequestBody:
    """The body of a request, with the state of its transfer."""

    def __init__(self, receive: Receive, *, waiting: bool) -> None:
        self._receive, self._waiting, self._ended = receive, waiting, False

    async def receive(self) -> Message:
        message = await self._receive()
        self._waiting = False
        self._ended = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    async def drain(self) -> None:
        """Read and drop the rest: closing the connection earlier would lose the response, too."""
        left = MAX_DRAIN_BYTES
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                # A client that waits for 100 Continue has sent nothing.
                while left > 0 and not self._ended and not self._waiting:
                    left -= len((await self.receive()).get("body", b""))
        except TimeoutError:
            pass


def _without_cookies(scope: Scope) -> Scope:
    """Return `scope` without cookies: FastAPI parses them for each request, in time quadratic in their escapes."""
    return dict(scope, headers=[(name, value) for name, value in scope["headers"] if name != b"cookie"])


def _query_token(scope: Scope) -> list[str]:
    if scope["method"] not in ("GET", "HEAD"):
        return []
    return parse_qs(scope["query_string"].decode("latin-1"), max_num_fields=None).get("token", [])


def _cookie_name(scope: Scope) -> str:
    # Browsers share cookies between the ports of a host.
    return f"svertka-{scope['server'][1]}"


def _host_name(host: str) -> str:
    """Return the lowercase name of "name:port"."""
    name, colon, port = host.lower().rpartition(":")
    return (name if colon and port.isdigit() else host.lower()).rstrip(".")


def _parse_origin(origin: str) -> str:
    """Return name and port of an origin in lowercase; "" if it is not an origin."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _misdirected(hosts: list[str]) -> Response:
    name = hosts[0][:100] if hosts else "nothing"
    return _error_response(
        421, f"this server does not answer to the name {name}" + (_allow_host_hint(name) if len(hosts) == 1 else "")
    )


def _allow_host_hint(host: str) -> str:
    """Return how to allow `host`, as the end of a sentence."""
    return (
        f"; to allow it, start the server with --allow-host {_host_name(host)}" if HOST_PATTERN.fullmatch(host) else ""
    )


def _error_response(status: int, sentence: str, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse({"error": sentence}, status, headers)
