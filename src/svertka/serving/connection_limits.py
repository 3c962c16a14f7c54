"""Limits on connections: their number, and the time for headers, requests and responses."""

import asyncio
import contextlib
import json
from collections import Counter
from http import HTTPStatus
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 1024  # at a time; the next one is answered 503
# Beyond this number, a new connection closes one that has been idle for MIN_IDLE_SECONDS.
MAX_IDLE_CONNECTIONS = 128
MIN_IDLE_SECONDS = 1.0
HEADER_SECONDS = 10.0  # for the request line and the headers
REQUEST_SECONDS = 60.0  # for a request and its response, unless its bytes keep moving:
STEADY_SECONDS = 20.0  # beyond that time, at least STEADY_BYTES must move in each of these
STEADY_BYTES = 160 << 10  # 8 KiB a second, a slow mobile connection
WRITTEN_BYTES = 48 << 10  # that were sent when a paused response continues: asyncio's water marks are 64 and 16 KiB
MAX_HEADER_BYTES = 16 << 10
LINGER_SECONDS = 2.0  # that a connection stays open after its last response, so that the client can read it
LINGER_BYTES = 8 << 20  # that are read and dropped meanwhile


class LimitedConnection(H11Protocol):
    """uvicorn's HTTP/1.1 connection with time limits, which uvicorn itself has only for idle connections."""

    _watch: asyncio.TimerHandle | None = None
    _in_request = False
    _since = 0.0  # start of the wait for a request
    _moved = 0  # bytes that arrived or were sent since the last look at the time
    _lingering: int | None = None  # bytes that may still be dropped after the last response

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start to wait for a request, or answer 503 if there are too many connections."""
        super().connection_made(cast(asyncio.Transport, transport))
        self._since = self.loop.time()
        if len(self.connections) > MAX_CONNECTIONS:
            self._say(503, "too many connections; try again later", {"Retry-After": "5"})
            return
        self._wait(HEADER_SECONDS)
        waiting = [one for one in cast(set[LimitedConnection], self.connections) if one._is_waiting]
        if len(waiting) > MAX_IDLE_CONNECTIONS:
            self._make_room(waiting)

    def _make_room(self, waiting: "list[LimitedConnection]") -> None:
        """Close the connection that has been idle longest, of the address with the most idle ones."""
        addresses = Counter(one._address for one in waiting)
        patient = [one for one in waiting if self.loop.time() - one._since > MIN_IDLE_SECONDS]
        if patient:
            longest = min(patient, key=lambda one: (-addresses[one._address], one._since))
            # With a response, since a request may have arrived unread.
            longest._say(503, "too many connections; try again later", {"Retry-After": "5"})

    @property
    def _is_waiting(self) -> bool:
        return not self._in_request and self._lingering is None

    @property
    def _address(self) -> str:
        return self.client[0] if self.client else ""

    def data_received(self, data: bytes) -> None:
        """Parse `data`, or drop it after the last response."""
        if self._lingering is None:
            self._moved += len(data)
            super().data_received(data)
            return
        self._lingering -= len(data)
        if self._lingering < 0:
            self.transport.abort()

    def resume_writing(self) -> None:
        """Continue a response that the client reads more slowly than it is made."""
        self._moved += WRITTEN_BYTES
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the time limit."""
        if self._watch is not None:
            self._watch.cancel()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """Handle what has arrived, and start the time limit for what comes next."""
        super().handle_events()
        if self._lingering is not None:
            return
        # The client's state, not ours: a response may be complete long before a dropped body has arrived.
        in_request = self.conn.their_state is not h11.IDLE
        if in_request is not self._in_request:
            self._in_request = in_request
            self._wait(REQUEST_SECONDS if in_request else HEADER_SECONDS)

    def on_response_complete(self) -> None:
        """Wait for the next request once this one is complete."""
        super().on_response_complete()
        if self.conn.their_state is h11.IDLE and self._in_request:
            self._in_request = False
            self._wait(HEADER_SECONDS)

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, or headers that are too long."""
        if not self._in_request and len(self.conn.trailing_data[0]) > MAX_HEADER_BYTES:
            self._say(431, f"headers may have {MAX_HEADER_BYTES >> 10} KiB")
        else:
            self._say(400, "the request is not valid HTTP/1.1")

    def shutdown(self) -> None:
        """Close the connection once a request in progress is answered."""
        if self._lingering is not None:
            self.transport.abort()
        else:
            super().shutdown()

    def _wait(self, seconds: float) -> None:
        if self._watch is not None:
            self._watch.cancel()
        self._since, self._moved = self.loop.time(), 0
        self._watch = self.loop.call_later(seconds, self._give_up)

    def _give_up(self) -> None:
        if self.transport.is_closing():
            return
        if self._in_request and self._moved >= STEADY_BYTES:
            self._wait(STEADY_SECONDS)
        elif self._in_request:
            self._say(503, f"the request took longer than {REQUEST_SECONDS:.0f} seconds", {"Retry-After": "10"})
        elif self.conn.trailing_data[0]:
            self._say(408, f"the headers did not arrive within {HEADER_SECONDS:.0f} seconds")
        else:
            self.transport.close()  # an idle connection

    def _say(self, status: int, sentence: str, headers: dict[str, str] | None = None) -> None:
        """Send a response without the application, and close the connection."""
        if self._watch is not None:
            self._watch.cancel()
        cycle: Any = self.cycle
        if cycle is not None and not cycle.response_complete:
            started = cycle.response_started
            cycle.disconnected = True  # so that the application sends nothing
            cycle.message_event.set()
            if started:
                self.transport.abort()
                return
        self._unset_keepalive_if_required()
        self.flow.resume_reading()
        body = json.dumps({"error": sentence}).encode()
        told = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"}
        told |= {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"} | (headers or {})
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *(f"{name}: {text}" for name, text in told.items())]
        self.transport.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        # Closing at once, while data arrives, would lose the response.
        self._lingering = LINGER_BYTES
        with contextlib.suppress(OSError):  # it may be gone already
            self.transport.write_eof()
        self._watch = self.loop.call_later(LINGER_SECONDS, self.transport.abort)
