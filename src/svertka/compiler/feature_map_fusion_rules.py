"""Rules of fusion for feature maps and rows: convolutions, dense layers, normalization, activation and pooling."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from svertka.compiler.fusion_state import FusionState, Rule, UnaryOperationArguments
from svertka.compiler.ir import (
    UNBOUNDED,
    Elementwise,
    FusedConvolution,
    Normalization,
    Padding,
    Pool,
    Step,
    step_output_numbers,
)
from svertka.compiler.tensor_fusion_rules import fold_scale_into_product
from svertka.graph.operation_and_value_types import Constant, Operation, Value

FLATTENS = {"flatten.using_ints", "reshape.default", "squeeze.dims"}
NHWC, NCHW = [0, 2, 3, 1], [0, 3, 1, 2]  # axes of the permutations to these orders


def _convolution(state: FusionState, given: UnaryOperationArguments) -> bool:
    weight, bias = given.named("weight"), given.named("bias")
    if weight is None or (given.get("bias") is not None and bias is None) or not state.is_map(given.x):
        return False
    if not state.are_float(weight, bias) or given.get("transposed"):
        return False
    dilation, x = given.pair("dilation", 1), given.x
    padding: Any = given.get("padding", 0)
    if padding == "same":
        kernel = state.tensors[weight].shape[2:]
        top, left = (d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True))
    else:
        top, left = (0, 0) if padding == "valid" else given.pair("padding", 0)
    pad = state.steps.get(x.number)
    if isinstance(pad, Padding) and pad.value == 0 and pad.before[:2] == pad.after[:2] == (0, 0):
        x, top, left = Value(pad.x), top + pad.before[2], left + pad.before[3]
    step = FusedConvolution(
        x.number,
        given.result,
        weight,
        state.make_contiguous(bias, f"{given.place}.bias.{given.result}"),
        given.pair("stride", 1),
        (top, left),
        dilation,
        given.get("groups", 1),
        place=given.place,
    )
    if x is given.x:
        step = _fold_gate(state, _fold_summand(state, step))
    return state.append(step, given.result)


def _fold_summand(state: FusionState, step: FusedConvolution) -> FusedConvolution:
    """Return `step` with the constant summands of its input in its bias, if it is a 1×1 convolution of a sum."""
    total = state.find_producer(Value(step.x))
    weight = state.tensors[step.weight]
    if not isinstance(total, Elementwise) or total.combination != "ADD" or not isinstance(total.y, Constant):
        return step
    if not isinstance(total.x, int) or state.shapes[total.x] != state.shapes[step.x]:
        return step
    summand = state.tensors[total.y.name]
    of_channels = summand.numel() == 1 or tuple(summand.shape)[-3:] == (weight.shape[1], 1, 1)
    simple = total.activation == "NONE" and total.bounds == UNBOUNDED and bool(summand.isfinite().all())
    plain = tuple(weight.shape[2:]) == (1, 1) and step.padding == (0, 0) and step.groups == 1
    if not of_channels or summand.numel() > weight.shape[1] or not simple or not plain:
        return step
    bias = weight[:, :, 0, 0].double() @ summand.double().flatten().expand(weight.shape[1])
    bias = bias if step.bias is None else bias + state.tensors[step.bias].double()
    del state.steps[step.x]
    return replace(step, x=total.x, bias=state.add_tensor(f"{step.place}.summed.{step.result}", bias))


def _fold_gate(state: FusionState, step: FusedConvolution) -> FusedConvolution:
    """Return `step` with the factors (N, C, 1, 1) of its input as its gate, if it is a 1×1 convolution of a product.

    Squeeze-and-excitation blocks end with such a product (Hu et al. 2018, equation 4).
    """
    product = state.find_producer(Value(step.x))
    if not isinstance(product, Elementwise) or product.combination != "MULTIPLY":
        return step
    if not isinstance(product.x, int) or not isinstance(product.y, int):
        return step
    simple = product.activation == "NONE" and product.bounds == UNBOUNDED
    plain = tuple(state.tensors[step.weight].shape[2:]) == (1, 1) and step.padding == (0, 0) and step.groups == 1
    shape = state.shapes[step.x]
    for x, gate in ((product.x, product.y), (product.y, product.x)):
        fits = state.shapes[x] == shape and state.shapes[gate] == (*shape[:2], 1, 1)
        if simple and plain and fits and shape[2:] != (1, 1):
            del state.steps[step.x]
            return replace(step, x=x, gate=gate)
    return step


def _linear(state: FusionState, given: UnaryOperationArguments) -> bool:
    weight, bias = given.named("weight"), given.named("bias")
    if weight is None or (given.get("bias") is not None and bias is None):
        return False
    matrix, shape = state.tensors[weight], state.shapes[given.x.number]
    if not state.is_float(given.x) or 0 in shape or not state.are_float(weight, bias):
        return False
    bias = state.make_contiguous(bias, f"{given.place}.bias.{given.result}")
    if len(shape) > 2:
        return _linear_of_rows(state, given, matrix, bias)
    if not state.is_rows(given.x):
        return False
    flat, x = state.steps.get(given.x.number), given.x
    kernel: tuple[Any, ...] = (1, 1)
    if isinstance(flat, Operation) and flat.name in FLATTENS:
        before = next(iter(flat.arguments.values()))
        if state.is_map(before) and state.shapes[before.number][0] == shape[0]:
            x, kernel = before, state.shapes[before.number][2:]
    name = state.add_tensor(f"{given.place}.dense.{given.result}", matrix.reshape(len(matrix), -1, *kernel))
    step = FusedConvolution(x.number, given.result, name, bias, (1, 1), (0, 0), (1, 1), 1, place=given.place)
    return state.append(step, given.result)


def _linear_of_rows(state: FusionState, given: UnaryOperationArguments, matrix: Tensor, bias: str | None) -> bool:
    """Turn a dense layer of (N, …, C) into a convolution of the map with the same numbers in memory."""
    x = state.as_map(given.x, given.place)
    if x is None:
        return False
    result = max(state.shapes) + 1
    first, _, *sides = state.shapes[x]
    state.shapes[result], state.dtypes[result] = (first, len(matrix), *sides), torch.float32
    state.uses[result] = 1
    name = state.add_tensor(f"{given.place}.dense.{given.result}", matrix[:, :, None, None])
    step = FusedConvolution(x, result, name, bias, (1, 1), (0, 0), (1, 1), 1, place=given.place)
    state.append(step, result)
    state.append_rows(result, given.result, given.place)
    return True


def _permute(state: FusionState, given: UnaryOperationArguments) -> bool:
    """Record which map has the same numbers in memory as (N, H, W, C), and remove a permutation that undoes another."""
    axes = [axis % 4 for axis in given.get("dims")]
    if axes == NHWC and state.is_map(given.x):
        state.map_of[given.result] = given.x.number
    original = state.map_of.get(given.x.number)
    if axes != NCHW or original is None or state.shapes[original] != state.shapes[given.result]:
        return False
    state.same[given.result] = Value(original)
    state.uses[original] += state.uses[given.result]
    state.release(given.x.number)
    return True


def _batch_norm(state: FusionState, given: UnaryOperationArguments) -> bool:
    if given.get("training") or not (state.is_map(given.x) or state.is_rows(given.x)):
        return False
    mean, variance = given.named("running_mean"), given.named("running_var")
    weight, bias = given.named("weight"), given.named("bias")
    computed = any(given.get(name) is not None and given.named(name) is None for name in ("weight", "bias"))
    if mean is None or variance is None or computed or not state.are_float(mean, variance, weight, bias):
        return False
    tensors = state.tensors
    scale = (tensors[variance].double() + given.get("eps")).rsqrt()
    scale = scale if weight is None else scale * tensors[weight].double()
    shift = -tensors[mean].double() * scale
    shift = shift if bias is None else shift + tensors[bias].double()
    before, views = state.find_epilogue(given.x)
    if _can_fold(before) and _channel_axis(state, before, views) == 1:
        return state.extend(state.scale_convolution(before, given.result, scale, shift), given)
    if not state.is_map(given.x):
        return _scale_rows(state, given, scale, shift)
    # A scale and a shift of each channel are a depthwise 1×1 convolution.
    names = f"{given.place}.scale.{given.result}", f"{given.place}.shift.{given.result}"
    state.add_tensor(names[0], scale[:, None, None, None])
    state.add_tensor(names[1], shift)
    step = FusedConvolution(given.x.number, given.result, *names, (1, 1), (0, 0), (1, 1), len(scale), place=given.place)
    return state.append(step, given.result)


def _scale_rows(state: FusionState, given: UnaryOperationArguments, scale: Tensor, shift: Tensor) -> bool:
    """Append a product and a sum of (N, C) with factors and summands of each channel."""
    names = [f"{given.place}.{kind}.{given.result}" for kind in ("scale", "shift")]
    for name, tensor in zip(names, (scale, shift), strict=True):
        state.add_tensor(name, tensor)
    scaled = state.add_value(given.result)
    state.append(Elementwise(given.x.number, scaled, Constant(names[0]), "MULTIPLY", place=given.place), scaled)
    step = Elementwise(scaled, given.result, Constant(names[1]), "ADD", place=given.place)
    return state.append(step, given.result)


def _can_fold(step: Any, *, with_bounds: bool = False) -> bool:
    """Return whether channel-wise factors and summands can be folded into the weights of `step`.

    The step must have no epilogue, or, if `with_bounds`, only bounds.
    """
    plain = isinstance(step, FusedConvolution) and step.residual is None and step.activation == "NONE"
    return plain and (with_bounds or step.bounds == UNBOUNDED)


def _channel_axis(state: FusionState, step: FusedConvolution, views: Sequence[Operation]) -> int | None:
    """Return the axis that holds exactly the channels of `step` in the last of `views`, or None."""
    axis, shape = 1, state.shapes[step.result]
    for view in views:
        after = state.shapes[step_output_numbers(view)[0]]
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


def _activation(name: str, slope: Callable[[UnaryOperationArguments], Any] = lambda _: 0.0) -> Any:
    def rule(state: FusionState, given: UnaryOperationArguments) -> bool:
        factor = slope(given)
        if not state.is_nonempty(given.x) or not isinstance(factor, int | float) or not math.isfinite(factor):
            return False
        before, _ = state.find_epilogue(given.x)
        if before is not None and before.bounds == UNBOUNDED and before.activation == "NONE":
            return state.extend(replace(before, activation=name, slope=float(factor)), given)
        step = Elementwise(given.x.number, given.result, activation=name, slope=float(factor), place=given.place)
        return state.append(step, given.result)

    return rule


def _gelu(state: FusionState, given: UnaryOperationArguments) -> bool:
    name = "GELU" if given.get("approximate", "none") == "none" else "GELU_TANH"
    return bool(_activation(name)(state, given))


def _elu(state: FusionState, given: UnaryOperationArguments) -> bool:
    if given.get("scale", 1) != 1 or given.get("input_scale", 1) != 1:
        return False
    return bool(_activation("ELU", lambda _: given.get("alpha", 1.0))(state, given))


def _bounds(lower: Callable[[UnaryOperationArguments], Any], upper: Callable[[UnaryOperationArguments], Any]) -> Any:
    def rule(state: FusionState, given: UnaryOperationArguments) -> bool:
        low, high = lower(given), upper(given)
        low, high = -math.inf if low is None else low, math.inf if high is None else high
        numbers = all(isinstance(bound, int | float) and not math.isnan(bound) for bound in (low, high))
        if not numbers or not state.is_nonempty(given.x):
            return False
        bounds = float(low), float(high)
        before, _ = state.find_epilogue(given.x)
        if before is not None and before.bounds == UNBOUNDED:
            return state.extend(replace(before, bounds=bounds), given)
        step = Elementwise(given.x.number, given.result, bounds=bounds, place=given.place)
        return state.append(step, given.result)

    return rule


def _combination(name: str) -> Any:
    """Return the rule for an operation on two values, or on a value and a constant or number."""

    def rule(state: FusionState, given: UnaryOperationArguments) -> bool:
        one, other = state.resolve(given.get("self")), state.resolve(given.get("other"))
        if given.get("alpha", 1) != 1 or given.get("rounding_mode") is not None:
            return False
        if given.is_reversed:
            one, other = other, one
        if not isinstance(one, Value) and name in ("ADD", "MULTIPLY"):
            one, other = other, one
        if not isinstance(one, Value):
            return _combine_with_first(state, given, name, one, other)
        if not state.is_nonempty(one):
            return False
        if isinstance(other, Value):
            both = state.is_nonempty(other)
            return both and (
                _merge_convolutions(state, given, name, one, other)
                or _add_residual(state, given, name, one, other)
                or _combine(state, given, name, one, other)
            )
        other = _to_constant(state, given, other)
        if not isinstance(other, Constant) or not state.are_float(other.name):
            return False
        return (
            _fold_constant(state, given, name, one, other)
            or fold_scale_into_product(state, given, name, one, other)
            or _combine(state, given, name, one, other)
        )

    return rule


def _to_constant(state: FusionState, given: UnaryOperationArguments, operand: Any) -> Any:
    """Return a number as a constant of the network; anything else unchanged."""
    if not isinstance(operand, int | float) or isinstance(operand, bool):
        return operand
    tensor = torch.tensor(float(operand), device="cpu")
    return Constant(state.add_tensor(f"{given.place}.number.{given.result}", tensor))


def _combine_with_first(state: FusionState, given: UnaryOperationArguments, name: str, one: Any, other: Any) -> bool:
    """Append the combination of a constant with a value, in this order, if they are that."""
    one = _to_constant(state, given, one)
    if not isinstance(one, Constant) or not state.are_float(one.name):
        return False
    if not isinstance(other, Value) or not state.is_nonempty(other):
        return False
    x = Constant(state.make_contiguous(one.name, f"{given.place}.operand.{given.result}") or one.name)
    return state.append(Elementwise(x, given.result, other.number, name, place=given.place), given.result)


def _combine(
    state: FusionState, given: UnaryOperationArguments, name: str, one: Value, other: Value | Constant
) -> bool:
    y: int | Constant
    if isinstance(other, Value):
        y = other.number
    else:
        y = Constant(state.make_contiguous(other.name, f"{given.place}.operand.{given.result}") or other.name)
    return state.append(Elementwise(one.number, given.result, y, name, place=given.place), given.result)


def _fold_constant(state: FusionState, given: UnaryOperationArguments, name: str, one: Value, other: Constant) -> bool:
    """Fold a channel-wise factor or summand into the convolution that computes `one`; return whether it worked."""
    before, views = state.find_epilogue(one)
    tensor = state.tensors[other.name].double()
    can_fold = _can_fold(before, with_bounds=tensor.numel() == 1)
    if not can_fold or state.shapes[one.number] != state.shapes[given.result]:
        return False
    if not bool(tensor.isfinite().all()):
        return False
    if tensor.numel() > 1:
        axis, rank = _channel_axis(state, before, views), len(state.shapes[one.number])
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
    step = state.scale_convolution(before, given.result, scale, shift)
    if before.bounds != UNBOUNDED:  # s · clamp(x, low, high) + t is a clamp of s · x + t
        if float(scale) == 0:
            return False
        low, high = sorted(bound * float(scale) + (0 if shift is None else float(shift)) for bound in before.bounds)
        step = replace(step, bounds=(low, high))
    given.x = one
    return state.extend(step, given)


def _merge_convolutions(
    state: FusionState, given: UnaryOperationArguments, name: str, one: Value, other: Value
) -> bool:
    """Return whether two convolutions of the same input became one, with the sum of their weights.

    Blocks of RepVGG and MobileOne consist of such branches (Ding et al. 2021, section 3.3).
    """
    parts = state.find_producer(one), state.find_producer(other)
    if (
        name not in ("ADD", "SUBTRACT")
        or one == other
        or not all(_can_fold(part) and part.gate is None for part in parts)
    ):
        return False
    alike = len({(part.x, part.stride, state.shapes[part.result]) for part in parts}) == 1
    factors = 1.0, -1.0 if name == "SUBTRACT" else 1.0
    for wide, narrow in ((0, 1), (1, 0)):
        weight = state.tensors[parts[wide].weight].double() * factors[wide]
        inner = state.tensors[parts[narrow].weight].double() * factors[narrow]
        if not alike or not _add_weights(weight, parts[wide], inner, parts[narrow]):
            continue
        biases = [
            state.tensors[part.bias].double() * factor
            for part, factor in zip(parts, factors, strict=True)
            if part.bias is not None
        ]
        names = f"{given.place}.merged.{given.result}.weight", f"{given.place}.merged.{given.result}.bias"
        bias = state.add_tensor(names[1], torch.stack(biases).sum(0)) if biases else None
        step = replace(parts[wide], weight=state.add_tensor(names[0], weight), bias=bias, result=given.result)
        state.uses[step.x] -= 1
        for part in parts:
            del state.steps[part.result]
        return state.append(step, given.result)
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


def _add_residual(state: FusionState, given: UnaryOperationArguments, name: str, one: Value, other: Value) -> bool:
    """Make one operand the residual of the convolution that computes the other; return whether it worked."""
    same = state.shapes[one.number] == state.shapes[other.number]
    if name not in ("ADD", "MULTIPLY") or one == other or not same:
        return False
    order = {value: number for number, value in enumerate(state.steps)}  # extend the one that is computed last
    pairs = sorted(((one, other), (other, one)), key=lambda pair: -order.get(pair[0].number, -1))
    for first, second in pairs:
        before, views = state.find_epilogue(first)
        if not isinstance(before, FusedConvolution) or before.residual is not None or before.bounds != UNBOUNDED:
            continue
        if views and state.map_of.get(first.number) != before.result:
            continue
        if not views and not (state.is_map(second) or state.is_rows(second)):
            continue
        known = state.map_of.get(second.number, before.result)
        if state.shapes[known] != state.shapes[before.result]:
            continue
        residual = state.as_map(second, given.place) if views else second.number
        if residual is None:
            continue
        late, multiply = before.activation != "NONE", name == "MULTIPLY"
        step = replace(before, residual=residual, residual_last=late, multiply=multiply)
        moved: list[Step] = [step, *views]
        for part in moved:  # after the step that computes the residual
            state.replace_step(step_output_numbers(part)[0], part, step_output_numbers(part)[0])
        given.x = first
        return state.drop(given)
    return False


def _layer_norm(state: FusionState, given: UnaryOperationArguments) -> bool:
    return len(given.get("normalized_shape")) == 1 and _normalize(state, given, None)


def _group_norm(state: FusionState, given: UnaryOperationArguments) -> bool:
    return state.is_map(given.x) and _normalize(state, given, given.get("num_groups"))


def _normalize(state: FusionState, given: UnaryOperationArguments, groups: int | None) -> bool:
    if not state.is_nonempty(given.x) or not isinstance(state.shapes[given.x.number][-1], int):
        return False
    names: list[str | None] = []
    for key in ("weight", "bias"):
        name = given.named(key)
        if (given.get(key) is not None and name is None) or not state.are_float(name):
            return False
        names.append(state.make_contiguous(name, f"{given.place}.{key}.{given.result}"))
    weight, bias = names
    epsilon = float(given.get("eps", 1e-5))
    step = Normalization(given.x.number, given.result, weight, bias, epsilon, groups, place=given.place)
    return state.append(step, given.result)


def _pool(kind: str) -> Any:
    def rule(state: FusionState, given: UnaryOperationArguments) -> bool:
        if not state.is_map(given.x) or given.get("divisor_override") is not None:
            return False
        kernel = given.pair("kernel_size")
        padded = kind == "MEAN" and given.get("count_include_pad", True)
        settings = kernel, given.pair("stride", kernel), given.pair("padding", 0), given.pair("dilation", 1)
        ceil = bool(given.get("ceil_mode", False))
        name = "PADDED_MEAN" if padded else kind
        return state.append(Pool(given.x.number, given.result, name, *settings, ceil, given.place), given.result)

    return rule


def _adaptive(state: FusionState, given: UnaryOperationArguments) -> bool:
    shape, result = state.shapes[given.x.number], state.shapes[given.result]
    if not state.is_map(given.x) or 0 in result or any(a % b for a, b in zip(shape[2:], result[2:], strict=True)):
        return False
    height, width = (a // b for a, b in zip(shape[2:], result[2:], strict=True))
    if (height, width) == (1, 1):
        state.same[given.result] = given.x
        state.uses[given.x.number] += state.uses[given.result] - 1
        return True
    kernel = height, width
    step = Pool(given.x.number, given.result, "MEAN", kernel, kernel, (0, 0), (1, 1), False, given.place)
    return state.append(step, given.result)


def _mean(state: FusionState, given: UnaryOperationArguments) -> bool:
    if not state.is_map(given.x) or sorted(one % 4 for one in given.get("dim") or ()) != [2, 3] or given.get("dtype"):
        return False
    kernel: Any = tuple(state.shapes[given.x.number][2:])
    step = Pool(given.x.number, given.result, "MEAN", kernel, kernel, (0, 0), (1, 1), False, given.place)
    return state.append(step, given.result)


def _flat(state: FusionState, given: UnaryOperationArguments) -> bool:
    before, shape = state.find_producer(given.x), state.shapes[given.result]
    if not state.is_map(given.x) or state.shapes[given.x.number] != (*shape, 1, 1):
        return False
    if not isinstance(before, FusedConvolution | Pool):
        return False
    return state.replace_step(before.result, replace(before, result=given.result), given.result)


MAP_RULES: dict[str, Rule] = {
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
