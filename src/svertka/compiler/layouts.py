"""The layouts of values in memory, for one batch size.

Kernels store each value channels-last in its own memory. Views of these values, such as permutations, slices and
splits, are other strides of the same memory and cost nothing. A step that needs a channels-last map reads a copy if the
value is stored in another order.
"""

import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from svertka.compiler.ir import (
    BatchDependentSize,
    Concatenation,
    ConvolutionChain,
    Elementwise,
    FusedConvolution,
    Interpolation,
    KernelStep,
    MatrixProduct,
    Normalization,
    Padding,
    Pool,
    Reduction,
    Softmax,
    Step,
    step_output_numbers,
)
from svertka.graph.operation_and_value_types import Constant, Operation, Value, iter_leaves

Sizes = tuple[int, ...]
MAX_FOLLOWED = 16  # steps looked at to choose the layout of a result
MAX_REDUCED = 2  # axes, beside the innermost, over which a native reduction goes
# Operations that may need a copy of their input to return it in another shape.
RESHAPES = {"reshape.default", "flatten.using_ints", "unflatten.int", "clone.default", "contiguous.default"}


@dataclass(frozen=True)
class ValueLocation:
    """The location of a value: in the memory of value `root`, from number `offset`, with elements `strides` apart."""

    root: int
    offset: int
    strides: Sizes


def dense_strides(shape: Sizes, order: Iterable[int]) -> Sizes:
    """Return the strides of a dense tensor whose axes are in `order` in memory, the last one contiguous."""
    strides, step = [0] * len(shape), 1
    for axis in reversed(list(order)):
        strides[axis] = step
        step *= shape[axis]
    return tuple(strides)


def default_axis_order(shape: Sizes) -> list[int]:
    """Return the order of axes in memory: channels-last for maps, otherwise row-major."""
    return [0, 2, 3, 1] if len(shape) == 4 else list(range(len(shape)))


def memory_axis_order(shape: Sequence[int], strides: Sequence[int]) -> list[int]:
    """Return the axes from the largest stride to the smallest; axes of one element, of arbitrary stride, first."""
    return sorted(range(len(shape)), key=lambda axis: (shape[axis] > 1, -strides[axis], axis))


def pixel_stride(shape: Sizes, strides: Sizes) -> int | None:
    """Return the distance between the pixels of a map (N, C, H, W) or (N, C), or None if kernels cannot read it.

    Kernels read pixels that lie the same distance apart, with their channels contiguous.
    """
    return row_stride((shape[0], *shape[2:], shape[1]), (strides[0], *strides[2:], strides[1]))


def row_stride(shape: Sizes, strides: Sizes) -> int | None:
    """Return the distance between the rows of (…, C), or None if they are not the same distance apart."""
    channels = shape[-1]
    if strides[-1] != 1 and channels != 1:
        return None
    step: int | None = None
    reach = 1
    for size, stride in reversed(list(zip(shape[:-1], strides[:-1], strict=True))):
        if size == 1:
            continue
        step = stride if step is None else step
        if stride != step * reach:
            return None
        reach *= size
    step = channels if step is None else step
    return step if step >= channels else None


