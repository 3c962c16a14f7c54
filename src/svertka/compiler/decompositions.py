"""Operations in terms of simpler ones, which fusion has rules for.

Attention becomes matrix products and a softmax, a transposed convolution a convolution and a pixel shuffle, and a pixel
shuffle views.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

from svertka.compiler.ir import CapturedGraph
from svertka.graph.operation_and_value_types import Constant, Operation, Value

PIXEL_SHUFFLE = [0, 1, 4, 2, 5, 3]  # (N, C, rows, columns, H, W) to (N, C, H, rows, W, columns)


def decompose(recording: CapturedGraph) -> CapturedGraph:
    """Return a graph that computes the same with simpler operations."""
    graph = _Graph(recording)
    for operation in recording.operations:
        rule = DECOMPOSITIONS.get(operation.name)
        if rule is None or operation.results[0] is None or any(operation.results[1:]):
            graph.append(operation)
            continue
        count = len(graph.operations)
        graph.current = operation
        if not rule(graph, operation.arguments):
            del graph.operations[count:]
            graph.append(operation)
    return replace(
        recording,
        operations=tuple(graph.operations),
        shapes=graph.shapes,
        dtypes=graph.dtypes,
        constants=graph.constants,
    )


class _Graph:
    """The operations made so far, and the one that is decomposed."""

    def __init__(self, recording: CapturedGraph) -> None:
        self.operations: list[Operation] = []
        self.shapes: dict[int, Any] = dict(recording.shapes)
        self.dtypes = dict(recording.dtypes)
        self.constants = dict(recording.constants)
        self.made: dict[int, Operation] = {}  # value -> the operation that computes it
        self.current: Any = None
        self._next = max(self.shapes) + 1

    def append(self, operation: Operation) -> None:
        """Append an operation."""
        self.operations.append(operation)
        self.made |= {result: operation for result in operation.results if result is not None}

    def call(self, name: str, shape: Sequence[Any], /, **arguments: Any) -> Value:
        """Append an operation with a new result of this shape, and the dtype of the decomposed one's. Return it."""
        result, self._next = self._next, self._next + 1
        self.shapes[result], self.dtypes[result] = tuple(shape), self.dtypes[self.current.results[0]]
        self.append(Operation(name, arguments, (result,), self.current.place))
        return Value(result)

    def finish(self, name: str, /, **arguments: Any) -> bool:
        """Append the operation that computes the result of the decomposed one. Return True."""
        self.append(replace(self.current, name=name, arguments=arguments))
        return True

    def shape(self, value: Any) -> Any:
        """Return the shape of a value or constant."""
        return self.shapes[value.number] if isinstance(value, Value) else tuple(self.constants[value.name].shape)

    def is_float(self, *values: Any) -> bool:
        """Return whether all of these are values of float32."""
        return all(isinstance(one, Value) and self.dtypes[one.number] == torch.float32 for one in values)

    def find(self, value: Any, name: str) -> Any:
        """Return the arguments of the operation `name` that made a value; empty if another one did."""
        made = self.made.get(value.number) if isinstance(value, Value) else None
        return {} if made is None or made.name != name or made.arguments.get("alpha", 1) != 1 else made.arguments

    def permute_split(self, value: Value, split: list[Any], dims: Sequence[int]) -> Value:
        """Append a reshape of `value` to `split`, and a permutation of these axes to the order `dims`. Return it."""
        parts = self.call("reshape.default", split, self=value, shape=split)
        return self.call("permute.default", [split[dim] for dim in dims], self=parts, dims=list(dims))

    @property
    def result_shape(self) -> Any:
        """The shape of the decomposed operation's result."""
        return self.shapes[self.current.results[0]]

    def add_constant(self, tensor: torch.Tensor, kind: str) -> Constant:
        """Store a tensor made for the decomposed operation."""
        name = f"{self.current.place}.{kind}.{self.current.results[0]}"
        self.constants[name] = tensor
        return Constant(name)


Rule = Callable[[_Graph, Any], bool]


def _reshape_as(graph: _Graph, given: Any) -> bool:
    return graph.finish("reshape.default", self=given["self"], shape=list(graph.result_shape))


def _expand_as(graph: _Graph, given: Any) -> bool:
    return graph.finish("expand.default", self=given["self"], size=list(graph.result_shape))


