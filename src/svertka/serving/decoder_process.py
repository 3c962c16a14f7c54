"""A process that decodes images for the server within limits of CPU time and memory.

`python -m svertka.serving.decoder_process LIMITS`, with the limits in JSON, reads jobs from standard input and writes
an answer for each to standard output until the input ends. A job that exceeds the CPU time ends the process, also
inside C code; one that exceeds the memory fails. Neither torch nor the server is imported, so that it starts fast.
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
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from svertka.data.band_ranges import BandRanges, BandType
from svertka.data.decode_memory import count_jpeg_scans
from svertka.data.image_io import DecodingOptions, decode_to_pixels, detect_format, estimate_memory, read_header
from svertka.errors import ImageError, ImageFormatError, ImageTooLargeError
from svertka.malloc import give_back_freed_memory

JOB = struct.Struct("<IQ")  # size of the settings in JSON and size of the image in bytes; both follow
# AnswerKind, CPU seconds, then height, width and channels of the pixels that follow; or bytes of the message that
# follows, and zeros.
ANSWER = struct.Struct("<BfIIB")


class AnswerKind(IntEnum):
    """Kind of an answer: pixels, (height, width, channels) uint8, or the message of an error."""

    PIXELS = 0
    UNREADABLE = 1  # ImageError
    FORMAT = 2  # ImageFormatError
    SIZE = 3  # ImageTooLargeError
    MORE = 4  # LimitExceededError


class DecodingLimits(NamedTuple):
    """Limits for one image: `memory` in bytes, `seconds` of CPU time, and `work` as counted by `_count_work`."""

    memory: int
    seconds: float
    work: int
    niceness: int = 0  # of the process


class LimitExceededError(Exception):
    """An image exceeds the limits of this process."""


ERROR_TYPES: dict[AnswerKind, type[Exception]] = {
    AnswerKind.UNREADABLE: ImageError,
    AnswerKind.FORMAT: ImageFormatError,
    AnswerKind.SIZE: ImageTooLargeError,
    AnswerKind.MORE: LimitExceededError,
}
# Bytes that an image may take, by its header. 48 megapixels of cameras' formats do; of WebP, the costliest, 47.
IMAGE_MEMORY = 768 << 20
USABLE_MEMORY = 0.75  # share of the memory limit that an image may need by estimate; the rest is a reserve
JPEG_2000_WORK = 10  # times the work of other formats for a pixel
# CPU seconds after which freed memory goes back: decoders of long images leave hundreds of megabytes, as of JPEG 2000
# with many tiles. After a short one it would take a fifth of its time.
LONG_SECONDS = 0.1


class DecodingSettings(NamedTuple):
    """How to decode an image.

    Attributes:
        min_side: Shorter side in pixels to which the image will be resized.
        max_pixels: Larger images are refused.
        square: Whether only the central square is needed.
        intensity_range: See `image_io.DecodingOptions`.
        bands: Type and ranges of `BandRanges`, if images have bands.
    """

    min_side: int
    max_pixels: int
    square: bool = True
    intensity_range: tuple[int, int] | None = None
    bands: tuple[str, tuple[tuple[float, float], ...]] | None = None

    def decoding(self) -> DecodingOptions:
        """Return how files are decoded."""
        bands = None
        if self.bands is not None:  # as JSON gives them
            dtype, ranges = self.bands
            bands = BandRanges(cast(BandType, dtype), tuple((low, high) for low, high in ranges))
        return DecodingOptions.up_to(self.max_pixels).with_intensity_range(bands or self.intensity_range)


def decode_image(data: bytes, settings: DecodingSettings, limits: DecodingLimits) -> npt.NDArray[np.uint8]:
    """Decode the image in `data` to (H, W, 3) uint8 RGB, or to its bands; H equals W if `settings.square`.

    Raises:
        ImageError: The image cannot be read.
        LimitExceededError: The image exceeds `limits`.
    """
    decoding = settings.decoding()
    decoding = replace(decoding, max_memory=min(decoding.max_memory, IMAGE_MEMORY))
    try:
        here = replace(decoding, max_memory=min(decoding.max_memory, int(USABLE_MEMORY * limits.memory)))
        if _count_work(data, here) > limits.work:
            estimate_memory(data, settings.min_side, decoding)
            raise LimitExceededError
        pixels = decode_to_pixels(data, settings.min_side, here)
        if settings.square:
            height, width = pixels.shape[:2]
            side = min(height, width)
            top, left = (height - side) // 2, (width - side) // 2
            pixels = pixels[top : top + side, left : left + side]
        return np.ascontiguousarray(pixels)
    except ImageTooLargeError as error:
        estimate_memory(data, settings.min_side, decoding)  # raises if it is too large for any process
        raise LimitExceededError from error
    except (ImageError, MemoryError) as error:
        if isinstance(error, MemoryError) or isinstance(error.__cause__, MemoryError):
            raise LimitExceededError from error
        raise


def _count_work(data: bytes, decoding: DecodingOptions) -> int:
    """Return pixels times scans of a progressive JPEG, 0 for other JPEGs, and pixels of other formats, weighted.

    So an image that would exceed the CPU time is known before it ends the process.
    """
    kind = detect_format(data)
    if kind is None or (kind == "JPEG" and data.count(b"\xff\xda") < 2):
        return 0
    factor = count_jpeg_scans(data) if kind == "JPEG" else JPEG_2000_WORK if kind == "JPEG 2000" else 1
    return factor * math.prod(read_header(data, decoding).size)


def main(limits: DecodingLimits) -> None:
    """Answer jobs until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server handles Ctrl-C
    with contextlib.suppress(AttributeError, OSError):
        os.nice(limits.niceness)
    _limit_memory(limits.memory)
    jobs, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", buffering=0)
    for descriptor in (0, 1):  # what a decoder prints must not end up among the answers
        os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
    with contextlib.suppress(BrokenPipeError):
        while head := jobs.read(JOB.size):
            count, size = JOB.unpack(head)
            settings = DecodingSettings(*json.loads(jobs.read(count)))
            took = _answer(partial(decode_image, jobs.read(size), settings, limits), answers, limits.seconds)
            if took > LONG_SECONDS:
                give_back_freed_memory()


