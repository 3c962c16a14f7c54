"""Replacement of a network's convolutions with the fastest algorithms, and its reversal.

The method that computes the convolution is replaced on the layer instance: `_conv_forward` of nn.Conv2d, `forward` of
nn.ConvTranspose2d and of nn.Linear, which is a 1×1 convolution. Layers whose class or instance overrides these methods
are left unchanged, and later wrappers around the replacement are kept. Subclasses of nn.Conv2d with a `forward` of
their own, such as layers with standardized weights or "same" padding, run it; only its calls of torch.conv2d are
replaced. PyTorch's method is called while a network is traced or exported, and for settings that `conv2d` does not
support.

`forward` of nn.BatchNorm2d and nn.MaxPool2d is replaced for training. In an nn.Sequential, in timm's BatchNormAct2d and
in networks that call `normalize_and_activate`, an activation layer after it is computed together with it, unless
somebody could see what is between the two: a hook on one of them.
"""

import itertools
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn, TypeGuard, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from svertka import torch_internals
from svertka.conv import aten, autotune, native_batch_norm, native_linear, native_max_pool
from svertka.conv.api import conv2d, conv_transpose2d
from svertka.conv.operator import convolve, is_fastest_in_pytorch
from svertka.conv_shape import ConvShape, as_pair
from svertka.errors import UsageError
from svertka.type_checking import check_types

Network = TypeVar("Network", bound=nn.Module)
CONVOLVES, FORWARD = "_conv_forward", "forward"
MIN_ROWS = 256  # of the input of a dense layer: with fewer, its weights take longer to prepare than the product
# torch.jit.script looks up this attribute; the replacement raises an error, and marks accelerated layers.
SCRIPTED = "__prepare_scriptable__"
# The methods that determine what a layer computes.
METHODS = ("__call__", "__getattr__", "_call_impl", "forward", "_conv_forward")


