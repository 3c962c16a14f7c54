"""What becomes of each operation that optimized networks know: a step of their own, or part of the one before."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from svertka.compiler.assembly import Assembly
from svertka.compiler.ir import Constant, Operation, Value, leaves
from svertka.compiler.steps import UNBOUNDED, Concatenation, Convolution, Pair, Pool, Step, Sum

FLATTENS = {"flatten.using_ints", "reshape.default", "squeeze.dims"}
PADS = {"pad.default", "constant_pad_nd.default"}


class Arguments:
    """Those of an operation with one tensor for input and one for result."""

    def __init__(self, operation: Operation, assembly: Assembly) -> None:
        given = operation.arguments
        first = next((leaf for leaf in leaves(given) if isinstance(leaf, Value)), None)
        self.place = operation.place
        self.x: Any = assembly.resolved(first) if first is not None else None
        self.result: Any = operation.results[0]
        self.get: Callable[..., Any] = given.get

    def pair(self, name: str, default: Any = None) -> Pair:
        """An argument for both axes."""
        value = self.get(name, default)
        value = default if value in (None, []) else value
        both = list(value) if isinstance(value, list | tuple) else [value]
        return (both[0], both[-1])

    def named(self, name: str) -> str | None:
        """The name of a constant argument, if it is one."""
        value = self.get(name)
        return value.name if isinstance(value, Constant) else None


Rule = Callable[[Assembly, Arguments], bool]


def _convolution(assembly: Assembly, given: Arguments) -> bool:
    weight, bias = given.named("weight"), given.named("bias")
    if weight is None or (given.get("bias") is not None and bias is None) or not assembly.is_map(given.x):
        return False
    if not assembly.are_float(weight, bias) or given.get("transposed"):
        return False
    dilation, x = given.pair("dilation", 1), given.x
    padding: Any = given.get("padding", 0)
    if padding == "same":
        kernel = assembly.tensors[weight].shape[2:]
        top, left = (d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True))
    else:
        top, left = (0, 0) if padding == "valid" else given.pair("padding", 0)
    pad = assembly.steps.get(x.number)
    if isinstance(pad, Operation) and pad.name in PADS and _zeros(pad):
        columns, _, rows, _ = pad.arguments["pad"]
        x, top, left = next(iter(pad.arguments.values())), top + rows, left + columns
    step = Convolution(
        x.number,
        given.result,
        weight,
        assembly.bias(bias, given.place, given.result),
        given.pair("stride", 1),
        (top, left),
        dilation,
        given.get("groups", 1),
        place=given.place,
    )
    return assembly.put(step, given.result)


def _zeros(pad: Operation) -> bool:
    """Whether it puts zeros around pictures, or takes rows and columns off them."""
    width = pad.arguments["pad"]
    value = pad.arguments.get("value") or 0
    return len(width) == 4 and min(width) >= 0 and pad.arguments.get("mode", "constant") == "constant" and value == 0


def _linear(assembly: Assembly, given: Arguments) -> bool:
    weight, bias = given.named("weight"), given.named("bias")
    if weight is None or (given.get("bias") is not None and bias is None):
        return False
    matrix, shape = assembly.tensors[weight], assembly.shapes[given.x.number]
    if not assembly.is_rows(given.x) or not assembly.are_float(weight, bias):
        return False
    flat, x = assembly.steps.get(given.x.number), given.x
    kernel: tuple[Any, ...] = (1, 1)
    if isinstance(flat, Operation) and flat.name in FLATTENS:
        before = next(iter(flat.arguments.values()))
        if assembly.is_map(before) and assembly.shapes[before.number][0] == shape[0]:
            x, kernel = before, assembly.shapes[before.number][2:]
    name = assembly.tensor(f"{given.place}.dense.{given.result}", matrix.reshape(len(matrix), -1, *kernel))
    bias = assembly.bias(bias, given.place, given.result)
    step = Convolution(x.number, given.result, name, bias, (1, 1), (0, 0), (1, 1), 1, place=given.place)
    return assembly.put(step, given.result)


def _batch_norm(assembly: Assembly, given: Arguments) -> bool:
    if given.get("training") or not assembly.is_map(given.x):
        return False
    mean, variance = given.named("running_mean"), given.named("running_var")
    weight, bias = given.named("weight"), given.named("bias")
    computed = any(given.get(name) is not None and given.named(name) is None for name in ("weight", "bias"))
    if mean is None or variance is None or computed or not assembly.are_float(mean, variance, weight, bias):
        return False
    tensors = assembly.tensors
    scale = (tensors[variance].double() + given.get("eps")).rsqrt()
    scale = scale if weight is None else scale * tensors[weight].double()
    shift = -tensors[mean].double() * scale
    shift = shift if bias is None else shift + tensors[bias].double()
    before = assembly.producer(given.x)
    if _takes_more(before, Convolution):
        return assembly.put_in_place_of(
            before.result, assembly.scaled(before, given.result, scale, shift), given.result
        )
    # A scale and a shift for each channel are a convolution of each channel by itself.
    names = f"{given.place}.scale.{given.result}", f"{given.place}.shift.{given.result}"
    assembly.tensor(names[0], scale[:, None, None, None])
    assembly.tensor(names[1], shift)
    step = Convolution(given.x.number, given.result, *names, (1, 1), (0, 0), (1, 1), len(scale), place=given.place)
    return assembly.put(step, given.result)


def _takes_more(step: Any, *kinds: Any) -> Any:
    """Whether `step` is of one of these kinds and nothing comes after its sum yet."""
    return isinstance(step, kinds) and step.bounds == UNBOUNDED and getattr(step, "residual", None) is None


def _bounds(lower: Callable[[Arguments], Any], upper: Callable[[Arguments], Any]) -> Any:
    def rule(assembly: Assembly, given: Arguments) -> bool:
        low, high = lower(given), upper(given)
        low, high = -math.inf if low is None else low, math.inf if high is None else high
        if not (assembly.is_map(given.x) or assembly.is_rows(given.x)) or not all(
            isinstance(b, int | float) and not math.isnan(b) for b in (low, high)
        ):
            return False
        before = assembly.producer(given.x)
        if isinstance(before, Convolution | Sum) and before.bounds == UNBOUNDED:
            step: Step = replace(before, bounds=(float(low), float(high)), result=given.result)
            return assembly.put_in_place_of(before.result, step, given.result)
        step = Sum(given.x.number, given.result, bounds=(float(low), float(high)), place=given.place)
        return assembly.put(step, given.result)

    return rule


def _add(assembly: Assembly, given: Arguments) -> bool:
    one, other = given.get("self"), given.get("other")
    if not (assembly.is_map(one) and assembly.is_map(other)) or given.get("alpha", 1) != 1 or one == other:
        return False
    if assembly.shapes[one.number] != assembly.shapes[other.number]:
        return False
    # The one computed last, so that the other is there when it is.
    order = list(assembly.steps)
    pairs = sorted(
        ((one, other), (other, one)), key=lambda pair: order.index(pair[0].number) if pair[0].number in order else -1
    )
    for first, second in reversed(pairs):
        before = assembly.producer(first)
        if _takes_more(before, Convolution):
            step = replace(before, residual=second.number, result=given.result)
            return assembly.put_in_place_of(before.result, step, given.result)
    return assembly.put(Sum(one.number, given.result, other.number, place=given.place), given.result)


def _times(assembly: Assembly, given: Arguments) -> bool:
    factor, before = given.get("other"), assembly.producer(given.x)
    if not isinstance(factor, int | float) or not math.isfinite(factor) or not _takes_more(before, Convolution):
        return False
    step = assembly.scaled(before, given.result, torch.tensor(float(factor), device="cpu"), None)
    return assembly.put_in_place_of(before.result, step, given.result)


def _pool(kind: str) -> Any:
    def rule(assembly: Assembly, given: Arguments) -> bool:
        if not assembly.is_map(given.x) or given.get("divisor_override") is not None:
            return False
        kernel = given.pair("kernel_size")
        padded = kind == "MEAN" and given.get("count_include_pad", True)
        settings = kernel, given.pair("stride", kernel), given.pair("padding", 0), given.pair("dilation", 1)
        ceil = bool(given.get("ceil_mode", False))
        name = "PADDED_MEAN" if padded else kind
        return assembly.put(Pool(given.x.number, given.result, name, *settings, ceil, given.place), given.result)

    return rule


def _adaptive(assembly: Assembly, given: Arguments) -> bool:
    shape, result = assembly.shapes[given.x.number], assembly.shapes[given.result]
    if not assembly.is_map(given.x) or 0 in result or any(a % b for a, b in zip(shape[2:], result[2:], strict=True)):
        return False
    height, width = (a // b for a, b in zip(shape[2:], result[2:], strict=True))
    if (height, width) == (1, 1):
        assembly.same[given.result] = given.x
        assembly.uses[given.x.number] += assembly.uses[given.result] - 1
        return True
    kernel = height, width
    step = Pool(given.x.number, given.result, "MEAN", kernel, kernel, (0, 0), (1, 1), False, given.place)
    return assembly.put(step, given.result)


def _mean(assembly: Assembly, given: Arguments) -> bool:
    if (
        not assembly.is_map(given.x)
        or sorted(one % 4 for one in given.get("dim") or ()) != [2, 3]
        or given.get("dtype")
    ):
        return False
    kernel: Any = tuple(assembly.shapes[given.x.number][2:])
    step = Pool(given.x.number, given.result, "MEAN", kernel, kernel, (0, 0), (1, 1), False, given.place)
    return assembly.put(step, given.result)


def _flat(assembly: Assembly, given: Arguments) -> bool:
    before, shape = assembly.producer(given.x), assembly.shapes[given.result]
    if not assembly.is_map(given.x) or assembly.shapes[given.x.number] != (*shape, 1, 1):
        return False
    if not isinstance(before, Convolution | Pool | Sum):
        return False
    return assembly.put_in_place_of(before.result, replace(before, result=given.result), given.result)


def _cat(assembly: Assembly, given: Arguments) -> bool:
    parts = given.get("tensors")
    if given.get("dim", 0) not in (1, -3) or not all(assembly.is_map(part) for part in parts):
        return False
    return assembly.put(Concatenation(tuple(p.number for p in parts), given.result, given.place), given.result)


RULES: dict[str, Rule] = {
    "conv2d.default": _convolution,
    "conv2d.padding": _convolution,
    "convolution.default": _convolution,
    "linear.default": _linear,
    "batch_norm.default": _batch_norm,
    "relu.default": _bounds(lambda _: 0, lambda _: math.inf),
    "relu6.default": _bounds(lambda _: 0, lambda _: 6),
    "hardtanh.default": _bounds(lambda given: given.get("min_val", -1), lambda given: given.get("max_val", 1)),
    "clamp.default": _bounds(lambda given: given.get("min"), lambda given: given.get("max")),
    "clamp_min.default": _bounds(lambda given: given.get("min"), lambda _: math.inf),
    "add.Tensor": _add,
    "mul.Tensor": _times,
    "max_pool2d.default": _pool("MAXIMUM"),
    "avg_pool2d.default": _pool("MEAN"),
    "adaptive_avg_pool2d.default": _adaptive,
    "mean.dim": _mean,
    "cat.default": _cat,
    **dict.fromkeys(FLATTENS, _flat),
}
