"""How the C library deals with freed memory: a setting of the whole process, made by the command line."""

import ctypes
from contextlib import suppress

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_freed_memory() -> None:
    """Let the C library use freed memory again, up to blocks of 1 GB, where it would give it back to the system.

    Its own limit is 32 MB: every larger tensor is then given back when it is freed, and the system clears each page of
    the next one, which took half of the time of EfficientNet-Lite0 at 64 pictures. It cannot be undone, so that no
    function of the library does it; a program or notebook that has the process to itself may. Elsewhere than in glibc:
    nothing.
    """
    with suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, 2**30)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def give_back_freed_memory() -> None:
    """Let the system have what `keep_freed_memory` keeps. Elsewhere than in glibc: nothing."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
