"""PyTorch's own convolution: oneDNN on the CPU, cuDNN on GPUs. The baseline of all other algorithms."""

from dataclasses import replace

import torch
import torch.nn.functional as F

from svertka.conv_shape import ConvShape

IS_LOCAL = True

# oneDNN's channels-last weight gradient of a strided 1×1 convolution accesses memory outside of its tensors if there
# are fewer input channels than this: docs/decisions/0020-weight-gradient-of-strided-1x1.md.
MIN_STRIDED_CHANNELS = 16


def why_not(shape: ConvShape, dtype: torch.dtype) -> None:
    """Return None, because it supports every convolution that PyTorch supports."""


def forward(x: torch.Tensor, weight: torch.Tensor, shape: ConvShape, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Return the convolution of `x`, (N, C, H, W), with `weight`, (O, C / groups, kh, kw), plus `bias`, (O), or None.

    The result has shape (N, O, H', W').
    """
    weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    return torch.conv2d(x, weight, bias, shape.stride, shape.padding, shape.dilation, shape.groups)


def input_gradient(gradient: torch.Tensor, weight: torch.Tensor, shape: ConvShape) -> torch.Tensor:
    """Return the gradient with respect to the input, (N, C, H, W); `gradient`: of the result, (N, O, H', W')."""
    # Only the input's shape matters, so one expanded value saves its memory.
    x = gradient.new_empty(1).expand(shape.input)
    return _backward(gradient, x, weight.to(gradient.dtype), shape, (True, False, False))[0]


def weight_gradient(gradient: torch.Tensor, x: torch.Tensor, shape: ConvShape) -> torch.Tensor:
    """Return the weight gradient, (O, C / groups, kh, kw); `gradient`: of the result."""
    if weight_gradient_corrupts_memory(shape):
        x, shape = subsample_pointwise_input(x, shape)
    weight = gradient.new_empty(1).expand(shape.weight)
    return _backward(gradient, x, weight, shape, (False, True, False))[1]


def weight_gradient_corrupts_memory(shape: ConvShape) -> bool:
    """Return whether PyTorch's weight gradient of `shape` may access memory outside of its tensors on the CPU."""
    is_strided = shape.kernel == (1, 1) and shape.stride != (1, 1)
    return is_strided and shape.groups == 1 and shape.in_channels < MIN_STRIDED_CHANNELS


def subsample_pointwise_input(x: torch.Tensor, shape: ConvShape) -> tuple[torch.Tensor, ConvShape]:
    """Return the pixels that a 1×1 convolution reads, (N, C, H', W'), and its shape with stride 1 on them."""
    (pad_y, pad_x), (stride_y, stride_x) = shape.padding, shape.stride
    if shape.padding != (0, 0):
        x = F.pad(x, (pad_x, pad_x, pad_y, pad_y))
    pixels = x[:, :, ::stride_y, ::stride_x]
    height, width = shape.out_height, shape.out_width
    return pixels, replace(shape, height=height, width=width, stride=(1, 1), padding=(0, 0))


def _backward(
    gradient: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, shape: ConvShape, wanted: tuple[bool, bool, bool]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    results: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = torch.ops.aten.convolution_backward(
        gradient,
        x,
        weight,
        None,
        list(shape.stride),
        list(shape.padding),
        list(shape.dilation),
        False,  # not transposed
        [0, 0],
        shape.groups,
        list(wanted),
    )
    return results
