"""The compiled kernels (`native/`): availability, instruction sets and preparation of their tensors.

Only this module imports the kernels; `native_winograd` and others use them through it.
"""

import os
import warnings
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch  # before the kernels, so that they use the threads that PyTorch has started
from torch import Tensor

from svertka import torch_internals
from svertka.conv.kernel_sources import hash_kernel_sources
from svertka.conv_shape import ConvShape
from svertka.errors import UsageError

__all__ = [
    "DTYPES",
    "are_plain_images",
    "convolution_window",
    "dilate_gradient",
    "empty_channels_last",
    "input_gradient_window",
    "instruction_sets",
    "is_plain",
    "kernels",
    "make_window_sizes",
    "multiplies_bfloat16",
    "poison_scratch",
    "select_instruction_set",
    "selected_instruction_set",
    "to_channels_last",
    "to_kernel_array",
    "to_kernel_input",
    "why_not",
    "why_not_direct_training",
]

DTYPES = torch.float32, torch.bfloat16

MISSING: str | None = None
try:
    import svertka.conv._kernels as kernels  # `from` would not tell missing kernels from broken ones
except ModuleNotFoundError:
    MISSING = "the package was installed without a C++ compiler, hence without kernels"
except ImportError as error:
    MISSING = f"the compiled kernels cannot be loaded: {error}"
else:
    SOURCES = Path(__file__).parents[3] / "native"  # of an editable installation
    if SOURCES.is_dir() and getattr(kernels, "source_hash", None) != hash_kernel_sources(SOURCES):
        MISSING = f"the compiled kernels were built from other sources than those in {SOURCES}: build them again (make)"
        warnings.warn(f"{MISSING}; until then PyTorch convolves", RuntimeWarning, stacklevel=2)


def _use_one_thread() -> None:
    """Use one thread in a forked process, in which GNU OpenMP would wait for its lost threads forever."""
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_use_one_thread)


def why_not(dtype: torch.dtype = torch.float32) -> str | None:
    """Return why the kernels are not available for `dtype`, as a phrase, or None if they are."""
    if MISSING:
        return MISSING
    if dtype not in DTYPES:
        return f"the kernels compute float32 and bfloat16, not {str(dtype).removeprefix('torch.')}"
    return None


def instruction_sets() -> tuple[str, ...]:
    """Return the supported ones of "avx512bf16", "avx512", "avx2", "baseline", the fastest first."""
    return () if MISSING else tuple(kernels.instruction_sets())


def select_instruction_set(instructions: str) -> None:
    """Select one of `instruction_sets()`. Weights packed for another set become invalid."""
    kernels.use(instructions)


def selected_instruction_set() -> str:
    """Return the selected instruction set."""
    return kernels.used()


def multiplies_bfloat16() -> bool:
    """Return whether the selected set multiplies bfloat16 in hardware; emulation is slower than float32."""
    return not MISSING and kernels.multiplies_bfloat16()


def poison_scratch(on: bool) -> None:
    """Fill scratch memory with NaN in every call, so that tests notice uninitialized reads."""
    if not MISSING:
        kernels.poison_scratch(on)


def is_plain(x: Any, dtypes: Sequence[torch.dtype] = DTYPES) -> bool:
    """Return whether a layer's kernels may read `x`: a tensor of one of `dtypes` that nothing traces or transforms."""
    return (
        type(x) is Tensor
        and x.is_cpu
        and x.dtype in dtypes
        and why_not() is None
        and not torch.compiler.is_compiling()
        and not torch_internals.has_active_transform()
    )


def are_plain_images(x: Any, min_values: int) -> bool:
    """Return whether `x` is plain images, channels-last and not lazily negated, of at least `min_values` values."""
    return (
        is_plain(x)
        and x.dim() == 4
        and x.numel() >= min_values
        and x.is_contiguous(memory_format=torch.channels_last)
        and not x.is_neg()
    )