def _addcmul(graph: _Graph, given: Any) -> bool:
    """Make self + value · first · second a product and a sum."""
    first, second = given["tensor1"], given["tensor2"]
    if not isinstance(first, Value) or graph.shape(first) != graph.result_shape:
        first, second = second, first
    if not graph.is_float(first) or graph.shape(first) != graph.result_shape or given.get("value", 1) != 1:
        return False
    product = graph.call("mul.Tensor", graph.result_shape, self=first, other=second)
    return graph.finish("add.Tensor", self=product, other=given["self"])


def _response_normalization(graph: _Graph, given: Any) -> bool:
    """Make x + (x · n · weight + bias), with one n for each channel, x · (1 + n · weight) + bias.

    This is global response normalization (Woo et al. 2023, equation 4); most of it is computed for each channel only.
    """
    x, total = given["self"], graph.find(given["other"], "add.Tensor")
    weighted = graph.find(total.get("self"), "mul.Tensor")
    product = graph.find(weighted.get("self"), "mul.Tensor")
    scale, weight, bias = product.get("other"), weighted.get("other"), total.get("other")
    if product.get("self") != x or given.get("alpha", 1) != 1 or not graph.is_float(x, scale):
        return False
    if not isinstance(weight, Value | Constant):
        return False
    shape, sides = graph.shape(scale), graph.shape(weight)
    fits = len(sides) <= len(shape) and all(a in (1, b) for a, b in zip(sides[::-1], shape[::-1], strict=False))
    if not fits or shape == graph.result_shape:
        return False
    factor = graph.call("mul.Tensor", shape, self=scale, other=weight)
    factor = graph.call("add.Tensor", shape, self=factor, other=1.0)
    product = graph.call("mul.Tensor", graph.result_shape, self=x, other=factor)
    return graph.finish("add.Tensor", self=product, other=bias)


def _square(graph: _Graph, given: Any) -> bool:
    if given.get("exponent", 2) == 0.5:
        return graph.finish("sqrt.default", self=given["self"])
    return given.get("exponent", 2) == 2 and graph.finish("mul.Tensor", self=given["self"], other=given["self"])


def _stack(graph: _Graph, given: Any) -> bool:
    """Make a stack a concatenation along a new axis."""
    rank = len(graph.result_shape)
    dim = given.get("dim", 0) % rank
    shape = (*graph.result_shape[:dim], 1, *graph.result_shape[dim + 1 :])
    if not graph.is_float(*given["tensors"]):
        return False
    parts = [graph.call("unsqueeze.default", shape, self=one, dim=dim) for one in given["tensors"]]
    return graph.finish("cat.default", tensors=parts, dim=dim)


def _roll(graph: _Graph, given: Any) -> bool:
    """Make a rotation along some axes concatenations of two slices each."""
    x, shape = given["self"], graph.result_shape
    shifts, dims = list(given["shifts"]), list(given.get("dims") or ())
    if not graph.is_float(x) or len(dims) != len(shifts) or not all(isinstance(shape[dim], int) for dim in dims):
        return False
    moves = [(shift % shape[dim], dim % len(shape)) for shift, dim in zip(shifts, dims, strict=True)]
    moves = [(shift, dim) for shift, dim in moves if shift]
    for number, (shift, dim) in enumerate(moves, start=1):
        edges = (shape[dim] - shift, shape[dim]), (0, shape[dim] - shift)
        parts = [
            graph.call(
                "slice.Tensor", (*shape[:dim], end - start, *shape[dim + 1 :]), self=x, dim=dim, start=start, end=end
            )
            for start, end in edges
        ]
        if number == len(moves):
            return graph.finish("cat.default", tensors=parts, dim=dim)
        x = graph.call("cat.default", shape, tensors=parts, dim=dim)
    return False


def _glu(graph: _Graph, given: Any) -> bool:
    """Make a gated linear unit the product of one half with the sigmoid of the other."""
    x, shape = given["self"], graph.result_shape
    dim = given.get("dim", -1) % len(shape)
    if not graph.is_float(x) or not isinstance(shape[dim], int):
        return False
    size = shape[dim]
    half, gate = (
        graph.call("slice.Tensor", shape, self=x, dim=dim, start=start, end=start + size) for start in (0, size)
    )
    return graph.finish("mul.Tensor", self=half, other=graph.call("sigmoid.default", shape, self=gate))