class NetworkLayouts:
    """The layouts of the values of a network for one batch size, and the steps with the copies that they need.

    Args:
        steps: Steps of the network.
        shapes: Shapes of its values, for this batch size.
        batch_size: The batch size.
        inner: The concatenation and the index of the part, for each value inside a concatenation.
        channels_last: Values whose memory is always a channels-last map.

    Attributes:
        steps: The steps in order, without views.
        shapes: Shapes of the values and of copies.
        of: The layout of each value that a kernel reads or writes, and of its views.
        stored: Values computed by operations of PyTorch that are copied to their layout for kernels.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        shapes: Mapping[int, Sizes],
        batch_size: int,
        inner: Mapping[int, tuple[int, int]],
        channels_last: Container[int] = (),
    ) -> None:
        self.shapes, self.batch_size, self.inner = dict(shapes), batch_size, inner
        self._channels_last = channels_last
        self._parts = {step.result: step.inputs for step in steps if isinstance(step, Concatenation)}
        self.of = {0: ValueLocation(0, 0, dense_strides(shapes[0], default_axis_order(shapes[0])))}
        self.steps: list[Step] = []
        self.stored: set[int] = set()
        self._copies: dict[tuple[int, Sizes], int] = {}  # (value, strides of the copy) -> the copy
        for number, step in enumerate(steps):
            if isinstance(step, Operation):
                self._add_operation(step)
            else:
                self._add_kernel(step, steps[number + 1 :][:MAX_FOLLOWED])

    def step_of(self, value: int) -> int:
        """Return the distance from pixel to pixel of a map that a kernel reads or writes."""
        step = pixel_stride(self.shapes[value], self.of[value].strides)
        assert step is not None
        return step

    def find_longest(self, step: Concatenation) -> int:
        """Return the concatenation that begins with the parts of `step` and contains it in memory, or its result."""
        outer, number = self.inner.get(step.result, (step.result, 0))
        begins_alike = number == 0 and self._parts[outer][: len(step.inputs)] == step.inputs
        return outer if begins_alike else step.result

    def _add_operation(self, step: Operation) -> None:
        views = self._follow_views(step)
        if views is not None:
            self.of |= views
            return
        first = next(iter(step.arguments.values()), None)
        if step.name in RESHAPES and isinstance(first, Value) and first.number in self.of:
            (result,) = step.results
            if result is not None and self._copy_to_shape(first.number, result, step.place):
                return
        self.steps.append(step)

    def _follow_views(self, step: Operation) -> dict[int, ValueLocation] | None:
        """Return the layouts of the results if they are all views of a value with a layout."""
        read = [leaf.number for leaf in iter_leaves(step.arguments) if isinstance(leaf, Value)]
        if len(read) != 1 or read[0] not in self.of:
            return None
        if any(isinstance(leaf, Constant) for leaf in iter_leaves(step.arguments)):
            return None
        base = self.of[read[0]]
        reach = 1 + sum((size - 1) * stride for size, stride in zip(self.shapes[read[0]], base.strides, strict=True))
        memory = torch.empty(max(reach, 0), device="meta", dtype=torch.float32)
        x = memory.as_strided(self.shapes[read[0]], base.strides)
        found = step.run(self._on_meta(x))
        views: dict[int, ValueLocation] = {}
        for number, result in zip(step.results, found, strict=True):
            if number is None:
                continue
            if not isinstance(result, Tensor) or result.dtype != x.dtype or min(result.stride(), default=0) < 0:
                return None
            if result.untyped_storage()._cdata != memory.untyped_storage()._cdata:
                return None
            if tuple(result.shape) != self.shapes[number]:
                return None
            views[number] = ValueLocation(base.root, base.offset + int(result.storage_offset()), tuple(result.stride()))
        return views

    def _on_meta(self, x: Tensor) -> Callable[[Any], Any]:
        def value(leaf: Any) -> Any:
            if isinstance(leaf, Value):
                return x
            if isinstance(leaf, torch.device):
                return x.device
            return leaf.of(self.batch_size) if isinstance(leaf, BatchDependentSize) else leaf

        return value

    def _copy_to_shape(self, x: int, result: int, place: str) -> bool:
        """Append a copy of `x` of which `result` is a view, if there is one.

        It is contiguous along the same axis as `x` if possible, so that kernels copy whole vectors.
        """
        shape, strides = self.shapes[x], self.of[x].strides
        contiguous = [axis for axis, stride in enumerate(strides) if stride == 1 and shape[axis] > 1]
        found: list[tuple[bool, ValueLocation, Sizes]] = []
        for order in (default_axis_order(self.shapes[result]), list(range(len(self.shapes[result])))):
            inside = dense_strides(self.shapes[result], order)
            memory = torch.empty(math.prod(shape), device="meta").as_strided(self.shapes[result], inside)
            try:
                copied = memory.view(shape).stride()
            except RuntimeError:  # no view of this memory has that shape
                continue
            matches = any(copied[axis] == 1 for axis in contiguous)
            found.append((not matches, ValueLocation(result, 0, inside), tuple(copied)))
        if not found:
            return False
        _, layout, copied = min(found, key=lambda one: one[0])
        self.of[result] = layout
        self._append_copy(x, copied, root=result, place=place)
        return True

    def _append_copy(self, value: int, strides: Sizes, root: int | None = None, place: str = "") -> int:
        """Append a copy of `value` with other strides, in the memory of `root` or in its own. Return its number."""
        copy = max(self.shapes) + 1
        self.shapes[copy] = self.shapes[value]
        self.of[copy] = ValueLocation(copy if root is None else root, 0, strides)
        self.steps.append(Elementwise(value, copy, place=place))
        return copy

    def _add_kernel(self, step: KernelStep, following: Sequence[Step]) -> None:
        for value in step.inputs:
            if value not in self.of:  # computed by an operation of PyTorch
                self.of[value] = self._own(value, default_axis_order(self.shapes[value]))
                self.stored.add(value)
        if isinstance(step, FusedConvolution):
            residual, gate = (None if one is None else self._as_map(one) for one in (step.residual, step.gate))
            step = replace(step, x=self._as_map(step.x), residual=residual, gate=gate)
        elif isinstance(step, Pool | Interpolation) or (isinstance(step, Normalization) and step.groups is not None):
            step = replace(step, x=self._as_map(step.x))
        elif isinstance(step, Normalization):
            step = replace(step, x=self._as_rows(step.x))
        elif isinstance(step, Softmax):
            step = replace(step, x=self._as_vectors(step.x, [step.axis], along=step.y is not None))
        elif isinstance(step, Reduction):
            step = replace(step, x=self._as_vectors(step.x, step.axes))
        self.of[step.result] = self._make_result(step, following)
        self.steps.append(step)

    def _make_result(self, step: KernelStep, following: Sequence[Step]) -> ValueLocation:
        if step.result in self.inner:
            return self._inside(step.result)
        shape = self.shapes[step.result]
        order = default_axis_order(shape)
        if step.result in self._channels_last:
            return self._own(step.result, order)
        if isinstance(step, MatrixProduct):
            return self._choose_product_order(step.result, following)
        if isinstance(step, Padding) or (isinstance(step, Reduction) and step.keep):
            order = memory_axis_order(self.shapes[step.x], self.of[step.x].strides)
        elif isinstance(step, Elementwise | Softmax) or (isinstance(step, Normalization) and step.groups is None):
            for value in step.inputs:  # broadcast operands have fewer elements
                if self.shapes[value] == shape:
                    order = memory_axis_order(shape, self.of[value].strides)
                    break
        return self._own(step.result, order)

    def _choose_product_order(self, result: int, following: Sequence[Step]) -> ValueLocation:
        """Return a layout of contiguous rows in which the views that follow need no copy, if there is one."""
        *outer, last = range(len(self.shapes[result]))
        swapped = [outer[:-2] + outer[-2:][::-1]] if len(outer) > 1 else []
        layouts = [self._own(result, [*order, last]) for order in (outer, *swapped)]
        return next((one for one in layouts if self._is_free(one, result, following)), layouts[0])

    def _is_free(self, layout: ValueLocation, result: int, following: Sequence[Step]) -> bool:
        """Return whether all reshapes of `result` among the steps that follow are views if it has this layout."""
        known = self.of
        self.of = {result: layout}
        try:
            for step in following:
                if isinstance(step, Operation) and any(value in self.of for value in step.inputs):
                    views = self._follow_views(step)
                    if views is None and step.name in RESHAPES:
                        return False
                    self.of |= views or {}
            return True
        finally:
            self.of = known

    def _own(self, value: int, order: Iterable[int]) -> ValueLocation:
        return ValueLocation(value, 0, dense_strides(self.shapes[value], order))

    def _inside(self, value: int) -> ValueLocation:
        """Return the layout of a map that is a part of a concatenation."""
        outer, number = self.inner[value]
        shape = self.shapes[outer]
        whole = self._inside(outer) if outer in self.inner else self._own(outer, default_axis_order(shape))
        before = sum(self.shapes[part][1] for part in self._parts[outer][:number])
        return ValueLocation(whole.root, whole.offset + before, whole.strides)

    def _as_map(self, value: int) -> int:
        """Return `value`, or a copy of it whose memory is a channels-last map."""
        shape = self.shapes[value]
        if pixel_stride(shape, self.of[value].strides) is not None:
            return value
        return self._copy(value, default_axis_order(shape))

    def _as_rows(self, value: int) -> int:
        """Return `value`, (…, C), or a copy of it whose last axis is contiguous."""
        shape = self.shapes[value]
        if row_stride(shape, self.of[value].strides) is not None:
            return value
        return self._copy(value, range(len(shape)))

    def _as_vectors(self, value: int, axes: Sequence[int], *, along: bool = False) -> int:
        """Return `value`, or a copy of it, whose memory is one that reductions over `axes` read.

        One axis is contiguous (with `along`, one of `axes`), and the others of `axes` are evenly spaced.
        """
        shape, strides = self.shapes[value], self.of[value].strides
        innermost = [axis for axis in memory_axis_order(shape, strides) if shape[axis] > 1][-1:]
        reduced, _ = collapse_axes([shape[axis] for axis in axes], [[strides[axis] for axis in axes]])
        contiguous = all(strides[axis] == 1 and (axis in axes or not along) for axis in innermost)
        if contiguous and len(reduced) <= MAX_REDUCED + any(axis in axes for axis in innermost):
            return value
        return self._copy(value, [*(axis for axis in range(len(shape)) if axis not in axes), *axes])

    def _copy(self, value: int, order: Iterable[int]) -> int:
        strides = dense_strides(self.shapes[value], order)
        if (value, strides) not in self._copies:
            self._copies[value, strides] = self._append_copy(value, strides)
        return self._copies[value, strides]


def collapse_axes(shape: Sequence[int], operands: Sequence[Sequence[int]]) -> tuple[list[int], list[list[int]]]:
    """Return the sizes and strides of an elementwise operation with as few axes as possible, the innermost last.

    Args:
        shape: Shape of the result.
        operands: Strides of the result, then of each operand, 0 along broadcast axes.

    Returns:
        sizes, and for each operand its strides.
    """
    axes = [axis for axis in memory_axis_order(shape, operands[0]) if shape[axis] != 1]
    sizes: list[int] = []
    strides: list[list[int]] = [[] for _ in operands]
    for axis in axes:
        size = shape[axis]
        inner = [operand[axis] for operand in operands]
        if sizes and all(outer[-1] == step * size for outer, step in zip(strides, inner, strict=True)):
            sizes[-1] *= size
            for outer, step in zip(strides, inner, strict=True):
                outer[-1] = step
            continue
        sizes.append(size)
        for outer, step in zip(strides, inner, strict=True):
            outer.append(step)
    return sizes, strides


def broadcast_strides(shape: Sizes, of: Sizes, strides: Sizes) -> Sizes:
    """Return the strides of an operand of shape `of` that is broadcast to `shape`: 0 along repeated axes."""
    missing = len(shape) - len(of)
    return (0,) * missing + tuple(0 if size == 1 else stride for size, stride in zip(of, strides, strict=True))


def step_value_numbers(step: Step | ConvolutionChain) -> tuple[int, ...]:
    """Return the numbers of the values that a step reads and writes."""
    return (*step.inputs, *step_output_numbers(step))
