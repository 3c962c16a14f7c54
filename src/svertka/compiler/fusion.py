"""Fusion of recorded operations into few steps: batch norm folded, residuals and bounds joined to convolutions."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from svertka.compiler.ir import (
    UNBOUNDED,
    Concatenation,
    Constant,
    Convolution,
    Operation,
    Pair,
    Pool,
    Recording,
    Shape,
    Size,
    Step,
    Sum,
    Value,
    inputs_of,
    leaves,
    replaced,
    results_of,
)
from svertka.compiler.output_structure import Output

FLATTENS = {"flatten.using_ints", "reshape.default", "squeeze.dims"}
PADS = {"pad.default", "constant_pad_nd.default"}
# They give what they are given: in inference, or as values.
NOTHING = {"dropout.default", "feature_dropout.default", "alpha_dropout.default", "clone.default", "detach.default"}
NOTHING |= {"alias.default", "contiguous.default", "lift_fresh.default"}


@dataclass(frozen=True)
class Fused:
    """Steps, the shapes of their values, the tensors that they name, the output and `pictures`, as in a Recording."""

    steps: tuple[Step, ...]
    shapes: Mapping[int, Shape]
    dtypes: Mapping[int, torch.dtype]
    tensors: Mapping[str, Tensor]
    output: Output
    pictures: int | None = None


@torch.inference_mode()
def fused(recording: Recording) -> Fused:
    """The steps of a recording. Its tensors are left as they are; folded ones are new, computed in float64."""
    return Fusion(recording).fused()


def plain_tensor(tensor: Tensor) -> Tensor:
    """The numbers of a tensor, whatever subclass it is of, and not as a negative view."""
    return tensor.detach().as_subclass(Tensor).resolve_conj().resolve_neg()


class Assembly:
    """The steps that a recording's operations have become so far; rules look at them and change them."""

    def __init__(self, recording: Recording) -> None:
        self.shapes: Mapping[int, Any] = recording.shapes
        self.dtypes = recording.dtypes
        self.tensors: dict[str, Tensor] = {name: plain_tensor(one) for name, one in recording.constants.items()}
        self.same: dict[int, Any] = {}  # values that are another value or a constant
        self.steps: dict[int, Step] = {}  # by the (first) value that they give, in order
        self.uses: Counter[int] = Counter()  # by operations and by the output

    def resolved(self, leaf: Any) -> Any:
        """`leaf`, or what it is the same as."""
        while isinstance(leaf, Value) and leaf.number in self.same:
            leaf = self.same[leaf.number]
        return leaf

    def is_map(self, value: Any) -> bool:
        """Whether it is (N, C, H, W) float32, with something in it, and of one size whatever N is."""
        return self._is_of_rank(value, 4)

    def is_rows(self, value: Any) -> bool:
        """Whether it is (N, C) float32, with something in it, and C is one number whatever N is."""
        return self._is_of_rank(value, 2)

    def _is_of_rank(self, value: Any, rank: int) -> bool:
        if not isinstance(value, Value) or not self.is_float(value):
            return False
        shape = self.shapes[value.number]
        return len(shape) == rank and 0 not in shape and all(isinstance(side, int) for side in shape[1:])

    def is_float(self, value: Value) -> bool:
        """Whether it is float32."""
        return self.dtypes[value.number] == torch.float32

    def are_float(self, *names: str | None) -> bool:
        """Whether tensors of these names are float32, where there is a name."""
        return all(self.tensors[name].dtype == torch.float32 for name in names if name is not None)

    def producer(self, value: Any) -> Any:
        """The step that gives `value`, if nothing but the operation at hand reads it."""
        return self.steps.get(value.number) if isinstance(value, Value) and self.uses[value.number] == 1 else None

    def put(self, step: Step, result: int) -> bool:
        """`step` as the last one."""
        self.steps[result] = step
        return True

    def put_in_place_of(self, value: int, step: Step, result: int) -> bool:
        """`step` as the last one, without the one that gave `value`."""
        del self.steps[value]
        return self.put(step, result)

    def tensor(self, name: str, tensor: Tensor) -> str:
        """`name`, under which `tensor` now is."""
        self.tensors[name] = tensor.float().contiguous()
        return name

    def bias(self, name: str | None, place: str, result: int) -> str | None:
        """The name of a bias as kernels read it, numbers that follow each other."""
        if name is None or self.tensors[name].is_contiguous():
            return name
        return self.tensor(f"{place}.bias.{result}", self.tensors[name])

    def scaled(self, step: Convolution, result: int, scale: Tensor, shift: Tensor | None) -> Convolution:
        """`step` with its results times `scale`, (O) or a number, plus `shift`, (O)."""
        weight = self.tensors[step.weight].double()
        scale = scale.double().expand(len(weight))
        bias = weight.new_zeros(len(weight)) if step.bias is None else self.tensors[step.bias].double()
        bias = bias * scale + (0 if shift is None else shift.double())
        names = f"{step.place}.folded.{result}.weight", f"{step.place}.folded.{result}.bias"
        return replace(
            step,
            result=result,
            weight=self.tensor(names[0], weight * scale[:, None, None, None]),
            bias=self.tensor(names[1], bias),
        )


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