def _matmul(graph: _Graph, given: Any) -> bool:
    """Make a product by a matrix of the network a dense layer, and bmm a matmul."""
    names = ("self", "mat2") if "mat2" in given else ("self", "other")
    x, y = (given[name] for name in names)
    if isinstance(y, Constant) and graph.is_float(x) and len(graph.shape(y)) == 2 and len(graph.shape(x)) >= 2:
        weight = graph.add_constant(graph.constants[y.name].T, "transposed")
        return graph.finish("linear.default", input=x, weight=weight)
    return "mat2" in given and graph.finish("matmul.default", self=x, other=y)


def _linear(graph: _Graph, given: Any) -> bool:
    """Move a transposition before a dense layer behind it, if the images are not the first axis.

    PyTorch's attention transposes (N, L, C) to (L, N, C); dense layers of the former are convolutions.
    """
    moved, shape = graph.find(given["input"], "transpose.int"), graph.result_shape
    if not moved or not graph.is_float(given["input"]):
        return False
    x, axes = moved["self"], sorted(moved[name] % len(shape) for name in ("dim0", "dim1"))
    if axes != [0, 1] or len(shape) < 3 or not isinstance(graph.shape(x)[1], int):
        return False
    whole = graph.call("linear.default", (shape[1], shape[0], *shape[2:]), **{**given, "input": x})
    return graph.finish("transpose.int", self=whole, dim0=0, dim1=1)


def _attention(graph: _Graph, given: Any) -> bool:
    """Make scaled dot-product attention two products and a softmax (Vaswani et al. 2017, equation 1)."""
    query, key, value = (given[name] for name in ("query", "key", "value"))
    mask = given.get("attn_mask")
    if not graph.is_float(query, key, value) or given.get("enable_gqa"):
        return False
    *batch, queries, width = graph.shape(query)
    keys = graph.shape(key)[-2]
    alike = all(list(graph.shape(one)[:-2]) == batch for one in (key, value))
    if not alike or not batch or not all(isinstance(side, int) for side in (queries, keys, width)):
        return False
    scale = 1 / math.sqrt(width) if given.get("scale") is None else given["scale"]
    if given.get("is_causal"):
        if mask is not None:
            return False
        allowed = torch.ones(queries, keys, dtype=torch.bool, device="cpu").tril()
        mask = graph.add_constant(torch.zeros(queries, keys, device="cpu").masked_fill(~allowed, -math.inf), "mask")
    elif isinstance(mask, Constant) and graph.constants[mask.name].dtype == torch.bool:
        allowed = graph.constants[mask.name]
        if not bool(allowed.any(-1).all()):  # PyTorch gives zeros where nothing is attended to
            return False
        mask = graph.add_constant(torch.zeros(allowed.shape, device="cpu").masked_fill(~allowed, -math.inf), "mask")
    elif mask is not None and not isinstance(mask, Constant) and not graph.is_float(mask):
        return False
    columns = graph.call("transpose.int", (*batch, width, keys), self=key, dim0=-2, dim1=-1)
    shape = (*batch, queries, keys)
    scores = graph.call("matmul.default", shape, self=query, other=columns)
    scores = graph.call("mul.Scalar", shape, self=scores, other=scale)
    if mask is not None:
        scores = graph.call("add.Tensor", shape, self=scores, other=mask)
    weights = graph.call("softmax.int", shape, self=scores, dim=-1)
    return graph.finish("matmul.default", self=weights, other=value)