@check_types
def accelerate(model: Network, *, strict: bool = False) -> Network:
    """Make `model` compute its convolutions and the other layers of a training with `svertka.conv`, in place.

    Each convolution uses the algorithm that is fastest for its shape on this machine, in training and inference; so
    does a dense layer for 256 or more inputs at once. For up to 32 inputs, large dense layers use kernels that read
    each weight once. Parameters, state_dict, hooks, layer classes, pickling and copies are unchanged; only rounding
    differs. In bfloat16, convolutions of 3×3 may round Winograd tiles, too: their root mean square error is at most 1.5
    % of the values, and about 0.2 % in PyTorch; `strict` avoids them. Layers that override the convolution, in their
    class or on the instance, are left unchanged, but for calls of torch.conv2d in the `forward` of their class.
    torch.compile, torch.export, torch.jit.trace and torch.onnx.export accept the network, the last three with PyTorch's
    convolutions; torch.jit.script requires `restore` first.

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
        elif isinstance(layer, nn.Conv2d) and _has_own_forward(layer):
            _replace(layer, FORWARD, partial(_run_own_forward, layer, strict=strict))
        elif isinstance(layer, nn.ConvTranspose2d) and _is_plain(layer, nn.ConvTranspose2d, FORWARD):
            _replace(layer, FORWARD, partial(_transpose, layer, strict=strict))
        elif isinstance(layer, nn.Linear) and _is_plain(layer, nn.Linear, FORWARD):
            _replace(layer, FORWARD, partial(_multiply, layer, strict=strict))
        elif isinstance(layer, nn.MaxPool2d) and _is_plain(layer, nn.MaxPool2d, FORWARD):
            _replace(layer, FORWARD, partial(_pool, layer))
        elif isinstance(layer, nn.BatchNorm2d) and _is_plain(layer, nn.BatchNorm2d, FORWARD):
            _replace(layer, FORWARD, partial(_normalize, layer))
        elif isinstance(layer, nn.BatchNorm2d) and _is_norm_act(layer):
            _replace(layer, FORWARD, partial(_normalize_and_activate, layer))
        elif isinstance(layer, nn.Sequential) and _is_plain(layer, nn.Sequential, FORWARD) and _has_pair(layer):
            _replace(layer, FORWARD, partial(_run_in_turn, layer))
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
        for name in (CONVOLVES, FORWARD):
            if _is_replacement(vars(layer).get(name)):
                delattr(layer, name)
        if _is_accelerated(layer):
            delattr(layer, SCRIPTED)
    return model


def normalize_and_activate(
    norm: nn.BatchNorm2d, activation: nn.Module, x: Tensor, residual: Tensor | None = None
) -> Tensor:
    """Return activation(norm(x) + residual), in training with `accelerate` computed by one kernel.

    For the `forward` of networks. Both layers are called if somebody could see what is between them.

    Args:
        norm: Batch normalization.
        activation: The activation layer after it.
        x: Images, (N, C, H, W).
        residual: Images of the shape of `x`, or None.

    Returns:
        Images of the shape of `x`.
    """
    if not _must_use_pytorch(norm, x, _NORMALIZES, FORWARD) and _is_pair(norm, activation):
        kind = type(activation)
        if native_batch_norm.can_normalize(norm, x) and (
            residual is None or native_batch_norm.can_add(residual, x, kind)
        ):
            return native_batch_norm.normalize_and_activate(norm, x, kind, residual)
    normalized: Tensor = norm(x)
    if residual is not None:
        normalized += residual
    result: Tensor = activation(normalized)
    return result


def _replace(layer: nn.Module, name: str, ours: "partial[Tensor]") -> None:
    setattr(layer, name, ours)
    setattr(layer, SCRIPTED, partial(_refuse_script, layer))


def _is_plain(layer: nn.Module, kind: type[nn.Module], replaced: str) -> bool:
    """Return whether `layer` computes as PyTorch's `kind` does, apart from an accelerated method `replaced`."""
    own = type(layer)
    is_like = all(getattr(own, name, None) is getattr(kind, name, None) for name in METHODS)
    return is_like and _is_unpatched(layer, replaced) and _is_from_pytorch(kind, replaced)


def _is_unpatched(layer: nn.Module, replaced: str) -> bool:
    """Return whether no method of the instance was set, apart from an accelerated method `replaced`."""
    own = vars(layer)
    is_changed = any(name in own and not (name == replaced and _is_replacement(own[name])) for name in METHODS)
    return not is_changed and (SCRIPTED not in own or _is_accelerated(layer))


def _has_own_forward(layer: nn.Conv2d) -> bool:
    """Return whether the class of `layer` overrides `forward` of nn.Conv2d, and nothing else that computes."""
    kind = type(layer)
    others = (name for name in METHODS if name != FORWARD)
    is_like = all(getattr(kind, name, None) is getattr(nn.Conv2d, name, None) for name in others)
    is_own = kind.forward is not nn.Conv2d.forward
    return is_own and is_like and _is_unpatched(layer, FORWARD) and _is_from_pytorch(nn.Conv2d, CONVOLVES)


def _is_from_pytorch(kind: type[nn.Module], name: str) -> bool:
    """Return whether the method is defined in the module of `kind`: the class itself may have been patched."""
    code = getattr(getattr(kind, name), "__code__", None)
    return code is not None and code.co_filename == sys.modules[kind.__module__].__file__


def _is_replacement(function: Any) -> bool:
    ours = (
        *(_convolve, _run_own_forward, _transpose, _multiply, _pool),
        *(_normalize, _normalize_and_activate, _run_in_turn),
    )
    return isinstance(function, partial) and function.func in ours


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


