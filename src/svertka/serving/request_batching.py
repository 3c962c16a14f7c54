"""Requests that come at the same time, answered together."""

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager

from torch import Tensor

from svertka.serving.http_errors import HTTPError

MAX_PENDING_IMAGES = 256  # pictures that are waited for at a time; the next one is told to come again
# Pictures that the network is given at once, at most: on a CPU eight take no longer each than sixteen do, and whoever
# comes meanwhile waits half as long.
MAX_BATCH = 8
BATCH_WAIT_SECONDS = 0.005  # seconds that pictures wait for the next one which is on its way


class Batcher:
    """Hands pictures to `compute` (a list of them to rows of results), as many together as are there.

    While the network is free, pictures wait for each other one that is on its way, but not longer than DEADLINE for the
    next, and not at all when there is none. `free`: set but while it computes.
    """

    def __init__(
        self, compute: Callable[[Sequence[Tensor]], Tensor], thread: Executor, free: asyncio.Event | None = None
    ) -> None:
        self._compute, self._thread, self._free = compute, thread, free or asyncio.Event()
        self._queue: asyncio.Queue[tuple[Tensor, asyncio.Future[Tensor]]] = asyncio.Queue()
        self._seconds = 0.05  # a picture takes, about

        self.open = 0  # pictures that were let in and are not answered
        self.answered = 0

    @contextmanager
    def reserve(self, count: int) -> Iterator[None]:
        """In the block `count` pictures may be handed in.

        Raises:
            HTTPError: 503, there is no room.
        """
        if self.open + count > MAX_PENDING_IMAGES:
            seconds = math.ceil(self.open * self._seconds)
            raise HTTPError(503, f"{self.open} pictures are waiting already", {"Retry-After": str(max(1, seconds))})
        self.open += count
        try:
            yield
        finally:
            self.open -= count

    async def submit(self, picture: Tensor) -> Tensor:
        """What `compute` makes of `picture`."""
        future: asyncio.Future[Tensor] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((picture, future))
        return await future

    async def run(self) -> None:
        """Answer, until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            batch = await self._batch()
            began = time.monotonic()
            self._free.clear()
            try:
                rows = await loop.run_in_executor(self._thread, self._compute, [picture for picture, _ in batch])
            except Exception as error:  # whoever asked has to hear of it
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            finally:
                self._free.set()
            self._seconds = 0.8 * self._seconds + 0.2 * (time.monotonic() - began) / len(batch)
            self.answered += len(batch)
            for (_, future), row in zip(batch, rows, strict=True):
                if not future.done():
                    future.set_result(row)

    async def _batch(self) -> list[tuple[Tensor, asyncio.Future[Tensor]]]:
        batch = [await self._next()]
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(BATCH_WAIT_SECONDS) as limit:
                while len(batch) < min(MAX_BATCH, self.open):
                    batch.append(await self._next())
                    limit.reschedule(loop.time() + BATCH_WAIT_SECONDS)
        except TimeoutError:
            pass
        return batch

    async def _next(self) -> tuple[Tensor, asyncio.Future[Tensor]]:
        """The next picture whose client still waits for it."""
        while True:
            picture, future = await self._queue.get()
            if not future.done():
                return picture, future
