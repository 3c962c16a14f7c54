"""Grouped and depthwise convolution in compiled kernels (`native/`), on the CPU.

The input gradient is the convolution of the gradient with the rotated kernels, in which the inputs and outputs of each
group are exchanged; with a stride, zeros are inserted into the gradient first, but strided depthwise convolutions have
a kernel of their own. Results are channels-last; tensors in other orders are copied first. Results and input gradients
do not depend on the number of threads; weight gradients do.
"""

import torch
from torch import Tensor

from svertka.conv import native_support
from svertka.conv.native_support import empty_channels_last, to_channels_last, to_kernel_array
from svertka.conv_shape import ConvShape

IS_LOCAL = True


def why_not(shape: ConvShape, dtype: torch.dtype) -> str | None:
    """Return why the kernels do not support `shape`, as a phrase, or None if they do."""
    reason = native_support.why_not_direct_training(shape, dtype)
    return "it is for groups" if reason is None and shape.groups == 1 else reason


def forward(x: Tensor, weight: Tensor, shape: ConvShape, bias: Tensor | None = None) -> Tensor:
    """Return `x`, (N, C, H, W), convolved with `weight`, (O, C / groups, kh, kw), plus `bias`, (O): (N, O, H', W')."""
    packed = weight.permute(2, 3, 1, 0)  # (tap y, tap x, input in group, output)
    return _forward(x, packed, native_support.convolution_window(shape), shape.groups, shape.output, bias)


def input_gradient(gradient: Tensor, weight: Tensor, shape: ConvShape) -> Tensor:
    """Return the gradient with respect to the input, (N, C, H, W); `gradient`: of the result, (N, O, H', W')."""
    groups, taps = shape.groups, shape.kernel
    if shape.stride != (1, 1) and shape.in_channels == shape.out_channels == groups:
        return _depthwise_input_gradient(gradient, weight, shape)
    split = weight.flip(2, 3).reshape(groups, shape.out_channels // groups, shape.in_channels // groups, *taps)
    packed = split.permute(3, 4, 1, 0, 2)  # (tap y, tap x, output in group, group, input in group)
    return _forward(
        native_support.dilate_gradient(gradient, shape),
        packed,
        native_support.input_gradient_window(shape),
        groups,
        shape.input,
    )


def weight_gradient(gradient: Tensor, x: Tensor, shape: ConvShape) -> Tensor:
    """Return the weight gradient, (O, C / groups, kh, kw); `gradient`: of the result; `x`: the input."""
    gradient, x = to_channels_last(gradient), to_channels_last(x)
    outputs, inputs = shape.out_channels // shape.groups, shape.in_channels // shape.groups
    sums = torch.empty(*shape.kernel, outputs, shape.groups, inputs, dtype=torch.float32, device="cpu")
    native_support.kernels.grouped_weight_gradient(
        native_support.convolution_window(shape), shape.groups, gradient, x, sums, torch.get_num_threads()
    )
    return sums.permute(3, 2, 4, 0, 1).reshape(shape.weight)


def _depthwise_input_gradient(gradient: Tensor, weight: Tensor, shape: ConvShape) -> Tensor:
    gradient, result = to_channels_last(gradient), empty_channels_last(shape.input)
    packed = to_kernel_array(weight[:, 0].permute(1, 2, 0))  # (tap y, tap x, channel)
    native_support.kernels.depthwise_input_gradient(
        native_support.convolution_window(shape), gradient, packed, result, torch.get_num_threads()
    )
    return result


def _forward(
    x: Tensor,
    packed: Tensor,
    sizes: "native_support.kernels.Window",
    groups: int,
    shape: tuple[int, int, int, int],
    bias: Tensor | None = None,
) -> Tensor:
    x, output = to_channels_last(x), empty_channels_last(shape)
    bias = None if bias is None else to_kernel_array(bias)
    native_support.kernels.grouped_forward(
        sizes, groups, x, to_kernel_array(packed), bias, output, torch.get_num_threads()
    )
    return output
