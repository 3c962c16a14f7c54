"""The functions conv2d and conv_transpose2d, with the arguments of torch.nn.functional and all checks of them."""

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from svertka import torch_internals
from svertka.conv import aten, autotune
from svertka.conv.operator import convolve, convolve_transposed, dtype_under_autocast
from svertka.conv.validation import check_bias, check_integer, check_memory, check_tensors
from svertka.conv_shape import ConvShape, to_pair
from svertka.errors import UsageError

# Padding modes by their names in layers, and in torch.nn.functional.pad.
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
    """Return the 2-D convolution of `x` with `weight`, as torch.nn.functional.conv2d does.

    Results of different algorithms differ in rounding.

    Args:
        x: (N, C, H, W) or (C, H, W), any float dtype.
        weight: (O, C / groups, kh, kw), in the dtype of `x`.
        bias: (O,), in the dtype of `x`, or None.
        stride: Step of the kernel, in pixels.
        padding: Pixels on each side, "same" (keeps the size; needs stride 1) or "valid" (none).
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        dilation: Distance between taps, in pixels.
        groups: Number of channel groups.
        algorithm: A key of `autotune.ALGORITHMS`, or "auto" for the fastest, which is timed at the first call with a
            shape.
        strict: Whether to use only algorithms whose results depend on nothing outside their window; CPU only. The
            others transform whole tiles (Winograd) or images (FFT), so that a NaN, an infinite or a huge value also
            affects neighboring results. They add before they multiply, so that values or results above 1e30 may
            overflow to inf or NaN.

    Returns:
        (N, O, H', W') or (O, H', W'), in the dtype of `x`, or of autocast if it is enabled, on the device of `x`;
        channels-last if `x` or `weight` is, as in PyTorch.

    Raises:
        UsageError: Shapes, dtypes or devices do not match, or the algorithm does not support the convolution.
    """
    check_tensors(x, weight, bias)
    x = x.to(dtype_under_autocast(x))
    if x.dim() == 3:
        return conv2d(x[None], weight, bias, stride, padding, padding_mode, dilation, groups, algorithm, strict)[0]
    stride, dilation = to_pair("stride", stride), to_pair("dilation", dilation)
    x, pixels = _padded(x, weight, stride, padding, padding_mode, dilation)
    shape = _checked(x.shape, weight.shape, stride, pixels, dilation, check_integer("groups", groups))
    check_memory(x, shape)
    check_bias(bias, shape.out_channels)
    name = _name(algorithm, shape, x, strict=strict)
    if aten.weight_gradient_corrupts_memory(shape) and x.device.type == "cpu":
        x, shape = aten.subsample_pointwise_input(x, shape)
    if _is_transformed() or (algorithm == "auto" and not _has_algorithms(x)):
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
    """Return the transposed 2-D convolution of `x` with `weight`, as torch.nn.functional.conv_transpose2d does.

    It is the input gradient of the convolution with the same settings.

    Args:
        x: (N, C, H, W) or (C, H, W), any float dtype.
        weight: (C, O / groups, kh, kw), in the dtype of `x`.
        bias: (O,), in the dtype of `x`, or None.
        stride: Stride of that convolution, in pixels.
        padding: Zero padding of that convolution, in pixels.
        output_padding: Number of additional rows and columns of the result; smaller than stride or dilation.
        dilation: Distance between taps, in pixels.
        groups: Number of channel groups.
        strict: As in `conv2d`.

    Returns:
        (N, O, H', W') or (O, H', W') with H' = (H − 1)·stride − 2·padding + dilation·(kh − 1) + output_padding + 1.

    Raises:
        UsageError: Shapes, dtypes or devices do not match, or `strict` is used on a device other than the CPU.

    Source: Dumoulin & Visin 2016, relationship 14.
    """
    check_tensors(x, weight, bias)
    x = x.to(dtype_under_autocast(x))
    if x.dim() == 3:
        return conv_transpose2d(
            x[None], weight, bias, stride, padding, output_padding, dilation, groups, strict=strict
        )[0]
    if x.dim() != 4 or weight.dim() != 4 or x.shape[1] != weight.shape[0]:
        raise UsageError(
            f"an input of shape {tuple(x.shape)} and weights of shape {tuple(weight.shape)} do not fit: a transposed "
            "convolution takes (N, C, H, W) and (C, O / groups, kh, kw)"
        )
    pairs = to_pair("stride", stride), to_pair("padding", padding), to_pair("dilation", dilation)
    extra = to_pair("output_padding", output_padding)
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
    channels = weight.shape[1] * check_integer("groups", groups)
    shape = _checked((x.shape[0], channels, *size), weight.shape, *pairs, groups)
    check_memory(x, shape)
    check_bias(bias, channels)
    name = _name("auto", shape, x, strict=strict)
    if _is_transformed() or not _has_algorithms(x):
        return torch.conv_transpose2d(x, weight, bias, shape.stride, shape.padding, extra, groups, shape.dilation)
    return convolve_transposed(x, weight, bias, shape, extra, name)


def _name(algorithm: str, shape: ConvShape, x: Tensor, *, strict: bool) -> str:
    """Return the name for `autotune.select_algorithm`."""
    if not isinstance(strict, bool):
        raise UsageError(f"strict is of type {type(strict).__name__}; use True or False")
    if strict and x.device.type != "cpu":
        raise UsageError(f"strict=True works only on the CPU, the input is on {x.device}; use strict=False")
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
    """Return the padded input, and the zero padding that the algorithm adds."""
    if not isinstance(mode, str) or mode not in PADDING_MODES:
        raise UsageError(f"padding_mode={mode} is not known; use {', '.join(PADDING_MODES)}")
    if padding == "valid":
        return x, (0, 0)
    if x.dim() != 4 or weight.dim() != 4:
        return x, (0, 0)  # `ConvShape` raises the error
    if padding == "same":
        if stride != (1, 1):
            raise UsageError(f"padding=same needs stride=1, not {stride}; give the padding in pixels")
        missing = [step * (taps - 1) for step, taps in zip(dilation, weight.shape[2:], strict=True)]
        around = [missing[1] // 2, missing[1] - missing[1] // 2, missing[0] // 2, missing[0] - missing[0] // 2]
    elif isinstance(padding, str):
        raise UsageError(f"padding={padding} is not known; use pixels, same or valid")
    elif mode == "zeros":
        return x, to_pair("padding", padding)
    else:
        vertical, horizontal = to_pair("padding", padding)
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
    """Return whether forward-mode AD, a function transform or torch.jit.trace is active.

    Custom operators do not support the first two; tracing would record kernel results as constants.
    """
    return torch_internals.is_tracing() or torch_internals.has_active_transform()


def _has_algorithms(x: Tensor) -> bool:
    """Return whether svertka has algorithms for `x`; on GPUs cuDNN runs its own search."""
    return x.device.type == "cpu" and x.dtype in autotune.DTYPES


# Shapes repeat; a lookup takes a tenth of the time of a check.
_cached_shape: Any = lru_cache(4096)(ConvShape.of)


def _checked(*sizes: Any) -> ConvShape:
    shape: ConvShape = ConvShape.of(*sizes) if torch.compiler.is_compiling() else _cached_shape(*sizes)
    return shape
