"""Connections that nobody can hold for ever: a limit to their number, and to how long each may keep one waiting."""

import asyncio
import contextlib
import json
from collections import Counter
from http import HTTPStatus
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 1024  # at a time; the next one is answered 503
# Connections without a request that are left alone. Beyond, those that have waited for PATIENCE seconds make room.
MAX_IDLE_CONNECTIONS = 128
MIN_IDLE_SECONDS = 1.0
HEADER_SECONDS = 10.0  # in which the first line and the headers of a request have to arrive
REQUEST_SECONDS = 60.0  # in which a request has to be over: sent, answered, and the answer taken
MAX_HEADER_BYTES = 16 << 10
LINGER_SECONDS = 2.0  # that a connection stays open behind a last answer, which its client may still have to read
LINGER_BYTES = 8 << 20  # that are read and thrown away meanwhile


class LimitedConnection(H11Protocol):
    """uvicorn's, which by itself waits for ever for headers, for bodies that are thrown away, and for slow readers."""

    _watch: asyncio.TimerHandle | None = None
    _in_request = False
    _since = 0.0  # when the wait for a request began
    _lingering: int | None = None  # bytes that may still be thrown away, once the last answer is given

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for a request, unless there are too many who do."""
        super().connection_made(cast(asyncio.Transport, transport))
        self._since = self.loop.time()
        if len(self.connections) > MAX_CONNECTIONS:
            self._say(503, "too many connections; come again later", {"Retry-After": "5"})
            return
        self._wait(HEADER_SECONDS)
        waiting = [one for one in cast(set[LimitedConnection], self.connections) if one._is_waiting]
        if len(waiting) > MAX_IDLE_CONNECTIONS:
            self._make_room(waiting)

    def _make_room(self, waiting: "list[LimitedConnection]") -> None:
        """End the connection that has waited longest, of the address that has most of them."""
        addresses = Counter(one._address for one in waiting)
        patient = [one for one in waiting if self.loop.time() - one._since > MIN_IDLE_SECONDS]
        if patient:
            longest = min(patient, key=lambda one: (-addresses[one._address], one._since))
            # Answered, since its request may have come and not have been read yet.
            longest._say(503, "too many connections; come again later", {"Retry-After": "5"})

    @property
    def _is_waiting(self) -> bool:
        return not self._in_request and self._lingering is None

    @property
    def _address(self) -> str:
        return self.client[0] if self.client else ""

    def data_received(self, data: bytes) -> None:
        """Read on, unless the last answer is given."""
        if self._lingering is None:
            super().data_received(data)
            return
        self._lingering -= len(data)
        if self._lingering < 0:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        if self._watch is not None:
            self._watch.cancel()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """Wait for what comes next."""
        super().handle_events()
        if self._lingering is not None:
            return
        # What is asked is how far they are: ours is done long before a body that is thrown away has come.
        in_request = self.conn.their_state is not h11.IDLE
        if in_request is not self._in_request:
            self._in_request = in_request
            self._wait(REQUEST_SECONDS if in_request else HEADER_SECONDS)

    def on_response_complete(self) -> None:
        """Wait for the next request, where this one has come to its end."""
        super().on_response_complete()
        if self.conn.their_state is h11.IDLE and self._in_request:
            self._in_request = False
            self._wait(HEADER_SECONDS)

    def send_400_response(self, msg: str) -> None:
        """Say that what came is no HTTP, or too much of it."""
        if not self._in_request and len(self.conn.trailing_data[0]) > MAX_HEADER_BYTES:
            self._say(431, f"headers may have {MAX_HEADER_BYTES >> 10} KiB")
        else:
            self._say(400, "the request is not HTTP as it should be")

    def shutdown(self) -> None:
        """End, once a request that has begun is answered."""
        if self._lingering is not None:
            self.transport.abort()
        else:
            super().shutdown()

    def _wait(self, seconds: float) -> None:
        if self._watch is not None:
            self._watch.cancel()
        self._since = self.loop.time()
        self._watch = self.loop.call_later(seconds, self._give_up)

    def _give_up(self) -> None:
        if self.transport.is_closing():
            return
        if self._in_request:
            self._say(503, f"there was no answer within {REQUEST_SECONDS:.0f} seconds", {"Retry-After": "10"})
        elif self.conn.trailing_data[0]:
            self._say(408, f"the headers did not arrive within {HEADER_SECONDS:.0f} seconds")
        else:
            self.transport.close()  # one that was kept open, or opened for later

    def _say(self, status: int, sentence: str, headers: dict[str, str] | None = None) -> None:
        """Answer without the application, and end the connection."""
        if self._watch is not None:
            self._watch.cancel()
        cycle: Any = self.cycle
        if cycle is not None and not cycle.response_complete:
            started = cycle.response_started
            cycle.disconnected = True  # so that it does not answer, too
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
        # Closed at once, a connection on which something is still coming in would lose the answer.
        self._lingering = LINGER_BYTES
        with contextlib.suppress(OSError):  # it may be gone already
            self.transport.write_eof()
        self._watch = self.loop.call_later(LINGER_SECONDS, self.transport.abort)
