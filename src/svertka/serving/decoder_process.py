"""A process that decodes images for the server, so that a hostile file takes no more than its own time and memory.

`python -m svertka.serving.decoder_process LIMITS`, in JSON, reads jobs from standard input and writes an answer for
each to standard output, until the input ends. A job that takes too much CPU time ends the process, whatever C code it
is in; one that takes too much memory fails. Neither torch nor the server is imported: it starts within a fraction of a
second.
"""

import contextlib
import json
import math
import os
import re
import signal
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from enum import IntEnum
from functools import partial
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from svertka.data.decode_memory import count_scans
from svertka.data.image_io import Decoding, estimate_memory, format_of, read_header, read_image
from svertka.errors import FormatError, ImageError, SizeError

JOB = struct.Struct("<IQ")  # bytes of the settings in JSON, and of the image; both follow
# AnswerKind, CPU seconds, then height and width of the pixels that follow; or bytes of the message that follows, and 0.
ANSWER = struct.Struct("<BfII")


class AnswerKind(IntEnum):
    """What a process answers: pixels, (height, width, 3) uint8, or a message that says why there are none."""

    PIXELS = 0
    UNREADABLE = 1  # ImageError
    FORMAT = 2  # FormatError
    SIZE = 3  # SizeError
    MORE = 4  # MoreError


class DecodingLimits(NamedTuple):
    """What an image may take: bytes of `memory`, `seconds` of CPU time, and `work`, pixels times scans of a JPEG."""

    memory: int
    seconds: float
    work: int
    niceness: int = 0  # of the process


class LimitExceededError(Exception):
    """An image needs more than the limits of this process."""


ERROR_TYPES: dict[AnswerKind, type[Exception]] = {
    AnswerKind.UNREADABLE: ImageError,
    AnswerKind.FORMAT: FormatError,
    AnswerKind.SIZE: SizeError,
    AnswerKind.MORE: LimitExceededError,
}
USABLE_MEMORY = 0.75  # of the memory of a process is what an image may need; the rest is what nobody foresees


class DecodingSettings(NamedTuple):
    """How an image is decoded.

    `min_side`: the side, in pixels, to which it will be resized. `max_pixels`: of an image; with more it is refused.
    `square`: whether its central square is enough. `intensity_range`: as in `image_io.Decoding`.
    """

    min_side: int
    max_pixels: int
    square: bool = True
    intensity_range: tuple[int, int] | None = None


def decode_image(data: bytes, settings: DecodingSettings, limits: DecodingLimits) -> npt.NDArray[np.uint8]:
    """The image in `data`, (H, W, 3) uint8, RGB; H and W are the same where its central square is enough.

    Raises:
        ImageError: it cannot be read. MoreError: not within the limits.
    """
    decoding = Decoding.up_to(settings.max_pixels).with_intensity_range(settings.intensity_range)
    try:
        here = replace(decoding, max_memory=min(decoding.max_memory, int(USABLE_MEMORY * limits.memory)))
        if _count_work(data, here) > limits.work:
            raise LimitExceededError
        pixels = read_image(data, settings.min_side, here)
        if settings.square:
            height, width = pixels.shape[:2]
            side = min(height, width)
            top, left = (height - side) // 2, (width - side) // 2
            pixels = pixels[top : top + side, left : left + side]
        return np.ascontiguousarray(pixels)
    except SizeError as error:
        estimate_memory(data, settings.min_side, decoding)  # or it is too large anywhere
        raise LimitExceededError from error
    except (ImageError, MemoryError) as error:
        if isinstance(error, MemoryError) or isinstance(error.__cause__, MemoryError):
            raise LimitExceededError from error
        raise


def _count_work(data: bytes, decoding: Decoding) -> int:
    """Pixels times scans of a JPEG that has several; else 0."""
    if data.count(b"\xff\xda") < 2 or format_of(data) != "JPEG":  # most are known at a glance
        return 0
    return count_scans(data) * math.prod(read_header(data, decoding).size)


def main(limits: DecodingLimits) -> None:
    """Answer jobs until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's to act on
    with contextlib.suppress(AttributeError, OSError):
        os.nice(limits.niceness)
    _limit_memory(limits.memory)
    jobs, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", buffering=0)
    for descriptor in (0, 1):  # what a decoder prints must not be taken for an answer
        os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
    with contextlib.suppress(BrokenPipeError):
        while head := jobs.read(JOB.size):
            count, size = JOB.unpack(head)
            settings = DecodingSettings(*json.loads(jobs.read(count)))
            answer = partial(decode_image, jobs.read(size), settings, limits)
            _answer(answer, answers, limits.seconds)


def _answer(decode: Callable[[], npt.NDArray[np.uint8]], answers: BinaryIO, seconds: float) -> None:
    began = time.process_time()
    try:
        with _limit_cpu_time(seconds):
            pixels = decode()
    except (ImageError, LimitExceededError) as error:
        kind = next(kind for kind in reversed(ERROR_TYPES) if isinstance(error, ERROR_TYPES[kind]))
        # Options of the command line are not the client's.
        message = re.sub(r" or raise --max-pixels( to \d+M)?", "", str(error)).encode(errors="replace")
        _write(answers, ANSWER.pack(kind, time.process_time() - began, len(message), 0) + message)
    else:
        _write(answers, ANSWER.pack(AnswerKind.PIXELS, time.process_time() - began, *pixels.shape[:2]))
        _write(answers, pixels.data.cast("B"))


def _write(file: BinaryIO, content: Any) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]


@contextlib.contextmanager
def _limit_cpu_time(seconds: float) -> Any:
    """In the body, SIGPROF ends the process after so much CPU time, where the system has such a timer."""
    if not hasattr(signal, "setitimer"):
        yield
        return
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _limit_memory(memory: int) -> None:
    """Let the process have `memory` bytes more than it has now, where the system keeps account of that."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        with open("/proc/self/statm") as file:  # noqa: PTH123 - pathlib is not loaded yet
            now = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + memory, now + memory))


if __name__ == "__main__":
    main(DecodingLimits(*json.loads(sys.argv[1])))
