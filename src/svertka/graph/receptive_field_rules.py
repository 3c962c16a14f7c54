"""Propagation of receptive fields through PyTorch's operations.

A tensor inside a network has one `ReceptiveFieldAxis` for each axis of the image: the receptive fields and the
dimension of their positions. The result of an operation without a rule is assumed to depend on all of its inputs, so
a receptive field is never too small.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch

from svertka.graph.receptive_field import ReceptiveField, ReceptiveFieldGrid

Arguments = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class ShapeAndSymbol:
    """A tensor among the arguments or results of an operation: its shape, and the `symbol` that identifies it."""

    shape: tuple[int, ...]
    symbol: Any = None

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.shape)


class ReceptiveFieldAxis(NamedTuple):
    """The receptive fields along one axis of the image.

    Attributes:
        field: One interval for each position.
        dim: The dimension of the tensor that holds the positions; None if all elements have the same interval.
    """

    field: ReceptiveField
    dim: int | None

    def gathered(self) -> "ReceptiveFieldAxis":
        """Return the axis of an element that reads all positions of this one."""
        return self if self.dim is None else ReceptiveFieldAxis(self.field.gathered(), None)


def unite_field_axes(one: ReceptiveFieldAxis, other: ReceptiveFieldAxis) -> ReceptiveFieldAxis:
    """Return the axis of elements that read both axes."""
    if one.dim is None and other.dim is not None:
        one, other = other, one
    if one.dim is not None and other.dim is None:
        (interval,) = other.field.intervals
        spread = ReceptiveField(other.field.size, (interval,) * len(one.field.intervals), grid=None)
        return ReceptiveFieldAxis(one.field.united(spread), one.dim)
    if one.dim != other.dim or len(one.field.intervals) != len(other.field.intervals):
        one, other = one.gathered(), other.gathered()
    return ReceptiveFieldAxis(one.field.united(other.field), one.dim)


@cache
def has_field_rule(operation: Any) -> bool:
    """Return whether there is a rule for an operation of torch.ops.aten; otherwise it is decomposed."""
    return _rule(operation) is not None


def propagate_field(
    operation: Any, arguments: Arguments, tensor: ShapeAndSymbol, axis: ReceptiveFieldAxis, output: ShapeAndSymbol
) -> ReceptiveFieldAxis:
    """Return the axis of `output` that results from `axis` of `tensor`, an argument of `operation`."""
    rule = _rule(operation)
    if axis.dim is None or rule is None or not _is_data(operation, arguments, tensor):
        return axis.gathered()
    moved = rule(arguments, tensor, axis.field, axis.dim, output)
    # If a rule does not fit the shape of the result, all positions are assumed to be read.
    fits = moved.dim is None or (moved.dim < output.ndim and output.shape[moved.dim] == len(moved.field.intervals))
    return moved if fits else axis.gathered()


Rule = Callable[[Arguments, ShapeAndSymbol, ReceptiveField, int, ShapeAndSymbol], ReceptiveFieldAxis]


@cache
def _rule(operation: Any) -> Rule | None:
    name = operation.overloadpacket.__name__
    if name in RULES:
        return RULES[name]
    if torch.Tag.pointwise in operation.tags:
        return _pointwise
    return _along_dim if any(argument.name == "dim" for argument in operation._schema.arguments) else None


def _is_data(operation: Any, arguments: Arguments, tensor: ShapeAndSymbol) -> bool:
    """Return whether the rule applies to `tensor`; a convolution's applies to its input, not to computed weights."""
    if torch.Tag.pointwise in operation.tags:
        return True
    first = next(iter(arguments.values()))
    return tensor is first or (isinstance(first, list | tuple) and any(tensor is one for one in first))


def _gathered(field: ReceptiveField) -> ReceptiveFieldAxis:
    return ReceptiveFieldAxis(field.gathered(), None)


def _pointwise(
    _: Arguments, tensor: ShapeAndSymbol, field: ReceptiveField, dim: int, output: ShapeAndSymbol
) -> ReceptiveFieldAxis:
    dim += output.ndim - tensor.ndim  # broadcasting aligns the last dimensions
    if len(field.intervals) == 1 and output.shape[dim] > 1:
        return _gathered(field)
    return ReceptiveFieldAxis(field, dim)


def _along_dim(
    arguments: Arguments, tensor: ShapeAndSymbol, field: ReceptiveField, dim: int, output: ShapeAndSymbol
) -> ReceptiveFieldAxis:
    """Return the axis after a reduction, softmax or concatenation along `dim`, or along all dimensions without it."""
    given = arguments["dim"]
    dims = [given] if isinstance(given, int) else given or range(tensor.ndim)
    dims = {one % tensor.ndim for one in dims}
    if dim in dims:
        kept = output.ndim == tensor.ndim and output.shape[dim] == 1  # padding may follow
        return ReceptiveFieldAxis(field.gathered(), dim) if kept else _gathered(field)
    dropped = 0 if arguments.get("keepdim", True) else sum(one < dim for one in dims)
    return ReceptiveFieldAxis(field, dim - dropped)


