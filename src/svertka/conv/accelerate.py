"""The fastest convolutions in any network, and out of it again.

What a layer calls for its convolution is replaced on the layer itself: `_conv_forward` of nn.Conv2d, `forward` of
nn.ConvTranspose2d. That is done only where both the class and the layer have these from PyTorch: what somebody else has
replaced stays, and so does what somebody wraps around ours later. While a network is traced or exported, and for
PyTorch's own settings that say more than an argument of `conv2d` can, PyTorch's own is called.
"""

from functools import partial
from typing import Any, NoReturn, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svertka.conv.api import conv2d, conv_transpose2d
from svertka.errors import UsageError
from svertka.type_checking import check_types

Network = TypeVar("Network", bound=nn.Module)
CONVOLVES, TRANSPOSES = "_conv_forward", "forward"
# What PyTorch asks a layer for before it makes a script of it; ours say there what to do, and are known by it.
SCRIPTED = "__prepare_scriptable__"
# What decides how a layer of this kind computes.
DECIDES = ("__call__", "__getattr__", "_call_impl", "forward", "_conv_forward")


@check_types
def accelerate(model: Network, *, strict: bool = False) -> Network:
    """`model` itself, its convolutions now computed by `svertka.conv`, each with the algorithm fastest for it here.

    Any nn.Module, in training and inference. Parameters, state_dict, hooks, classes of layers, pickling and copies stay
    as they were; only rounding changes. Layers that compute a convolution in their own way, by their class or because
    somebody has replaced a method on them, are left alone. torch.compile, torch.export, torch.jit.trace and
    torch.onnx.export take the network as it is, the last three with PyTorch's convolutions; torch.jit.script says to
    `restore` it first.
    `strict`: only algorithms with which a NaN or a huge value changes no result but those that read it; see `conv2d`.
    """
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d) and _is_plain(layer, nn.Conv2d, CONVOLVES):
            _replace(layer, CONVOLVES, partial(_convolve, layer, strict=strict))
        elif isinstance(layer, nn.ConvTranspose2d) and _is_plain(layer, nn.ConvTranspose2d, TRANSPOSES):
            _replace(layer, TRANSPOSES, partial(_transpose, layer, strict=strict))
    return model


@check_types
def restore(model: Network) -> Network:
    """`model` itself, with PyTorch's own convolutions again; what others have replaced stays."""
    for layer in model.modules():
        for name in (CONVOLVES, TRANSPOSES):
            if _is_ours(vars(layer).get(name)):
                delattr(layer, name)
        if _is_accelerated(layer):
            delattr(layer, SCRIPTED)
    return model


def _replace(layer: nn.Module, name: str, ours: "partial[Tensor]") -> None:
    setattr(layer, name, ours)
    setattr(layer, SCRIPTED, partial(_refuse_script, layer))


def _is_plain(layer: nn.Module, kind: type[nn.Module], replaced: str) -> bool:
    """Whether `layer` computes as PyTorch's `kind` does, or as we have made it, by the method `replaced`."""
    own = vars(layer)
    if SCRIPTED in own and not _is_accelerated(layer):
        return False
    for name in DECIDES:
        if name in own and not (name == replaced and _is_ours(own[name])):
            return False
        if getattr(type(layer), name, None) is not getattr(kind, name, None):
            return False
    return _is_pytorchs(getattr(kind, replaced))


def _is_pytorchs(function: Any) -> bool:
    """Whether it stands in PyTorch's file of convolutions: somebody may have replaced it there, too."""
    code = getattr(function, "__code__", None)
    return code is not None and code.co_filename == nn.modules.conv.__file__


def _is_ours(function: Any) -> bool:
    return isinstance(function, partial) and function.func in (_convolve, _transpose)


def _is_accelerated(layer: nn.Module) -> bool:
    """Not if it was restored and somebody who had wrapped ours still calls it."""
    mark = vars(layer).get(SCRIPTED)
    return isinstance(mark, partial) and mark.func is _refuse_script


def _refuse_script(layer: nn.Module) -> NoReturn:
    raise UsageError(
        f"torch.jit.script cannot read an accelerated {type(layer).__name__}; call svertka.restore on the network first"
    )


def _leaves_it_to_pytorch(layer: nn.Module, x: Any, own: Any, replaced: str) -> bool:
    """Whether PyTorch's own is to be called after all; `own`: the method as PyTorch has it, `replaced`: its name."""
    return (
        not _is_accelerated(layer)
        or isinstance(x, torch.fx.Proxy)
        or getattr(type(layer), replaced) is not own
        or torch.compiler.is_exporting()  # what is exported or traced runs where we are not
        or torch._C._get_tracing_state() is not None
        # who watches PyTorch's operations, as counters of multiplications do, knows only these
        or (not torch.compiler.is_compiling() and torch._C._len_torch_dispatch_stack() > 0)
    )


_CONVOLVES, _TRANSPOSES = nn.Conv2d._conv_forward, nn.ConvTranspose2d.forward


def _convolve(layer: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None, *, strict: bool = False) -> Tensor:
    if _leaves_it_to_pytorch(layer, x, _CONVOLVES, CONVOLVES):
        result: Tensor = type(layer)._conv_forward(layer, x, weight, bias)
        return result
    padding: Any = layer.padding
    if layer.padding_mode != "zeros":  # by what PyTorch pads, which people change
        x, padding = F.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode), 0
    return conv2d(
        x,
        weight,
        bias,
        stride=_both(layer.stride),
        padding=padding,
        dilation=_both(layer.dilation),
        groups=layer.groups,
        strict=strict,
    )


def _transpose(
    layer: nn.ConvTranspose2d, x: Tensor, output_size: list[int] | None = None, *, strict: bool = False
) -> Tensor:
    if output_size is not None or _leaves_it_to_pytorch(layer, x, _TRANSPOSES, TRANSPOSES):
        result: Tensor = type(layer).forward(layer, x, output_size)
        return result
    padding: Any = layer.padding
    return conv_transpose2d(
        x,
        layer.weight,
        layer.bias,
        stride=_both(layer.stride),
        padding=padding,
        output_padding=_both(layer.output_padding),
        dilation=_both(layer.dilation),
        groups=layer.groups,
        strict=strict,
    )


def _both(pair: Any) -> tuple[int, int]:
    """Of PyTorch's settings, which have as many numbers as a layer has axes, unless somebody has set one for both."""
    if isinstance(pair, int):
        return pair, pair
    vertical, horizontal = pair
    return vertical, horizontal
