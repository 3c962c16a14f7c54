"""Checks that a network can be optimized: its tensors must be dense float32 with values on the CPU."""

import torch
from torch import Tensor, nn

from svertka.errors import UsageError
from svertka.graph.network_copy import named_tensors


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
    return network


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
        raise UsageError(f"{name} is a {kind} tensor, which optimized networks do not know; run the network as it is")


def dtype_hint(network: nn.Module) -> str:
    """Return the end of an error message about parameters that are not float32; "" if all are."""
    others = {parameter.dtype for parameter in network.parameters() if parameter.is_floating_point()} - {torch.float32}
    if not others:
        return ""
    named = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in others))
    return f"; its parameters are {named}: call .float() on it"