def _einsum(graph: _Graph, given: Any) -> bool:
    """Make a sum of products over the axes of two values a matrix product of permuted and reshaped ones."""
    operands, equation = list(given["tensors"]), given["equation"].replace(" ", "")
    left, arrow, out = equation.partition("->")
    terms = left.split(",")
    if len(operands) != 2 or len(terms) != 2 or not arrow or "." in equation or not graph.is_float(*operands):
        return False
    if any(len(set(term)) != len(term) for term in (*terms, out)):
        return False
    sizes: dict[str, Any] = {}
    for term, operand in zip(terms, operands, strict=True):
        for label, size in zip(term, graph.shape(operand), strict=True):
            if sizes.setdefault(label, size) != size:
                return False
    x, y = terms
    batch = [label for label in out if label in x and label in y]
    rows, columns = [one for one in out if one in x and one not in y], [one for one in out if one in y and one not in x]
    depth = [label for label in x if label in y and label not in out]
    if set(x) != {*batch, *rows, *depth} or set(y) != {*batch, *columns, *depth}:
        return False
    if not all(isinstance(sizes[label], int) for label in (*rows, *columns, *depth)):
        return False

    def count(labels: list[str]) -> int:
        return math.prod(sizes[label] for label in labels)

    matrices = []
    for operand, term, axes in ((operands[0], x, [rows, depth]), (operands[1], y, [depth, columns])):
        order = [*batch, *axes[0], *axes[1]]
        shape = [sizes[label] for label in order]
        dims = [term.index(label) for label in order]
        permuted = graph.call("permute.default", shape, self=operand, dims=dims)
        shape = [*(sizes[label] for label in batch), count(axes[0]), count(axes[1])]
        matrices.append(graph.call("reshape.default", shape, self=permuted, shape=shape))
    shape = [*(sizes[label] for label in batch), count(rows), count(columns)]
    product = graph.call("matmul.default", shape, self=matrices[0], other=matrices[1])
    order = [*batch, *rows, *columns]
    shape = [sizes[label] for label in order]
    product = graph.call("reshape.default", shape, self=product, shape=shape)
    return graph.finish("permute.default", self=product, dims=[order.index(label) for label in out])


def _regrouped(split: Callable[[Any, Any], list[Any]], dims: Sequence[int]) -> Rule:
    """Return the rule of an operation that splits the axes of a map and merges them in another order: views.

    Args:
        split: Returns the sizes after the split, given the operation's arguments and the shape (N, C, H, W).
        dims: The order of the split axes.
    """

    def rule(graph: _Graph, given: Any) -> bool:
        x, shape = given["self"], graph.shape(given["self"])
        if not graph.is_float(x) or len(shape) != 4 or not all(isinstance(side, int) for side in shape[1:]):
            return False
        moved = graph.permute_split(x, split(given, shape), dims)
        return graph.finish("reshape.default", self=moved, shape=list(graph.result_shape))

    return rule


