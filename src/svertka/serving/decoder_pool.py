"""A pool of processes that decode images, with limits on CPU time and memory, and a fair order of requests.

An image is tried first in the group for ordinary images, whose processes have little time and memory. An image that
needs more goes to the group for large images, a single process of low priority. So slow and large images delay only
each other, and all decoders together have a fixed limit of memory.
"""

import asyncio
import contextlib
import io
import json
import mmap
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt

from svertka.errors import ImageTooLargeError
from svertka.files import format_bytes
from svertka.serving.decoder_process import (
    ANSWER,
    ERROR_TYPES,
    JOB,
    AnswerKind,
    DecodingLimits,
    DecodingSettings,
    LimitExceededError,
)
from svertka.serving.http_error import HTTPError

Pixels = npt.NDArray[np.uint8]
Result = TypeVar("Result")

REQUEST_SECONDS = 20.0  # of CPU time for one request, all of its images together
ABANDONED_SECONDS = 0.25  # that decoding goes on for a client that is gone: a new process takes as long
CLOCK_FACTOR = 10  # a process that takes so many times its limit of CPU time by the clock is killed
MMAP_MIN_BYTES = 1 << 20  # pixels of this size get memory pages of their own
PIPE_BYTES = 1 << 20  # capacity of a pipe, where the system lets one choose


# Enough for 24 megapixels of a camera's JPEG, or 13 of a PNG.
ORDINARY_LIMITS = DecodingLimits(memory=128 << 20, seconds=0.5, work=32_000_000)
# Of this memory an image may take `IMAGE_MEMORY`; the rest is a reserve.
LARGE_LIMITS = DecodingLimits(memory=1152 << 20, seconds=6.0, work=sys.maxsize, niceness=10)
MAX_LARGE_WAITING = 8  # images; further ones get 503


@dataclass
class RequestDecoding:
    """CPU time that decoding for one request has taken, and its images in progress.

    `large`: held by the one image of the request that is in the group for large images, or waits for it.
    """

    seconds: float = 0.0
    running: int = 0
    large: asyncio.Lock = field(default_factory=asyncio.Lock)


class DecoderDiedError(Exception):
    """An image exceeds the time limit of its group, or crashes the process."""


class DecoderPool:
    """Decoder processes: `processes` of them for ordinary images, and one for large images."""

    def __init__(self, processes: int) -> None:
        self._lanes = (
            WorkerGroup(ORDINARY_LIMITS, processes, sys.maxsize),
            WorkerGroup(LARGE_LIMITS, 1, MAX_LARGE_WAITING),
        )

    def start(self) -> None:
        """Start the processes for ordinary images, from within the event loop."""
        self._lanes[0].start()

    def stop(self) -> None:
        """Kill all processes."""
        for lane in self._lanes:
            lane.stop()

    @property
    def pids(self) -> list[int]:
        """Ids of the running processes."""
        return [worker.pid for lane in self._lanes for worker in lane.workers]

    async def decode(
        self,
        data: bytes | bytearray,
        settings: DecodingSettings,
        account: RequestDecoding,
        then: Callable[[Pixels], Result],
    ) -> Result:
        """Return what `then`, in a thread, returns for the pixels of the image in `data`; see `decode_image`.

        Raises:
            ImageError: It cannot be read. HTTPError: 503, too many large ones are waiting.
        """
        first, second = self._lanes
        try:
            return await first.decode(data, settings, account, then)
        except (DecoderDiedError, LimitExceededError):
            pass
        try:
            async with account.large:
                return await second.decode(data, settings, account, then)
        except DecoderDiedError as error:
            raise ImageTooLargeError(f"takes more than {LARGE_LIMITS.seconds:.0f} seconds to decode") from error
        except LimitExceededError as error:
            raise ImageTooLargeError(
                f"takes more than {format_bytes(LARGE_LIMITS.memory)} of memory to decode"
            ) from error


