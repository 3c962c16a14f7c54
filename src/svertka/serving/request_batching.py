"""Request batching: images that arrive together go through the network together."""

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

from svertka.serving.http_error import HTTPError

Result = TypeVar("Result")

MAX_PENDING_IMAGES = 256  # further ones get 503
# Images per batch: on a CPU, an image of 8 takes no longer than one of 16, and later images wait half as long.
MAX_BATCH = 8
BATCH_WAIT_SECONDS = 0.005  # that images wait for the next one in progress


@dataclass
class Reservation:
    """Places in a `Batcher` for the images of one request."""

    unsubmitted: int  # images that may still be submitted


class Batcher(Generic[Result]):
    """Passes images to `compute` in batches, as they arrive.

    While the network is idle, a batch waits up to BATCH_WAIT_SECONDS for each image that is being read or decoded, and
    not at all if there is none.

    Args:
        compute: Maps a list of images to their results.
        thread: Runs `compute`.
        free: An event that is set except while `compute` runs.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[Tensor]], Iterable[Result]],
        thread: Executor,
        free: asyncio.Event | None = None,
    ) -> None:
        self._compute, self._thread, self._free = compute, thread, free or asyncio.Event()
        self._queue: asyncio.Queue[tuple[Tensor, asyncio.Future[Result]]] = asyncio.Queue()
        self._seconds = 0.05  # running mean per image

        self._unsubmitted = 0  # images of all reservations
        self.open = 0  # images in progress
        self.answered = 0

    @contextmanager
    def reserve(self, count: int, *, submitted: bool = True) -> Iterator[Reservation]:
        """Reserve places for `count` images during the body.

        Args:
            count: Number of images.
            submitted: Whether they are submitted, so that a batch may wait for them.

        Raises:
            HTTPError: 503, all places are taken.
        """
        if self.open + count > MAX_PENDING_IMAGES:
            seconds = math.ceil(self.open * self._seconds)
            raise HTTPError(
                503, f"{self.open} images are waiting; try again later", {"Retry-After": str(max(1, seconds))}
            )
        places = Reservation(count if submitted else 0)
        self.open += count
        self._unsubmitted += places.unsubmitted
        try:
            yield places
        finally:
            self.open -= count
            self._unsubmitted -= places.unsubmitted

    async def submit(self, picture: Tensor, places: Reservation) -> Result:
        """Return the result that `compute` returns for `picture`, one of the images of `places`."""
        places.unsubmitted -= 1
        self._unsubmitted -= 1
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((picture, future))
        return await future

    async def run(self) -> None:
        """Compute batches until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            batch = await self._batch()
            began = time.monotonic()
            self._free.clear()
            try:
                results = await loop.run_in_executor(self._thread, self._compute, [picture for picture, _ in batch])
            except Exception as error:  # each request fails with it
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            finally:
                self._free.set()
            self._seconds = 0.8 * self._seconds + 0.2 * (time.monotonic() - began) / len(batch)
            self.answered += len(batch)
            for (_, future), result in zip(batch, results, strict=True):
                if not future.done():
                    future.set_result(result)

    async def _batch(self) -> list[tuple[Tensor, asyncio.Future[Result]]]:
        batch = [await self._next()]
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(BATCH_WAIT_SECONDS) as limit:
                while len(batch) < MAX_BATCH and (self._unsubmitted or not self._queue.empty()):
                    batch.append(await self._next())
                    limit.reschedule(loop.time() + BATCH_WAIT_SECONDS)
        except TimeoutError:
            pass
        return batch

    async def _next(self) -> tuple[Tensor, asyncio.Future[Result]]:
        """Return the next image whose client is still connected."""
        while True:
            picture, future = await self._queue.get()
            if not future.done():
                return picture, future
