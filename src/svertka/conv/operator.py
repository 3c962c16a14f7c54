"""Convolution as a PyTorch operator that runs the fastest algorithm.

A convolution is linear in its input and in its weights, and so are its two gradients. Each of the three operators
`convolution`, `input_gradient` and `weight_gradient` therefore has the two others as its derivatives, to any order.
They do not check their arguments; `svertka.conv.api` does.

Weights may be float32 when images are bfloat16, as under autocast. Their gradients are then float32.
"""

from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from svertka import torch_internals
from svertka.conv import aten, autotune
from svertka.conv_shape import ConvShape, output_size

_library: Any = torch.library  # has no type annotations
LIBRARY = _library.Library("svertka", "DEF")
SETTINGS = "int[2] stride, int[2] padding, int[2] dilation, int groups, str algorithm"
AUTOCAST = "cpu", "cuda"  # devices
CAST = torch.float32, torch.bfloat16, torch.float16  # like PyTorch, without float64
LIBRARY.define(f"convolution(Tensor x, Tensor weight, Tensor? bias, {SETTINGS}) -> Tensor")
LIBRARY.define(f"input_gradient(Tensor gradient, Tensor weight, SymInt[2] size, {SETTINGS}) -> Tensor")
LIBRARY.define(f"weight_gradient(Tensor gradient, Tensor x, SymInt[2] kernel, {SETTINGS}) -> Tensor")


def dtype_under_autocast(tensor: Tensor) -> torch.dtype:
    """Return the dtype in which PyTorch would convolve `tensor`: autocast's if enabled, else its own."""
    if tensor.dtype not in CAST or not _is_autocast(tensor):
        return tensor.dtype
    return torch.get_autocast_dtype(tensor.device.type)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, shape: ConvShape, name: str) -> Tensor:
    """Return the result of the operator `convolution` with algorithm `name`; in eager mode the operator is bypassed."""
    layout = shape.stride, shape.padding, shape.dilation, shape.groups
    if not _is_eager(x, weight, bias):
        result: Tensor = torch.ops.svertka.convolution(x, weight, bias, *layout, name)
    elif _is_autocast(x):
        with torch.autocast(x.device.type, enabled=False):  # algorithms select their own dtype
            result = convolve(x, weight, bias, shape, name)
    elif is_fastest_in_pytorch(shape, x, weight, name):
        weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
        result = torch.conv2d(x, weight, bias, *layout).contiguous(memory_format=_layout(x, weight))
    elif torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in (x, weight, bias)):
        x = x.contiguous(memory_format=_layout(x, weight))  # once, instead of in each pass
        result = _Convolution.apply(x, weight, bias, (*layout, name))  # type: ignore[no-untyped-call]
    else:
        result = _convolution(x, weight, bias, *layout, name)
    return result


def convolve_transposed(
    x: Tensor, weight: Tensor, bias: Tensor | None, shape: ConvShape, extra: tuple[int, int], name: str
) -> Tensor:
    """Return the result of the operator `input_gradient` for `x`, the result of a convolution of `shape`, plus `bias`.

    `extra`: output padding, rows and columns.
    """
    layout = shape.stride, shape.padding, shape.dilation, shape.groups
    eager = _is_eager(x, weight, bias)
    if eager and _is_autocast(x):
        with torch.autocast(x.device.type, enabled=False):
            return convolve_transposed(x, weight, bias, shape, extra, name)
    if eager and _is_fastest_in_aten(("input_gradient", "forward"), shape, x, weight, name):
        weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
        result = torch.conv_transpose2d(x, weight, bias, *layout[:2], extra, shape.groups, shape.dilation)
        return result.contiguous(memory_format=_layout(x, weight))
    # Output padding beyond the stride adds a kernel position whose input is zero.
    x = F.pad(x, (0, shape.out_width - x.shape[3], 0, shape.out_height - x.shape[2]))
    size, settings = (shape.height, shape.width), (*layout, name)
    if not eager:
        result = torch.ops.svertka.input_gradient(x, weight, size, *settings)
    elif torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        result = _InputGradient.apply(x, weight, size, settings)  # type: ignore[no-untyped-call]
    else:
        result = _input_gradient(x, weight, size, *settings)
    return result if bias is None else result + bias[:, None, None].to(x.dtype)


def is_fastest_in_pytorch(shape: ConvShape, x: Tensor, weight: Tensor, name: str) -> bool:
    """Return whether PyTorch's function is fastest for the convolution and all derivatives that are needed."""
    return _is_fastest_in_aten(("forward", "input_gradient"), shape, x, weight, name)


