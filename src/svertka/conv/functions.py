"""Convolution and its transpose as functions, with the arguments of torch.nn.functional's: checked here, once."""

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from svertka.conv import choose
from svertka.conv.operator import convolve, dtype_here, transpose
from svertka.errors import UsageError
from svertka.geometry import ConvShape, pair

# The ways to pad, by their names in layers and in torch.nn.functional.pad.
PADDING_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    padding_mode: str = "zeros",
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    algorithm: str = "auto",
    strict: bool = False,
) -> Tensor:
    """The convolution of `x`, (N, C, H, W) or (C, H, W), with `weight`, (O, C / groups, kh, kw): (N, O, H', W').

    As torch.nn.functional.conv2d, whose arguments these are, in the dtype of `x`, or of autocast where that is on, and
    on the device of `x` and in its memory order. `padding`: pixels on each side, or "same" (the size stays, at stride
    1) or "valid" (none). `padding_mode`: "zeros", "reflect", "replicate" or "circular". `algorithm`: one of
    `choose.ALGORITHMS`, or "auto": the fastest, timed when a shape is first met (see `choose`); results of different
    algorithms differ in rounding.

    Raises:
        UsageError: the shapes do not fit, the tensors do not belong together, or the algorithm cannot do it.
    """
    _need_alike(x, weight, bias)
    x = x.to(dtype_here(x))
    if x.dim() == 3:
        return conv2d(x[None], weight, bias, stride, padding, padding_mode, dilation, groups, algorithm, strict)[0]
    x, pixels = _padded(x, weight, stride, padding, padding_mode, dilation)
    shape = _checked(x.shape, weight.shape, stride, pixels, dilation, groups)
    if bias is not None and tuple(bias.shape) != (shape.out_channels,):
        raise UsageError(f"bias of shape {tuple(bias.shape)} must be ({shape.out_channels},), one an output channel")
    name = _name(algorithm, shape, x, strict=strict)
    if _is_transformed() or (algorithm == "auto" and not _is_ours(x)):
        return torch.conv2d(x, weight, bias, shape.stride, shape.padding, shape.dilation, groups)
    return convolve(x, weight, bias, shape, name)


def conv_transpose2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    output_padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    strict: bool = False,
) -> Tensor:
    """The transposed convolution of `x`, (N, C, H, W), with `weight`, (C, O / groups, kh, kw): (N, O, H', W').

    As torch.nn.functional.conv_transpose2d: what the convolution with these settings does to gradients.
    H' = (H − 1)·stride − 2·padding + dilation·(kh − 1) + output_padding + 1. `strict`: as of `conv2d`.

    Raises:
        UsageError: the shapes do not fit, or the tensors do not belong together; `strict` elsewhere than on the CPU.

    Source: Dumoulin & Visin 2016, relationship 14.
    """
    _need_alike(x, weight, bias)
    x = x.to(dtype_here(x))
    if x.dim() != 4 or weight.dim() != 4 or x.shape[1] != weight.shape[0]:
        raise UsageError(
            f"an input of shape {tuple(x.shape)} and weights of shape {tuple(weight.shape)} do not fit: a transposed "
            "convolution takes (N, C, H, W) and (C, O / groups, kh, kw)"
        )
    pairs = pair("stride", stride), pair("padding", padding), pair("dilation", dilation)
    extra = pair("output_padding", output_padding)
    if any(more < 0 or more >= max(step, apart) for more, step, apart in zip(extra, pairs[0], pairs[2], strict=True)):
        raise UsageError(
            f"{output_padding=} must be at least 0 and smaller than stride or dilation, {stride}, {dilation}"
        )
    size = [
        (side - 1) * step - 2 * pad + apart * (taps - 1) + more + 1
        for side, taps, step, pad, apart, more in zip(x.shape[2:], weight.shape[2:], *pairs, extra, strict=True)
    ]
    shape = _checked((x.shape[0], weight.shape[1] * groups, *size), weight.shape, *pairs, groups)
    name = _name("auto", shape, x, strict=strict)
    if _is_transformed() or not _is_ours(x):
        return torch.conv_transpose2d(x, weight, bias, shape.stride, shape.padding, extra, groups, shape.dilation)
    return transpose(x, weight, bias, shape, extra, name)


def _need_alike(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if not x.dtype.is_floating_point and not x.dtype.is_complex:
        raise UsageError(f"an input of {x.dtype} cannot be convolved; turn it into floating point, as with .float()")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.device != x.device:
            raise UsageError(f"the input is on {x.device}, {name} on {tensor.device}; move both to one device")
        if tensor is not None and dtype_here(tensor) != dtype_here(x):
            raise UsageError(f"the input is {x.dtype}, {name} {tensor.dtype}; turn both into one dtype")


def _name(algorithm: str, shape: ConvShape, x: Tensor, *, strict: bool) -> str:
    """What `choose.algorithm` calls it."""
    if strict and x.device.type != "cpu":
        raise UsageError(
            f"strict=True is for the CPU, the input is on {x.device}: which algorithm computes there cannot be said; "
            "use strict=False"
        )
    if algorithm == "auto":
        return "strict" if strict else "auto"
    choose.need(algorithm, shape, x.dtype, strict=strict)
    return algorithm


def _padded(
    x: Tensor,
    weight: Tensor,
    stride: int | tuple[int, int],
    padding: int | tuple[int, int] | str,
    mode: str,
    dilation: int | tuple[int, int],
) -> tuple[Tensor, int | tuple[int, int]]:
    """The input with what no algorithm pads by itself, and the zeros that they still have to add."""
    if mode not in PADDING_MODES:
        raise UsageError(f"padding_mode={mode} is not known; use {', '.join(PADDING_MODES)}")
    if padding == "valid":
        return x, 0
    if padding == "same":
        if stride not in (1, (1, 1)):
            raise UsageError(f"padding=same needs stride=1, not {stride}; give the padding in pixels")
        missing = [step * (taps - 1) for step, taps in zip(pair("dilation", dilation), weight.shape[2:], strict=True)]
        around = [missing[1] // 2, missing[1] - missing[1] // 2, missing[0] // 2, missing[0] - missing[0] // 2]
    elif isinstance(padding, str):
        raise UsageError(f"padding={padding} is not known; use pixels, same or valid")
    elif mode == "zeros":
        return x, padding
    else:
        vertical, horizontal = pair("padding", padding)
        around = [horizontal, horizontal, vertical, vertical]
    try:
        return F.pad(x, around, PADDING_MODES[mode]), 0
    except RuntimeError as error:
        raise UsageError(
            f"an input of shape {tuple(x.shape)} is too small for {padding=} by {mode}; use less padding, or zeros"
        ) from error


def _is_transformed() -> bool:
    """Whether a derivative in forward mode or a function transform is under way: custom operators would not see it."""
    return forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None


def _is_ours(x: Tensor) -> bool:
    """Whether there is more than PyTorch's own to choose from: on graphics cards cuDNN makes its own search."""
    return x.device.type == "cpu" and x.dtype in choose.DTYPES


# A shape is met again and again, and to look it up takes a tenth of the time.
_remembered: Any = lru_cache(4096)(ConvShape.of)


def _checked(*sizes: Any) -> ConvShape:
    shape: ConvShape = ConvShape.of(*sizes) if torch.compiler.is_compiling() else _remembered(*sizes)
    return shape
