"""Connections that nobody can hold for ever: a limit to their number, and to how long each may keep one waiting."""

import asyncio
from typing import cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

CONNECTIONS = 128
HEADER_SECONDS = 10.0  # in which the first line and the headers of a request have to arrive
REQUEST_SECONDS = 60.0  # in which a request has to be over: sent, answered, and the answer taken
HEADER_BYTES = 16 << 10


class Connection(H11Protocol):
    """uvicorn's, which by itself waits for ever for headers, for bodies that are thrown away, and for slow readers."""

    _watch: asyncio.TimerHandle | None = None
    _in_request = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for a request, unless there are too many who do."""
        super().connection_made(cast(asyncio.Transport, transport))
        if len(self.connections) > CONNECTIONS:
            self.transport.abort()
            return
        self._wait(HEADER_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        if self._watch is not None:
            self._watch.cancel()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """Wait for what comes next."""
        super().handle_events()
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

    def _wait(self, seconds: float) -> None:
        if self._watch is not None:
            self._watch.cancel()
        self._watch = self.loop.call_later(seconds, self._give_up)

    def _give_up(self) -> None:
        if not self.transport.is_closing():
            self.transport.abort()