def _convolution(
    arguments: Arguments, _: ShapeAndSymbol, field: ReceptiveField, dim: int, output: ShapeAndSymbol
) -> ReceptiveFieldAxis:
    if dim < 2:
        return ReceptiveFieldAxis(field, 0) if dim == 0 else _gathered(field)
    stride, padding, dilation = (_pick(arguments[name], dim - 2) for name in ("stride", "padding", "dilation"))
    kernel, positions = arguments["weight"].shape[dim], output.shape[dim]
    if not arguments["transposed"]:
        return ReceptiveFieldAxis(field.through(kernel, stride, padding, dilation, positions), dim)
    # Position i of the input is added to the positions i·stride − padding + k·dilation of the output.
    reached = [[position + padding - k * dilation for k in range(kernel)] for position in range(positions)]
    return ReceptiveFieldAxis(
        field.reading([[at // stride for at in taps if at % stride == 0] for taps in reached]), dim
    )


def _pooling(dimensions: int) -> Rule:
    def rule(
        arguments: Arguments, tensor: ShapeAndSymbol, field: ReceptiveField, dim: int, output: ShapeAndSymbol
    ) -> ReceptiveFieldAxis:
        place = dim - (tensor.ndim - dimensions)
        if place < 0:
            return ReceptiveFieldAxis(field, dim)
        kernel, padding = _pick(arguments["kernel_size"], place), _pick(arguments["padding"], place)
        stride = _pick(arguments["stride"] or arguments["kernel_size"], place)
        dilation = _pick(arguments.get("dilation", 1), place)
        return ReceptiveFieldAxis(field.through(kernel, stride, padding, dilation, output.shape[dim]), dim)

    return rule


def _adaptive_pooling(
    _: Arguments, tensor: ShapeAndSymbol, field: ReceptiveField, dim: int, output: ShapeAndSymbol
) -> ReceptiveFieldAxis:
    before, behind = tensor.shape[dim], output.shape[dim]
    if before % behind == 0:
        return ReceptiveFieldAxis(field.through(kernel=before // behind, stride=before // behind), dim)
    windows = [range(i * before // behind, -(-(i + 1) * before // behind)) for i in range(behind)]
    return ReceptiveFieldAxis(field.reading(windows), dim)


def _padding(
    arguments: Arguments, tensor: ShapeAndSymbol, field: ReceptiveField, dim: int, output: ShapeAndSymbol
) -> ReceptiveFieldAxis:
    pad: Sequence[int] = arguments["pad"]  # (before, after) of the last dimension, then of the one before it
    place = 2 * (tensor.ndim - 1 - dim)
    before = pad[place] if place < len(pad) else 0
    return ReceptiveFieldAxis(field.through(kernel=1, padding=before, positions=output.shape[dim]), dim)


def _same_order(
    _: Arguments, tensor: ShapeAndSymbol, field: ReceptiveField, dim: int, output: ShapeAndSymbol
) -> ReceptiveFieldAxis:
    """Return the axis after reshaping, which keeps the order of the elements."""
    size, before = tensor.shape[dim], math.prod(tensor.shape[:dim])
    for place, other in enumerate(output.shape):
        if other == size and math.prod(output.shape[:place]) == before:
            return ReceptiveFieldAxis(field, place)
    return _tokens(tensor.shape, field, dim, output.shape) or _gathered(field)


def _tokens(
    before: tuple[int, ...], field: ReceptiveField, dim: int, after: tuple[int, ...]
) -> ReceptiveFieldAxis | None:
    """Return the axis after two dimensions, such as rows and columns, became one; None if other things changed."""
    first = next((place for place, (one, other) in enumerate(zip(before, after, strict=False)) if one != other), 0)
    if dim not in (first, first + 1) or after != (
        *before[:first],
        math.prod(before[first : first + 2]),
        *before[first + 2 :],
    ):
        return None
    other = before[first + 1 if dim == first else first]
    positions = range(len(field.intervals))
    taps = [[one] for one in positions for _ in range(other)] if dim == first else [[one] for one in positions] * other
    return ReceptiveFieldAxis(field.reading(taps), first)


def _concatenation(
    arguments: Arguments, tensor: ShapeAndSymbol, field: ReceptiveField, dim: int, _: ShapeAndSymbol
) -> ReceptiveFieldAxis:
    if arguments["dim"] % tensor.ndim != dim:
        return ReceptiveFieldAxis(field, dim)
    # Positions of the other tensors, such as a class token, do not depend on this one.
    taps = [[at] if one is tensor else [] for one in arguments["tensors"] for at in range(one.shape[dim])]
    return ReceptiveFieldAxis(field.reading(taps), dim)


def _permute(
    arguments: Arguments, tensor: ShapeAndSymbol, field: ReceptiveField, dim: int, _: ShapeAndSymbol
) -> ReceptiveFieldAxis:
    return ReceptiveFieldAxis(field, [one % tensor.ndim for one in arguments["dims"]].index(dim))


def _transpose(
    arguments: Arguments, tensor: ShapeAndSymbol, field: ReceptiveField, dim: int, _: ShapeAndSymbol
) -> ReceptiveFieldAxis:
    one, other = arguments["dim0"] % tensor.ndim, arguments["dim1"] % tensor.ndim
    return ReceptiveFieldAxis(field, {one: other, other: one}.get(dim, dim))


def _slice(
    arguments: Arguments, tensor: ShapeAndSymbol, field: ReceptiveField, dim: int, _: ShapeAndSymbol
) -> ReceptiveFieldAxis:
    if arguments["dim"] % tensor.ndim != dim:
        return ReceptiveFieldAxis(field, dim)
    taken = range(tensor.shape[dim])[arguments["start"] : arguments["end"] : arguments["step"]]
    grid = field.grid
    if grid:
        grid = ReceptiveFieldGrid(grid.start + taken.start * grid.jump, grid.jump * taken.step, grid.extent)
    return ReceptiveFieldAxis(field.reading([[position] for position in taken], grid), dim)


def _select(
    arguments: Arguments, tensor: ShapeAndSymbol, field: ReceptiveField, dim: int, _: ShapeAndSymbol
) -> ReceptiveFieldAxis:
    chosen = arguments["dim"] % tensor.ndim
    if chosen == dim:
        return ReceptiveFieldAxis(field.reading([[arguments["index"] % tensor.shape[dim]]]), None)
    return ReceptiveFieldAxis(field, dim - (chosen < dim))


def _unbind(
    arguments: Arguments, tensor: ShapeAndSymbol, field: ReceptiveField, dim: int, _: ShapeAndSymbol
) -> ReceptiveFieldAxis:
    chosen = arguments["dim"] % tensor.ndim
    return _gathered(field) if chosen == dim else ReceptiveFieldAxis(field, dim - (chosen < dim))


def _stack(
    arguments: Arguments, _: ShapeAndSymbol, field: ReceptiveField, dim: int, output: ShapeAndSymbol
) -> ReceptiveFieldAxis:
    return ReceptiveFieldAxis(field, dim + (arguments["dim"] % output.ndim <= dim))


def _linear(
    _: Arguments, tensor: ShapeAndSymbol, field: ReceptiveField, dim: int, __: ShapeAndSymbol
) -> ReceptiveFieldAxis:
    return _gathered(field) if dim == tensor.ndim - 1 else ReceptiveFieldAxis(field, dim)


def _batch_norm(
    arguments: Arguments, _: ShapeAndSymbol, field: ReceptiveField, dim: int, __: ShapeAndSymbol
) -> ReceptiveFieldAxis:
    computes_statistics = arguments.get("training", False) and dim != 1
    return _gathered(field) if computes_statistics else ReceptiveFieldAxis(field, dim)


def _layer_norm(
    arguments: Arguments, tensor: ShapeAndSymbol, field: ReceptiveField, dim: int, _: ShapeAndSymbol
) -> ReceptiveFieldAxis:
    inside = dim >= tensor.ndim - len(arguments["normalized_shape"])
    return _gathered(field) if inside else ReceptiveFieldAxis(field, dim)


def _pick(values: int | Sequence[int], place: int) -> int:
    """Return the value for one dimension, given one for each or one for all."""
    if isinstance(values, int):
        return values
    return values[place] if len(values) > 1 else values[0]


RULES: dict[str, Rule] = {
    "convolution": _convolution,
    "linear": _linear,
    **{f"avg_pool{n}d": _pooling(n) for n in (1, 2, 3)},
    **{f"max_pool{n}d_with_indices": _pooling(n) for n in (2, 3)},
    **{f"{name}{n}d": _adaptive_pooling for name in ("_adaptive_avg_pool", "adaptive_max_pool") for n in (2, 3)},
    "constant_pad_nd": _padding,
    **dict.fromkeys(
        ("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training"), _batch_norm
    ),
    "native_layer_norm": _layer_norm,
    **dict.fromkeys(("hardswish", "hardswish_", "log_sigmoid_forward", "_prelu_kernel"), _pointwise),
    **dict.fromkeys(("expand", "clone", "_to_copy", "detach", "alias"), _pointwise),
    **dict.fromkeys(
        ("view", "reshape", "unflatten", "_unsafe_view", "_reshape_alias", "squeeze", "unsqueeze"), _same_order
    ),
    "permute": _permute,
    "transpose": _transpose,
    "slice": _slice,
    "select": _select,
    "unbind": _unbind,
    "stack": _stack,
    "cat": _concatenation,
}