_CONVOLVES, _TRANSPOSES, _MULTIPLIES = nn.Conv2d._conv_forward, nn.ConvTranspose2d.forward, nn.Linear.forward
_NORMALIZES, _RUNS, _POOLS = nn.BatchNorm2d.forward, nn.Sequential.forward, nn.MaxPool2d.forward


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
        stride=as_pair(layer.stride),
        padding=padding,
        dilation=as_pair(layer.dilation),
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
        or torch_internals.has_active_transform()
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
    left = not aten.weight_gradient_corrupts_memory(shape) and is_fastest_in_pytorch(shape, x, weight, name)
    autotune.calls_left_to_pytorch[call] = left
    return left


def _transpose(
    layer: nn.ConvTranspose2d, x: Tensor, output_size: list[int] | None = None, *, strict: bool = False
) -> Tensor:
    if output_size is not None or _must_use_pytorch(layer, x, _TRANSPOSES, FORWARD):
        result: Tensor = type(layer).forward(layer, x, output_size)
        return result
    padding: Any = layer.padding
    return conv_transpose2d(
        x,
        layer.weight,
        layer.bias,
        stride=as_pair(layer.stride),
        padding=padding,
        output_padding=as_pair(layer.output_padding),
        dilation=as_pair(layer.dilation),
        groups=layer.groups,
        strict=strict,
    )


class _ConvolutionCalls(TorchFunctionMode):
    """Replaces torch.conv2d by `conv2d`; other functions are called as they are."""

    def __init__(self, *, strict: bool) -> None:
        super().__init__()
        self.strict = strict

    def __torch_function__(
        self, function: Callable[..., Any], _types: Any, arguments: Any = (), named: dict[str, Any] | None = None
    ) -> Any:
        named = named or {}
        if function is torch.conv2d and not named.keys() - {"bias", "stride", "padding", "dilation", "groups"}:
            return self._convolve(*arguments, **named)
        return function(*arguments, **named)

    def _convolve(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        return conv2d(
            x,
            weight,
            bias,
            stride=as_pair(stride),
            padding=padding if isinstance(padding, str) else as_pair(padding),
            dilation=as_pair(dilation),
            groups=groups,
            strict=self.strict,
        )


def _run_own_forward(layer: nn.Conv2d, *arguments: Any, strict: bool = False, **named: Any) -> Any:
    kind = type(layer)
    if _must_use_pytorch(layer, arguments[:1], kind.forward, FORWARD) or torch.compiler.is_compiling():
        return kind.forward(layer, *arguments, **named)
    if any(isinstance(one, torch.fx.Proxy) for one in (*arguments, *named.values())):
        return kind.forward(layer, *arguments, **named)
    with _ConvolutionCalls(strict=strict):
        return kind.forward(layer, *arguments, **named)


def _multiply(layer: nn.Linear, x: Tensor, *, strict: bool = False) -> Tensor:
    weight, bias = layer.weight, layer.bias
    must_use_pytorch = _must_use_pytorch(layer, x, _MULTIPLIES, FORWARD)
    if not must_use_pytorch and native_linear.can_multiply(layer, x):
        return native_linear.multiply(layer, x)
    if not must_use_pytorch and _is_large_product(x, weight, bias):
        rows = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)  # one image, a column of pixels
        kernel, name = weight[:, :, None, None], "strict" if strict else "auto"
        shape = ConvShape.of(rows.shape, kernel.shape)
        if not is_fastest_in_pytorch(shape, rows, kernel, name):
            result = convolve(rows, kernel, bias, shape, name)
            return result.permute(0, 2, 3, 1).reshape(*x.shape[:-1], weight.shape[0])
    unchanged: Tensor = type(layer).forward(layer, x)
    return unchanged


def _is_large_product(x: Any, weight: Any, bias: Any) -> bool:
    """Return whether the dense layer has enough inputs at once, and plain float32 tensors on the CPU."""
    return (
        type(x) is Tensor
        and type(weight) is nn.Parameter
        and (bias is None or type(bias) is nn.Parameter)
        and all(one is None or (one.is_cpu and one.dtype == torch.float32) for one in (x, weight, bias))
        and weight.dim() == 2
        and (bias is None or bias.shape == weight.shape[:1])
        and x.dim() > 1
        and x.shape[-1] == weight.shape[1] > 0
        and x.numel() >= MIN_ROWS * weight.shape[1]
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and not torch_internals.has_active_transform()
    )


