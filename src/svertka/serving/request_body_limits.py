"""Limits on the bodies of requests: size, time, and the memory of all bodies together."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import ClientDisconnect, Request

from svertka.malloc import give_back_freed_memory
from svertka.serving.connection_limits import STEADY_BYTES
from svertka.serving.http_error import HTTPError

MAX_BODY_BYTES = 24 << 20  # of one body
MAX_TOTAL_BYTES = 192 << 20  # of all bodies in memory
TRIM_MIN_BYTES = 4 << 20  # freed bodies of this size are returned to the system; smaller ones are reused
TRIM_DELAY_SECONDS = 2.0
BODY_SECONDS = 20.0  # for one body to arrive; if it may be slow, for each STEADY_BYTES of it


class BodyReader:
    """Reads bodies; `held` counts their bytes in memory."""

    def __init__(self) -> None:
        self.held = 0
        self._trim: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def read(self, request: Request, *, may_be_slow: bool = False) -> AsyncIterator[bytearray]:
        """Read the body of `request`; it counts as held until the context ends.

        Args:
            request: The request.
            may_be_slow: Whether a large body may take long as long as it keeps arriving.

        Raises:
            HTTPError: 413, it is too large; 408, it is too slow; 503, the memory for bodies is in use; 400, the client
                disconnected.
        """
        said = request.headers.get("content-length", "")
        if said.isdecimal() and (len(said) > 18 or int(said) > MAX_BODY_BYTES):
            raise _too_large_error()
        body, size, moved = bytearray(), 0, 0
        try:
            try:
                async with asyncio.timeout(BODY_SECONDS) as limit:
                    async for chunk in request.stream():
                        size += len(chunk)
                        moved += len(chunk)
                        if may_be_slow and moved >= STEADY_BYTES:
                            limit.reschedule(asyncio.get_running_loop().time() + BODY_SECONDS)
                            moved = 0
                        self.held += len(chunk)
                        if size > MAX_BODY_BYTES:
                            raise _too_large_error()
                        if self.held > MAX_TOTAL_BYTES:
                            raise HTTPError(
                                503, "too many images are being sent; try again later", {"Retry-After": "2"}
                            )
                        body += chunk
            except TimeoutError as error:
                sentence = f"the body did not arrive within {BODY_SECONDS:.0f} seconds"
                raise HTTPError(408, sentence, {"Connection": "close"}) from error
            except ClientDisconnect as error:
                raise HTTPError(400, "the client disconnected") from error
            yield body
        finally:
            self.held -= size
            if size > TRIM_MIN_BYTES:
                self._trim_soon()

    def _trim_soon(self) -> None:
        """Return the memory of large bodies to the system, once for all that end within TRIM_DELAY_SECONDS."""
        if self._trim is None:
            loop = asyncio.get_running_loop()
            self._trim = loop.call_later(TRIM_DELAY_SECONDS, self._give_back, loop)

    def _give_back(self, loop: asyncio.AbstractEventLoop) -> None:
        self._trim = None
        loop.run_in_executor(None, give_back_freed_memory)


def _too_large_error() -> HTTPError:
    return HTTPError(413, f"a body may have at most {MAX_BODY_BYTES >> 20} MiB")
