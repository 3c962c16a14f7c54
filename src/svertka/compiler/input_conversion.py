"""The conversion of input images to tensors that native kernels can read."""

from typing import Any

import torch
from torch import Tensor, nn

from svertka import torch_internals
from svertka.errors import UsageError


def to_plain_images(x: Any) -> Tensor:
    """Return `x` as a plain tensor, (N, C, H, W) float32 on the CPU, without gradient.

    Raises:
        UsageError: `x` has another type, shape, dtype, layout or device.
    """
    if not isinstance(x, Tensor):
        raise UsageError(
            f"images are of type {type(x).__name__}; an optimized network takes a torch.Tensor, (N, C, H, W) float32 "
            "on the CPU"
        )
    if type(x).__torch_dispatch__ is not Tensor.__torch_dispatch__ or x.layout != torch.strided or x.is_nested:
        kind = type(x).__name__ if type(x) is not Tensor else "sparse or nested tensor"
        raise UsageError(f"images are a {kind}, whose memory kernels cannot read; give a plain torch.Tensor")
    if x.dim() != 4 or x.dtype != torch.float32 or x.device.type != "cpu":
        raise UsageError(
            f"images are {tuple(x.shape)} {str(x.dtype).removeprefix('torch.')} on {x.device}; an optimized network "
            f"takes (N, C, H, W) float32 on the CPU{_hint(x)}"
        )
    return x.detach().as_subclass(Tensor).resolve_neg()


def _hint(x: Tensor) -> str:
    """Return the end of an error message, which says how to convert `x`."""
    if x.dim() == 3:
        return "; for one image use x[None]"
    if x.device.type not in ("cpu", "meta"):
        return "; use x.cpu()"
    return "; use x.float()" if x.is_floating_point() and x.dtype != torch.float32 else ""


def is_traced(x: Any) -> bool:
    """Return whether `x` is being traced or transformed, so that it has no memory to read."""
    if not isinstance(x, Tensor):
        return False
    return (
        x.is_meta
        or torch_internals.is_tracing()
        or torch_internals.is_wrapped(x)
        or (type(x) not in (Tensor, nn.Parameter) and any(one.__name__ == "FakeTensor" for one in type(x).__mro__))
    )