class Fusion(Assembly):
    """A recording's operations, one after the other, made steps by the rules, or left as they are."""

    def __init__(self, recording: Recording) -> None:
        super().__init__(recording)
        self.pictures = recording.pictures
        operations = []
        for operation in recording.operations:
            arguments = replaced(dict(operation.arguments), self.resolved)
            operation = replace(operation, arguments=arguments)
            if not self._vanishes(operation):
                operations.append(operation)
        self.output = recording.output.with_leaves(self.resolved)
        operations = _needed(operations, self.output)
        read = [*leaves([operation.arguments for operation in operations]), *self.output.leaves]
        self.uses = Counter(leaf.number for leaf in read if isinstance(leaf, Value))
        for operation in operations:
            operation = replace(operation, arguments=replaced(operation.arguments, self.resolved))  # what changed since
            if not self._joined(operation):
                first = next((result for result in operation.results if result is not None), -len(self.steps) - 1)
                self.steps[first] = operation

    def fused(self) -> Fused:
        """What is needed for the output, and nothing else."""
        steps = tuple(_needed(list(self.steps.values()), self._out()))
        names = {leaf.name for leaf in leaves([self._out().leaves, *map(_names, steps)]) if isinstance(leaf, Constant)}
        tensors = {name: self.tensors[name] for name in sorted(names)}
        return Fused(steps, self.shapes, self.dtypes, tensors, self._out(), self.pictures)

    def _out(self) -> Output:
        resolved: Output = self.output.with_leaves(self.resolved)
        return resolved

    def _vanishes(self, operation: Operation) -> bool:
        """Whether it gives what it is given, or can be computed once and for all."""
        given = list(leaves(operation.arguments))
        one = operation.results[0] if len(operation.results) == 1 else None
        if one is None:
            return False
        if operation.name in NOTHING and not operation.arguments.get("train"):
            self.same[one] = next(iter(operation.arguments.values()))
        elif not any(isinstance(leaf, Value | Size) for leaf in given):
            name = f"{operation.place}:{one}"
            (self.tensors[name],) = operation.run(lambda x: self.tensors[x.name] if isinstance(x, Constant) else x)
            self.same[one] = Constant(name)
        else:
            return False
        return True

    def _joined(self, operation: Operation) -> bool:
        """Whether the operation became a step of ours or part of one."""
        rule = RULES.get(operation.name)
        if rule is None or len(operation.results) != 1 or operation.results[0] is None:
            return False
        if operation.name not in FLATTENS and any(isinstance(leaf, Size) for leaf in leaves(operation.arguments)):
            return False  # kernels have the same settings for any number of pictures
        arguments = Arguments(operation, self)
        return arguments.x is not None and rule(self, arguments)


def _needed(steps: Sequence[Any], output: Output) -> list[Any]:
    """Of `steps` those that `output` depends on."""
    needed = {leaf.number for leaf in output.leaves if isinstance(leaf, Value)}
    kept = []
    for step in reversed(steps):
        if needed.intersection(results_of(step)):
            kept.append(step)
            needed.update(inputs_of(step))
    return kept[::-1]


def _names(step: Step) -> Any:
    if isinstance(step, Operation):
        return step.arguments
    if isinstance(step, Convolution):
        return [Constant(step.weight), *([Constant(step.bias)] if step.bias else [])]
    return []