class WorkerGroup:
    """Processes with the same limits, and a queue of at most `waiting` images."""

    def __init__(self, limits: DecodingLimits, processes: int, waiting: int) -> None:
        self.workers: set[Worker] = set()
        self._limits, self._processes, self._free, self._most_waiting = limits, processes, processes, waiting
        self._idle: list[Worker] = []
        self._waiting: list[tuple[RequestDecoding, asyncio.Future[None]]] = []
        self._threads = ThreadPoolExecutor(processes, "decode")
        self._stopped = False

    def start(self) -> None:
        """Start the processes that are not running."""
        while len(self.workers) < self._processes and not self._stopped:
            self._idle.append(self._started())

    def stop(self) -> None:
        """Kill all processes."""
        self._stopped = True
        for worker in self.workers:
            worker.kill()
        self._threads.shutdown()
        for worker in self.workers:
            worker.close()

    async def decode(
        self,
        data: bytes | bytearray,
        settings: DecodingSettings,
        account: RequestDecoding,
        then: Callable[[Pixels], Result],
    ) -> Result:
        """Return what `then` returns for the pixels of the image in `data`.

        Raises:
            ImageError: It cannot be read. TooMuchError, MoreError: It is not within the limits.
            HTTPError: 503, too many wait.
        """
        if account.seconds > REQUEST_SECONDS:
            raise ImageTooLargeError(
                f"the images of this request took more than {REQUEST_SECONDS:.0f} seconds to decode"
            )
        await self._turn(account)
        try:
            worker = self._idle.pop() if self._idle else self._started()
        except OSError as error:
            self._release(account)
            raise HTTPError(503, "no process to decode images can be started now", {"Retry-After": "5"}) from error
        loop = asyncio.get_running_loop()
        # For systems without a CPU timer, and for processes that hang.
        limit = loop.call_later(CLOCK_FACTOR * self._limits.seconds, worker.kill)
        future = loop.run_in_executor(self._threads, lambda: then(worker.decode(data, settings)))
        future.add_done_callback(partial(self._finished, worker, account, limit))
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            loop.call_later(ABANDONED_SECONDS, lambda: None if future.done() else worker.kill())
            raise

    def _finished(
        self,
        worker: "Worker",
        account: RequestDecoding,
        limit: asyncio.TimerHandle,
        future: asyncio.Future[Any],
    ) -> None:
        limit.cancel()
        future.exception()  # marks it as retrieved, if the client is gone
        account.seconds += worker.seconds
        if worker.is_alive:
            self._idle.append(worker)
        else:
            self.workers.discard(worker)
            worker.close()
            with contextlib.suppress(OSError):  # the next image starts one
                self.start()
        self._release(account)

    async def _turn(self, account: RequestDecoding) -> None:
        """Wait for a process."""
        if self._free:
            self._free -= 1
            account.running += 1
            return
        if len(self._waiting) >= self._most_waiting:
            raise HTTPError(503, "too many large images are waiting; try again later", {"Retry-After": "10"})
        entry = account, asyncio.get_running_loop().create_future()
        self._waiting.append(entry)
        try:
            await entry[1]
        except asyncio.CancelledError:
            if entry in self._waiting:
                self._waiting.remove(entry)
            else:  # a process was already assigned
                self._release(account)
            raise

    def _release(self, account: RequestDecoding) -> None:
        """Assign the free process to the request with the fewest images in progress and the least CPU time."""
        account.running -= 1
        waiting = [
            entry for entry in self._waiting if not entry[1].done()
        ]  # cancelled ones are about to leave the queue
        if not waiting:
            self._free += 1
            return
        entry = min(waiting, key=lambda entry: (entry[0].running, entry[0].seconds))
        self._waiting.remove(entry)
        entry[0].running += 1
        entry[1].set_result(None)

    def _started(self) -> "Worker":
        worker = Worker(self._limits)
        self.workers.add(worker)
        return worker


class Worker:
    """One decoder process, with pipes to it and from it."""

    def __init__(self, limits: DecodingLimits) -> None:
        self.is_alive = True  # and can take another image
        self.seconds = 0.0  # of CPU time, for the last image
        self._limit_seconds = limits.seconds
        # It imports what this process can import, and nothing from its working directory.
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "MALLOC_ARENA_MAX": "1",  # each further arena takes 64 MB of address space
            "MALLOC_MMAP_THRESHOLD_": str(4 << 20),  # returns large blocks to the system when they are freed
        }
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "svertka.serving.decoder_process", json.dumps(limits)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            bufsize=0,
            start_new_session=True,  # the server handles signals of the terminal
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._jobs, self._answers = self._process.stdin, cast(io.FileIO, self._process.stdout)  # unbuffered
        for pipe in (self._jobs, self._answers):
            _widen(pipe)

    @property
    def pid(self) -> int:
        """Id of the process."""
        return self._process.pid

    def decode(self, data: bytes | bytearray, settings: DecodingSettings) -> Pixels:
        """Return the image in `data`, (H, W, 3) uint8 RGB or of its bands; blocks until it is decoded.

        Raises:
            ImageError: It cannot be read. TooMuchError, MoreError: It is not within the limits of the process.
            HTTPError: 503, the process does not work.
        """
        text = json.dumps(settings).encode()
        self.seconds = self._limit_seconds  # unless its answer says otherwise
        try:
            _write(self._jobs, JOB.pack(len(text), len(data)) + text)
            _write(self._jobs, data)
            kind, self.seconds, first, second, channels = ANSWER.unpack(self._read(ANSWER.size))
            if kind != AnswerKind.PIXELS:
                raise ERROR_TYPES[kind](bytes(self._read(first)).decode())
            return np.frombuffer(self._read(first * second * channels), np.uint8).reshape(first, second, channels)
        except (OSError, EOFError) as error:
            self.kill()
            status = self._process.wait()
            if status > 0:  # not killed by a signal
                reason = f"the decoder process exited with status {status}"
                raise HTTPError(503, reason, {"Retry-After": "10"}) from error
            raise DecoderDiedError from error

    def kill(self) -> None:
        """Kill the process."""
        self.is_alive = False
        self._process.kill()

    def close(self) -> None:
        """Wait for the end of a killed process, and close its pipes."""
        self._process.wait()
        self._jobs.close()
        self._answers.close()

    def _read(self, size: int) -> memoryview:
        # Mapped memory is returned when freed; the C library would keep it.
        content = memoryview(mmap.mmap(-1, size) if size > MMAP_MIN_BYTES else bytearray(size))
        rest = content
        while rest:
            count = self._answers.readinto(rest)
            if not count:
                raise EOFError
            rest = rest[count:]
        return content


def _write(file: Any, content: bytes | bytearray) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]


def _widen(pipe: Any) -> None:
    """Enlarge a pipe, where the system allows it, so that an image takes few writes."""
    with contextlib.suppress(ImportError, AttributeError, OSError):
        import fcntl

        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