def _split_for_shuffle(given: Any, shape: Any) -> list[Any]:
    (images, channels, height, width), factor = shape, given["upscale_factor"]
    return [images, channels // factor**2, factor, factor, height, width]


def _split_for_unshuffle(given: Any, shape: Any) -> list[Any]:
    (images, channels, height, width), factor = shape, given["downscale_factor"]
    return [images, channels, height // factor, factor, width // factor, factor]


def _split_channels(given: Any, shape: Any) -> list[Any]:
    (images, channels, height, width), groups = shape, given["groups"]
    return [images, groups, channels // groups, height, width]


def _conv1d(graph: _Graph, given: Any) -> bool:
    """Make a convolution along one axis one of maps of one line."""
    x, weight = given["input"], given["weight"]
    if not graph.is_float(x) or not isinstance(weight, Constant) or len(graph.shape(x)) != 3:
        return False
    (images, channels, length), (_, out_channels, out_length) = graph.shape(x), graph.result_shape
    line = graph.call("unsqueeze.default", (images, channels, 1, length), self=x, dim=2)
    settings = {}
    for name, default in (("stride", 1), ("padding", 0), ("dilation", 1)):
        value = given.get(name, default)
        if isinstance(value, str):
            return False
        settings[name] = [default, value[0] if isinstance(value, list | tuple) else value]
    kernel = graph.add_constant(graph.constants[weight.name][:, :, None], "line")
    result = graph.call(
        "conv2d.default", (images, out_channels, 1, out_length), input=line, weight=kernel, bias=given.get("bias"),
        **settings, groups=given.get("groups", 1),
    )  # fmt: skip
    return graph.finish("squeeze.dim", self=result, dim=2)


def _pair(value: Any) -> tuple[int, int]:
    values = list(value) if isinstance(value, list | tuple) else [value]
    return values[0], values[-1]


def _transposed_convolution(graph: _Graph, given: Any) -> bool:
    """Make a transposed convolution one with an output channel for each phase, and a pixel shuffle.

    Output j of an axis with stride s and padding p is that of phase r = (j + p) mod s at pixel (j + p) // s. The taps
    of a phase are every s-th of the kernel's.
    """
    x, weight, bias = given["input"], given["weight"], given.get("bias")
    constants = all(isinstance(one, Constant) for one in (weight, bias) if one is not None)
    strides, pads = _pair(given.get("stride", 1)), _pair(given.get("padding", 0))
    dilations, groups = _pair(given.get("dilation", 1)), given.get("groups", 1)
    if not graph.is_float(x) or not constants or strides[0] != strides[1] or len(graph.shape(x)) != 4:
        return False
    stride, kernel = strides[0], graph.constants[weight.name]
    sides, out_sides = graph.shape(x)[2:], graph.result_shape[2:]
    if not all(isinstance(side, int) for side in (*sides, *out_sides)) or dilations != (1, 1):
        return False
    taps = [-(-size // stride) for size in kernel.shape[2:]]
    pixels = [side + tap - 1 for side, tap in zip(sides, taps, strict=True)]
    if any(out + pad > stride * size for out, pad, size in zip(out_sides, pads, pixels, strict=True)):
        return False
    ins, outs = kernel.shape[0], kernel.shape[1] * groups
    missing = [stride * tap - size for tap, size in zip(taps, kernel.shape[2:], strict=True)]
    phases = F.pad(kernel, (0, missing[1], 0, missing[0])).reshape(
        groups, ins // groups, outs // groups, taps[0], stride, taps[1], stride
    )
    phases = phases.flip(3, 5).permute(0, 2, 4, 6, 1, 3, 5).reshape(outs * stride**2, ins // groups, *taps)
    biases = None
    if bias is not None:
        biases = graph.add_constant(graph.constants[bias.name].repeat_interleave(stride**2), "phases.bias")
    images, channels = graph.result_shape[0], outs * stride**2
    found = graph.call(
        "conv2d.default", (images, channels, *pixels), input=x, weight=graph.add_constant(phases, "phases"),
        bias=biases, stride=[1, 1], padding=[tap - 1 for tap in taps], dilation=[1, 1], groups=groups,
    )  # fmt: skip
    if stride > 1:
        found = graph.permute_split(found, [images, outs, stride, stride, *pixels], PIXEL_SHUFFLE)
        whole = [images, outs, *(stride * size for size in pixels)]
        found = graph.call("reshape.default", whole, self=found, shape=whole)
    rows = (images, outs, out_sides[0], stride * pixels[1])
    found = graph.call("slice.Tensor", rows, self=found, dim=2, start=pads[0], end=pads[0] + out_sides[0])
    return graph.finish("slice.Tensor", self=found, dim=3, start=pads[1], end=pads[1] + out_sides[1])


def _instance_norm(graph: _Graph, given: Any) -> bool:
    x, shape = given["input"], graph.result_shape
    if not graph.is_float(x) or len(shape) != 4 or not given.get("use_input_stats", True):
        return False
    settings = {name: given[name] for name in ("weight", "bias") if name in given}
    return graph.finish("group_norm.default", input=x, num_groups=shape[1], **settings, eps=given.get("eps", 1e-5))


DECOMPOSITIONS: dict[str, Rule] = {
    "reshape_as.default": _reshape_as,
    "view_as.default": _reshape_as,
    "expand_as.default": _expand_as,
    "addcmul.default": _addcmul,
    "add.Tensor": _response_normalization,
    "square.default": _square,
    "pow.Tensor_Scalar": _square,
    "stack.default": _stack,
    "roll.default": _roll,
    "glu.default": _glu,
    "bmm.default": _matmul,
    "matmul.default": _matmul,
    "linear.default": _linear,
    "scaled_dot_product_attention.default": _attention,
    "einsum.default": _einsum,
    "pixel_shuffle.default": _regrouped(_split_for_shuffle, PIXEL_SHUFFLE),
    "pixel_unshuffle.default": _regrouped(_split_for_unshuffle, [0, 1, 3, 5, 2, 4]),
    "channel_shuffle.default": _regrouped(_split_channels, [0, 2, 1, 3, 4]),
    "conv1d.default": _conv1d,
    "conv_transpose2d.input": _transposed_convolution,
    "instance_norm.default": _instance_norm,
}
