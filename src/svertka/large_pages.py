"""Tensors on large pages of memory, from which a CPU reads faster."""

import math
import mmap
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

LARGE_PAGE = 2**21  # bytes


def empty_on_large_pages(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return an uninitialized tensor on the CPU, on large pages if it fills one and the system has any.

    One core of a Zen 4 reads 400 MB at 18 GB/s from pages of 4 KB and at 30 GB/s from pages of 2 MB, because it looks
    up fewer addresses.

    Args:
        shape: The shape of the tensor.
        dtype: Its dtype.
    """
    count = math.prod(shape)
    size = count * dtype.itemsize
    if size >= LARGE_PAGE and hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # addresses are limited, or the kernel has no large pages
            memory = mmap.mmap(-1, size + LARGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            begin = -torch.frombuffer(memory, dtype=torch.uint8).data_ptr() % LARGE_PAGE
            memory.madvise(mmap.MADV_HUGEPAGE, begin, size // LARGE_PAGE * LARGE_PAGE)
            return torch.frombuffer(memory, dtype=dtype, count=count, offset=begin).view(shape)
    return torch.empty(shape, dtype=dtype, device="cpu")


def stack_on_large_pages(tensors: Sequence[Tensor]) -> Tensor:
    """Return `tensors`, of one shape and dtype, stacked along a new first axis, without gradient."""
    stacked = empty_on_large_pages((len(tensors), *tensors[0].shape), tensors[0].dtype)
    with torch.no_grad():
        return torch.stack(list(tensors), out=stacked)
