"""PyTorch's convolution of bfloat16 tensors upcast to float32, for CPUs that emulate bfloat16.

Without hardware support, PyTorch's bfloat16 products take several times as long as float32. Results are rounded to
bfloat16 once, at the end; the weight gradient stays float32.
"""

import torch
from torch import Tensor

from svertka.conv import aten
from svertka.conv_shape import ConvShape

IS_LOCAL = True


def why_not(shape: ConvShape, dtype: torch.dtype) -> str | None:
    """Return why the algorithm does not apply, as a phrase, or None if it does."""
    return None if dtype == torch.bfloat16 else "it is for bfloat16"


def forward(x: Tensor, weight: Tensor, shape: ConvShape, bias: Tensor | None = None) -> Tensor:
    """Return the convolution of `x`, (N, C, H, W), with `weight`, (O, C / groups, kh, kw), plus `bias`, (O), or None.

    The result has shape (N, O, H', W').
    """
    return aten.forward(x.float(), weight.float(), shape, None if bias is None else bias.float()).to(x.dtype)


def input_gradient(gradient: Tensor, weight: Tensor, shape: ConvShape) -> Tensor:
    """Return the gradient with respect to the input, (N, C, H, W); `gradient`: of the result, (N, O, H', W')."""
    return aten.input_gradient(gradient.float(), weight.float(), shape).to(gradient.dtype)


def weight_gradient(gradient: Tensor, x: Tensor, shape: ConvShape) -> Tensor:
    """Return the weight gradient, (O, C / groups, kh, kw); `gradient`: of the result."""
    return aten.weight_gradient(gradient.float(), x.float(), shape)
