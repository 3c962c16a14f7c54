"""The steps of a network while it is fused, and the arguments of one operation, as the rules of fusion see them."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from svertka.compiler.ir import (
    CapturedGraph,
    Elementwise,
    FusedConvolution,
    Interpolation,
    Normalization,
    Pair,
    Reduction,
    Shape,
    Step,
)
from svertka.graph.operation_and_value_types import Constant, Operation, Value, iter_leaves

# Operations that return the values of their input in another arrangement.
VIEWS = {"permute.default", "transpose.int", "reshape.default", "flatten.using_ints", "unflatten.int", "movedim.int"}
VIEWS |= {"unsqueeze.default", "squeeze.dim", "squeeze.dims", "swapaxes.default", "view.default", "t.default"}
VIEWS |= {"slice.Tensor"}
# Steps that can have an activation function.
EPILOGUES = (FusedConvolution, Elementwise, Normalization, Reduction, Interpolation)


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

    def extend(self, step: Any, given: "UnaryOperationArguments") -> bool:
        """Replace the step that computes `step.result` and remove the current operation. Return True."""
        self.steps[step.result] = step
        return self.drop(given)

    def drop(self, given: "UnaryOperationArguments") -> bool:
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


class UnaryOperationArguments:
    """The arguments of an operation with one input tensor and one result."""

    def __init__(self, operation: Operation, state: FusionState) -> None:
        given = operation.arguments
        first = next((leaf for leaf in iter_leaves(given) if isinstance(leaf, Value)), None)
        self.place = operation.place
        self.x: Any = state.resolve(first) if first is not None else None
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


Rule = Callable[[FusionState, UnaryOperationArguments], bool]
