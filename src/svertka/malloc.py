"""Settings of glibc's malloc for freed memory; they apply to the whole process."""

import ctypes
import mmap
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # malloc.h
BLOCK = 2**30 - 2**24  # bytes with large pages; less than M_MMAP_THRESHOLD
MAX_BLOCKS = 8
OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")  # 2: the system refuses to reserve more than it has


def keep_freed_memory() -> None:
    """Let malloc reuse freed blocks of up to 1 GB instead of returning them to the system.

    glibc's own limit is 32 MB. Beyond it, the system clears each page of every new tensor, which took half of the time
    of EfficientNet-Lite0 with 64 images. Threads share one arena, because a thread's own one returns freed blocks of
    the size of a batch. The next 8 GB, or half of the memory, are on large pages, if the system has any. The settings
    cannot be undone, so that only the command line uses them. Without glibc this does nothing.
    """
    with suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 2**30)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(M_ARENA_MAX, 1)
        _ask_for_large_pages(libc)


def _ask_for_large_pages(libc: Any) -> None:
    """Let malloc reserve addresses, and ask for large pages there; memory is taken when it is first used.

    Nothing is reserved where addresses are limited, or count as used memory.
    """
    import resource  # not on Windows

    limits = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    if any(limit != resource.RLIM_INFINITY for limit in limits) or OVERCOMMIT.read_text().strip() == "2":
        return
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
    libc.realloc.restype, libc.realloc.argtypes = ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_size_t)
    libc.madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    count = min(os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE // 2 // BLOCK, MAX_BLOCKS)
    blocks = []
    for _ in range(count):
        block = libc.malloc(BLOCK)
        if not block:
            break
        begin = -(-block // mmap.PAGESIZE) * mmap.PAGESIZE
        libc.madvise(begin, (block + BLOCK - begin) // mmap.PAGESIZE * mmap.PAGESIZE, mmap.MADV_HUGEPAGE)
        blocks.append(block)
    for block in blocks:
        libc.realloc(block, 1)  # keeps the free blocks apart: together, malloc would give them back


def give_back_freed_memory() -> None:
    """Return freed memory to the system. Without glibc this does nothing."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
