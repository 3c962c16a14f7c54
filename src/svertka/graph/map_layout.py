"""The positions of feature maps in a tensor: (N, C, H, W), (N, H, W, C) or tokens (N, L, C).

Every dimension of a tensor is a product of factors, the first varying slowest. Factors are the images of the batch, the
rows and columns of the image at some resolution, the tokens of a transformer, and anything else. The factors of the
input are propagated through PyTorch's operations. Attention keeps the positions of its queries; a residual sum keeps
those of either term. The result of an operation without a rule has unknown positions, so a known one is always right.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

import torch
from torch import Tensor

from svertka.graph.receptive_field_rules import ShapeAndSymbol


class DimRole(Enum):
    """What the indices of a factor count."""

    IMAGES = "images of the batch"
    ROWS = "rows"
    COLUMNS = "columns"
    TOKENS = "tokens, some of which are the positions of an image"
    OTHER = "channels or anything else"


class DimFactor(NamedTuple):
    """A factor of a dimension. For tokens, the `size_of_maps` positions begin at index `start`, row by row."""

    size: int
    role: DimRole = DimRole.OTHER
    start: int = 0
    size_of_maps: tuple[int, int] = (0, 0)


Dim = tuple[DimFactor, ...]
Layout = tuple[Dim, ...]
Arguments = Mapping[str, Any]
POSITIONS = {DimRole.ROWS, DimRole.COLUMNS, DimRole.TOKENS}


@dataclass(frozen=True)
class MapLayout:
    """How to read the output of a layer as feature maps.

    Attributes:
        dims: The dimensions of images, channels, rows and columns; the last two are equal for tokens.
        size: Rows and columns of the feature maps.
        start: Among tokens, the index of the first position.
        is_read: Whether the network reads the positions later, and not only other tokens such as a class token.
    """

    dims: tuple[int, int, int, int]
    size: tuple[int, int]
    start: int = 0
    is_read: bool = True

    @property
    def is_standard(self) -> bool:
        """Whether the output is (N, C, H, W)."""
        return self.dims == (0, 1, 2, 3)

    def to_maps(self, output: Tensor) -> Tensor:
        """Return the feature maps in `output` as a view, (N, C, H, W)."""
        images, channels, rows, columns = self.dims
        if rows != columns:
            return output.permute(self.dims)
        tokens = output.permute(images, channels, rows)
        return torch.unflatten(tokens.narrow(2, self.start, math.prod(self.size)), 2, self.size)


def input_layout(shape: Sequence[int]) -> Layout:
    """Return the layout of the input, (N, C, H, W); for other inputs only the images are known."""
    roles = [DimRole.IMAGES, DimRole.OTHER, DimRole.ROWS, DimRole.COLUMNS]
    if len(shape) != 4:
        roles = [DimRole.IMAGES] + [DimRole.OTHER] * (len(shape) - 1)
    return tuple((DimFactor(size, role),) for size, role in zip(shape, roles, strict=True))


def has_positions(layout: Layout | None) -> bool:
    """Return whether a tensor is known to hold rows, columns or tokens of the image."""
    return any(factor.role in POSITIONS for factors in layout or () for factor in factors)


def map_layout_of_tensor(layout: Layout, shape: Sequence[int], is_read: bool) -> MapLayout | None:
    """Return how to read a tensor as feature maps; None if it holds none, or more than one dimension of channels."""
    places: dict[DimRole, int] = {}
    start, size = 0, (0, 0)
    for dim, factors in enumerate(layout):
        named = [factor for factor in factors if factor.role is not DimRole.OTHER]
        roles = [factor.role for factor in named]
        if any(role in places for role in roles):
            return None
        if named and math.prod(factor.size for factor in named) != shape[dim]:
            return None
        if roles == [DimRole.TOKENS]:
            start, size = named[0].start, named[0].size_of_maps
            places |= {DimRole.ROWS: dim, DimRole.COLUMNS: dim}
        elif roles in ([DimRole.ROWS, DimRole.COLUMNS], [DimRole.ROWS], [DimRole.COLUMNS], [DimRole.IMAGES]):
            places |= dict.fromkeys(roles, dim)
        elif roles:
            return None
    rest = [dim for dim in range(len(layout)) if dim not in places.values()]
    if DimRole.IMAGES not in places and rest and shape[rest[0]] == 1:
        places[DimRole.IMAGES] = rest.pop(0)  # a batch of one image, whose dimension was removed and added again
    if len(rest) != 1 or not {DimRole.IMAGES, DimRole.ROWS, DimRole.COLUMNS} <= places.keys():
        return None
    rows, columns = places[DimRole.ROWS], places[DimRole.COLUMNS]
    if rows != columns:
        size = shape[rows], shape[columns]
    elif size == (0, 0):
        size = layout[rows][0].size, layout[rows][1].size
    return MapLayout((places[DimRole.IMAGES], rest[0], rows, columns), size, start, is_read)


def propagate_layout(
    operation: Any,
    arguments: Arguments,
    operands: Sequence[tuple[ShapeAndSymbol, Layout | None]],
    shape: tuple[int, ...],
) -> Layout | None:
    """Return the layout of the result of `operation`.

    Args:
        operation: An operation of torch.ops.aten.
        arguments: Arguments of the operation by name, with a ShapeAndSymbol for each tensor.
        operands: The tensors among them, with their layouts.
        shape: Shape of the result.
    """
    name = operation.overloadpacket.__name__
    if name != "convolution" and not any(layout for _, layout in operands):
        return None
    rule = RULES.get(name) or (_elementwise if torch.Tag.pointwise in operation.tags else None)
    if rule is None and _is_reduction(operation, arguments):
        rule = _reduction
    inputs = [(one.shape, layout or _unknown(one.shape)) for one, layout in operands]
    moved = rule(arguments, inputs, shape) if rule else None
    if moved is None or len(moved) != len(shape):
        return None
    return tuple(
        factors if _size(factors) == size else (DimFactor(size),) for factors, size in zip(moved, shape, strict=True)
    )


def reads_image_tokens(
    operation: Any,
    arguments: Arguments,
    operand: ShapeAndSymbol,
    layout: Layout,
    output: Layout | None,
    is_output_read: bool,
) -> bool:
    """Return whether the network reads the positions among the tokens of `operand`.

    A class token that is selected is not a position.

    Args:
        operation: The operation that reads `operand`.
        arguments: Arguments of the operation, with a ShapeAndSymbol for each tensor.
        operand: A tensor among them.
        layout: Layout of `operand`.
        output: Layout of the operation's result.
        is_output_read: Whether the network reads the positions in the result.
    """
    name = operation.overloadpacket.__name__
    if name in MATRIX_PRODUCTS:
        first, second = (arguments[argument] for argument in MATRIX_PRODUCTS[name])
        contracted = layout[-2] if operand is second and name != "linear" else layout[-1]
        if (operand is first or operand is second) and has_positions((contracted,)):
            return True
    if has_positions(output):
        return is_output_read
    return not _selects_other_token(name, arguments, layout)


def _selects_other_token(name: str, arguments: Arguments, layout: Layout) -> bool:
    dim = next(
        (place for place, factors in enumerate(layout) if [factor.role for factor in factors] == [DimRole.TOKENS]), None
    )
    if name not in ("select", "slice") or dim is None or arguments["dim"] % len(layout) != dim:
        return False
    (tokens,) = layout[dim]
    indices = range(tokens.size)
    if name == "select":
        taken = [indices[arguments["index"]]]
    else:
        taken = [*indices[arguments["start"] : arguments["end"] : arguments["step"]]]
    return not any(tokens.start <= index < tokens.start + math.prod(tokens.size_of_maps) for index in taken)


def _unknown(shape: Sequence[int]) -> Layout:
    return tuple((DimFactor(size),) for size in shape)


def _size(factors: Dim) -> int:
    return math.prod(factor.size for factor in factors)


def _is_positions(factors: Dim) -> bool:
    return all(factor.role in POSITIONS for factor in factors)


def _certainty(factors: Dim) -> int:
    """Return 2 if the roles of all factors are known, 1 if some are, otherwise 0."""
    return 0 if _is_other(factors) else 1 if any(factor.role is DimRole.OTHER for factor in factors) else 2


def _is_other(factors: Dim) -> bool:
    return all(factor.role is DimRole.OTHER for factor in factors)


Input = tuple[tuple[int, ...], Layout]  # shape and layout of an operand
Rule = Callable[[Arguments, Sequence[Input], tuple[int, ...]], Layout | None]


def _elementwise(_: Arguments, inputs: Sequence[Input], shape: tuple[int, ...]) -> Layout:
    """Return the layout of an elementwise result: each dimension as in the operand with the most known roles."""
    found = list(_unknown(shape))
    for _given, layout in inputs:
        for place, factors in enumerate(layout, start=len(shape) - len(layout)):
            if place >= 0 and _certainty(factors) > _certainty(found[place]) and _size(factors) == shape[place]:
                found[place] = factors
    return tuple(found)


def _like_first(_: Arguments, inputs: Sequence[Input], shape: tuple[int, ...]) -> Layout | None:
    return inputs[0][1] if inputs[0][0] == shape else None


def _window(_: Arguments, inputs: Sequence[Input], shape: tuple[int, ...]) -> Layout | None:
    """Return the layout after convolution, pooling or padding, which only change the number of rows and columns."""
    layout = inputs[0][1]
    if len(layout) != len(shape):
        return None
    found: list[Dim] = []
    for place, (factors, size) in enumerate(zip(layout, shape, strict=True)):
        is_axis = len(factors) == 1 and factors[0].role in (DimRole.ROWS, DimRole.COLUMNS)
        if place >= len(shape) - 2 and is_axis:
            found.append((DimFactor(size, factors[0].role),))
        else:
            found.append(factors if _size(factors) == size else (DimFactor(size),))
    return tuple(found)


def _convolution(arguments: Arguments, inputs: Sequence[Input], shape: tuple[int, ...]) -> Layout | None:
    found = _window(arguments, inputs, shape)
    if found is None:
        return None
    if len(shape) == 4 and not any(_is_positions(factors) for factors in found):
        return input_layout(shape)  # a 2-D convolution reads an image, even after unknown operations
    return (found[0], (DimFactor(shape[1]),), *found[2:])


def _reshape(_: Arguments, inputs: Sequence[Input], shape: tuple[int, ...]) -> Layout | None:
    """Return the layout after reshaping. Factors keep their order; rows may be split into blocks, tokens may not."""
    left = [factor for factors in inputs[0][1] for factor in factors]
    found: list[Dim] = []
    for place, size in enumerate(shape):
        taken: Dim = ()
        if size == 1 and left and left[0].size == 1 and place < len(shape) - 1:
            taken = (left.pop(0),)
        while _size(taken) < size and left:
            if size % _size(taken):
                return None
            factor, needed = left.pop(0), size // _size(taken)
            if factor.size > needed:
                if factor.size % needed:
                    return None
                left.insert(0, DimFactor(factor.size // needed))
                factor = DimFactor(
                    needed, factor.role if factor.role in (DimRole.ROWS, DimRole.COLUMNS) else DimRole.OTHER
                )
            taken = (*taken, factor)
        if _size(taken) != size:
            return None
        found.append(tuple(factor for factor in taken if factor.size > 1) or taken[:1] or (DimFactor(1),))
    return tuple(found)


def _permute(arguments: Arguments, inputs: Sequence[Input], _: tuple[int, ...]) -> Layout:
    layout = inputs[0][1]
    return tuple(layout[dim] for dim in arguments["dims"])


def _transpose(arguments: Arguments, inputs: Sequence[Input], _: tuple[int, ...]) -> Layout:
    found = list(inputs[0][1])
    one, other = arguments.get("dim0", 0), arguments.get("dim1", 1)
    if len(found) > 1:
        found[one], found[other] = found[other], found[one]
    return tuple(found)


def _slice(arguments: Arguments, inputs: Sequence[Input], shape: tuple[int, ...]) -> Layout:
    layout = list(inputs[0][1])
    dim = arguments["dim"] % len(layout)
    start, _, step = slice(arguments["start"], arguments["end"], arguments["step"]).indices(_size(layout[dim]))
    layout[dim] = _cut(layout[dim], start, shape[dim], step)
    return tuple(layout)


def _cut(factors: Dim, start: int, length: int, step: int = 1) -> Dim:
    """Return the factors of `length` indices of a dimension, from `start`."""
    if length == _size(factors):
        return factors
    (factor, *others) = factors
    if not others and factor.role in (DimRole.ROWS, DimRole.COLUMNS):
        return (DimFactor(length, factor.role),)
    if not others and factor.role is DimRole.TOKENS and step == 1:
        return _tokens(length, factor.start - start, factor.size_of_maps)
    return (DimFactor(length),)


def _tokens(size: int, start: int, size_of_maps: tuple[int, int]) -> Dim:
    """Return the factors of `size` tokens whose positions begin at `start`; none if some positions are missing."""
    rows, columns = size_of_maps
    if (start, size) == (0, rows * columns):
        return DimFactor(rows, DimRole.ROWS), DimFactor(columns, DimRole.COLUMNS)
    if start < 0 or start + rows * columns > size:
        return (DimFactor(size),)
    return (DimFactor(size, DimRole.TOKENS, start, size_of_maps),)


def _select(arguments: Arguments, inputs: Sequence[Input], _: tuple[int, ...]) -> Layout:
    layout = inputs[0][1]
    dim = arguments["dim"] % len(layout)
    return layout[:dim] + layout[dim + 1 :]


def _split(arguments: Arguments, inputs: Sequence[Input], shape: tuple[int, ...]) -> Layout:
    """Return the layout after a split of the channels. A split of positions loses them."""
    layout = list(inputs[0][1])
    dim = arguments["dim"] % len(layout)
    if shape[dim] != _size(layout[dim]):
        layout[dim] = (DimFactor(shape[dim]),)
    return tuple(layout)


def _stack(arguments: Arguments, inputs: Sequence[Input], shape: tuple[int, ...]) -> Layout:
    layout, dim = inputs[0][1], arguments["dim"] % len(shape)
    return (*layout[:dim], (DimFactor(shape[dim]),), *layout[dim:])


def _concatenate(arguments: Arguments, inputs: Sequence[Input], shape: tuple[int, ...]) -> Layout:
    dim, before = arguments["dim"] % len(shape), 0
    inputs = [(given, layout) for given, layout in inputs if len(given) == len(shape)]
    found = list(_elementwise(arguments, inputs, shape))
    found[dim] = (DimFactor(shape[dim]),)
    for given, layout in inputs:
        factors = layout[dim]
        if [factor.role for factor in factors] == [DimRole.ROWS, DimRole.COLUMNS]:
            found[dim] = _tokens(shape[dim], before, (factors[0].size, factors[1].size))
        elif factors[0].role is DimRole.TOKENS:
            found[dim] = _tokens(shape[dim], before + factors[0].start, factors[0].size_of_maps)
        before += given[dim]
    if sum(has_positions((layout[dim],)) for _, layout in inputs) > 1:  # such as the tokens of two images
        found[dim] = (DimFactor(shape[dim]),)
    return tuple(found)


def _linear(_: Arguments, inputs: Sequence[Input], shape: tuple[int, ...]) -> Layout:
    return (*inputs[0][1][:-1], (DimFactor(shape[-1]),))


def _matrix_product(_: Arguments, inputs: Sequence[Input], shape: tuple[int, ...]) -> Layout:
    """Return the layout of a matrix product: rows as in the first matrix, columns as in the second."""
    first, second = (layout for _, layout in inputs[-2:])
    batch = first[:-2] if not all(map(_is_other, first[:-2])) else second[:-2]
    return (*batch, first[-2], second[-1])


def _is_reduction(operation: Any, arguments: Arguments) -> bool:
    return "dim" in arguments and operation.overloadpacket.__name__ in REDUCTIONS


def _reduction(arguments: Arguments, inputs: Sequence[Input], shape: tuple[int, ...]) -> Layout:
    layout, given = inputs[0][1], arguments["dim"]
    dims = [given] if isinstance(given, int) else given or range(len(layout))
    dims = {dim % len(layout) for dim in dims}
    if len(shape) == len(layout):
        return tuple((DimFactor(1),) if dim in dims else factors for dim, factors in enumerate(layout))
    return tuple(factors for dim, factors in enumerate(layout) if dim not in dims)


MATRIX_PRODUCTS = {  # operation -> the arguments that are multiplied
    "linear": ("input", "weight"),
    "mm": ("self", "mat2"),
    "bmm": ("self", "mat2"),
    "addmm": ("mat1", "mat2"),
    "baddbmm": ("batch1", "batch2"),
}
REDUCTIONS = {"mean", "sum", "amax", "amin", "prod", "var", "std", "logsumexp", "norm", "linalg_vector_norm"}
LIKE_FIRST = (
    *("_softmax", "_log_softmax", "softmax", "log_softmax", "log_sigmoid_forward", "native_dropout"),
    *("native_layer_norm", "native_group_norm", "native_batch_norm", "_native_batch_norm_legit"),
    *("_native_batch_norm_legit_no_training", "slice_scatter", "select_scatter"),
)
RESHAPES = ("view", "reshape", "flatten", "unflatten", "_unsafe_view", "_reshape_alias", "squeeze", "unsqueeze")
WINDOWS = (
    *("avg_pool2d", "max_pool2d_with_indices", "_adaptive_avg_pool2d", "adaptive_max_pool2d", "constant_pad_nd"),
    *("upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d", "reflection_pad2d", "replication_pad2d"),
)
ELEMENTWISE = ("expand", "clone", "to", "_to_copy", "detach", "alias", "copy", "hardswish", "_prelu_kernel")
RULES: dict[str, Rule] = {
    "convolution": _convolution,
    "linear": _linear,
    "permute": _permute,
    "transpose": _transpose,
    "t": _transpose,
    "slice": _slice,
    "select": _select,
    "unbind": _select,
    **dict.fromkeys(("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "chunk"), _split),
    "stack": _stack,
    "cat": _concatenate,
    **dict.fromkeys(("mm", "bmm", "addmm", "baddbmm"), _matrix_product),
    **dict.fromkeys(LIKE_FIRST, _like_first),
    **dict.fromkeys(RESHAPES, _reshape),
    **dict.fromkeys(WINDOWS, _window),
    **dict.fromkeys(ELEMENTWISE, _elementwise),
}
