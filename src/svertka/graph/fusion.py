"""A network's operations joined to few steps: batch norm folded, bias, sums and bounds taken into the convolutions."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from svertka.graph.operations import Constant, Operation, Recording, Shape, Size, Value, leaves, replaced
from svertka.graph.steps import UNBOUNDED, Concatenation, Convolution, Pair, Pool, Step, Sum

# They give what they are given: in inference, or as values.
NOTHING = {"dropout.default", "feature_dropout.default", "alpha_dropout.default", "clone.default", "detach.default"}
NOTHING |= {"alias.default", "contiguous.default", "lift_fresh.default"}


@dataclass(frozen=True)
class Fused:
    """Steps, the shapes of their values, the tensors that they name, and the output, as in a Recording."""

    steps: tuple[Step, ...]
    shapes: Mapping[int, Shape]
    dtypes: Mapping[int, torch.dtype]
    tensors: Mapping[str, Tensor]
    output: Any


@torch.inference_mode()
def fused(recording: Recording) -> Fused:
    """The steps of a recording. Its tensors are left as they are; folded ones are new, computed in float64."""
    return _Fusion(recording).fused()


class _Fusion:
    def __init__(self, recording: Recording) -> None:
        self.shapes, self.dtypes = recording.shapes, recording.dtypes
        self.tensors: dict[str, Tensor] = {name: tensor.detach() for name, tensor in recording.constants.items()}
        self.same: dict[int, Any] = {}  # values that are another value or a constant
        self.steps: dict[int, Step] = {}  # by the (first) value that they give, in order
        operations = []
        for operation in recording.operations:
            arguments = replaced(dict(operation.arguments), self._resolved)
            operation = replace(operation, arguments=arguments)
            if not self._vanishes(operation):
                operations.append(operation)
        self.output = replaced(recording.output, self._resolved)
        read = [*leaves([operation.arguments for operation in operations]), *leaves(self.output)]
        self.uses = Counter(leaf.number for leaf in read if isinstance(leaf, Value))
        for operation in operations:
            operation = replace(operation, arguments=replaced(operation.arguments, self._resolved))  # what changed since
            if not self._joined(operation):
                first = next((result for result in operation.results if result is not None), -len(self.steps) - 1)
                self.steps[first] = operation

    def fused(self) -> Fused:
        """What is needed for the output, and nothing else."""
        needed = {leaf.number for leaf in leaves(self._out()) if isinstance(leaf, Value)}
        kept: list[Step] = []
        for step in reversed(self.steps.values()):
            if needed.intersection(results_of(step)):
                kept.append(step)
                needed.update(inputs_of(step))
        steps = tuple(reversed(kept))
        names = {leaf.name for leaf in leaves([self._out(), *map(_names, steps)]) if isinstance(leaf, Constant)}
        tensors = {name: self.tensors[name] for name in sorted(names)}
        return Fused(steps, self.shapes, self.dtypes, tensors, self._out())

    def _out(self) -> Any:
        return replaced(self.output, self._resolved)

    def _resolved(self, leaf: Any) -> Any:
        while isinstance(leaf, Value) and leaf.number in self.same:
            leaf = self.same[leaf.number]
        return leaf

    def _vanishes(self, operation: Operation) -> bool:
        """Whether it gives what it is given, or can be computed once and for all."""
        given = list(leaves(operation.arguments))
        one = operation.results[0] if len(operation.results) == 1 else None
        if one is None:
            return False
        if operation.name in NOTHING and not operation.arguments.get("train"):
            self.same[one] = next(iter(operation.arguments.values()))
        elif any(isinstance(leaf, Constant) for leaf in given) and not any(
            isinstance(leaf, Value | Size) for leaf in given
        ):
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
        arguments = _Arguments(operation, self)
        return arguments.x is not None and rule(self, arguments)

    def is_map(self, value: Any) -> bool:
        """Whether it is (N, C, H, W) float32."""
        return isinstance(value, Value) and len(self.shapes[value.number]) == 4 and self._is_float(value)

    def _is_float(self, value: Value) -> bool:
        return self.dtypes[value.number] == torch.float32

    def producer(self, value: Any) -> Step | None:
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

    def scaled(self, step: Convolution, result: int, scale: Tensor, shift: Tensor | None) -> Convolution:
        """`step` with its results times `scale`, (O) or a number, plus `shift`, (O)."""
        weight = self.tensors[step.weight].double()
        scale = scale.double().expand(len(weight))
        bias = torch.zeros(len(weight), dtype=torch.float64) if step.bias is None else self.tensors[step.bias].double()
        bias = bias * scale + (0 if shift is None else shift.double())
        names = f"{step.place}.folded.{result}.weight", f"{step.place}.folded.{result}.bias"
        return replace(
            step,
            result=result,
            weight=self.tensor(names[0], weight * scale[:, None, None, None]),
            bias=self.tensor(names[1], bias),
        )


class _Arguments:
    """Those of an operation with one tensor for input and one for result."""

    def __init__(self, operation: Operation, fusion: _Fusion) -> None:
        given = operation.arguments
        first = next((leaf for leaf in leaves(given) if isinstance(leaf, Value)), None)
        self.operation, self.place, self.fusion = operation, operation.place, fusion
        self.x = fusion._resolved(first) if first is not None else None
        (self.result,) = operation.results
        self.get = given.get

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


def _convolution(fusion: _Fusion, given: _Arguments) -> bool:
    weight, bias = given.named("weight"), given.named("bias")
    if weight is None or (given.get("bias") is not None and bias is None) or not fusion.is_map(given.x):
        return False
    if fusion.tensors[weight].dtype != torch.float32 or given.get("transposed"):
        return False
    dilation, x = given.pair("dilation", 1), given.x
    padding: Any = given.get("padding", 0)
    if padding == "same":
        kernel = fusion.tensors[weight].shape[2:]
        top, left = (d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True))
    else:
        top, left = (0, 0) if padding == "valid" else given.pair("padding", 0)
    pad = fusion.steps.get(x.number)
    if isinstance(pad, Operation) and pad.name in PADS and _zeros(pad):
        columns, _, rows, _ = pad.arguments["pad"]
        x, top, left = next(iter(pad.arguments.values())), top + rows, left + columns
    step = Convolution(
        x.number,
        given.result,
        weight,
        bias,
        given.pair("stride", 1),
        (top, left),
        dilation,
        given.get("groups", 1),
        place=given.place,
    )
    return fusion.put(step, given.result)


def _zeros(pad: Operation) -> bool:
    """Whether it puts zeros around pictures, or takes rows and columns off them."""
    width = pad.arguments["pad"]
    value = pad.arguments.get("value") or 0
    return len(width) == 4 and min(width) >= 0 and pad.arguments.get("mode", "constant") == "constant" and value == 0


def _linear(fusion: _Fusion, given: _Arguments) -> bool:
    weight, bias = given.named("weight"), given.named("bias")
    if weight is None or (given.get("bias") is not None and bias is None):
        return False
    matrix, shape = fusion.tensors[weight], fusion.shapes[given.x.number]
    if len(shape) != 2 or matrix.dtype != torch.float32:
        return False
    flat, x = fusion.steps.get(given.x.number), given.x
    kernel: tuple[Any, ...] = (1, 1)
    if isinstance(flat, Operation) and flat.name in FLATTENS:
        before = next(iter(flat.arguments.values()))
        if fusion.is_map(before) and fusion.shapes[before.number][0] == shape[0]:
            x, kernel = before, fusion.shapes[before.number][2:]
    name = fusion.tensor(f"{given.place}.dense.{given.result}", matrix.reshape(len(matrix), -1, *kernel))
    step = Convolution(x.number, given.result, name, bias, (1, 1), (0, 0), (1, 1), 1, place=given.place)
    return fusion.put(step, given.result)


def _batch_norm(fusion: _Fusion, given: _Arguments) -> bool:
    if given.get("training") or not fusion.is_map(given.x):
        return False
    mean, variance = given.named("running_mean"), given.named("running_var")
    if mean is None or variance is None:
        return False
    tensors = fusion.tensors
    scale = (tensors[variance].double() + given.get("eps")).rsqrt()
    weight, bias = given.named("weight"), given.named("bias")
    scale = scale if weight is None else scale * tensors[weight].double()
    shift = -tensors[mean].double() * scale
    shift = shift if bias is None else shift + tensors[bias].double()
    before = fusion.producer(given.x)
    if _takes_more(before, Convolution):
        return fusion.put_in_place_of(before.result, fusion.scaled(before, given.result, scale, shift), given.result)
    # A scale and a shift for each channel are a convolution of each channel by itself.
    names = f"{given.place}.scale.{given.result}", f"{given.place}.shift.{given.result}"
    fusion.tensor(names[0], scale[:, None, None, None])
    fusion.tensor(names[1], shift)
    step = Convolution(given.x.number, given.result, *names, (1, 1), (0, 0), (1, 1), len(scale), place=given.place)
    return fusion.put(step, given.result)


def _takes_more(step: Any, *kinds: Any) -> Any:
    """Whether `step` is of one of these kinds and nothing comes after its sum yet."""
    return isinstance(step, kinds) and step.bounds == UNBOUNDED and getattr(step, "residual", None) is None


def _bounds(lower: Callable[[_Arguments], Any], upper: Callable[[_Arguments], Any]) -> Any:
    def rule(fusion: _Fusion, given: _Arguments) -> bool:
        low, high = lower(given), upper(given)
        low, high = -math.inf if low is None else low, math.inf if high is None else high
        rank = len(fusion.shapes[given.x.number])
        if rank not in (2, 4) or not fusion._is_float(given.x) or not all(isinstance(b, int | float) for b in (low, high)):
            return False
        before = fusion.producer(given.x)
        if isinstance(before, Convolution | Sum) and before.bounds == UNBOUNDED:
            step: Step = replace(before, bounds=(float(low), float(high)), result=given.result)
            return fusion.put_in_place_of(before.result, step, given.result)
        step = Sum(given.x.number, given.result, bounds=(float(low), float(high)), place=given.place)
        return fusion.put(step, given.result)

    return rule


def _add(fusion: _Fusion, given: _Arguments) -> bool:
    one, other = given.get("self"), given.get("other")
    if not (fusion.is_map(one) and fusion.is_map(other)) or given.get("alpha", 1) != 1 or one == other:
        return False
    if fusion.shapes[one.number] != fusion.shapes[other.number]:
        return False
    # The one computed last, so that the other is there when it is.
    order = list(fusion.steps)
    pairs = sorted(((one, other), (other, one)), key=lambda pair: order.index(pair[0].number) if pair[0].number in order else -1)
    for first, second in reversed(pairs):
        before = fusion.producer(first)
        if _takes_more(before, Convolution):
            step = replace(before, residual=second.number, result=given.result)
            return fusion.put_in_place_of(before.result, step, given.result)
    return fusion.put(Sum(one.number, given.result, other.number, place=given.place), given.result)


def _times(fusion: _Fusion, given: _Arguments) -> bool:
    factor, before = given.get("other"), fusion.producer(given.x)
    if not isinstance(factor, int | float) or not _takes_more(before, Convolution):
        return False
    step = fusion.scaled(before, given.result, torch.tensor(float(factor)), None)
    return fusion.put_in_place_of(before.result, step, given.result)


def _pool(kind: str) -> Any:
    def rule(fusion: _Fusion, given: _Arguments) -> bool:
        if not fusion.is_map(given.x) or given.get("divisor_override") is not None:
            return False
        kernel = given.pair("kernel_size")
        padded = kind == "MEAN" and given.get("count_include_pad", True)
        settings = kernel, given.pair("stride", kernel), given.pair("padding", 0), given.pair("dilation", 1)
        ceil = bool(given.get("ceil_mode", False))
        name = "PADDED_MEAN" if padded else kind
        return fusion.put(Pool(given.x.number, given.result, name, *settings, ceil, given.place), given.result)

    return rule


def _adaptive(fusion: _Fusion, given: _Arguments) -> bool:
    shape, result = fusion.shapes[given.x.number], fusion.shapes[given.result]
    if not fusion.is_map(given.x) or any(a % b for a, b in zip(shape[2:], result[2:], strict=True)):
        return False
    height, width = (a // b for a, b in zip(shape[2:], result[2:], strict=True))
    if (height, width) == (1, 1):
        fusion.same[given.result] = given.x
        fusion.uses[given.x.number] += fusion.uses[given.result] - 1
        return True
    kernel = height, width
    step = Pool(given.x.number, given.result, "MEAN", kernel, kernel, (0, 0), (1, 1), False, given.place)
    return fusion.put(step, given.result)


def _mean(fusion: _Fusion, given: _Arguments) -> bool:
    if not fusion.is_map(given.x) or sorted(one % 4 for one in given.get("dim") or ()) != [2, 3] or given.get("dtype"):
        return False
    kernel: Any = tuple(fusion.shapes[given.x.number][2:])
    step = Pool(given.x.number, given.result, "MEAN", kernel, kernel, (0, 0), (1, 1), False, given.place)
    return fusion.put(step, given.result)


def _cat(fusion: _Fusion, given: _Arguments) -> bool:
    parts = given.get("tensors")
    if given.get("dim", 0) not in (1, -3) or not all(fusion.is_map(part) for part in parts):
        return False
    return fusion.put(Concatenation(tuple(p.number for p in parts), given.result, given.place), given.result)


FLATTENS = {"flatten.using_ints", "reshape.default", "squeeze.dims"}
PADS = {"pad.default", "constant_pad_nd.default"}
RULES: dict[str, Callable[[_Fusion, _Arguments], bool]] = {
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
}


def results_of(step: Step) -> tuple[int, ...]:
    """The values that a step gives."""
    if isinstance(step, Operation):
        return tuple(number for number in step.results if number is not None)
    return (step.result,)


def inputs_of(step: Step) -> tuple[int, ...]:
    """The values that a step reads."""
    if isinstance(step, Operation):
        return tuple(leaf.number for leaf in leaves(step.arguments) if isinstance(leaf, Value))
    return step.inputs


def _names(step: Step) -> Any:
    if isinstance(step, Operation):
        return step.arguments
    if isinstance(step, Convolution):
        return [Constant(step.weight), *([Constant(step.bias)] if step.bias else [])]
    return []
