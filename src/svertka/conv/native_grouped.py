"""Grouped and depthwise convolution in compiled kernels (`native/`), on the CPU.

The input gradient is the convolution of the gradient with the rotated kernels, in which the inputs and outputs of each
group are exchanged; with a stride, zeros are inserted into the gradient first. The weight gradient is PyTorch's.
Results are channels-last; tensors in other orders are copied first. Results do not depend on the number of threads.
"""

from functools import lru_cache

import torch
from torch import Tensor

from svertka.conv import aten, native_support
from svertka.conv.native_support import empty_channels_last, to_channels_last, to_kernel_vector
from svertka.conv_geometry import ConvShape

IS_LOCAL = True


def why_not(shape: ConvShape, dtype: torch.dtype) -> str | None:
    """Return why the kernels do not support `shape`, as a phrase, or None if they do."""
    reason = native_support.why_not(dtype)
    if reason:
        return reason
    if dtype != torch.float32:
        return f"the kernels compute float32, not {str(dtype).removeprefix('torch.')}"
    if shape.groups == 1:
        return "it is for groups"
    if any(pad >= span for pad, span in zip(shape.padding, shape.span, strict=True)):
        return f"padding of {shape.padding} pixels is larger than the kernel"
    return None


def forward(x: Tensor, weight: Tensor, shape: ConvShape, bias: Tensor | None = None) -> Tensor:
    """Return `x`, (N, C, H, W), convolved with `weight`, (O, C / groups, kh, kw), plus `bias`, (O): (N, O, H', W')."""
    packed = weight.permute(2, 3, 1, 0)  # (tap y, tap x, input in group, output)
    return _forward(x, packed, _sizes(shape), shape.groups, shape.output, bias)


def input_gradient(gradient: Tensor, weight: Tensor, shape: ConvShape) -> Tensor:
    """Return the gradient with respect to the input, (N, C, H, W); `gradient`: of the result, (N, O, H', W')."""
    if shape.stride != (1, 1):
        vertical, horizontal = shape.stride
        spread = gradient.new_zeros(_spread(shape)).contiguous(memory_format=torch.channels_last)
        spread[:, :, ::vertical, ::horizontal] = gradient
        gradient = spread
    groups, taps = shape.groups, shape.kernel
    split = weight.flip(2, 3).reshape(groups, shape.out_channels // groups, shape.in_channels // groups, *taps)
    packed = split.permute(3, 4, 1, 0, 2)  # (tap y, tap x, output in group, group, input in group)
    return _forward(gradient, packed, _adjoint_sizes(shape), groups, shape.input)


def weight_gradient(gradient: Tensor, x: Tensor, shape: ConvShape) -> Tensor:
    """Return PyTorch's weight gradient, (O, C / groups, kh, kw); `gradient`: of the result; `x`: the input."""
    return aten.weight_gradient(gradient, x, shape)


def _forward(
    x: Tensor,
    packed: Tensor,
    sizes: "native_support.kernels.Window",
    groups: int,
    shape: tuple[int, int, int, int],
    bias: Tensor | None = None,
) -> Tensor:
    x, output = to_channels_last(x), empty_channels_last(shape)
    bias = None if bias is None else to_kernel_vector(bias)
    native_support.kernels.grouped_forward(
        sizes, groups, x, to_kernel_vector(packed), bias, output, torch.get_num_threads()
    )
    return output


def _spread(shape: ConvShape) -> tuple[int, int, int, int]:
    """Return the size of the gradient with stride − 1 zeros between its pixels."""
    height, width = ((size - 1) * step + 1 for size, step in zip(shape.output[2:], shape.stride, strict=True))
    return shape.batch, shape.out_channels, height, width


@lru_cache(4096)
def _sizes(shape: ConvShape) -> "native_support.kernels.Window":
    sizes = (shape.height, shape.width), (shape.out_height, shape.out_width)
    y, x = (
        native_support.kernels.WindowAxis(size, out_size, taps, stride, pad, dilation)
        for size, out_size, taps, stride, pad, dilation in zip(
            *sizes, shape.kernel, shape.stride, shape.padding, shape.dilation, strict=True
        )
    )
    channels = shape.in_channels, shape.out_channels
    return native_support.kernels.Window(shape.batch, *channels, y, x, *channels)


@lru_cache(4096)
def _adjoint_sizes(shape: ConvShape) -> "native_support.kernels.Window":
    """Return the sizes of the input gradient as a convolution with stride 1."""
    sizes = _spread(shape)[2:], (shape.height, shape.width)
    y, x = (
        native_support.kernels.WindowAxis(size, out_size, taps, 1, span - 1 - pad, dilation)
        for size, out_size, taps, span, pad, dilation in zip(
            *sizes, shape.kernel, shape.span, shape.padding, shape.dilation, strict=True
        )
    )
    channels = shape.out_channels, shape.in_channels
    return native_support.kernels.Window(shape.batch, *channels, y, x, *channels)
