"""Checks of the arguments of a convolution, made before PyTorch or a kernel receives them."""

import os
from math import prod
from typing import Any

import torch
from torch import Tensor

from svertka.conv.operator import dtype_under_autocast
from svertka.conv_shape import ConvShape
from svertka.errors import UsageError

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.complex64, torch.complex128)


def check_tensors(x: Any, weight: Any, bias: Any) -> None:
    """Raise UsageError unless these are dense tensors on one device, in one supported dtype.

    Under autocast, its dtype counts.
    """
    for name, tensor in (("the input", x), ("weight", weight), ("bias", bias)):
        if tensor is None and name == "bias":
            continue
        if not isinstance(tensor, Tensor):
            raise UsageError(
                f"{name} is {type(tensor).__name__}, not a tensor; convert it, for example with torch.tensor"
            )
        if tensor.is_nested or tensor.layout != torch.strided:
            kind = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
            way = "torch.nested.to_padded_tensor" if tensor.is_nested else ".to_dense()"
            raise UsageError(f"{name} is a tensor of layout {kind}; convert it to a dense one, for example with {way}")
        if tensor.device != x.device:
            raise UsageError(f"the input is on {x.device}, {name} on {tensor.device}; move both to one device")
        if tensor is not x and dtype_under_autocast(tensor) != dtype_under_autocast(x):
            raise UsageError(f"the input is {x.dtype}, {name} {tensor.dtype}; convert both to one dtype")
        if tensor.dtype not in DTYPES:
            raise UsageError(
                f"{name} of {tensor.dtype} cannot be convolved; convert it to floating point, for example with .float()"
            )


def check_bias(bias: Tensor | None, out_channels: int) -> None:
    """Raise UsageError unless `bias` is None or has one number for each output channel."""
    if bias is not None and tuple(bias.shape) != (out_channels,):
        raise UsageError(
            f"bias of shape {tuple(bias.shape)} must be ({out_channels},), one value for each output channel"
        )


def check_integer(name: str, value: Any) -> int:
    """Return `value`, the argument called `name`; raise UsageError unless it is an integer."""
    if isinstance(value, int | torch.SymInt):
        return value  # type: ignore[return-value]
    raise UsageError(f"{name}={value!r} must be a whole number")


def check_memory(x: Tensor, shape: ConvShape) -> None:
    """Raise UsageError if the input or the result of a convolution of `shape` exceeds the machine's memory."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return
    for what, sizes in (("input", shape.input), ("result", shape.output)):
        needed = prod(sizes) * x.element_size()
        if needed > _MEMORY:
            size, (takes, there) = "×".join(map(str, sizes)), (f"{each / 2**30:,.0f} GiB" for each in (needed, _MEMORY))
            raise UsageError(
                f"the {what}, {size}, takes {takes}, more than the {there} of this machine; use smaller or fewer images"
            )


def _memory() -> int:
    """Return the machine's memory in bytes, or the address space if it is unknown."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 1 << 47


_MEMORY = _memory()
