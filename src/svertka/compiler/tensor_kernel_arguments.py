"""Arguments of the native kernels that read and write tensors of any rank by their strides."""

import itertools
import math
import operator
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from svertka.compiler.int8_requantization import IDENTITY, dequantization_scale_and_shift, make_quantized_elementwise
from svertka.compiler.ir import ActivatedStep, Elementwise, MatrixProduct, Padding, Quantization, Reduction, Softmax
from svertka.compiler.layouts import broadcast_strides, collapse_axes
from svertka.conv import native_support

MAX_AXES = 5  # of an elementwise kernel
Sizes = tuple[int, ...]


class StridedOperand(NamedTuple):
    """An operand or the result of a strided kernel: a location, (memory, offset), or a constant tensor.

    It has a `quantization` if its numbers have 8 bits. `storage`: the kernels' name of their dtype.
    """

    where: tuple[int, int] | Tensor
    shape: Sizes
    strides: Sizes
    quantization: Quantization | None = None
    storage: str = "FLOAT32"

    def further(self, more: int) -> Any:
        """Return where it begins, `more` numbers further on, as kernels take it."""
        if isinstance(self.where, Tensor):
            return self.where.as_strided((1,), (1,), self.where.storage_offset() + more)
        return native_support.kernels.Place(self.where[0], self.where[1] + more)

    def part(self, axis: int, start: int, size: int) -> "StridedOperand":
        """Return elements `start` to `start + size` along `axis`; of a location only."""
        assert not isinstance(self.where, Tensor)
        memory, offset = self.where
        shape = (*self.shape[:axis], size, *self.shape[axis + 1 :])
        return self._replace(where=(memory, offset + start * self.strides[axis]), shape=shape)

    def of_heads(self, heads: Sequence[range]) -> "StridedOperand":
        """Return the elements at these indices of the first axes; of a location only."""
        found = self
        for axis, indices in enumerate(heads):
            found = found.part(axis, indices.start, len(indices))
        return found


def to_kernel_epilogue(step: ActivatedStep) -> "native_support.kernels.Epilogue":
    """Return what comes after each result: activation function and clamp."""
    activation = native_support.kernels.Activation[step.activation]
    nowhere, (low, high) = native_support.kernels.Place(-1, 0), step.bounds
    return native_support.kernels.Epilogue(None, nowhere, 0, low, high, activation, step.slope)


def add_elementwise(
    program: "native_support.kernels.Program",
    step: Elementwise,
    x: StridedOperand,
    y: StridedOperand | None,
    result: StridedOperand,
) -> None:
    """Add the combination and the epilogue of `step`, for these operands instead of its own."""
    strides_of_y = (
        broadcast_strides(result.shape, (), ()) if y is None else broadcast_strides(result.shape, y.shape, y.strides)
    )
    operands = [result.strides, broadcast_strides(result.shape, x.shape, x.strides), strides_of_y]
    sizes, strides = collapse_axes(result.shape, operands)
    combination, ending = native_support.kernels.Combination[step.combination], to_kernel_epilogue(step)
    outer, inner = _split(sizes, strides, MAX_AXES)
    strided = native_support.kernels.Strided(inner.sizes, inner.strides[1], inner.strides[2], inner.strides[0])
    for to, of_x, of_y in outer.offsets():
        other = None if y is None else y.further(of_y)
        if any(one is not None and one.storage != "FLOAT32" for one in (result, x, y)):
            operation = make_quantized_elementwise(step, result.quantization, result.storage)
            operands_in_order = x.further(of_x), *_to_real(x), other, *_to_real(y)
            program.add_int8_elementwise(strided, operation, *operands_in_order, result.further(to))
            continue
        program.add_elementwise(strided, combination, x.further(of_x), other, ending, result.further(to))


def _to_real(operand: StridedOperand | None) -> "tuple[native_support.kernels.Storage, tuple[float, float]]":
    """Return how the numbers of an operand are stored, and the scale and shift of those of 8 bits."""
    storage, quantization = ("FLOAT32", None) if operand is None else (operand.storage, operand.quantization)
    affine = IDENTITY if quantization is None else dequantization_scale_and_shift(quantization)
    return native_support.kernels.Storage[storage], affine


def add_matrix_product(
    program: "native_support.kernels.Program",
    step: MatrixProduct,
    x: StridedOperand,
    y: StridedOperand,
    result: StridedOperand,
) -> None:
    """Add one kernel for all matrices, or one for each index of the axes beyond three."""
    *batch, rows, columns = result.shape
    operands = [broadcast_strides(tuple(batch), one.shape[:-2], one.strides[:-2]) for one in (result, x, y)]
    sizes, strides = collapse_axes(batch, operands)
    outer, inner = _split(sizes, strides, 3)
    of_result, of_x, of_y = (
        [*axes, *one.strides[-2:]] for axes, one in zip(inner.strides, (result, x, y), strict=True)
    )
    depth = x.shape[-1]
    shape = native_support.kernels.MatrixProduct(inner.sizes, rows, depth, columns, of_x, of_y, of_result, step.scale)
    for to, x_offset, y_offset in outer.offsets():
        program.add_matrix_product(shape, x.further(x_offset), y.further(y_offset), result.further(to))


