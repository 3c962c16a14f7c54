"""PyTorch's own convolution in float32 of bfloat16 tensors: for processors that only imitate bfloat16.

Without instructions for it PyTorch's products of bfloat16 numbers take several times as long as those of float32. All
results but the weights' gradient, which stays float32, are rounded to bfloat16 once, at the end.
"""

import torch
from torch import Tensor

from svertka.conv import aten
from svertka.conv_geometry import ConvShape

IS_LOCAL = True


def why_not(shape: ConvShape, dtype: torch.dtype) -> str | None:
    """Why it is of no use, as a phrase, or None."""
    return None if dtype == torch.bfloat16 else "it is for bfloat16"


def forward(x: Tensor, weight: Tensor, shape: ConvShape, bias: Tensor | None = None) -> Tensor:
    """The convolution of `x`, (N, C, H, W), with `weight`, (O, C / groups, kh, kw): (N, O, H', W').

    `bias`: (O), added.
    """
    return aten.forward(x.float(), weight.float(), shape, None if bias is None else bias.float()).to(x.dtype)


def input_gradient(gradient: Tensor, weight: Tensor, shape: ConvShape) -> Tensor:
    """The gradient with respect to the input, (N, C, H, W); `gradient`: that of the result, (N, O, H', W')."""
    return aten.input_gradient(gradient.float(), weight.float(), shape).to(gradient.dtype)


def weight_gradient(gradient: Tensor, x: Tensor, shape: ConvShape) -> Tensor:
    """The gradient with respect to the weights, (O, C / groups, kh, kw); `gradient`: that of the result."""
    return aten.weight_gradient(gradient.float(), x.float(), shape)
