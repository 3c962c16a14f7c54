"""Batch normalization by the statistics of the whole batch, over all processes, instead of each process's share."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from svertka import distributed

# What each image of this process counts in the statistics: less than 1 for images that are there more than once.
_image_weight: ContextVar[float] = ContextVar("image_weight", default=1.0)


@contextmanager
def synchronized_batch_norm(network: nn.Module) -> Iterator[None]:
    """Let batch norm layers of `network` use, in training, the mean and variance over all processes during the body.

    PyTorch's own nn.SyncBatchNorm computes on GPUs only. This works on every device, in layers that inherit from
    PyTorch's and call `torch.nn.functional.batch_norm`. Layers in evaluation mode, such as frozen ones, are unchanged.
    All processes must run the same layers in the same order.

    Args:
        network: The network. `forward` is replaced on its batch norm layers and restored at the end.
    """
    with ExitStack() as changes:
        if distributed.world_size() > 1:
            for layer in network.modules():
                if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                    changes.callback(_restore, layer, vars(layer).get("forward"))
                    layer.forward = partial(_forward, layer, layer.forward)  # type: ignore[method-assign]
        yield


@contextmanager
def count_images_as(weight: float) -> Iterator[None]:
    """Give each image of this process `weight` in the synchronized statistics during the body.

    Args:
        weight: 1 for images of the batch, 1/n for images that are repeated n times, 0 for images that only keep this
            process in step with the others.
    """
    token = _image_weight.set(weight)
    try:
        yield
    finally:
        _image_weight.reset(token)


def _restore(layer: nn.Module, forward: Callable[..., Tensor] | None) -> None:
    if forward is None:
        del layer.forward
    else:
        layer.forward = forward


def _forward(layer: nn.Module, own: Callable[..., Tensor], x: Tensor) -> Tensor:
    if not layer.training:
        return own(x)
    with _Synchronized():  # the class's method, which updates the counter: an accelerated layer calls a kernel
        result: Tensor = type(layer).forward(layer, x)
    return result


class _Synchronized(TorchFunctionMode):
    """Replaces F.batch_norm by `batch_norm`; other functions are called as they are."""

    def __torch_function__(
        self, function: Callable[..., Any], _types: Any, arguments: Any = (), named: dict[str, Any] | None = None
    ) -> Any:
        return (batch_norm if function is F.batch_norm else function)(*arguments, **(named or {}))


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Return F.batch_norm of the images of all processes, for those of this one, with gradients through both.

    Args:
        x: Feature maps of this process, (N, C, …).
        running_mean: Updated in place, (C,).
        running_var: Updated in place, (C,).
        weight: (C,).
        bias: (C,).
        training: Whether to use the statistics of the batch.
        momentum: Share of the batch in the running statistics.
        eps: Added to the variance.

    Returns:
        The normalized maps, (N, C, …).

    Raises:
        ValueError: All processes together have a single value per channel.
    """
    if not training:
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    mean, variance, count = _measure(x.detach(), _image_weight.get())
    result: Tensor = _Normalize.apply(  # type: ignore[no-untyped-call]
        x, weight, bias, mean, variance, eps, _image_weight.get() / count
    )
    if running_mean is not None and running_var is not None:
        running_mean.lerp_(mean.to(running_mean), momentum)
        running_var.lerp_((variance * (count / (count - 1))).to(running_var), momentum)
    return result


def _measure(x: Tensor, image_weight: float) -> tuple[Tensor, Tensor, float]:
    """Return mean and variance over all processes, (C,) float32, and the number of values of each channel.

    Source: Chan, Golub & LeVeque 1983, "Algorithms for computing the sample variance", eq. 2.1.
    """
    variance, mean = torch.var_mean(x.float(), _all_but_channels(x), correction=0)
    count = mean.new_tensor([image_weight * (x.numel() // x.shape[1])]).double()
    own = torch.cat([count, mean.double(), variance.double()])
    channels = x.shape[1]
    counts, means, variances = torch.split(distributed.all_gather_rows(own), [1, channels, channels], dim=1)
    total = float(counts.sum())
    if total <= 1:
        raise ValueError(f"Expected more than 1 value per channel when training, got {total:g}")
    mean = (counts * means).sum(0) / total
    variance = (counts * (variances + (means - mean) ** 2)).sum(0) / total
    return mean.float(), variance.float(), total


class _Normalize(torch.autograd.Function):
    """Normalization by a mean and a variance that depend on the images of all processes.

    Source: Ioffe & Szegedy 2015, "Batch normalization", algorithm 1 and the gradients after it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        variance: Tensor,
        eps: float,
        share: float,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.settings = eps, share
        return F.batch_norm(x, mean, variance, weight, bias, eps=eps)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
        x, weight, mean, variance = ctx.saved_tensors
        (eps, share), gradient = ctx.settings, upstream[0].float()
        scale, others = torch.rsqrt(variance + eps), _all_but_channels(x)
        shape = (1, -1) + (1,) * (x.dim() - 2)  # of a channel's numbers beside the maps
        standard = (x.float() - mean.view(shape)) * scale.view(shape)
        of_bias, of_weight = gradient.sum(others), (gradient * standard).sum(others)
        # Every image moves the mean and the variance that the images of the other processes are normalized by.
        of_all = distributed.all_reduce(torch.stack([of_bias, of_weight])) * share
        of_x = gradient - of_all[0].view(shape) - standard * of_all[1].view(shape)
        of_x *= (scale if weight is None else scale * weight.float()).view(shape)
        needed = ctx.needs_input_grad
        return of_x.to(x.dtype), of_weight if needed[1] else None, of_bias if needed[2] else None, *[None] * 4


def _all_but_channels(x: Tensor) -> list[int]:
    return [axis for axis in range(x.dim()) if axis != 1]