def _answer(decode: Callable[[], npt.NDArray[np.uint8]], answers: BinaryIO, seconds: float) -> float:
    """Write the image or the error that `decode` gives. Return the CPU time that it took, in seconds."""
    began = time.process_time()
    try:
        with _limit_cpu_time(seconds):
            pixels = decode()
    except (ImageError, LimitExceededError) as error:
        kind = next(kind for kind in reversed(ERROR_TYPES) if isinstance(error, ERROR_TYPES[kind]))
        # A client cannot set options of the command line.
        message = re.sub(r" or raise --max-pixels( to \d+M)?", "", str(error)).encode(errors="replace")
        took = time.process_time() - began
        _write(answers, ANSWER.pack(kind, took, len(message), 0, 0) + message)
    else:
        took = time.process_time() - began
        _write(answers, ANSWER.pack(AnswerKind.PIXELS, took, *pixels.shape))
        _write(answers, pixels.data.cast("B"))
    return took


def _write(file: BinaryIO, content: Any) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]


@contextlib.contextmanager
def _limit_cpu_time(seconds: float) -> Any:
    """During the body, end the process by SIGPROF after `seconds` of CPU time, where the system has such a timer."""
    if not hasattr(signal, "setitimer"):
        yield
        return
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _limit_memory(memory: int) -> None:
    """Limit the address space of this process to `memory` bytes more than now, where the system supports it."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        with open("/proc/self/statm") as file:  # noqa: PTH123 - pathlib is not loaded yet
            now = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + memory, now + memory))


if __name__ == "__main__":
    main(DecodingLimits(*json.loads(sys.argv[1])))
