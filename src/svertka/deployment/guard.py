"""The door of the server: who may ask, from which page, under which name; and what browsers are told to forbid.

- Host: a page on the internet whose name is made to point to 127.0.0.1 (DNS rebinding) still sends its own name.
- Origin, Sec-Fetch-Site: a foreign page may not ask at all, so that it neither reads answers nor spends the processor.
- Token: beyond the loopback address everybody needs it, as a header or, after one visit with ?token=, as a cookie.
- Files of a run are not ours to trust: they lie under an address that only the page knows, in a sandbox (`served`).
"""

import asyncio
import hmac
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})
DRAINED = 64 << 20  # bytes of a refused body that are read and thrown away, so that the client hears the refusal
DRAIN_SECONDS = 5.0
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}


class Guard:
    """ASGI around `app`: what is refused does not reach it.

    `hosts`: the names under which the server may be addressed; None: any, since the token tells friends. `token`: what
    every request has to bring; None: nothing. `unguarded`: the beginning of the paths that are secrets by themselves.
    """

    def __init__(self, app: ASGIApp, *, hosts: frozenset[str] | None, token: str | None, unguarded: str) -> None:
        self.app, self.hosts, self.token, self.unguarded = app, hosts, token, unguarded

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or hand it on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        answer = self._refused(scope, headers) or self._visit(scope)
        body = _Body(receive, waiting="100-continue" in headers.get("expect", "").lower())

        async def answered(message: Message) -> None:
            if message["type"] == "http.response.start":
                if message["status"] >= 400 and message["status"] != 408:  # what is too slow is not waited for again
                    await body.drain()
                told = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    told.setdefault(name, value)
            await send(message)

        await (answer or self.app)(scope, body.receive, answered)

    def _refused(self, scope: Scope, headers: Headers) -> Response | None:
        hosts = headers.getlist("host")
        if len(hosts) != 1 or (self.hosts is not None and _name(hosts[0]) not in self.hosts):
            return _said(421, f"this server is not called {hosts[0] if hosts else 'nothing'}")
        if "content-length" in headers and "transfer-encoding" in headers:
            return _said(400, "a body has a length or comes in chunks", {"Connection": "close"})
        if scope["path"].startswith(self.unguarded):
            return None
        for origin in headers.getlist("origin"):
            if urlsplit(origin).netloc.lower() != hosts[0].lower():
                return _said(403, f"pages of {origin} may not ask this server")
        navigates = headers.get("sec-fetch-mode") == "navigate" and scope["method"] in ("GET", "HEAD")
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not navigates:
            return _said(403, "pages of other sites may not ask this server")
        if self.token is not None and not self._knows(self.token, scope, headers):
            return _said(
                401,
                "the token is missing or wrong; send it as Authorization: Bearer TOKEN",
                {"WWW-Authenticate": "Bearer"},
            )
        return None

    def _knows(self, token: str, scope: Scope, headers: Headers) -> bool:
        scheme, _, brought = headers.get("authorization", "").partition(" ")
        candidates = [brought.strip()] if scheme.lower() == "bearer" else []
        try:
            cookies = SimpleCookie(headers.get("cookie", ""))
        except CookieError:
            cookies = SimpleCookie()
        name = _cookie(scope)
        candidates += [cookies[name].value] if name in cookies else []
        candidates += _token_in(scope)
        return any(hmac.compare_digest(one.encode(errors="replace"), token.encode()) for one in candidates)

    def _visit(self, scope: Scope) -> Response | None:
        """Of a visit with ?token=: the cookie, and the address without the token."""
        if self.token is None or not _token_in(scope):
            return None
        response = RedirectResponse(scope["path"] if scope["path"] == "/" else "/", status_code=303)
        response.set_cookie(_cookie(scope), self.token, httponly=True, samesite="strict", path="/")
        return response


class _Body:
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
        left = DRAINED
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                # A client that waits to be told to go on has sent nothing.
                while left > 0 and not self._ended and not self._waiting:
                    left -= len((await self.receive()).get("body", b""))
        except TimeoutError:
            pass


def _token_in(scope: Scope) -> list[str]:
    if scope["method"] not in ("GET", "HEAD"):
        return []
    return parse_qs(scope["query_string"].decode("latin-1"), max_num_fields=None).get("token", [])


def _cookie(scope: Scope) -> str:
    # Browsers keep the cookies of all ports of a machine together.
    return f"svertka-{scope['server'][1]}"


def _name(host: str) -> str:
    """Of "name:port", "name" in small letters."""
    name, colon, port = host.lower().rpartition(":")
    return (name if colon and port.isdigit() else host.lower()).rstrip(".")


def _said(status: int, sentence: str, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse({"error": sentence}, status, headers)
