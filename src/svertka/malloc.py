"""Settings of glibc's malloc for freed memory; they apply to the whole process."""

import ctypes
from contextlib import suppress

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # malloc.h


def keep_freed_memory() -> None:
    """Let malloc reuse freed blocks of up to 1 GB instead of returning them to the system.

    glibc's own limit is 32 MB. Beyond it, the system clears each page of every new tensor, which took half of the time
    of EfficientNet-Lite0 with 64 images. Threads share one arena, because a thread's own one returns freed blocks of
    the size of a batch. The setting cannot be undone, so that only the command line uses it. Without glibc this does
    nothing.
    """
    with suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, 2**30)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_ARENA_MAX, 1)


def give_back_freed_memory() -> None:
    """Return freed memory to the system. Without glibc this does nothing."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
