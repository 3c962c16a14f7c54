"""Dense layers for few inputs at once in compiled kernels (`native/`), for training and inference.

With few inputs, the three products of a dense layer take as long as its weights take to be read or written. The kernels
do so once, in float32. Under autocast, inputs and results are bfloat16; weights are not rounded, and their gradient is
float32 without a copy in bfloat16. Results do not depend on the number of threads.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svertka.conv import native_support
from svertka.conv.native_support import is_plain, to_kernel_array

MAX_ROWS = 32  # inputs at once; with more, products in bfloat16 are faster
MIN_WEIGHTS = 2**18  # with fewer, the call takes longer than the kernels


def can_multiply(layer: nn.Linear, x: Any) -> bool:
    """Return whether the kernels compute what `layer` does for `x`, in float32 or under autocast in bfloat16."""
    weight, bias = layer.weight, layer.bias
    return (
        is_plain(x, (torch.float32, _dtype()))
        and type(weight) is nn.Parameter
        and (bias is None or type(bias) is nn.Parameter)
        and all(one is None or (one.is_cpu and one.dtype == torch.float32) for one in (weight, bias))
        and weight.dim() == 2
        and weight.numel() >= MIN_WEIGHTS
        and (bias is None or bias.shape == weight.shape[:1])
        and x.dim() > 1
        and x.shape[-1] == weight.shape[1]
        and 0 < x.numel() <= MAX_ROWS * weight.shape[1]
        and _dtype() in native_support.DTYPES
    )


def multiply(layer: nn.Linear, x: Tensor) -> Tensor:
    """Return what `layer` gives for `x`, (..., inputs), for which `can_multiply` holds.

    Returns:
        (..., outputs), float32, or bfloat16 under autocast.
    """
    weight, bias = layer.weight, layer.bias
    rows = x.to(_dtype()).reshape(-1, weight.shape[1])
    result: Tensor = _Linear.apply(rows, weight, bias)  # type: ignore[no-untyped-call]
    return result.reshape(*x.shape[:-1], weight.shape[0])


def _dtype() -> torch.dtype:
    """Return the dtype of results: that of autocast if enabled, else float32."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        sizes, rows = _sizes(x, weight), to_kernel_array(x)
        result = rows.new_empty(len(x), len(weight))
        summands = None if bias is None else to_kernel_array(bias)
        native_support.kernels.linear_forward(
            sizes, rows, to_kernel_array(weight), summands, result, torch.get_num_threads()
        )
        return result.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x = of_weight = of_bias = None
        gradient, threads = upstream[0].float(), torch.get_num_threads()
        if torch.is_grad_enabled():  # the gradients are to be derived again
            if ctx.needs_input_grad[0]:
                of_x = F.linear(gradient, weight.T).to(x.dtype)
            if ctx.needs_input_grad[1]:
                of_weight = F.linear(gradient.T, x.float().T)
        else:
            sizes, gradient = _sizes(x, weight), to_kernel_array(gradient)
            if ctx.needs_input_grad[0]:
                of_x = gradient.new_empty(x.shape)
                native_support.kernels.linear_input_gradient(sizes, gradient, to_kernel_array(weight), of_x, threads)
                of_x = of_x.to(x.dtype)
            if ctx.needs_input_grad[1]:
                of_weight = gradient.new_empty(weight.shape)
                native_support.kernels.linear_weight_gradient(sizes, gradient, to_kernel_array(x), of_weight, threads)
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum(0)
        return of_x, of_weight, of_bias


def _sizes(x: Tensor, weight: Tensor) -> "native_support.kernels.LinearShape":
    return native_support.kernels.LinearShape(len(x), weight.shape[1], weight.shape[0])
