"""Tensors between pages of memory that may not be touched, and how tests name places to kernels."""

import ctypes
import mmap

import torch
import torch.nn.functional as F
from torch import Tensor

from svertka.conv import native_support

PAGE = mmap.PAGESIZE
PROTECT = ctypes.CDLL(None, use_errno=True).mprotect
PROTECT.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int


class Fenced:
    """A copy of `tensor`, dense in its memory, between two pages that may not be touched; right before the second if
    `at_end`, else right after the first."""

    def __init__(self, tensor: Tensor, *, at_end: bool) -> None:
        size = tensor.numel() * tensor.element_size()
        inside = -(-max(size, 1) // PAGE) * PAGE
        self._area = mmap.mmap(-1, inside + 2 * PAGE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._area))
        offset = PAGE + (inside - size if at_end else 0)
        self.numbers = torch.frombuffer(self._area, dtype=tensor.dtype, count=tensor.numel(), offset=offset)
        self.numbers.copy_(tensor.flatten())
        for fence in (start, start + PAGE + inside):
            assert PROTECT(fence, PAGE, 0) == 0


def fenced_bfloat16(tensor: Tensor, *, at_end: bool) -> tuple[Tensor, int]:
    """A memory of floats with bfloat16 at its end or beginning, and the offset of the first in numbers."""
    more = tensor.numel() % 2
    padded = F.pad(tensor.flatten().bfloat16(), (more, 0) if at_end else (0, more))
    return Fenced(padded.view(torch.float32), at_end=at_end).numbers, more if at_end else 0


def place(memory: int) -> "native_support.kernels.Place":
    return native_support.kernels.Place(memory, 0)


def line(count: int) -> "native_support.kernels.Strided":
    """Contiguous numbers."""
    return native_support.kernels.Strided([1, 1, 1, 1, count], *([[0, 0, 0, 0, 1]] * 3))


def rows(tensor: Tensor) -> Tensor:
    """(N, C, H, W) as it lies in memory, channels-last."""
    return tensor.permute(0, 2, 3, 1).contiguous()
