"""Replacement of a network's convolutions with the fastest algorithms, and its reversal.

The method that computes the convolution is replaced on the layer instance: `_conv_forward` of nn.Conv2d, `forward` of
nn.ConvTranspose2d. Layers whose class or instance overrides these methods are left unchanged, and later wrappers around
the replacement are kept. PyTorch's method is called while a network is traced or exported, and for settings that
`conv2d` does not support.
"""

from functools import partial
from typing import Any, NoReturn, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svertka import torch_internals
from svertka.conv import aten, autotune
from svertka.conv.api import conv2d, conv_transpose2d
from svertka.conv.operator import is_fastest_in_pytorch
from svertka.conv_geometry import ConvShape
from svertka.errors import UsageError
from svertka.type_checking import check_types

Network = TypeVar("Network", bound=nn.Module)
CONVOLVES, TRANSPOSES = "_conv_forward", "forward"
# torch.jit.script looks up this attribute. The replacement marks accelerated layers and raises an error.
SCRIPTED = "__prepare_scriptable__"
# The methods that determine what a layer computes.
METHODS = ("__call__", "__getattr__", "_call_impl", "forward", "_conv_forward")


@check_types
def accelerate(model: Network, *, strict: bool = False) -> Network:
    """Make `model` compute its convolutions with `svertka.conv`, in place.

    Each convolution uses the algorithm that is fastest for its shape on this machine, in training and inference.
    Parameters, state_dict, hooks, layer classes, pickling and copies are unchanged; only rounding differs. Layers that
    override the convolution, in their class or on the instance, are left unchanged. torch.compile, torch.export,
    torch.jit.trace and torch.onnx.export accept the network, the last three with PyTorch's convolutions;
    torch.jit.script requires `restore` first.

    Args:
        model: Any nn.Module.
        strict: Use only algorithms in which a NaN or a huge value affects no result but those that read it; see
            `conv2d`.

    Returns:
        `model` itself.

    Raises:
        UsageError: `model` is not an nn.Module, or `strict` is not a bool.
    """
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d) and _is_plain(layer, nn.Conv2d, CONVOLVES):
            _replace(layer, CONVOLVES, partial(_convolve, layer, strict=strict))
        elif isinstance(layer, nn.ConvTranspose2d) and _is_plain(layer, nn.ConvTranspose2d, TRANSPOSES):
            _replace(layer, TRANSPOSES, partial(_transpose, layer, strict=strict))
    return model


@check_types
def restore(model: Network) -> Network:
    """Make `model` compute its convolutions with PyTorch again, in place.

    Args:
        model: Any nn.Module, whether `accelerate` has changed it or not.

    Returns:
        `model` itself.

    Raises:
        UsageError: `model` is not an nn.Module.
    """
    for layer in model.modules():
        for name in (CONVOLVES, TRANSPOSES):
            if _is_replacement(vars(layer).get(name)):
                delattr(layer, name)
        if _is_accelerated(layer):
            delattr(layer, SCRIPTED)
    return model


def _replace(layer: nn.Module, name: str, ours: "partial[Tensor]") -> None:
    setattr(layer, name, ours)
    setattr(layer, SCRIPTED, partial(_refuse_script, layer))


def _is_plain(layer: nn.Module, kind: type[nn.Module], replaced: str) -> bool:
    """Return whether `layer` computes as PyTorch's `kind` does, apart from an accelerated method `replaced`."""
    own = vars(layer)
    if SCRIPTED in own and not _is_accelerated(layer):
        return False
    for name in METHODS:
        if name in own and not (name == replaced and _is_replacement(own[name])):
            return False
        if getattr(type(layer), name, None) is not getattr(kind, name, None):
            return False
    return _is_from_pytorch(getattr(kind, replaced))


def _is_from_pytorch(function: Any) -> bool:
    """Return whether `function` is defined in torch.nn.modules.conv; a patched class may have another one."""
    code = getattr(function, "__code__", None)
    return code is not None and code.co_filename == nn.modules.conv.__file__


def _is_replacement(function: Any) -> bool:
    return isinstance(function, partial) and function.func in (_convolve, _transpose)


def _is_accelerated(layer: nn.Module) -> bool:
    """Return whether `layer` is still accelerated; after `restore`, a wrapper may call the replacement."""
    mark = vars(layer).get(SCRIPTED)
    return isinstance(mark, partial) and mark.func is _refuse_script


def _refuse_script(layer: nn.Module) -> NoReturn:
    raise UsageError(
        f"torch.jit.script cannot read an accelerated {type(layer).__name__}; call svertka.restore on the network first"
    )