def _pool(layer: nn.MaxPool2d, x: Tensor) -> Any:
    if not _must_use_pytorch(layer, x, _POOLS, FORWARD) and (sizes := native_max_pool.find_sizes(layer, x)):
        return native_max_pool.pool(layer, x, sizes)
    unchanged: Any = type(layer).forward(layer, x)
    return unchanged


def _normalize(layer: nn.BatchNorm2d, x: Tensor) -> Tensor:
    if not _must_use_pytorch(layer, x, _NORMALIZES, FORWARD) and native_batch_norm.can_normalize(layer, x):
        return native_batch_norm.normalize_and_activate(layer, x)
    result: Tensor = type(layer).forward(layer, x)
    return result


def _normalize_and_activate(layer: nn.BatchNorm2d, x: Tensor) -> Tensor:
    kind, after = type(layer), layer.get_submodule("act")
    if (
        not _must_use_pytorch(layer, x, kind.forward, FORWARD)
        and type(layer.get_submodule("drop")) is nn.Identity
        and not torch_internals.has_hooks(layer.get_submodule("drop"))
        and _is_plain_activation(after)
        and native_batch_norm.can_normalize(layer, x)
    ):
        return native_batch_norm.normalize_and_activate(layer, x, type(after))
    result: Tensor = kind.forward(layer, x)
    return result


def _is_norm_act(layer: nn.BatchNorm2d) -> bool:
    """Return whether `layer` is timm's BatchNormAct2d: batch normalization, `drop` and `act`."""
    kind = type(layer)
    is_kind = (kind.__module__, kind.__qualname__) == ("timm.layers.norm_act", "BatchNormAct2d")
    return is_kind and _is_unpatched(layer, FORWARD)


def _run_in_turn(layer: nn.Sequential, x: Any) -> Any:
    if _must_use_pytorch(layer, x, _RUNS, FORWARD):
        unchanged: Any = type(layer).forward(layer, x)  # type: ignore[no-untyped-call]
        return unchanged
    modules, number = list(layer), 0
    while number < len(modules):
        module, after = modules[number], modules[number + 1] if number + 1 < len(modules) else None
        if after is not None and _is_pair(module, after) and native_batch_norm.can_normalize(module, x):
            x = native_batch_norm.normalize_and_activate(module, x, type(after))
            number += 2
        else:
            x = module(x)
            number += 1
    return x


def _has_pair(layer: nn.Sequential) -> bool:
    kinds = native_batch_norm.ACTIVATIONS
    return any(isinstance(one, nn.BatchNorm2d) and type(after) in kinds for one, after in itertools.pairwise(layer))


def _is_pair(module: nn.Module, after: nn.Module) -> TypeGuard[nn.BatchNorm2d]:
    """Return whether batch normalization is followed by its activation function, and nobody sees what is between."""
    return (
        isinstance(module, nn.BatchNorm2d)
        and _is_plain_activation(after)
        and _is_accelerated(module)
        and _is_plain(module, nn.BatchNorm2d, FORWARD)
        and not torch_internals.has_hooks(module)
    )


def _is_plain_activation(layer: nn.Module) -> bool:
    """Return whether `layer` is an activation layer that the kernels know, and without hooks."""
    return (
        type(layer) in native_batch_norm.ACTIVATIONS
        and not (isinstance(layer, nn.GELU) and layer.approximate != "none")
        and not vars(layer).keys() & set(METHODS)
        and _is_from_pytorch(type(layer), FORWARD)
        and not torch_internals.has_hooks(layer)
    )
