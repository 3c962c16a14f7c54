"""Settings of glibc's malloc for freed memory; they apply to the whole process."""

import ctypes
import mmap
from contextlib import suppress
from typing import Any

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # malloc.h
BLOCK = 2**30 - 2**24  # bytes; less than M_MMAP_THRESHOLD, and BLOCKS of them less than M_TRIM_THRESHOLD
BLOCKS = 2


def keep_freed_memory() -> None:
    """Let malloc reuse freed blocks of up to 1 GB instead of returning them to the system.

    glibc's own limit is 32 MB. Beyond it, the system clears each page of every new tensor, which took half of the time
    of EfficientNet-Lite0 with 64 images. Threads share one arena, because a thread's own one returns freed blocks of
    the size of a batch. The next 2 GB are on large pages, if the system has any. The settings cannot be undone, so that
    only the command line uses them. Without glibc this does nothing.
    """
    with suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 2**30)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(M_ARENA_MAX, 1)
        _ask_for_large_pages(libc)


def _ask_for_large_pages(libc: Any) -> None:
    """Let malloc reserve addresses, and ask for large pages there; memory is taken when it is first used."""
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
    libc.free.argtypes = (ctypes.c_void_p,)
    libc.madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    blocks = [block for block in (libc.malloc(BLOCK) for _ in range(BLOCKS)) if block]
    for block in blocks:
        begin = -(-block // mmap.PAGESIZE) * mmap.PAGESIZE
        libc.madvise(begin, (block + BLOCK - begin) // mmap.PAGESIZE * mmap.PAGESIZE, mmap.MADV_HUGEPAGE)
    for block in blocks:
        libc.free(block)


def give_back_freed_memory() -> None:
    """Return freed memory to the system. Without glibc this does nothing."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