def add_softmax(
    program: "native_support.kernels.Program",
    step: Softmax,
    x: StridedOperand,
    y: StridedOperand | None,
    result: StridedOperand,
) -> None:
    """Add a softmax along the contiguous axis, or along another one with vectors of the contiguous axis."""
    shape, axis = result.shape, step.axis
    strides_of_y = broadcast_strides(shape, *(((), ()) if y is None else (y.shape, y.strides)))
    operands = [result.strides, x.strides, strides_of_y]
    others = [one for one in range(len(shape)) if one != axis]
    sizes, strides = collapse_axes([shape[one] for one in others], [[one[k] for k in others] for one in operands])
    innermost = x.strides[axis] == 1 or shape[axis] == 1 or not sizes
    last_size, last = (1, [1, 1, 0]) if innermost else (sizes.pop(), [one.pop() for one in strides])
    outer, inner = _split(sizes, strides, 4 if innermost else 3)
    along = [one[axis] for one in operands]
    if innermost:
        inner.append(shape[axis], [1, 1, along[2]])
    else:
        inner.append(shape[axis], along)
        inner.append(last_size, last)
    of_result, of_x, of_y = inner.strides
    settings = native_support.kernels.Softmax(inner.sizes, of_x, of_y, of_result, innermost, step.scale)
    for to, x_offset, y_offset in outer.offsets():
        other = None if y is None else y.further(y_offset)
        program.add_softmax(settings, x.further(x_offset), other, result.further(to))


def add_reduction(
    program: "native_support.kernels.Program", step: Reduction, x: StridedOperand, result: StridedOperand
) -> None:
    """Add a reduction over the axes of `step`."""
    kept = [axis for axis in range(len(x.shape)) if axis not in step.axes]
    to = result.strides if step.keep else [0] * len(x.shape)
    if not step.keep:
        to = list(to)
        for axis, stride in zip(kept, result.strides, strict=True):
            to[axis] = stride
    sizes, strides = collapse_axes([x.shape[k] for k in kept], [[one[k] for k in kept] for one in (x.strides, to)])
    reduced, (along,) = collapse_axes([x.shape[k] for k in step.axes], [[x.strides[k] for k in step.axes]])
    inside = bool(reduced) and along[-1] == 1
    if inside:
        size, last = reduced.pop(), [along.pop(), 0]
    elif sizes:
        size, last = sizes.pop(), [one.pop() for one in strides]
    else:
        size, last = 1, [1, 0]
    outer, inner = _split(sizes, strides, 3)
    missing = 2 - len(reduced)
    inner.sizes += [1] * missing + reduced + [size]
    inner.strides[0] += [0] * missing + along + last[:1]
    inner.strides[1] += [0, 0, *last[1:]]
    divisor = math.prod(x.shape[axis] for axis in step.axes) - step.correction
    of_x, of_result = inner.strides
    settings = native_support.kernels.Reduction(inner.sizes, of_x, of_result, inside, divisor)
    statistic, ending = native_support.kernels.Statistic[step.statistic], to_kernel_epilogue(step)
    for x_offset, offset in outer.offsets():
        program.add_reduction(settings, statistic, x.further(x_offset), ending, result.further(offset))


def add_border_fill_and_copy(
    program: "native_support.kernels.Program", step: Padding, x: StridedOperand, result: StridedOperand
) -> None:
    """Add fills of the borders, axis by axis, and a copy of `x` between them."""
    value = torch.tensor(step.value, dtype=torch.float32, device="cpu")
    filling, copy = StridedOperand(value, (), ()), Elementwise(step.x, step.result)
    for axis, (before, after) in enumerate(zip(step.before, step.after, strict=True)):
        size = result.shape[axis]
        for start, width in ((0, before), (size - after, after)):
            if width:
                add_elementwise(program, copy, filling, None, result.part(axis, start, width))
        result = result.part(axis, before, size - before - after)
    add_elementwise(program, copy, x, None, result)


def to_kernel_interpolation_axis(
    size: int, indices: Tensor, weights: Tensor
) -> "native_support.kernels.InterpolationAxis":
    """Return one axis of an interpolation, with `indices` and `weights` of each of its outputs."""
    out_size, taps = indices.shape
    numbers = indices.flatten().tolist(), weights.flatten().tolist()
    return native_support.kernels.InterpolationAxis(size, out_size, taps, *numbers)


class _Axes:
    """The sizes of some axes, and the strides of operands along them."""

    def __init__(self, sizes: Sequence[int], strides: Sequence[Sequence[int]]) -> None:
        self.sizes, self.strides = list(sizes), [list(one) for one in strides]

    def append(self, size: int, strides: Sequence[int]) -> None:
        """Append an axis."""
        self.sizes.append(size)
        for axes, stride in zip(self.strides, strides, strict=True):
            axes.append(stride)

    def offsets(self) -> Iterator[list[int]]:
        """Yield the offsets of the operands at each index."""
        for index in itertools.product(*map(range, self.sizes)):
            yield [sum(map(operator.mul, index, one)) for one in self.strides]


def _split(sizes: list[int], strides: list[list[int]], count: int) -> tuple[_Axes, _Axes]:
    """Return the outer axes, and the innermost `count`, filled up with axes of one element."""
    more, missing = max(len(sizes) - count, 0), max(count - len(sizes), 0)
    inner = _Axes([1] * missing + sizes[more:], [[0] * missing + one[more:] for one in strides])
    return _Axes(sizes[:more], [one[:more] for one in strides]), inner
