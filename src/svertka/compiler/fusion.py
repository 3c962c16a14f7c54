"""Fusion of captured operations into a few steps.

Batch norm is folded into weights; bias, residual and clamp become the epilogue of the convolution before them.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from svertka.compiler.ir import (
    UNBOUNDED,
    BatchDependentSize,
    CapturedGraph,
    Concatenation,
    FusedConvolution,
    Pair,
    Pool,
    Shape,
    Step,
    Sum,
    results_of,
)
from svertka.compiler.output_structure import OutputStructure
from svertka.graph.operations import Constant, Operation, Value, iter_leaves, map_leaves

FLATTENS = {"flatten.using_ints", "reshape.default", "squeeze.dims"}
PADS = {"pad.default", "constant_pad_nd.default"}
# Operations that return their input in inference.
NO_OPS = {"dropout.default", "feature_dropout.default", "alpha_dropout.default", "clone.default", "detach.default"}
NO_OPS |= {"alias.default", "contiguous.default", "lift_fresh.default"}


@dataclass(frozen=True)
class FusedNetwork:
    """The steps of a network, with their tensors and the output; `batch_size` as in `CapturedGraph`."""

    steps: tuple[Step, ...]
    shapes: Mapping[int, Shape]
    dtypes: Mapping[int, torch.dtype]
    tensors: Mapping[str, Tensor]
    output: OutputStructure
    batch_size: int | None = None


@torch.inference_mode()
def fuse(recording: CapturedGraph) -> FusedNetwork:
    """Return the steps of a captured graph. Its tensors are not changed; folded ones are new, computed in float64."""
    return GraphFuser(recording).build()


def to_plain_tensor(tensor: Tensor) -> Tensor:
    """Return the values of a tensor as a plain torch.Tensor, without conjugate or negative bits."""
    return tensor.detach().as_subclass(Tensor).resolve_conj().resolve_neg()


class Assembly:
    """The steps built so far, which rules read and change."""

    def __init__(self, recording: CapturedGraph) -> None:
        self.shapes: Mapping[int, Any] = recording.shapes
        self.dtypes = recording.dtypes
        self.tensors: dict[str, Tensor] = {name: to_plain_tensor(one) for name, one in recording.constants.items()}
        self.same: dict[int, Any] = {}  # value -> the value or constant that equals it
        self.steps: dict[int, Step] = {}  # by their first result, in order
        self.uses: Counter[int] = Counter()  # how often operations and the output read each value

    def resolve(self, leaf: Any) -> Any:
        """Return `leaf`, or the value or constant that it is an alias of."""
        while isinstance(leaf, Value) and leaf.number in self.same:
            leaf = self.same[leaf.number]
        return leaf

    def is_map(self, value: Any) -> bool:
        """Whether `value` is a nonempty feature map, (N, C, H, W) float32; only N may depend on the batch size."""
        return self._is_of_rank(value, 4)

    def is_rows(self, value: Any) -> bool:
        """Whether `value` is nonempty, (N, C) float32, with C independent of the batch size."""
        return self._is_of_rank(value, 2)

    def _is_of_rank(self, value: Any, rank: int) -> bool:
        if not isinstance(value, Value) or not self.is_float(value):
            return False
        shape = self.shapes[value.number]
        return len(shape) == rank and 0 not in shape and all(isinstance(side, int) for side in shape[1:])

    def is_float(self, value: Value) -> bool:
        """Whether `value` is float32."""
        return self.dtypes[value.number] == torch.float32

    def are_float(self, *names: str | None) -> bool:
        """Whether the tensors of these names are float32; None is skipped."""
        return all(self.tensors[name].dtype == torch.float32 for name in names if name is not None)

    def find_producer(self, value: Any) -> Any:
        """Return the step that computes `value` if only the current operation reads it, otherwise None."""
        return self.steps.get(value.number) if isinstance(value, Value) and self.uses[value.number] == 1 else None

    def append(self, step: Step, result: int) -> bool:
        """Append `step`, which computes value `result`. Return True."""
        self.steps[result] = step
        return True

    def replace_step(self, value: int, step: Step, result: int) -> bool:
        """Remove the step that computes `value` and append `step`. Return True."""
        del self.steps[value]
        return self.append(step, result)

    def add_tensor(self, name: str, tensor: Tensor) -> str:
        """Store `tensor` as contiguous float32 under `name`. Return `name`."""
        self.tensors[name] = tensor.float().contiguous()
        return name

    def make_bias_contiguous(self, name: str | None, place: str, result: int) -> str | None:
        """Return the name of a bias whose memory is contiguous, as kernels need it; None for no bias."""
        if name is None or self.tensors[name].is_contiguous():
            return name
        return self.add_tensor(f"{place}.bias.{result}", self.tensors[name])

    def scale_convolution(
        self, step: FusedConvolution, result: int, scale: Tensor, shift: Tensor | None
    ) -> FusedConvolution:
        """Return `step` with `scale`, (O) or a scalar, and `shift`, (O), folded into its weights and bias."""
        weight = self.tensors[step.weight].double()
        scale = scale.double().expand(len(weight))
        bias = weight.new_zeros(len(weight)) if step.bias is None else self.tensors[step.bias].double()
        bias = bias * scale + (0 if shift is None else shift.double())
        names = f"{step.place}.folded.{result}.weight", f"{step.place}.folded.{result}.bias"
        return replace(
            step,
            result=result,
            weight=self.add_tensor(names[0], weight * scale[:, None, None, None]),
            bias=self.add_tensor(names[1], bias),
        )


class Arguments:
    """The arguments of an operation with one input tensor and one result."""

    def __init__(self, operation: Operation, assembly: Assembly) -> None:
        given = operation.arguments
        first = next((leaf for leaf in iter_leaves(given) if isinstance(leaf, Value)), None)
        self.place = operation.place
        self.x: Any = assembly.resolve(first) if first is not None else None
        self.result: Any = operation.results[0]
        self.get: Callable[..., Any] = given.get

    def pair(self, name: str, default: Any = None) -> Pair:
        """Return an argument as (vertical, horizontal)."""
        value = self.get(name, default)
        value = default if value in (None, []) else value
        both = list(value) if isinstance(value, list | tuple) else [value]
        return (both[0], both[-1])

    def named(self, name: str) -> str | None:
        """Return the name of the constant given as an argument; None if it is not a constant."""
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
    if isinstance(pad, Operation) and pad.name in PADS and _only_adds_zeros(pad):
        columns, _, rows, _ = pad.arguments["pad"]
        x, top, left = next(iter(pad.arguments.values())), top + rows, left + columns
    step = FusedConvolution(
        x.number,
        given.result,
        weight,
        assembly.make_bias_contiguous(bias, given.place, given.result),
        given.pair("stride", 1),
        (top, left),
        dilation,
        given.get("groups", 1),
        place=given.place,
    )
    return assembly.append(step, given.result)


def _only_adds_zeros(pad: Operation) -> bool:
    """Whether a padding operation only adds zeros around images."""
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
    name = assembly.add_tensor(f"{given.place}.dense.{given.result}", matrix.reshape(len(matrix), -1, *kernel))
    bias = assembly.make_bias_contiguous(bias, given.place, given.result)
    step = FusedConvolution(x.number, given.result, name, bias, (1, 1), (0, 0), (1, 1), 1, place=given.place)
    return assembly.append(step, given.result)


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
    before = assembly.find_producer(given.x)
    if _can_extend(before, FusedConvolution):
        return assembly.replace_step(
            before.result, assembly.scale_convolution(before, given.result, scale, shift), given.result
        )
    # A scale and a shift per channel are a depthwise 1×1 convolution.
    names = f"{given.place}.scale.{given.result}", f"{given.place}.shift.{given.result}"
    assembly.add_tensor(names[0], scale[:, None, None, None])
    assembly.add_tensor(names[1], shift)
    step = FusedConvolution(given.x.number, given.result, *names, (1, 1), (0, 0), (1, 1), len(scale), place=given.place)
    return assembly.append(step, given.result)


def _can_extend(step: Any, *kinds: Any) -> Any:
    """Whether `step` is of one of these kinds and has no residual or bounds yet."""
    return isinstance(step, kinds) and step.bounds == UNBOUNDED and getattr(step, "residual", None) is None


def _bounds(lower: Callable[[Arguments], Any], upper: Callable[[Arguments], Any]) -> Any:
    def rule(assembly: Assembly, given: Arguments) -> bool:
        low, high = lower(given), upper(given)
        low, high = -math.inf if low is None else low, math.inf if high is None else high
        if not (assembly.is_map(given.x) or assembly.is_rows(given.x)) or not all(
            isinstance(b, int | float) and not math.isnan(b) for b in (low, high)
        ):
            return False
        before = assembly.find_producer(given.x)
        if isinstance(before, FusedConvolution | Sum) and before.bounds == UNBOUNDED:
            step: Step = replace(before, bounds=(float(low), float(high)), result=given.result)
            return assembly.replace_step(before.result, step, given.result)
        step = Sum(given.x.number, given.result, bounds=(float(low), float(high)), place=given.place)
        return assembly.append(step, given.result)

    return rule


def _add(assembly: Assembly, given: Arguments) -> bool:
    one, other = given.get("self"), given.get("other")
    if not (assembly.is_map(one) and assembly.is_map(other)) or given.get("alpha", 1) != 1 or one == other:
        return False
    if assembly.shapes[one.number] != assembly.shapes[other.number]:
        return False
    # Fuse with the convolution computed last, when the other summand exists.
    order = list(assembly.steps)
    pairs = sorted(
        ((one, other), (other, one)), key=lambda pair: order.index(pair[0].number) if pair[0].number in order else -1
    )
    for first, second in reversed(pairs):
        before = assembly.find_producer(first)
        if _can_extend(before, FusedConvolution):
            step = replace(before, residual=second.number, result=given.result)
            return assembly.replace_step(before.result, step, given.result)
    return assembly.append(Sum(one.number, given.result, other.number, place=given.place), given.result)


def _times(assembly: Assembly, given: Arguments) -> bool:
    factor, before = given.get("other"), assembly.find_producer(given.x)
    if not isinstance(factor, int | float) or not math.isfinite(factor) or not _can_extend(before, FusedConvolution):
        return False
    step = assembly.scale_convolution(before, given.result, torch.tensor(float(factor), device="cpu"), None)
    return assembly.replace_step(before.result, step, given.result)


def _pool(kind: str) -> Any:
    def rule(assembly: Assembly, given: Arguments) -> bool:
        if not assembly.is_map(given.x) or given.get("divisor_override") is not None:
            return False
        kernel = given.pair("kernel_size")
        padded = kind == "MEAN" and given.get("count_include_pad", True)
        settings = kernel, given.pair("stride", kernel), given.pair("padding", 0), given.pair("dilation", 1)
        ceil = bool(given.get("ceil_mode", False))
        name = "PADDED_MEAN" if padded else kind
        return assembly.append(Pool(given.x.number, given.result, name, *settings, ceil, given.place), given.result)

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
    return assembly.append(step, given.result)


def _mean(assembly: Assembly, given: Arguments) -> bool:
    if (
        not assembly.is_map(given.x)
        or sorted(one % 4 for one in given.get("dim") or ()) != [2, 3]
        or given.get("dtype")
    ):
        return False
    kernel: Any = tuple(assembly.shapes[given.x.number][2:])
    step = Pool(given.x.number, given.result, "MEAN", kernel, kernel, (0, 0), (1, 1), False, given.place)
    return assembly.append(step, given.result)


def _flat(assembly: Assembly, given: Arguments) -> bool:
    before, shape = assembly.find_producer(given.x), assembly.shapes[given.result]
    if not assembly.is_map(given.x) or assembly.shapes[given.x.number] != (*shape, 1, 1):
        return False
    if not isinstance(before, FusedConvolution | Pool | Sum):
        return False
    return assembly.replace_step(before.result, replace(before, result=given.result), given.result)


def _cat(assembly: Assembly, given: Arguments) -> bool:
    parts = given.get("tensors")
    if given.get("dim", 0) not in (1, -3) or not all(assembly.is_map(part) for part in parts):
        return False
    return assembly.append(Concatenation(tuple(p.number for p in parts), given.result, given.place), given.result)


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


class GraphFuser(Assembly):
    """Applies the rules to a captured graph; operations without a matching rule remain."""

    def __init__(self, recording: CapturedGraph) -> None:
        super().__init__(recording)
        self.batch_size = recording.batch_size
        operations = []
        for operation in recording.operations:
            arguments = map_leaves(dict(operation.arguments), self.resolve)
            operation = replace(operation, arguments=arguments)
            if not self._try_remove(operation):
                operations.append(operation)
        self.output = recording.output.map_leaves(self.resolve)
        operations = _keep_needed(operations, self.output)
        read = [*iter_leaves([operation.arguments for operation in operations]), *self.output.leaves]
        self.uses = Counter(leaf.number for leaf in read if isinstance(leaf, Value))
        for operation in operations:
            operation = replace(
                operation, arguments=map_leaves(operation.arguments, self.resolve)
            )  # what changed since
            if not self._try_fuse(operation):
                first = next((result for result in operation.results if result is not None), -len(self.steps) - 1)
                self.steps[first] = operation

    def build(self) -> FusedNetwork:
        """Return the steps that the output depends on."""
        steps = tuple(_keep_needed(list(self.steps.values()), self._out()))
        names = {
            leaf.name
            for leaf in iter_leaves([self._out().leaves, *map(_list_constants, steps)])
            if isinstance(leaf, Constant)
        }
        tensors = {name: self.tensors[name] for name in sorted(names)}
        return FusedNetwork(steps, self.shapes, self.dtypes, tensors, self._out(), self.batch_size)

    def _out(self) -> OutputStructure:
        output: OutputStructure = self.output.map_leaves(self.resolve)
        return output

    def _try_remove(self, operation: Operation) -> bool:
        """Whether the operation returns its input, or a constant that is computed here."""
        given = list(iter_leaves(operation.arguments))
        one = operation.results[0] if len(operation.results) == 1 else None
        if one is None:
            return False
        if operation.name in NO_OPS and not operation.arguments.get("train"):
            self.same[one] = next(iter(operation.arguments.values()))
        elif not any(isinstance(leaf, Value | BatchDependentSize) for leaf in given):
            name = f"{operation.place}:{one}"
            (self.tensors[name],) = operation.run(lambda x: self.tensors[x.name] if isinstance(x, Constant) else x)
            self.same[one] = Constant(name)
        else:
            return False
        return True

    def _try_fuse(self, operation: Operation) -> bool:
        """Whether a rule made the operation a step, or part of one."""
        rule = RULES.get(operation.name)
        if rule is None or len(operation.results) != 1 or operation.results[0] is None:
            return False
        if operation.name not in FLATTENS and any(
            isinstance(leaf, BatchDependentSize) for leaf in iter_leaves(operation.arguments)
        ):
            return False  # kernels have the same settings for any batch size
        arguments = Arguments(operation, self)
        return arguments.x is not None and rule(self, arguments)


def _keep_needed(steps: Sequence[Any], output: OutputStructure) -> list[Any]:
    """Return those of `steps` that `output` depends on."""
    needed = {leaf.number for leaf in output.leaves if isinstance(leaf, Value)}
    kept = []
    for step in reversed(steps):
        if needed.intersection(results_of(step)):
            kept.append(step)
            needed.update(step.inputs)
    return kept[::-1]


def _list_constants(step: Step) -> Any:
    if isinstance(step, Operation):
        return step.arguments
    if isinstance(step, FusedConvolution):
        return [Constant(step.weight), *([Constant(step.bias)] if step.bias else [])]
    return []
