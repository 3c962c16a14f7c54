"""Convolution and its transpose as functions, with the arguments of torch.nn.functional's: checked here, once."""

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from svertka.conv import autotune
from svertka.conv.operator import convolve, dtype_here, transpose
from svertka.conv.validation import need_alike, need_bias, need_room, need_whole
from svertka.conv_geometry import ConvShape, pair
from svertka.errors import UsageError

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
    `strict`: only algorithms whose result at each position depends on the values that its window sees, on the CPU.
    Others compute whole tiles (Winograd) or images (FFT): a NaN, an infinite or a huge value spoils results around it,
    too, and since they add values up before they multiply them, results may overflow to inf or NaN where values or
    results are above 1e30, although PyTorch's are finite.

    Raises:
        UsageError: the shapes do not fit, the tensors do not belong together, or the algorithm cannot do it.
    """
    need_alike(x, weight, bias)
    x = x.to(dtype_here(x))
    if x.dim() == 3:
        return conv2d(x[None], weight, bias, stride, padding, padding_mode, dilation, groups, algorithm, strict)[0]
    stride, dilation = pair("stride", stride), pair("dilation", dilation)
    x, pixels = _padded(x, weight, stride, padding, padding_mode, dilation)
    shape = _checked(x.shape, weight.shape, stride, pixels, dilation, need_whole("groups", groups))
    need_room(x, shape)
    need_bias(bias, shape.out_channels)
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
    """The transposed convolution of `x`, (N, C, H, W) or (C, H, W), with `weight`, (C, O / groups, kh, kw).

    (N, O, H', W') or (O, H', W').
    As torch.nn.functional.conv_transpose2d: what the convolution with these settings does to gradients.
    H' = (H − 1)·stride − 2·padding + dilation·(kh − 1) + output_padding + 1. `strict`: as of `conv2d`.

    Raises:
        UsageError: the shapes do not fit, or the tensors do not belong together; `strict` elsewhere than on the CPU.

    Source: Dumoulin & Visin 2016, relationship 14.
    """
    need_alike(x, weight, bias)
    x = x.to(dtype_here(x))
    if x.dim() == 3:
        return conv_transpose2d(
            x[None], weight, bias, stride, padding, output_padding, dilation, groups, strict=strict
        )[0]
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
    if min(size) < 1:
        raise UsageError(
            f"an input of shape {tuple(x.shape)} gives {size[0]}×{size[1]} pixels with {padding=}; use less padding"
        )
    channels = weight.shape[1] * need_whole("groups", groups)
    shape = _checked((x.shape[0], channels, *size), weight.shape, *pairs, groups)
    need_room(x, shape)
    need_bias(bias, channels)
    name = _name("auto", shape, x, strict=strict)
    if _is_transformed() or not _is_ours(x):
        return torch.conv_transpose2d(x, weight, bias, shape.stride, shape.padding, extra, groups, shape.dilation)
    return transpose(x, weight, bias, shape, extra, name)


def _name(algorithm: str, shape: ConvShape, x: Tensor, *, strict: bool) -> str:
    """What `choose.algorithm` calls it."""
    if not isinstance(strict, bool):
        raise UsageError(f"strict is of type {type(strict).__name__}; use True or False")
    if strict and x.device.type != "cpu":
        raise UsageError(
            f"strict=True is for the CPU, the input is on {x.device}: which algorithm computes there cannot be said; "
            "use strict=False"
        )
    if algorithm == "auto":
        return "strict" if strict else "auto"
    autotune.check_algorithm(algorithm, shape, x.dtype, strict=strict)
    return algorithm


def _padded(
    x: Tensor,
    weight: Tensor,
    stride: tuple[int, int],
    padding: int | tuple[int, int] | str,
    mode: str,
    dilation: tuple[int, int],
) -> tuple[Tensor, tuple[int, int]]:
    """The input with what no algorithm pads by itself, and the zeros that they still have to add."""
    if not isinstance(mode, str) or mode not in PADDING_MODES:
        raise UsageError(f"padding_mode={mode} is not known; use {', '.join(PADDING_MODES)}")
    if padding == "valid":
        return x, (0, 0)
    if x.dim() != 4 or weight.dim() != 4:
        return x, (0, 0)  # which `ConvShape` refuses
    if padding == "same":
        if stride != (1, 1):
            raise UsageError(f"padding=same needs stride=1, not {stride}; give the padding in pixels")
        missing = [step * (taps - 1) for step, taps in zip(dilation, weight.shape[2:], strict=True)]
        around = [missing[1] // 2, missing[1] - missing[1] // 2, missing[0] // 2, missing[0] - missing[0] // 2]
    elif isinstance(padding, str):
        raise UsageError(f"padding={padding} is not known; use pixels, same or valid")
    elif mode == "zeros":
        return x, pair("padding", padding)
    else:
        vertical, horizontal = pair("padding", padding)
        if min(vertical, horizontal) < 0:
            raise UsageError(f"{padding=} must be at least 0")
        around = [horizontal, horizontal, vertical, vertical]
    try:
        return F.pad(x, around, PADDING_MODES[mode]), (0, 0)
    except RuntimeError as error:
        raise UsageError(
            f"an input of shape {tuple(x.shape)} is too small for {padding=} by {mode}; use less padding, or zeros"
        ) from error


def _is_transformed() -> bool:
    """Whether a derivative in forward mode, a function transform or torch.jit.trace is under way.

    Custom operators would not see the former, and the latter would keep results of kernels as constants.
    """
    if torch._C._get_tracing_state() is not None:
        return True
    return forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None


def _is_ours(x: Tensor) -> bool:
    """Whether there is more than PyTorch's own to choose from: on graphics cards cuDNN makes its own search."""
    return x.device.type == "cpu" and x.dtype in autotune.DTYPES


# A shape is met again and again, and to look it up takes a tenth of the time.
_remembered: Any = lru_cache(4096)(ConvShape.of)


def _checked(*sizes: Any) -> ConvShape:
    shape: ConvShape = ConvShape.of(*sizes) if torch.compiler.is_compiling() else _remembered(*sizes)
    return shape