def to_channels_last(tensor: Tensor) -> Tensor:
    """Return `tensor` in channels-last order, the only one that the kernels read."""
    if tensor.device.type != "cpu" or tensor.dtype not in DTYPES:
        raise UsageError(
            f"the kernels compute float32 and bfloat16 on the CPU; this tensor is "
            f"{str(tensor.dtype).removeprefix('torch.')} on {tensor.device}; use algorithm=auto"
        )
    # The memory of a lazily negated view holds the values before negation.
    return tensor.resolve_neg().contiguous(memory_format=torch.channels_last)


def to_kernel_input(tensor: Tensor) -> Tensor:
    """Return `tensor` in channels-last order and float32."""
    return to_channels_last(tensor).float()


def to_kernel_array(tensor: Tensor) -> Tensor:
    """Return a bias, or another array, as the kernels read it: contiguous float32."""
    return tensor.float().resolve_neg().contiguous()


def empty_channels_last(shape: tuple[int, int, int, int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Return an uninitialized channels-last tensor, (N, C, H, W)."""
    return torch.empty(shape, dtype=dtype, device="cpu", memory_format=torch.channels_last)


def why_not_direct_training(shape: ConvShape, dtype: torch.dtype) -> str | None:
    """Return why the direct and grouped kernels do not train a convolution, as a phrase, or None if they do."""
    reason = why_not(dtype)
    if reason:
        return reason
    if dtype != torch.float32:
        return f"the kernels compute float32, not {str(dtype).removeprefix('torch.')}"
    if any(pad >= span for pad, span in zip(shape.padding, shape.span, strict=True)):
        return f"padding of {shape.padding} pixels is larger than the kernel"
    return None


def make_window_sizes(
    batch: int, channels: tuple[int, int], axes: Iterable[Sequence[int]], steps: tuple[int, int]
) -> "kernels.Window":
    """Return the sizes of a convolution or a pool for the direct and the grouped kernels.

    Args:
        batch: Number of images.
        channels: Input and output channels; with groups, those of one group.
        axes: Input size, output size, taps, stride, padding before the first pixel and dilation, of y and x.
        steps: Distance between the pixels of the input and of the output, in numbers.
    """
    y, x = (kernels.WindowAxis(*axis) for axis in axes)
    return kernels.Window(batch, *channels, y, x, *steps)


@lru_cache(4096)
def convolution_window(shape: ConvShape) -> "kernels.Window":
    """Return the sizes of a convolution for the direct and the grouped kernels."""
    sizes = shape.input[2:], shape.output[2:]
    axes = zip(*sizes, shape.kernel, shape.stride, shape.padding, shape.dilation, strict=True)
    channels = shape.in_channels, shape.out_channels
    return make_window_sizes(shape.batch, channels, axes, channels)


@lru_cache(4096)
def input_gradient_window(shape: ConvShape) -> "kernels.Window":
    """Return the sizes of the input gradient as a convolution of `spread` gradients with flipped taps."""
    pads = [span - 1 - pad for span, pad in zip(shape.span, shape.padding, strict=True)]
    axes = zip(_spread_size(shape), shape.input[2:], shape.kernel, (1, 1), pads, shape.dilation, strict=True)
    channels = shape.out_channels, shape.in_channels
    return make_window_sizes(shape.batch, channels, axes, channels)


def dilate_gradient(gradient: Tensor, shape: ConvShape) -> Tensor:
    """Return `gradient`, (N, O, H', W'), with stride − 1 zeros between its pixels."""
    if shape.stride == (1, 1):
        return gradient
    (vertical, horizontal), size = shape.stride, _spread_size(shape)
    zeros = gradient.new_zeros(shape.batch, shape.out_channels, *size).contiguous(memory_format=torch.channels_last)
    zeros[:, :, ::vertical, ::horizontal] = gradient
    return zeros


def _spread_size(shape: ConvShape) -> tuple[int, int]:
    height, width = ((size - 1) * step + 1 for size, step in zip(shape.output[2:], shape.stride, strict=True))
    return height, width
