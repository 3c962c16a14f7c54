"""Fusion of captured operations into fewer steps.

Batch norm and channel-wise factors are folded into weights. Bias, residual, activation function and clamp become the
epilogue of the preceding convolution. A dense layer of any rank is a 1×1 convolution of the feature map with the same
numbers in memory: (N, H, W, C) and (N, L, C) are channels-last maps.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from svertka.compiler.decompositions import decompose
from svertka.compiler.ir import (
    UNBOUNDED,
    BatchDependentSize,
    CapturedGraph,
    Elementwise,
    FusedConvolution,
    Interpolation,
    Normalization,
    Padding,
    Pair,
    Pool,
    Quantization,
    Reduction,
    Shape,
    Step,
    TensorStep,
    step_results,
)
from svertka.compiler.output_structure import OutputStructure
from svertka.compiler.tensor_rules import TENSOR_RULES, expand_constant, scale_product
from svertka.graph.captured_operations import Constant, Operation, Value, iter_leaves, map_leaves

FLATTENS = {"flatten.using_ints", "reshape.default", "squeeze.dims"}
# Operations that return their input in inference.
NO_OPS = {"dropout.default", "feature_dropout.default", "alpha_dropout.default", "clone.default", "detach.default"}
NO_OPS |= {"alias.default", "contiguous.default", "lift_fresh.default"}
# Operations that return the values of their input in another arrangement.
VIEWS = {"permute.default", "transpose.int", "reshape.default", "flatten.using_ints", "unflatten.int", "movedim.int"}
VIEWS |= {"unsqueeze.default", "squeeze.dim", "squeeze.dims", "swapaxes.default", "view.default", "t.default"}
VIEWS |= {"slice.Tensor"}
CASTS = {"to.dtype", "to.device", "to.dtype_layout", "_to_copy.default"}
# Operations that read only the shape and dtype of their input.
FILLS = {"new_zeros.default", "new_ones.default", "new_full.default", "zeros_like.default", "ones_like.default"}
FILLS |= {"full_like.default"}
NHWC, NCHW = [0, 2, 3, 1], [0, 3, 1, 2]  # axes of the permutations to these orders
EPILOGUES = (
    FusedConvolution,
    Elementwise,
    Normalization,
    Reduction,
    Interpolation,
)  # steps that can have an activation function


@dataclass(frozen=True)
class FusedNetwork:
    """The steps of a network, with their tensors and the output; `batch_size` as in `CapturedGraph`.

    Attributes:
        quantizations: of the values of dtype uint8. A step computes with the real numbers that its inputs stand for.
    """

    steps: tuple[Step, ...]
    shapes: Mapping[int, Shape]
    dtypes: Mapping[int, torch.dtype]
    tensors: Mapping[str, Tensor]
    output: OutputStructure
    batch_size: int | None = None
    quantizations: Mapping[int, Quantization] = field(default_factory=dict)


@torch.inference_mode()
def fuse(recording: CapturedGraph) -> FusedNetwork:
    """Return the steps of a captured graph. Its tensors are not changed; folded ones are new, computed in float64."""
    return GraphFuser(decompose(recording)).build()


def to_plain_tensor(tensor: Tensor) -> Tensor:
    """Return the values of a tensor as a plain torch.Tensor, without conjugate or negative bits."""
    return tensor.detach().as_subclass(Tensor).resolve_conj().resolve_neg()


class FusionState:
    """The steps built so far, which the rules read and change."""

    def __init__(self, recording: CapturedGraph) -> None:
        self.shapes: dict[int, Any] = dict(recording.shapes)
        self.dtypes = dict(recording.dtypes)
        self.tensors: dict[str, Tensor] = {name: to_plain_tensor(one) for name, one in recording.constants.items()}
        self.same: dict[int, Any] = {}  # value -> the value or constant that equals it
        self.steps: dict[int, Step] = {}  # first result -> step, in order
        self.uses: Counter[int] = Counter()  # number of times that operations and the output read each value
        self.map_of: dict[int, int] = {}  # value (..., C) -> map with the same numbers in memory, channels-last

    def resolve(self, leaf: Any) -> Any:
        """Return `leaf`, or the value or constant that it is an alias of."""
        while isinstance(leaf, Value) and leaf.number in self.same:
            leaf = self.same[leaf.number]
        return leaf

    def is_map(self, value: Any) -> bool:
        """Return whether `value` is a nonempty map, (N, C, H, W) float32; only N may depend on the batch size."""
        return self._is_of_rank(value, 4)

    def is_rows(self, value: Any) -> bool:
        """Return whether `value` is nonempty, (N, C) float32, with C independent of the batch size."""
        return self._is_of_rank(value, 2)

    def _is_of_rank(self, value: Any, rank: int) -> bool:
        if not isinstance(value, Value) or not self.is_float(value):
            return False
        shape = self.shapes[value.number]
        return len(shape) == rank and 0 not in shape and all(isinstance(side, int) for side in shape[1:])

    def is_nonempty(self, value: Any) -> bool:
        """Return whether `value` is float32 and has elements."""
        return isinstance(value, Value) and self.is_float(value) and 0 not in self.shapes[value.number]

    def is_float(self, value: Value) -> bool:
        """Return whether `value` is float32."""
        return self.dtypes[value.number] == torch.float32

    def are_float(self, *names: str | None) -> bool:
        """Return whether the tensors with these names are float32; None is skipped."""
        return all(self.tensors[name].dtype == torch.float32 for name in names if name is not None)

    def find_producer(self, value: Any) -> Any:
        """Return the step that computes `value` if only the current operation reads it, otherwise None."""
        return self.steps.get(value.number) if isinstance(value, Value) and self.uses[value.number] == 1 else None

    def find_epilogue(self, value: Any) -> tuple[Any, list[Operation]]:
        """Return the step that computes `value`, and the views between, if nothing else reads any of them.

        Returns:
            (step, views), or (None, []) if something else does, or the step has no epilogue.
        """
        views: list[Operation] = []
        step = self.find_producer(value)
        while isinstance(step, Operation) and step.name in VIEWS:
            views.insert(0, step)
            step = self.find_producer(self.resolve(next(iter(step.arguments.values()))))
        return (step, views) if isinstance(step, EPILOGUES) else (None, [])

    def extend(self, step: Any, given: "Arguments") -> bool:
        """Replace the step that computes `step.result` and remove the current operation. Return True."""
        self.steps[step.result] = step
        return self.drop(given)

    def drop(self, given: "Arguments") -> bool:
        """Remove the current operation, whose result equals its input `given.x`. Return True."""
        self.same[given.result] = given.x
        self.uses[given.x.number] += self.uses[given.result] - 1
        return True

    def release(self, value: int) -> None:
        """Remove one reader of `value`, and of the inputs of views that nothing reads any more."""
        self.uses[value] -= 1
        step = self.steps.get(value)
        if self.uses[value] == 0 and isinstance(step, Operation) and step.name in VIEWS:
            self.release(self.resolve(next(iter(step.arguments.values()))).number)

    def append_view(self, x: int, shape: Shape, place: str, axes: list[int] | None = None) -> int:
        """Append `x` permuted to `axes`, or reshaped. Return the number of its result, which one step reads."""
        result = max(self.shapes) + 1
        self.uses[result] = 1
        self._append_view(x, shape, place, axes, result)
        return result

    def _append_view(self, x: int, shape: Shape, place: str, axes: list[int] | None, result: int) -> None:
        self.shapes[result], self.dtypes[result] = shape, self.dtypes[x]
        name, more = (
            ("reshape.default", {"shape": list(shape)}) if axes is None else ("permute.default", {"dims": axes})
        )
        self.steps[result] = Operation(name, {"self": Value(x), **more}, (result,), place)

    def as_map(self, value: Value, place: str) -> int | None:
        """Return the map (N, C, H, W) with the same numbers in memory as `value`, (N, …, C); None if there is none.

        The caller must read the map instead of `value`.
        """
        number = value.number
        if number in self.map_of:
            self.uses[self.map_of[number]] += 1
            self.release(number)
            return self.map_of[number]
        first, *middle, channels = self.shapes[number]
        if len(middle) < 1 or not all(isinstance(side, int) for side in (*middle, channels)):
            return None
        axes = [0, len(middle) + 1, *range(1, len(middle) + 1)]
        found = self.append_view(number, (first, channels, *middle), place, axes)
        if len(middle) != 2:
            sides = (middle[0], math.prod(middle[1:]))
            found = self.append_view(found, (first, channels, *sides), place)
        self.map_of[number] = found
        return found

    def append_rows(self, number: int, result: int, place: str) -> None:
        """Append views that turn map `number` into value `result`, (N, …, C), with the same numbers in memory."""
        first, *middle, channels = self.shapes[result]
        shape, found = (first, channels, *middle), number
        if len(middle) != 2:
            found = self.append_view(found, shape, place)
        axes = [0, *range(2, len(middle) + 2), 1]
        self._append_view(found, self.shapes[result], place, axes, result)
        self.map_of[result] = number

    def add_value(self, like: int) -> int:
        """Add a value of the shape and dtype of `like` that one step reads. Return its number."""
        number = max(self.shapes) + 1
        self.shapes[number], self.dtypes[number], self.uses[number] = self.shapes[like], self.dtypes[like], 1
        return number

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

    def make_contiguous(self, name: str | None, new_name: str) -> str | None:
        """Return the name of a contiguous copy of a tensor, which kernels need; None for None."""
        if name is None or self.tensors[name].is_contiguous():
            return name
        return self.add_tensor(new_name, self.tensors[name])

    def scale_convolution(
        self, step: FusedConvolution, result: int, scale: Tensor, shift: Tensor | None
    ) -> FusedConvolution:
        """Return `step` with `scale` and `shift`, (O) or scalars, folded into its weights and bias.

        Args:
            step: The convolution.
            result: Number of the value with the scale and shift applied.
            scale: Factor of each output channel.
            shift: Summand of each output channel, or None.
        """
        weight = self.tensors[step.weight].double()
        scale = scale.double().expand(len(weight))
        bias = weight.new_zeros(len(weight)) if step.bias is None else self.tensors[step.bias].double()
        bias = bias * scale + (0 if shift is None else shift.double())
        names = f"{step.place}.folded.{result}.weight", f"{step.place}.folded.{result}.bias"
        return replace(
            step,
            weight=self.add_tensor(names[0], weight * scale[:, None, None, None]),
            bias=self.add_tensor(names[1], bias),
        )


class Arguments:
    """The arguments of an operation with one input tensor and one result."""

    def __init__(self, operation: Operation, assembly: FusionState) -> None:
        given = operation.arguments
        first = next((leaf for leaf in iter_leaves(given) if isinstance(leaf, Value)), None)
        self.place = operation.place
        self.x: Any = assembly.resolve(first) if first is not None else None
        self.result: Any = operation.results[0]
        self.get: Callable[..., Any] = given.get
        self.is_reversed = operation.name.startswith("rsub")

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


Rule = Callable[[FusionState, Arguments], bool]


def _convolution(assembly: FusionState, given: Arguments) -> bool:
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
    if isinstance(pad, Padding) and pad.value == 0 and pad.before[:2] == pad.after[:2] == (0, 0):
        x, top, left = Value(pad.x), top + pad.before[2], left + pad.before[3]
    step = FusedConvolution(
        x.number,
        given.result,
        weight,
        assembly.make_contiguous(bias, f"{given.place}.bias.{given.result}"),
        given.pair("stride", 1),
        (top, left),
        dilation,
        given.get("groups", 1),
        place=given.place,
    )
    if x is given.x:
        step = _fold_gate(assembly, _fold_summand(assembly, step))
    return assembly.append(step, given.result)


def _fold_summand(assembly: FusionState, step: FusedConvolution) -> FusedConvolution:
    """Return `step` with the constant summands of its input in its bias, if it is a 1×1 convolution of a sum."""
    total = assembly.find_producer(Value(step.x))
    weight = assembly.tensors[step.weight]
    if not isinstance(total, Elementwise) or total.combination != "ADD" or not isinstance(total.y, Constant):
        return step
    if not isinstance(total.x, int) or assembly.shapes[total.x] != assembly.shapes[step.x]:
        return step
    summand = assembly.tensors[total.y.name]
    of_channels = summand.numel() == 1 or tuple(summand.shape)[-3:] == (weight.shape[1], 1, 1)
    simple = total.activation == "NONE" and total.bounds == UNBOUNDED and bool(summand.isfinite().all())
    plain = tuple(weight.shape[2:]) == (1, 1) and step.padding == (0, 0) and step.groups == 1
    if not of_channels or summand.numel() > weight.shape[1] or not simple or not plain:
        return step
    bias = weight[:, :, 0, 0].double() @ summand.double().flatten().expand(weight.shape[1])
    bias = bias if step.bias is None else bias + assembly.tensors[step.bias].double()
    del assembly.steps[step.x]
    return replace(step, x=total.x, bias=assembly.add_tensor(f"{step.place}.summed.{step.result}", bias))


def _fold_gate(assembly: FusionState, step: FusedConvolution) -> FusedConvolution:
    """Return `step` with the factors (N, C, 1, 1) of its input as its gate, if it is a 1×1 convolution of a product.

    Squeeze-and-excitation blocks end with such a product (Hu et al. 2018, equation 4).
    """
    product = assembly.find_producer(Value(step.x))
    if not isinstance(product, Elementwise) or product.combination != "MULTIPLY":
        return step
    if not isinstance(product.x, int) or not isinstance(product.y, int):
        return step
    simple = product.activation == "NONE" and product.bounds == UNBOUNDED
    plain = tuple(assembly.tensors[step.weight].shape[2:]) == (1, 1) and step.padding == (0, 0) and step.groups == 1
    shape = assembly.shapes[step.x]
    for x, gate in ((product.x, product.y), (product.y, product.x)):
        fits = assembly.shapes[x] == shape and assembly.shapes[gate] == (*shape[:2], 1, 1)
        if simple and plain and fits and shape[2:] != (1, 1):
            del assembly.steps[step.x]
            return replace(step, x=x, gate=gate)
    return step


def _linear(assembly: FusionState, given: Arguments) -> bool:
    weight, bias = given.named("weight"), given.named("bias")
    if weight is None or (given.get("bias") is not None and bias is None):
        return False
    matrix, shape = assembly.tensors[weight], assembly.shapes[given.x.number]
    if not assembly.is_float(given.x) or 0 in shape or not assembly.are_float(weight, bias):
        return False
    bias = assembly.make_contiguous(bias, f"{given.place}.bias.{given.result}")
    if len(shape) > 2:
        return _linear_of_rows(assembly, given, matrix, bias)
    if not assembly.is_rows(given.x):
        return False
    flat, x = assembly.steps.get(given.x.number), given.x
    kernel: tuple[Any, ...] = (1, 1)
    if isinstance(flat, Operation) and flat.name in FLATTENS:
        before = next(iter(flat.arguments.values()))
        if assembly.is_map(before) and assembly.shapes[before.number][0] == shape[0]:
            x, kernel = before, assembly.shapes[before.number][2:]
    name = assembly.add_tensor(f"{given.place}.dense.{given.result}", matrix.reshape(len(matrix), -1, *kernel))
    step = FusedConvolution(x.number, given.result, name, bias, (1, 1), (0, 0), (1, 1), 1, place=given.place)
    return assembly.append(step, given.result)


def _linear_of_rows(assembly: FusionState, given: Arguments, matrix: Tensor, bias: str | None) -> bool:
    """Turn a dense layer of (N, …, C) into a convolution of the map with the same numbers in memory."""
    x = assembly.as_map(given.x, given.place)
    if x is None:
        return False
    result = max(assembly.shapes) + 1
    first, _, *sides = assembly.shapes[x]
    assembly.shapes[result], assembly.dtypes[result] = (first, len(matrix), *sides), torch.float32
    assembly.uses[result] = 1
    name = assembly.add_tensor(f"{given.place}.dense.{given.result}", matrix[:, :, None, None])
    step = FusedConvolution(x, result, name, bias, (1, 1), (0, 0), (1, 1), 1, place=given.place)
    assembly.append(step, result)
    assembly.append_rows(result, given.result, given.place)
    return True


def _permute(assembly: FusionState, given: Arguments) -> bool:
    """Record which map has the same numbers in memory as (N, H, W, C), and remove a permutation that undoes another."""
    axes = [axis % 4 for axis in given.get("dims")]
    if axes == NHWC and assembly.is_map(given.x):
        assembly.map_of[given.result] = given.x.number
    original = assembly.map_of.get(given.x.number)
    if axes != NCHW or original is None or assembly.shapes[original] != assembly.shapes[given.result]:
        return False
    assembly.same[given.result] = Value(original)
    assembly.uses[original] += assembly.uses[given.result]
    assembly.release(given.x.number)
    return True


def _batch_norm(assembly: FusionState, given: Arguments) -> bool:
    if given.get("training") or not (assembly.is_map(given.x) or assembly.is_rows(given.x)):
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
    before, views = assembly.find_epilogue(given.x)
    if _can_fold(before) and _channel_axis(assembly, before, views) == 1:
        return assembly.extend(assembly.scale_convolution(before, given.result, scale, shift), given)
    if not assembly.is_map(given.x):
        return _scale_rows(assembly, given, scale, shift)
    # A scale and a shift of each channel are a depthwise 1×1 convolution.
    names = f"{given.place}.scale.{given.result}", f"{given.place}.shift.{given.result}"
    assembly.add_tensor(names[0], scale[:, None, None, None])
    assembly.add_tensor(names[1], shift)
    step = FusedConvolution(given.x.number, given.result, *names, (1, 1), (0, 0), (1, 1), len(scale), place=given.place)
    return assembly.append(step, given.result)


def _scale_rows(assembly: FusionState, given: Arguments, scale: Tensor, shift: Tensor) -> bool:
    """Append a product and a sum of (N, C) with factors and summands of each channel."""
    names = [f"{given.place}.{kind}.{given.result}" for kind in ("scale", "shift")]
    for name, tensor in zip(names, (scale, shift), strict=True):
        assembly.add_tensor(name, tensor)
    scaled = assembly.add_value(given.result)
    assembly.append(Elementwise(given.x.number, scaled, Constant(names[0]), "MULTIPLY", place=given.place), scaled)
    step = Elementwise(scaled, given.result, Constant(names[1]), "ADD", place=given.place)
    return assembly.append(step, given.result)


def _can_fold(step: Any, *, with_bounds: bool = False) -> bool:
    """Return whether channel-wise factors and summands can be folded into the weights of `step`.

    The step must have no epilogue, or, if `with_bounds`, only bounds.
    """
    plain = isinstance(step, FusedConvolution) and step.residual is None and step.activation == "NONE"
    return plain and (with_bounds or step.bounds == UNBOUNDED)


def _channel_axis(assembly: FusionState, step: FusedConvolution, views: Sequence[Operation]) -> int | None:
    """Return the axis that holds exactly the channels of `step` in the last of `views`, or None."""
    axis, shape = 1, assembly.shapes[step.result]
    for view in views:
        after = assembly.shapes[step_results(view)[0]]
        if view.name == "permute.default":
            axis = [one % len(shape) for one in view.arguments["dims"]].index(axis)
        elif view.name in FLATTENS and axis == len(shape) - 1 and after[-1] == shape[-1]:
            axis = len(after) - 1
        elif view.name in FLATTENS and axis == 1 and after[:2] == shape[:2]:
            pass
        else:
            return None
        shape = after
    return axis


def _activation(name: str, slope: Callable[[Arguments], Any] = lambda _: 0.0) -> Any:
    def rule(assembly: FusionState, given: Arguments) -> bool:
        factor = slope(given)
        if not assembly.is_nonempty(given.x) or not isinstance(factor, int | float) or not math.isfinite(factor):
            return False
        before, _ = assembly.find_epilogue(given.x)
        if before is not None and before.bounds == UNBOUNDED and before.activation == "NONE":
            return assembly.extend(replace(before, activation=name, slope=float(factor)), given)
        step = Elementwise(given.x.number, given.result, activation=name, slope=float(factor), place=given.place)
        return assembly.append(step, given.result)

    return rule


def _gelu(assembly: FusionState, given: Arguments) -> bool:
    name = "GELU" if given.get("approximate", "none") == "none" else "GELU_TANH"
    return bool(_activation(name)(assembly, given))


def _elu(assembly: FusionState, given: Arguments) -> bool:
    if given.get("scale", 1) != 1 or given.get("input_scale", 1) != 1:
        return False
    return bool(_activation("ELU", lambda _: given.get("alpha", 1.0))(assembly, given))


def _bounds(lower: Callable[[Arguments], Any], upper: Callable[[Arguments], Any]) -> Any:
    def rule(assembly: FusionState, given: Arguments) -> bool:
        low, high = lower(given), upper(given)
        low, high = -math.inf if low is None else low, math.inf if high is None else high
        numbers = all(isinstance(bound, int | float) and not math.isnan(bound) for bound in (low, high))
        if not numbers or not assembly.is_nonempty(given.x):
            return False
        bounds = float(low), float(high)
        before, _ = assembly.find_epilogue(given.x)
        if before is not None and before.bounds == UNBOUNDED:
            return assembly.extend(replace(before, bounds=bounds), given)
        step = Elementwise(given.x.number, given.result, bounds=bounds, place=given.place)
        return assembly.append(step, given.result)

    return rule


def _combination(name: str) -> Any:
    """Return the rule for an operation on two values, or on a value and a constant or number."""

    def rule(assembly: FusionState, given: Arguments) -> bool:
        one, other = assembly.resolve(given.get("self")), assembly.resolve(given.get("other"))
        if given.get("alpha", 1) != 1 or given.get("rounding_mode") is not None:
            return False
        if given.is_reversed:
            one, other = other, one
        if not isinstance(one, Value) and name in ("ADD", "MULTIPLY"):
            one, other = other, one
        if not isinstance(one, Value):
            return _combine_with_first(assembly, given, name, one, other)
        if not assembly.is_nonempty(one):
            return False
        if isinstance(other, Value):
            both = assembly.is_nonempty(other)
            return both and (
                _merge_convolutions(assembly, given, name, one, other)
                or _add_residual(assembly, given, name, one, other)
                or _combine(assembly, given, name, one, other)
            )
        other = _to_constant(assembly, given, other)
        if not isinstance(other, Constant) or not assembly.are_float(other.name):
            return False
        return (
            _fold_constant(assembly, given, name, one, other)
            or scale_product(assembly, given, name, one, other)
            or _combine(assembly, given, name, one, other)
        )

    return rule


def _to_constant(assembly: FusionState, given: Arguments, operand: Any) -> Any:
    """Return a number as a constant of the network; anything else unchanged."""
    if not isinstance(operand, int | float) or isinstance(operand, bool):
        return operand
    tensor = torch.tensor(float(operand), device="cpu")
    return Constant(assembly.add_tensor(f"{given.place}.number.{given.result}", tensor))


def _combine_with_first(assembly: FusionState, given: Arguments, name: str, one: Any, other: Any) -> bool:
    """Append the combination of a constant with a value, in this order, if they are that."""
    one = _to_constant(assembly, given, one)
    if not isinstance(one, Constant) or not assembly.are_float(one.name):
        return False
    if not isinstance(other, Value) or not assembly.is_nonempty(other):
        return False
    x = Constant(assembly.make_contiguous(one.name, f"{given.place}.operand.{given.result}") or one.name)
    return assembly.append(Elementwise(x, given.result, other.number, name, place=given.place), given.result)


def _combine(assembly: FusionState, given: Arguments, name: str, one: Value, other: Value | Constant) -> bool:
    y: int | Constant
    if isinstance(other, Value):
        y = other.number
    else:
        y = Constant(assembly.make_contiguous(other.name, f"{given.place}.operand.{given.result}") or other.name)
    return assembly.append(Elementwise(one.number, given.result, y, name, place=given.place), given.result)


def _fold_constant(assembly: FusionState, given: Arguments, name: str, one: Value, other: Constant) -> bool:
    """Fold a channel-wise factor or summand into the convolution that computes `one`; return whether it worked."""
    before, views = assembly.find_epilogue(one)
    tensor = assembly.tensors[other.name].double()
    can_fold = _can_fold(before, with_bounds=tensor.numel() == 1)
    if not can_fold or assembly.shapes[one.number] != assembly.shapes[given.result]:
        return False
    if not bool(tensor.isfinite().all()):
        return False
    if tensor.numel() > 1:
        axis, rank = _channel_axis(assembly, before, views), len(assembly.shapes[one.number])
        shape = (1,) * (rank - tensor.dim()) + tuple(tensor.shape)
        if axis is None or tensor.numel() != shape[axis]:
            return False
    values, ones = tensor.flatten(), torch.ones((), dtype=torch.float64, device="cpu")
    if name == "DIVIDE" and not bool((values != 0).all()):
        return False
    folds: dict[str, Callable[[], tuple[Tensor, Tensor | None]]] = {
        "MULTIPLY": lambda: (values, None),
        "DIVIDE": lambda: (1 / values, None),
        "ADD": lambda: (ones, values),
        "SUBTRACT": lambda: (ones, -values),
    }
    if name not in folds:
        return False
    scale, shift = folds[name]()
    step = assembly.scale_convolution(before, given.result, scale, shift)
    if before.bounds != UNBOUNDED:  # s · clamp(x, low, high) + t is a clamp of s · x + t
        if float(scale) == 0:
            return False
        low, high = sorted(bound * float(scale) + (0 if shift is None else float(shift)) for bound in before.bounds)
        step = replace(step, bounds=(low, high))
    given.x = one
    return assembly.extend(step, given)


def _merge_convolutions(assembly: FusionState, given: Arguments, name: str, one: Value, other: Value) -> bool:
    """Return whether two convolutions of the same input became one, with the sum of their weights.

    Blocks of RepVGG and MobileOne consist of such branches (Ding et al. 2021, section 3.3).
    """
    parts = assembly.find_producer(one), assembly.find_producer(other)
    if (
        name not in ("ADD", "SUBTRACT")
        or one == other
        or not all(_can_fold(part) and part.gate is None for part in parts)
    ):
        return False
    alike = len({(part.x, part.stride, assembly.shapes[part.result]) for part in parts}) == 1
    factors = 1.0, -1.0 if name == "SUBTRACT" else 1.0
    for wide, narrow in ((0, 1), (1, 0)):
        weight = assembly.tensors[parts[wide].weight].double() * factors[wide]
        inner = assembly.tensors[parts[narrow].weight].double() * factors[narrow]
        if not alike or not _add_weights(weight, parts[wide], inner, parts[narrow]):
            continue
        biases = [
            assembly.tensors[part.bias].double() * factor
            for part, factor in zip(parts, factors, strict=True)
            if part.bias is not None
        ]
        names = f"{given.place}.merged.{given.result}.weight", f"{given.place}.merged.{given.result}.bias"
        bias = assembly.add_tensor(names[1], torch.stack(biases).sum(0)) if biases else None
        step = replace(parts[wide], weight=assembly.add_tensor(names[0], weight), bias=bias, result=given.result)
        assembly.uses[step.x] -= 1
        for part in parts:
            del assembly.steps[part.result]
        return assembly.append(step, given.result)
    return False


def _add_weights(weight: Tensor, wide: FusedConvolution, inner: Tensor, narrow: FusedConvolution) -> bool:
    """Add the weights `inner` to those of a kernel that covers them, in place. Return whether they could be added."""
    places = []
    for axis in (0, 1):
        taps, offset, step = inner.shape[2 + axis], wide.padding[axis] - narrow.padding[axis], wide.dilation[axis]
        if offset % step or (taps > 1 and narrow.dilation[axis] != step):
            return False
        places.append(slice(offset // step, offset // step + taps))
        if places[axis].start < 0 or places[axis].stop > weight.shape[2 + axis]:
            return False
    if wide.groups == narrow.groups:
        weight[:, :, places[0], places[1]] += inner
        return True
    channels = torch.arange(len(weight), device="cpu")
    if narrow.groups != len(weight) or inner.shape[1:] != (1, 1, 1) or weight.shape[1] * wide.groups != len(weight):
        return False
    # a scale of each channel: the diagonal
    weight[channels, channels % weight.shape[1], places[0].start, places[1].start] += inner[:, 0, 0, 0]
    return True


def _add_residual(assembly: FusionState, given: Arguments, name: str, one: Value, other: Value) -> bool:
    """Make one operand the residual of the convolution that computes the other; return whether it worked."""
    same = assembly.shapes[one.number] == assembly.shapes[other.number]
    if name not in ("ADD", "MULTIPLY") or one == other or not same:
        return False
    order = {value: number for number, value in enumerate(assembly.steps)}  # extend the one that is computed last
    pairs = sorted(((one, other), (other, one)), key=lambda pair: -order.get(pair[0].number, -1))
    for first, second in pairs:
        before, views = assembly.find_epilogue(first)
        if not isinstance(before, FusedConvolution) or before.residual is not None or before.bounds != UNBOUNDED:
            continue
        if views and assembly.map_of.get(first.number) != before.result:
            continue
        if not views and not (assembly.is_map(second) or assembly.is_rows(second)):
            continue
        known = assembly.map_of.get(second.number, before.result)
        if assembly.shapes[known] != assembly.shapes[before.result]:
            continue
        residual = assembly.as_map(second, given.place) if views else second.number
        if residual is None:
            continue
        late, multiply = before.activation != "NONE", name == "MULTIPLY"
        step = replace(before, residual=residual, residual_last=late, multiply=multiply)
        moved: list[Step] = [step, *views]
        for part in moved:  # after the step that computes the residual
            assembly.replace_step(step_results(part)[0], part, step_results(part)[0])
        given.x = first
        return assembly.drop(given)
    return False


def _layer_norm(assembly: FusionState, given: Arguments) -> bool:
    return len(given.get("normalized_shape")) == 1 and _normalize(assembly, given, None)


def _group_norm(assembly: FusionState, given: Arguments) -> bool:
    return assembly.is_map(given.x) and _normalize(assembly, given, given.get("num_groups"))


def _normalize(assembly: FusionState, given: Arguments, groups: int | None) -> bool:
    if not assembly.is_nonempty(given.x) or not isinstance(assembly.shapes[given.x.number][-1], int):
        return False
    names: list[str | None] = []
    for key in ("weight", "bias"):
        name = given.named(key)
        if (given.get(key) is not None and name is None) or not assembly.are_float(name):
            return False
        names.append(assembly.make_contiguous(name, f"{given.place}.{key}.{given.result}"))
    weight, bias = names
    epsilon = float(given.get("eps", 1e-5))
    step = Normalization(given.x.number, given.result, weight, bias, epsilon, groups, place=given.place)
    return assembly.append(step, given.result)


def _pool(kind: str) -> Any:
    def rule(assembly: FusionState, given: Arguments) -> bool:
        if not assembly.is_map(given.x) or given.get("divisor_override") is not None:
            return False
        kernel = given.pair("kernel_size")
        padded = kind == "MEAN" and given.get("count_include_pad", True)
        settings = kernel, given.pair("stride", kernel), given.pair("padding", 0), given.pair("dilation", 1)
        ceil = bool(given.get("ceil_mode", False))
        name = "PADDED_MEAN" if padded else kind
        return assembly.append(Pool(given.x.number, given.result, name, *settings, ceil, given.place), given.result)

    return rule


def _adaptive(assembly: FusionState, given: Arguments) -> bool:
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


def _mean(assembly: FusionState, given: Arguments) -> bool:
    if (
        not assembly.is_map(given.x)
        or sorted(one % 4 for one in given.get("dim") or ()) != [2, 3]
        or given.get("dtype")
    ):
        return False
    kernel: Any = tuple(assembly.shapes[given.x.number][2:])
    step = Pool(given.x.number, given.result, "MEAN", kernel, kernel, (0, 0), (1, 1), False, given.place)
    return assembly.append(step, given.result)


def _flat(assembly: FusionState, given: Arguments) -> bool:
    before, shape = assembly.find_producer(given.x), assembly.shapes[given.result]
    if not assembly.is_map(given.x) or assembly.shapes[given.x.number] != (*shape, 1, 1):
        return False
    if not isinstance(before, FusedConvolution | Pool):
        return False
    return assembly.replace_step(before.result, replace(before, result=given.result), given.result)


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
    **dict.fromkeys(("add.Tensor", "add.Scalar"), _combination("ADD")),
    **dict.fromkeys(("sub.Tensor", "sub.Scalar", "rsub.Tensor", "rsub.Scalar"), _combination("SUBTRACT")),
    **dict.fromkeys(("mul.Tensor", "mul.Scalar", "multiply.Tensor"), _combination("MULTIPLY")),
    **dict.fromkeys(("div.Tensor", "div.Scalar"), _combination("DIVIDE")),
    "maximum.default": _combination("MAXIMUM"),
    "minimum.default": _combination("MINIMUM"),
    "sigmoid.default": _activation("SIGMOID"),
    "silu.default": _activation("SILU"),
    "hardsigmoid.default": _activation("HARD_SIGMOID"),
    "hardswish.default": _activation("HARD_SWISH"),
    "gelu.default": _gelu,
    "tanh.default": _activation("TANH"),
    "mish.default": _activation("MISH"),
    "elu.default": _elu,
    "leaky_relu.default": _activation("LEAKY_RELU", lambda given: given.get("negative_slope", 0.01)),
    "layer_norm.default": _layer_norm,
    "group_norm.default": _group_norm,
    "permute.default": _permute,
    "max_pool2d.default": _pool("MAXIMUM"),
    "avg_pool2d.default": _pool("MEAN"),
    "adaptive_avg_pool2d.default": _adaptive,
    "mean.dim": _mean,
    **dict.fromkeys(FLATTENS, _flat),
}


class GraphFuser(FusionState):
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
            )  # rules of what changed since
            if not self._try_fuse(operation):
                first = next((result for result in operation.results if result is not None), -len(self.steps) - 1)
                self.steps[first] = operation

    def build(self) -> FusedNetwork:
        """Return the steps that the output depends on."""
        steps = tuple(_keep_needed(list(self.steps.values()), self._out()))
        tensors = select_read_tensors(self.tensors, steps, self._out())
        return FusedNetwork(steps, self.shapes, self.dtypes, tensors, self._out(), self.batch_size)

    def _out(self) -> OutputStructure:
        output: OutputStructure = self.output.map_leaves(self.resolve)
        return output

    def _try_remove(self, operation: Operation) -> bool:
        """Remove an operation that returns its input, or compute a constant; return whether it was either."""
        given = list(iter_leaves(operation.arguments))
        one = operation.results[0] if len(operation.results) == 1 else None
        if one is None:
            return False
        if operation.name in NO_OPS and not operation.arguments.get("train"):
            self.same[one] = next(iter(operation.arguments.values()))
            return True
        if operation.name in CASTS and isinstance(operation.arguments["self"], Value):
            x = operation.arguments["self"]
            if self.dtypes[x.number] == self.dtypes[one] and "memory_format" not in operation.arguments:
                self.same[one] = x
                return True
        fills = operation.name in FILLS and all(isinstance(side, int) for side in self.shapes[one])
        if fills or not any(isinstance(leaf, Value | BatchDependentSize) for leaf in given):
            self._compute(operation, one)
            return True
        return False

    def _compute(self, operation: Operation, result: int) -> None:
        """Make `result` a constant, because it depends on no value, or only on the shape and dtype of one."""

        def value(leaf: Any) -> Any:
            if isinstance(leaf, Value):
                sides = [side if isinstance(side, int) else 1 for side in self.shapes[leaf.number]]
                return torch.empty(sides, dtype=self.dtypes[leaf.number], device="cpu")
            return self.tensors[leaf.name] if isinstance(leaf, Constant) else leaf

        name = f"{operation.place}:{result}"
        (self.tensors[name],) = operation.run(value)
        self.same[result] = Constant(name)

    def _try_fuse(self, operation: Operation) -> bool:
        """Apply a rule that turns the operation into a step or a part of one; return whether there is one."""
        result, *others = operation.results
        if result is None or any(self.uses[number] for number in others if number is not None):
            return False
        arguments = Arguments(operation, self)
        if operation.name == "expand.default":
            return expand_constant(self, arguments)
        if operation.name not in FLATTENS and any(
            isinstance(leaf, BatchDependentSize) for leaf in iter_leaves(operation.arguments)
        ):
            return False  # kernels need settings that do not depend on the batch size
        rules = [rules[operation.name] for rules in (RULES, TENSOR_RULES) if operation.name in rules]
        return arguments.x is not None and any(rule(self, arguments) for rule in rules)


def _keep_needed(steps: Sequence[Any], output: OutputStructure) -> list[Any]:
    """Return those of `steps` that `output` depends on."""
    needed = {leaf.number for leaf in output.leaves if isinstance(leaf, Value)}
    kept = []
    for step in reversed(steps):
        if needed.intersection(step_results(step)):
            kept.append(step)
            needed.update(step.inputs)
    return kept[::-1]


def select_read_tensors(
    tensors: Mapping[str, Tensor], steps: Sequence[Step], output: OutputStructure
) -> dict[str, Tensor]:
    """Return those of `tensors` that steps read or that are part of the output."""
    leaves = iter_leaves([output.leaves, *map(list_constants, steps)])
    names = {leaf.name for leaf in leaves if isinstance(leaf, Constant)}
    return {name: tensors[name] for name in sorted(names)}


def list_constants(step: Step, *, packed: bool = True) -> Any:
    """Return what a step reads, including constants, but not weights that kernels pack unless `packed`."""
    if isinstance(step, Operation):
        return step.arguments
    if isinstance(step, TensorStep):
        return [operand for operand in step.operands if isinstance(operand, Constant)]
    if isinstance(step, FusedConvolution):
        names = [step.weight, step.bias] if packed else [step.bias]
        names += [step.weight_scale]
        return [Constant(name) for name in names if name]
    return []
