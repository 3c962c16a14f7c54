"""Fusion rules for matrix products, softmax, statistics, interpolation and padding, of tensors of any rank."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from svertka.compiler.ir import (
    UNBOUNDED,
    Concatenation,
    Elementwise,
    Interpolation,
    MatrixProduct,
    Padding,
    Pool,
    Reduction,
    Softmax,
)
from svertka.graph.operation_and_value_types import Constant, Value, find_operator_by_name

if TYPE_CHECKING:
    from svertka.compiler.fusion_state import FusionState, UnaryOperationArguments

Rule = Callable[["FusionState", "UnaryOperationArguments"], bool]


def lower_matrix_product(state: "FusionState", given: "UnaryOperationArguments") -> bool:
    """Make a product of two values a step, with the scalar factors of its operands."""
    operands = [state.resolve(given.get(name)) for name in ("self", "other")]
    if not all(state.is_nonempty(one) and len(state.shapes[one.number]) >= 2 for one in operands):
        return False
    if not all(isinstance(side, int) for one in operands for side in state.shapes[one.number][-2:]):
        return False
    numbers, scale = [], 1.0
    for one in operands:
        step = state.find_producer(one)
        factor = _scalar_factor(state, step)
        numbers.append(one.number if factor is None else step.x)
        scale *= 1.0 if factor is None else factor
    return state.append(MatrixProduct(numbers[0], numbers[1], given.result, scale, given.place), given.result)


def _scalar_factor(state: "FusionState", step: Any) -> float | None:
    """Return the factor if `step` only multiplies a value of the same shape by a number."""
    if not isinstance(step, Elementwise) or step.activation != "NONE" or step.bounds != UNBOUNDED:
        return None
    if not isinstance(step.x, int) or not isinstance(step.y, Constant):
        return None
    tensor = state.tensors[step.y.name]
    if tensor.numel() != 1 or state.shapes[step.x] != state.shapes[step.result]:
        return None
    return _factor(step.combination, tensor)


def _factor(name: str, tensor: Tensor) -> float | None:
    value = float(tensor)
    if not math.isfinite(value) or (name == "DIVIDE" and value == 0):
        return None
    return {"MULTIPLY": value, "DIVIDE": 1 / value if value else None}.get(name)


def fold_scale_into_product(
    state: "FusionState", given: "UnaryOperationArguments", name: str, one: Value, other: Constant
) -> bool:
    """Fold a scalar factor into the matrix product that computes `one`; return whether it was."""
    step, tensor = state.find_producer(one), state.tensors[other.name]
    factor = _factor(name, tensor) if tensor.numel() == 1 else None
    same = state.shapes[one.number] == state.shapes[given.result]
    if not isinstance(step, MatrixProduct) or factor is None or not same:
        return False
    given.x = one
    return state.extend(replace(step, scale=step.scale * factor), given)


def lower_softmax(state: "FusionState", given: "UnaryOperationArguments") -> bool:
    """Make a softmax a step, together with the constant added before it."""
    shape = state.shapes[given.x.number]
    if not state.is_nonempty(given.x) or given.get("dtype") not in (None, torch.float32) or not shape:
        return False
    axis, before = given.get("dim") % len(shape), state.find_producer(given.x)
    x, y = given.x.number, None
    plain = isinstance(before, Elementwise) and before.activation == "NONE" and before.bounds == UNBOUNDED
    if plain and before.combination == "ADD" and isinstance(before.x, int) and isinstance(before.y, Constant):
        tensor = state.tensors[before.y.name]
        wide = tensor.dim() > 0 and tensor.shape[-1] in (1, shape[-1]) and tensor.is_contiguous()
        if wide and axis == len(shape) - 1 and state.shapes[before.x] == shape:
            x, y = before.x, before.y
    return state.append(Softmax(x, given.result, axis, y, place=given.place), given.result)


def make_reduction_rule(statistic: str) -> Rule:
    """Return the rule of an operation that computes a statistic over axes."""

    def rule(state: "FusionState", given: "UnaryOperationArguments") -> bool:
        shape = state.shapes[given.x.number]
        if not state.is_nonempty(given.x) or not shape or given.get("dtype") not in (None, torch.float32):
            return False
        if given.get("ord", 2) != 2:
            return False
        dims = given.get("dim")
        dims = [dims] if isinstance(dims, int) else list(dims or range(len(shape)))
        axes = tuple(sorted(dim % len(shape) for dim in dims))
        correction = 0.0
        if statistic == "VARIANCE":
            correction = float(
                given.get("unbiased", True) if given.get("correction") is None else given.get("correction")
            )
        keep = bool(given.get("keepdim", False))
        step = Reduction(given.x.number, given.result, statistic, axes, keep, correction, place=given.place)
        return state.append(step, given.result)

    return rule


def lower_standard_deviation(state: "FusionState", given: "UnaryOperationArguments") -> bool:
    """Make a standard deviation a variance and a square root."""
    result, variance = given.result, state.add_value(given.result)
    given.result = variance
    if not make_reduction_rule("VARIANCE")(state, given):
        return False
    given.result = result
    root = Elementwise(variance, result, combination="SQUARE_ROOT", place=given.place)
    return state.append(root, result)


def make_function_rule(name: str) -> Rule:
    """Return the rule of a function of one value."""

    def rule(state: "FusionState", given: "UnaryOperationArguments") -> bool:
        step = Elementwise(given.x.number, given.result, combination=name, place=given.place)
        return state.is_nonempty(given.x) and state.append(step, given.result)

    return rule


def lower_reciprocal(state: "FusionState", given: "UnaryOperationArguments") -> bool:
    """Make a reciprocal a division of one."""
    one = Constant(state.add_tensor(f"{given.place}.one.{given.result}", torch.ones((), device="cpu")))
    step = Elementwise(one, given.result, given.x.number, "DIVIDE", place=given.place)
    return state.is_nonempty(given.x) and state.append(step, given.result)


def lower_prelu(state: "FusionState", given: "UnaryOperationArguments") -> bool:
    """Make a ReLU with a learned slope for each channel a combination with these slopes."""
    name = given.named("weight")
    if name is None or not state.are_float(name) or not state.is_nonempty(given.x):
        return False
    slopes, rank = state.tensors[name], len(state.shapes[given.x.number])
    shape = (-1, *(1,) * (rank - 2)) if slopes.numel() > 1 else ()
    y = Constant(state.add_tensor(f"{given.place}.slopes.{given.result}", slopes.reshape(shape)))
    return state.append(Elementwise(given.x.number, given.result, y, "PRELU", place=given.place), given.result)


def lower_expanded_constant(state: "FusionState", given: "UnaryOperationArguments") -> bool:
    """Make a tensor of the network, repeated for each image, a copy of it."""
    name = given.named("self")
    if name is None or not state.are_float(name) or 0 in state.shapes[given.result]:
        return False
    y = Constant(state.make_contiguous(name, f"{given.place}.expanded.{given.result}") or name)
    return state.append(Elementwise(y, given.result, place=given.place), given.result)


def lower_concatenation(state: "FusionState", given: "UnaryOperationArguments") -> bool:
    """Make a concatenation along any axis a step."""
    parts = [state.resolve(part) for part in given.get("tensors")]
    if not parts or not all(isinstance(part, Value) and state.is_nonempty(part) for part in parts):
        return False
    axis = given.get("dim", 0) % len(state.shapes[given.result])
    ranks = {len(state.shapes[part.number]) for part in parts}
    if ranks != {len(state.shapes[given.result])}:
        return False
    numbers = tuple(part.number for part in parts)
    return state.append(Concatenation(numbers, given.result, given.place, axis), given.result)


def lower_padding(state: "FusionState", given: "UnaryOperationArguments") -> bool:
    """Make constant padding a step, and other padding an interpolation."""
    width, mode, rank = list(given.get("pad")), given.get("mode", "constant"), len(state.shapes[given.x.number])
    if not state.is_nonempty(given.x) or len(width) > 2 * rank or not all(isinstance(one, int) for one in width):
        return False
    if mode != "constant":
        along = [lambda rows, sides=sides: F.pad(rows, (0, 0, *sides), mode) for sides in (width[2:], width[:2])]
        return len(width) == 4 and _interpolate(state, given, *along)
    before, after = [0] * rank, [0] * rank
    for number in range(len(width) // 2):
        before[rank - 1 - number], after[rank - 1 - number] = width[2 * number : 2 * number + 2]
    if min(width) < 0:
        return False
    value = float(given.get("value") or 0)
    step = Padding(given.x.number, given.result, tuple(before), tuple(after), value, given.place)
    return state.append(step, given.result)


def lower_adaptive_mean(state: "FusionState", given: "UnaryOperationArguments") -> bool:
    """Make means over windows of different sizes an interpolation."""
    sides = state.shapes[given.result][-2:]
    along = [lambda rows, side=side: F.adaptive_avg_pool2d(rows, (side, 2)) for side in sides]
    return _interpolate(state, given, *along)


def lower_adaptive_maximum(state: "FusionState", given: "UnaryOperationArguments") -> bool:
    """Make maxima over windows of one size pooling."""
    if not state.is_map(given.x):
        return False
    sides = list(zip(state.shapes[given.x.number][2:], state.shapes[given.result][2:], strict=True))
    if any(not out or size % out for size, out in sides):
        return False
    kernel: Any = tuple(size // out for size, out in sides)
    step = Pool(given.x.number, given.result, "MAXIMUM", kernel, kernel, (0, 0), (1, 1), False, given.place)
    return state.append(step, given.result)


def make_upsampling_rule(name: str) -> Rule:
    """Return the rule of the interpolation that the operator `name` computes."""

    def rule(state: "FusionState", given: "UnaryOperationArguments") -> bool:
        scales = given.get("scale_factors") or [given.get("scales_h"), given.get("scales_w")]
        aligned = [bool(given.get("align_corners"))] if "nearest" not in name else []

        def along(axis: int) -> Callable[[Tensor], Tensor]:
            size = [state.shapes[given.result][2 + axis], 2]
            return lambda rows: find_operator_by_name(f"{name}.default")(rows, size, *aligned, scales[axis], None)

        return _interpolate(state, given, along(0), along(1))

    return rule


def _interpolate(state: "FusionState", given: "UnaryOperationArguments", *along: Callable[[Tensor], Tensor]) -> bool:
    """Append the interpolation that a linear function computes; `along` applies it to the rows of a map."""
    if not state.is_map(given.x) or 0 in state.shapes[given.result]:
        return False
    names = []
    for axis, (function_along, kind) in enumerate(zip(along, ("row", "column"), strict=True)):
        size = state.shapes[given.x.number][2 + axis]
        # Two columns, because antialiasing in PyTorch 2.14 gives something else for one.
        unit = torch.eye(size, dtype=torch.float64, device="cpu")[None, :, :, None].repeat(1, 1, 1, 2)
        indices, weights = _sparse_rows(function_along(unit)[0, :, :, 0].T)
        names += [f"{given.place}.{kind}_{what}.{given.result}" for what in ("indices", "weights")]
        state.tensors[names[-2]] = indices
        state.add_tensor(names[-1], weights)
    rows, row_weights, columns, column_weights = names
    step = Interpolation(given.x.number, given.result, rows, row_weights, columns, column_weights, place=given.place)
    return state.append(step, given.result)


def _sparse_rows(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the indices and values of what is not zero in each row, as many for each row.

    Where a row has fewer, its last value is split, so that no other number is multiplied, not even by zero.
    """
    found = [row.nonzero().flatten() for row in matrix]
    found = [row if len(row) else row.new_zeros(1) for row in found]
    count = max(map(len, found))
    places = torch.arange(count, device="cpu")
    indices = torch.stack([row[places.clamp(max=len(row) - 1)] for row in found])
    weights = matrix.gather(1, indices)
    for number, row in enumerate(found):
        weights[number, len(row) - 1 :] /= count - len(row) + 1
    return indices, weights