def _is_fastest_in_aten(
    passes: tuple[autotune.Pass, autotune.Pass], shape: ConvShape, x: Tensor, weight: Tensor, name: str
) -> bool:
    """Return whether aten is fastest for `passes[0]` and all needed derivatives; `passes[1]` is that of x.

    PyTorch's function is then called directly, which has the least overhead.
    """
    own, of_x = passes
    wanted = [own]
    if torch.is_grad_enabled():
        wanted += [of_x] * x.requires_grad + ["weight_gradient"] * weight.requires_grad
    return bool(x.numel()) and all(autotune.select_algorithm(name, one, shape, x, weight) is aten for one in wanted)


def _is_autocast(x: Tensor) -> bool:
    """Return whether autocast is enabled on the device of `x`."""
    return x.device.type in AUTOCAST and torch.is_autocast_enabled(x.device.type)


def _is_eager(*tensors: Tensor | None) -> bool:
    """Return whether the call runs in plain eager mode, without tracing, compilation or tensor subclasses."""
    return (
        all(tensor is None or type(tensor) in (Tensor, torch.nn.Parameter) for tensor in tensors)
        and not torch.compiler.is_compiling()
        and not torch_internals.has_dispatch_mode()
    )


def _layout(x: Tensor, other: Tensor) -> torch.memory_format:
    """Return the memory order of a result, as in PyTorch: channels-last if one of the two tensors is."""
    if _is_batched(x, other):  # batched tensors have no memory order
        return torch.contiguous_format
    return autotune.memory_order(x, other)


Pair = list[int] | tuple[int, int]


def _convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair, groups: int, name: str
) -> Tensor:
    shape = _shape(x.shape, weight.shape, *map(tuple, (stride, padding, dilation)), groups)
    if not x.numel():
        return x.new_zeros(shape.output)
    result = autotune.select_algorithm(name, "forward", shape, x, weight).forward(x, weight, shape, bias)
    return result.contiguous(memory_format=_layout(x, weight))


def _input_gradient(
    gradient: Tensor, weight: Tensor, size: Pair, stride: Pair, padding: Pair, dilation: Pair, groups: int, name: str
) -> Tensor:
    inputs = gradient.shape[0], weight.shape[1] * groups, *size
    shape = _shape(inputs, weight.shape, *map(tuple, (stride, padding, dilation)), groups)
    if not gradient.numel():
        return gradient.new_zeros(inputs)
    algorithm = autotune.select_algorithm(name, "input_gradient", shape, gradient, weight)
    result = algorithm.input_gradient(gradient, weight, shape)
    return result.contiguous(memory_format=_layout(gradient, weight))


def _weight_gradient(
    gradient: Tensor, x: Tensor, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair, groups: int, name: str
) -> Tensor:
    weight = gradient.shape[1], x.shape[1] // groups, *kernel
    shape = _shape(x.shape, weight, *map(tuple, (stride, padding, dilation)), groups)
    dtype = autotune.weight_dtype(x.dtype)
    if not x.numel():
        return x.new_zeros(weight, dtype=dtype)
    algorithm = autotune.select_algorithm(name, "weight_gradient", shape, x, gradient)
    result = algorithm.weight_gradient(gradient, x, shape)
    return result.to(dtype).contiguous(memory_format=_layout(x, gradient))


@lru_cache(4096)  # shapes repeat; a lookup takes a tenth of the time
def _shape(inputs: Any, weight: Any, stride: Any, padding: Any, dilation: Any, groups: int) -> ConvShape:
    """Return the ConvShape without checks, which `api` has made."""
    (batch, channels, height, width), (out_channels, _, *kernel) = inputs, weight
    sizes: Any = (batch, channels, out_channels, height, width, tuple(kernel), stride, padding, dilation, groups)
    return ConvShape(*sizes)


def _fake_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair, groups: int, name: str
) -> Tensor:
    size = [
        output_size(side, taps, step, pad, apart)
        for side, taps, step, pad, apart in zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    ]
    return x.new_empty(x.shape[0], weight.shape[0], *size).contiguous(memory_format=_layout(x, weight))


def _fake_input_gradient(gradient: Tensor, weight: Tensor, size: Pair, *settings: Any) -> Tensor:
    groups = settings[3]
    empty = gradient.new_empty(gradient.shape[0], weight.shape[1] * groups, *size)
    return empty.contiguous(memory_format=_layout(gradient, weight))


