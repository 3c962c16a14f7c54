"""Batch normalization, a residual and the activation function after it, in compiled kernels (`native/`), for training.

PyTorch's training reads the images of such a layer seven times in both passes; the kernels read them five times, and
with an activation function they save its own reads and the memory of its input, which they compute again. With a
residual they save those of the sum. Results are channels-last, on the CPU. Images may be bfloat16, as under autocast;
statistics are float32 then, too, and the sum with a residual is rounded once instead of twice.

Source: Ioffe & Szegedy 2015, "Batch normalization: accelerating deep network training by reducing internal covariate
shift", algorithm 1.
"""

from collections.abc import Callable
from math import inf
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svertka.conv import native_support
from svertka.conv.native_support import are_plain_images, empty_channels_last, to_channels_last

MIN_VALUES = 2**14  # with fewer, the call takes longer than the kernel


class SupportedActivation(NamedTuple):
    """An activation function by the kernel's `name` and the limits `low` and `high` after it, and as PyTorch's."""

    name: str
    low: float
    high: float
    function: Callable[[Tensor], Tensor]


# By the layer; None: there is none.
ACTIVATIONS: dict[type[nn.Module] | None, SupportedActivation] = {
    None: SupportedActivation("NONE", -inf, inf, lambda x: x),
    nn.ReLU: SupportedActivation("NONE", 0.0, inf, F.relu),
    nn.ReLU6: SupportedActivation("NONE", 0.0, 6.0, F.relu6),
    nn.SiLU: SupportedActivation("SILU", -inf, inf, F.silu),
    nn.Hardswish: SupportedActivation("HARD_SWISH", -inf, inf, F.hardswish),
    nn.GELU: SupportedActivation("GELU", -inf, inf, F.gelu),  # the exact one
}


def can_normalize(layer: nn.BatchNorm2d, x: Any) -> bool:
    """Return whether the kernels compute what `layer` does for `x`: in training, on plain images."""
    parameters = layer.weight, layer.bias, layer.running_mean, layer.running_var
    return (
        layer.training
        and are_plain_images(x, MIN_VALUES)
        and layer.weight is not None
        and layer.bias is not None
        and (layer.running_mean is None) == (layer.running_var is None)
        and all(one is None or (one.dtype == torch.float32 and one.is_cpu) for one in parameters)
        and all(one is None or (one.dim() == 1 and len(one) == x.shape[1]) for one in parameters)
        and x.numel() > x.shape[1]
    )


def can_add(residual: Any, x: Tensor, kind: type[nn.Module] | None) -> bool:
    """Return whether `normalize_and_activate` adds `residual` to images like `x` before the activation `kind`."""
    return (
        type(residual) is Tensor
        and residual.is_cpu
        and residual.dtype == x.dtype
        and residual.shape == x.shape
        and ACTIVATIONS[kind].name == "NONE"
    )


def normalize_and_activate(
    layer: nn.BatchNorm2d, x: Tensor, kind: type[nn.Module] | None = None, residual: Tensor | None = None
) -> Tensor:
    """Return what `layer`, a sum and the activation layer `kind` give for `x`; update the layer's statistics.

    Args:
        layer: A layer in training for which `can_normalize` holds.
        x: Images, (N, C, H, W), float32 or bfloat16, channels-last.
        kind: A key of ACTIVATIONS.
        residual: Added before the activation function; images for which `can_add` holds, or None.

    Returns:
        (N, C, H, W), channels-last.
    """
    assert layer.weight is not None
    assert layer.bias is not None
    result: Tensor
    result, mean, variance = _BatchNorm.apply(  # type: ignore[no-untyped-call]
        x, layer.weight, layer.bias, residual, layer.eps, kind
    )
    with torch.no_grad():
        share = 0.0 if layer.momentum is None else layer.momentum
        if layer.track_running_stats and layer.num_batches_tracked is not None:
            layer.num_batches_tracked.add_(1)
            if layer.momentum is None:  # the mean of all batches
                share = 1.0 / float(layer.num_batches_tracked)
        if layer.track_running_stats and layer.running_mean is not None and layer.running_var is not None:
            count = x.numel() // x.shape[1]
            layer.running_mean.mul_(1 - share).add_(mean, alpha=share)
            layer.running_var.mul_(1 - share).add_(variance, alpha=share * count / (count - 1))
    return result


class _BatchNorm(torch.autograd.Function):
    """The result, and the mean and the variance of the batch, (C)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        residual: Tensor | None,
        epsilon: float,
        kind: type[nn.Module] | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        result, weight_, bias_ = empty_channels_last(_shape(x), x.dtype), weight.contiguous(), bias.contiguous()
        mean, variance = torch.empty_like(weight_), torch.empty_like(weight_)
        native_support.kernels.batch_norm(
            _sizes(x, epsilon, kind),
            x,
            weight_,
            bias_,
            None if residual is None else to_channels_last(residual),
            result,
            mean,
            variance,
            torch.get_num_threads(),
        )
        # The result of a sum shows which values were limited.
        ctx.save_for_backward(x, weight, bias, mean, variance, None if residual is None else result)
        ctx.settings = epsilon, kind
        ctx.mark_non_differentiable(mean, variance)
        return result, mean, variance

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
        x, weight, bias, mean, variance, result = ctx.saved_tensors
        (epsilon, kind), gradient = ctx.settings, upstream[0]
        if torch.is_grad_enabled():  # the gradient is to be derived again
            normalized = F.batch_norm(x, None, None, weight, bias, training=True, eps=epsilon)
            if result is None:
                normalized = ACTIVATIONS[kind].function(normalized)
            else:
                low, high = ACTIVATIONS[kind][1:3]
                gradient = gradient.masked_fill((result <= low) | (result >= high), 0)
            wanted = [one for one, needed in zip((x, weight, bias), ctx.needs_input_grad, strict=False) if needed]
            found = iter(torch.autograd.grad(normalized, wanted, gradient, create_graph=True) if wanted else ())
            gradients = (next(found) if needed else None for needed in ctx.needs_input_grad[:3])
            return *gradients, None if result is None else gradient, None, None
        of_x, of_weight, of_bias = torch.empty_like(x), torch.empty_like(mean), torch.empty_like(mean)
        of_residual = None if result is None else torch.empty_like(x)
        native_support.kernels.batch_norm_gradients(
            _sizes(x, epsilon, kind),
            to_channels_last(gradient),
            x,
            result,
            weight.contiguous(),
            bias.contiguous(),
            mean,
            variance,
            of_x,
            of_residual,
            of_weight,
            of_bias,
            torch.get_num_threads(),
        )
        return of_x, of_weight, of_bias, of_residual, None, None


def _sizes(x: Tensor, epsilon: float, kind: type[nn.Module] | None) -> "native_support.kernels.BatchNorm":
    name, low, high, _ = ACTIVATIONS[kind]
    channels = x.shape[1]
    activation = native_support.kernels.Activation[name]
    return native_support.kernels.BatchNorm(x.numel() // channels, channels, epsilon, activation, low, high)


def _shape(x: Tensor) -> tuple[int, int, int, int]:
    batch, channels, height, width = x.shape
    return batch, channels, height, width