TENSOR_RULES: dict[str, Rule] = {
    "matmul.default": lower_matrix_product,
    "softmax.int": lower_softmax,
    "sum.dim_IntList": make_reduction_rule("SUM"),
    "mean.dim": make_reduction_rule("MEAN"),
    "linalg_vector_norm.default": make_reduction_rule("NORM"),
    "amax.default": make_reduction_rule("MAXIMUM"),
    "amin.default": make_reduction_rule("MINIMUM"),
    "max.dim": make_reduction_rule("MAXIMUM"),
    "min.dim": make_reduction_rule("MINIMUM"),
    **dict.fromkeys(("var.dim", "var.correction"), make_reduction_rule("VARIANCE")),
    **dict.fromkeys(("std.dim", "std.correction"), lower_standard_deviation),
    "sqrt.default": make_function_rule("SQUARE_ROOT"),
    "rsqrt.default": make_function_rule("RECIPROCAL_SQUARE_ROOT"),
    "exp.default": make_function_rule("EXPONENTIAL"),
    "reciprocal.default": lower_reciprocal,
    "prelu.default": lower_prelu,
    "cat.default": lower_concatenation,
    **dict.fromkeys(("pad.default", "constant_pad_nd.default"), lower_padding),
    "adaptive_avg_pool2d.default": lower_adaptive_mean,
    "adaptive_max_pool2d.default": lower_adaptive_maximum,
    **{
        f"{name}.{overload}": make_upsampling_rule(name)
        for name in (
            "upsample_nearest2d", "_upsample_nearest_exact2d", "upsample_bilinear2d", "upsample_bicubic2d",
            "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa",
        )
        for overload in ("vec", "default")
    },
}  # fmt: skip