def _fake_weight_gradient(gradient: Tensor, x: Tensor, kernel: Pair, *settings: Any) -> Tensor:
    groups = settings[3]
    empty = x.new_empty(gradient.shape[1], x.shape[1] // groups, *kernel, dtype=autotune.weight_dtype(x.dtype))
    return empty.contiguous(memory_format=_layout(x, gradient))


class _Convolution(torch.autograd.Function):
    """The convolution without the operator's dispatch, which takes four fifths of the time for small tensors."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, settings: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.settings = settings
        return _convolution(x, weight, bias, *settings)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
        return _convolution_backward(ctx, upstream[0])[:4]


class _InputGradient(torch.autograd.Function):
    """The transposed convolution without the operator's dispatch."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, weight: Tensor, size: Pair, settings: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(gradient, weight)
        ctx.settings = settings
        return _input_gradient(gradient, weight, size, *settings)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
        return _input_gradient_backward(ctx, upstream[0])[:4]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Save the settings and the two tensors in which the result is linear."""
    ctx.save_for_backward(*inputs[:2])
    ctx.settings = inputs[3:]


def _passes(*tensors: Tensor) -> tuple[Any, Any, Any]:
    """Return the three passes for `tensors`: operators, or in eager mode without gradients, their implementations."""
    if _is_batched(*tensors):
        convolution, input_gradient, weight_gradient = (
            partial(_by_pytorch, one) for one in (_convolution, _input_gradient, _weight_gradient)
        )
        return convolution, input_gradient, weight_gradient
    if not torch.is_grad_enabled() and _is_eager(*tensors) and not _is_autocast(tensors[0]):
        return _convolution, _input_gradient, _weight_gradient
    return torch.ops.svertka.convolution, torch.ops.svertka.input_gradient, torch.ops.svertka.weight_gradient


def _by_pytorch(compute: Any, *arguments: Any) -> Tensor:
    """Return the result of a pass with the algorithm aten."""
    *others, _ = arguments
    result: Tensor = compute(*others, "aten")
    return result


def _is_batched(*tensors: Tensor) -> bool:
    """Return whether a tensor is batched by torch.vmap, which supports only PyTorch's operators."""
    return any(map(torch_internals.is_batched, tensors))


def _convolution_backward(context: Any, upstream: Tensor) -> tuple[Any, ...]:
    (x, weight), settings = context.saved_tensors, context.settings
    wants_x, wants_weight, wants_bias, *_ = context.needs_input_grad
    _, input_gradient, weight_gradient = _passes(upstream, x, weight)
    return (
        input_gradient(upstream, weight, x.shape[2:], *settings) if wants_x else None,
        weight_gradient(upstream, x, weight.shape[2:], *settings) if wants_weight else None,
        upstream.sum((0, 2, 3)) if wants_bias else None,
        *[None] * len(settings),
    )


def _input_gradient_backward(context: Any, upstream: Tensor) -> tuple[Any, ...]:
    (gradient, weight), settings = context.saved_tensors, context.settings
    wants_gradient, wants_weight, *_ = context.needs_input_grad
    convolution, _, weight_gradient = _passes(upstream, gradient, weight)
    return (
        convolution(upstream, weight, None, *settings) if wants_gradient else None,
        weight_gradient(gradient, upstream, weight.shape[2:], *settings) if wants_weight else None,
        *[None] * (1 + len(settings)),
    )


def _weight_gradient_backward(context: Any, upstream: Tensor) -> tuple[Any, ...]:
    (gradient, x), settings = context.saved_tensors, context.settings
    wants_gradient, wants_x, *_ = context.needs_input_grad
    convolution, input_gradient, _ = _passes(upstream, gradient, x)
    return (
        convolution(x, upstream, None, *settings) if wants_gradient else None,
        input_gradient(gradient, upstream, x.shape[2:], *settings) if wants_x else None,
        *[None] * (1 + len(settings)),
    )


def _under_autocast(name: str, device: str) -> None:
    """Register the operator for autocast: images are cast as in PyTorch, weights are not."""
    operator, images = getattr(torch.ops.svertka, name), 2 if name == "weight_gradient" else 1

    def compute(*arguments: Any) -> Any:
        cast = [one.to(dtype_under_autocast(one)) for one in arguments[:images]]
        with torch.autocast(device, enabled=False):
            return operator(*cast, *arguments[images:])

    LIBRARY.impl(name, compute, f"Autocast{device.upper()}")


for _name, _compute, _fake, _backward in (
    ("convolution", _convolution, _fake_convolution, _convolution_backward),
    ("input_gradient", _input_gradient, _fake_input_gradient, _input_gradient_backward),
    ("weight_gradient", _weight_gradient, _fake_weight_gradient, _weight_gradient_backward),
):
    LIBRARY.impl(_name, _compute, "CompositeExplicitAutograd")
    _library.register_fake(f"svertka::{_name}", _fake, lib=LIBRARY)
    _library.register_autograd(f"svertka::{_name}", _backward, setup_context=_save, lib=LIBRARY)
    for _device in AUTOCAST:
        _under_autocast(_name, _device)
