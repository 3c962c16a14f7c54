"""Checks of a network and of its input images: dense tensors with values on the CPU, in float32."""

import inspect
from collections.abc import Iterator
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn

from svertka import torch_internals
from svertka.errors import UsageError
from svertka.graph.network_copy import named_tensors
from svertka.tensor_files import describe_nonfinite


def unwrap_network(network: nn.Module) -> nn.Module:
    """Return `network` without the wrapper of torch.compile.

    Raises:
        UsageError: It is not an nn.Module, or one that cannot be optimized; the message says what to do.
    """
    if not isinstance(network, nn.Module):
        hint = "; use its .module()" if callable(getattr(network, "module", None)) else ""
        raise UsageError(f"{type(network).__name__} is not a torch.nn.Module{hint}")
    network = getattr(network, "_orig_mod", network)
    if isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise UsageError(f"{type(network).__name__} spreads a network over devices; optimize its .module")
    for name, tensor in named_tensors(network):
        _check_plain(name, tensor)
    if bad := describe_nonfinite(dict(network.named_parameters())):
        raise UsageError(f"the weights contain NaN or infinity (in {bad}); load or train them again")
    _check_mode(network)
    return network


def _check_mode(network: nn.Module) -> None:
    """Raise UsageError if a network in evaluation mode has a layer in training mode that computes something else."""
    for path, module in network.named_modules():
        if not network.training and module.training and _depends_on_mode(module):
            raise UsageError(
                f"{path} ({type(module).__name__}) is in training mode and the network is not; an optimized network "
                "computes what it does after network.eval(), so call that first"
            )


def _depends_on_mode(module: nn.Module) -> bool:
    """Return whether a module computes something else in training mode, apart from the modules inside it."""
    if isinstance(module, nn.modules.batchnorm._NormBase):
        return bool(module.track_running_stats)
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return bool(module.p > 0)
    if isinstance(module, nn.MultiheadAttention):
        return bool(module.dropout > 0)
    if isinstance(module, nn.RNNBase):
        return bool(module.dropout > 0 and module.num_layers > 1)
    if isinstance(module, nn.TransformerEncoder | nn.TransformerEncoderLayer):  # which choose a faster way by it
        return False
    return any("training" in _names_in(code) for code in _code_of(module))


def _code_of(module: nn.Module) -> Iterator[CodeType]:
    """Yield the code of the functions that a module or its classes define, without those of nn.Module."""
    defined = [vars(module), *(vars(one) for one in type(module).__mro__ if one not in (nn.Module, object))]
    for names in defined:
        for name, value in names.items():
            if name in ("train", "eval"):  # which set the mode
                continue
            function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
            code = getattr(inspect.unwrap(function) if callable(function) else None, "__code__", None)
            if isinstance(code, CodeType):
                yield code


def _names_in(code: CodeType) -> set[str]:
    """Return the names of attributes that code uses, with those in the functions inside it."""
    inner = (one for one in code.co_consts if isinstance(one, CodeType))
    return {*code.co_names}.union(*map(_names_in, inner))


def _check_plain(name: str, tensor: Tensor) -> None:
    """Raise UsageError unless `tensor` is a dense tensor with values on the CPU."""
    if nn.parameter.is_lazy(tensor):
        raise UsageError(f"{name} is not initialized yet; run the network once on an example, then optimize it")
    if tensor.device.type == "meta":
        raise UsageError(f"{name} is on the meta device and has no values; load the weights first")
    if tensor.device.type != "cpu":
        raise UsageError(f"{name} is on {tensor.device}; optimize a copy on the CPU: network.cpu()")
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
        kind = "quantized" if tensor.is_quantized else "sparse or nested"
        raise UsageError(
            f"{name} is a {kind} tensor, which optimized networks do not support; use the original network"
        )


def float32_hint(network: nn.Module) -> str:
    """Return the end of an error message about parameters that are not float32; "" if all are."""
    others = {parameter.dtype for parameter in network.parameters() if parameter.is_floating_point()} - {torch.float32}
    if not others:
        return ""
    named = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in others))
    return f"; its parameters are {named}: call .float() on it"


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
            f"takes (N, C, H, W) float32 on the CPU{_conversion_hint(x)}"
        )
    return x.detach().as_subclass(Tensor).resolve_neg()


def _conversion_hint(x: Tensor) -> str:
    """Return the end of an error message, which says how to convert `x`."""
    if x.dim() == 3:
        return "; for one image use x[None]"
    if x.device.type not in ("cpu", "meta"):
        return "; use x.cpu()"
    if x.dtype == torch.uint8:
        return "; use x.float() / 255, and normalize it as the network's training did"
    return "; use x.float()" if x.is_floating_point() and x.dtype != torch.float32 else ""


def is_traced_tensor(x: Any) -> bool:
    """Return whether `x` is being traced or transformed, so that it has no memory to read."""
    if not isinstance(x, Tensor):
        return False
    return (
        x.is_meta
        or torch_internals.is_tracing()
        or torch_internals.is_transform_wrapper(x)
        or (type(x) not in (Tensor, nn.Parameter) and any(one.__name__ == "FakeTensor" for one in type(x).__mro__))
    )