def _must_use_pytorch(layer: nn.Module, x: Any, own: Any, replaced: str) -> bool:
    """Return whether PyTorch's method, `own`, called `replaced`, must be used for this call."""
    return (
        not _is_accelerated(layer)
        or isinstance(x, torch.fx.Proxy)
        or getattr(type(layer), replaced) is not own
        or torch.compiler.is_exporting()  # the exported network runs without svertka
        or torch_internals.is_tracing()
        # dispatch modes, such as FLOP counters, know only PyTorch's operators
        or (not torch.compiler.is_compiling() and torch_internals.has_dispatch_mode())
    )


_CONVOLVES, _TRANSPOSES = nn.Conv2d._conv_forward, nn.ConvTranspose2d.forward


def _convolve(layer: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None, *, strict: bool = False) -> Tensor:
    if _must_use_pytorch(layer, x, _CONVOLVES, CONVOLVES) or _is_left_to_pytorch(layer, x, weight, bias, strict=strict):
        result: Tensor = type(layer)._conv_forward(layer, x, weight, bias)
        return result
    padding: Any = layer.padding
    if layer.padding_mode != "zeros":  # read from the layer, where users change it
        x, padding = F.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode), 0
    return conv2d(
        x,
        weight,
        bias,
        stride=_as_pair(layer.stride),
        padding=padding,
        dilation=_as_pair(layer.dilation),
        groups=layer.groups,
        strict=strict,
    )


def _describe_call(
    layer: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None, *, strict: bool
) -> tuple[Any, ...] | None:
    """Return everything that the choice of algorithm depends on, or None if `conv2d` must check the call."""
    if (
        type(x) is not Tensor
        or type(weight) is not nn.Parameter
        or (bias is not None and (type(bias) is not nn.Parameter or bias.dtype != x.dtype or not bias.is_cpu))
        or x.dtype not in autotune.DTYPES
        or weight.dtype != x.dtype
        or x.dim() != 4
        or not (x.is_cpu and weight.is_cpu)
        or layer.padding_mode != "zeros"
        or torch.compiler.is_compiling()
        or torch.is_autocast_enabled("cpu")
        or torch_internals.has_transform()
    ):
        return None
    derived = torch.is_grad_enabled()
    return (
        (tuple(x.shape), tuple(weight.shape), layer.stride, layer.padding, layer.dilation, layer.groups),
        (x.stride(), weight.stride(), x.dtype, torch.get_num_threads(), strict),
        (derived and x.requires_grad, derived and weight.requires_grad, bias is None or tuple(bias.shape)),
    )


def _is_left_to_pytorch(layer: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None, *, strict: bool) -> bool:
    """Return whether PyTorch's method is fastest for this call; the answer is cached."""
    call = _describe_call(layer, x, weight, bias, strict=strict)
    if call is None:
        return False
    try:
        return autotune.calls_left_to_pytorch[call]
    except KeyError:
        pass
    except TypeError:  # a setting that is neither a number nor a tuple of numbers
        return False
    (inputs, weights, *settings), _, (*_, of_bias) = call
    if not all(isinstance(one, tuple) for one in settings[:3]) or of_bias not in (True, weights[:1]):
        return False
    try:
        shape = ConvShape.of(inputs, weights, *settings)
    except UsageError:
        return False
    name = "strict" if strict else "auto"
    left = not aten.corrupts_memory(shape) and is_fastest_in_pytorch(shape, x, weight, name)
    autotune.calls_left_to_pytorch[call] = left
    return left


def _transpose(
    layer: nn.ConvTranspose2d, x: Tensor, output_size: list[int] | None = None, *, strict: bool = False
) -> Tensor:
    if output_size is not None or _must_use_pytorch(layer, x, _TRANSPOSES, TRANSPOSES):
        result: Tensor = type(layer).forward(layer, x, output_size)
        return result
    padding: Any = layer.padding
    return conv_transpose2d(
        x,
        layer.weight,
        layer.bias,
        stride=_as_pair(layer.stride),
        padding=padding,
        output_padding=_as_pair(layer.output_padding),
        dilation=_as_pair(layer.dilation),
        groups=layer.groups,
        strict=strict,
    )


def _as_pair(pair: Any) -> tuple[int, int]:
    """Return a layer setting as (vertical, horizontal); users may have set one number for both."""
    if isinstance(pair, int):
        return pair, pair
    vertical, horizontal = pair
    return vertical, horizontal
