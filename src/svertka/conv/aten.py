"""PyTorch's own convolution: oneDNN on the CPU, cuDNN on graphics cards. What every other algorithm has to beat."""

import torch

from svertka.conv_geometry import ConvShape

IS_LOCAL = True


def why_not(shape: ConvShape, dtype: torch.dtype) -> None:
    """None: it can do whatever PyTorch can."""


def forward(x: torch.Tensor, weight: torch.Tensor, shape: ConvShape, bias: torch.Tensor | None = None) -> torch.Tensor:
    """The convolution of `x`, (N, C, H, W), with `weight`, (O, C / groups, kh, kw): (N, O, H', W').

    `bias`: (O), added.
    """
    weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    return torch.conv2d(x, weight, bias, shape.stride, shape.padding, shape.dilation, shape.groups)


def input_gradient(gradient: torch.Tensor, weight: torch.Tensor, shape: ConvShape) -> torch.Tensor:
    """The gradient with respect to the input, (N, C, H, W); `gradient`: that of the result, (N, O, H', W')."""
    # The input's values do not matter, only its sizes and its memory order: one value, everywhere.
    x = gradient.new_empty(1).expand(shape.input)
    return _backward(gradient, x, weight.to(gradient.dtype), shape, (True, False, False))[0]


def weight_gradient(gradient: torch.Tensor, x: torch.Tensor, shape: ConvShape) -> torch.Tensor:
    """The gradient with respect to the weights, (O, C / groups, kh, kw); `gradient`: that of the result."""
    weight = gradient.new_empty(1).expand(shape.weight)
    return _backward(gradient, x, weight, shape, (False, True, False))[1]


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
