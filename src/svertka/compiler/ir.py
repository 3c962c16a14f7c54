"""The intermediate representation of a network: recorded ATen operations, and the steps that fusion makes of them."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Pair = tuple[int, int]
UNBOUNDED = (-math.inf, math.inf)
POOLINGS = "MAXIMUM", "MEAN", "PADDED_MEAN"  # as the kernels name them; the last one with the zeros around the pixels


@dataclass(frozen=True)
class Value:
    """What an operation gave, by its number; 0 is the network's input."""

    number: int


@dataclass(frozen=True)
class Constant:
    """A tensor of the network, by its name there, or one that is computed from such."""

    name: str


@dataclass(frozen=True)
class Size:
    """A whole number that depends on the number of pictures: `each` · pictures + `more`."""

    each: int
    more: int

    def of(self, pictures: int) -> int:
        """The number."""
        return self.each * pictures + self.more


Shape = tuple[int | Size, ...]


@dataclass(frozen=True)
class Operation:
    """One of torch.ops.aten, `name` as in "conv2d.default".

    `arguments`, by name: numbers, strings, dtypes, lists, with Value, Constant and Size in them. `results`: the numbers
    of the values that it gives, None where that is no tensor. `place`: the module that called it.
    """

    name: str
    arguments: Mapping[str, Any]
    results: tuple[int | None, ...]
    place: str

    def run(self, value: Callable[[Any], Any]) -> tuple[Any, ...]:
        """What it gives, with its arguments as `value` has them."""
        function = overload_of(self.name)
        positional, named = [], {}
        for argument in function._schema.arguments:
            if argument.name in self.arguments:
                given = replaced(self.arguments[argument.name], value)
                if argument.kwarg_only:
                    named[argument.name] = given
                else:
                    positional.append(given)
        result = function(*positional, **named)
        return tuple(result) if isinstance(result, tuple | list) else (result,)


@dataclass(frozen=True)
class Recording:
    """The operations of a network, the shapes and dtypes of their values, its tensors, and what it returns.

    `output`: an `outputs.Output`, with Value, Constant and Size in it. `pictures`: the only batch size that it is for,
    or None: any. `looked_at`: the constants whose values decided what was recorded.
    """

    operations: tuple[Operation, ...]
    shapes: Mapping[int, Shape]
    dtypes: Mapping[int, torch.dtype]
    constants: Mapping[str, Tensor]
    output: Any
    pictures: int | None = None
    looked_at: frozenset[str] = frozenset()


def overload_of(name: str) -> Any:
    """The operator of torch.ops.aten called `name`, as in "conv2d.default"."""
    packet, overload = name.split(".")
    return getattr(getattr(torch.ops.aten, packet), overload)


def replaced(structure: Any, one: Callable[[Any], Any]) -> Any:
    """`structure` with `one(leaf)` in place of each leaf of its lists, tuples and dicts."""
    if isinstance(structure, list | tuple):
        inner = [replaced(part, one) for part in structure]
        return inner if isinstance(structure, list) else tuple(inner)
    if isinstance(structure, dict):
        return {key: replaced(part, one) for key, part in structure.items()}
    return one(structure)


def leaves(structure: Any) -> Iterator[Any]:
    """Of lists, tuples and dicts."""
    if isinstance(structure, list | tuple):
        for part in structure:
            yield from leaves(part)
    elif isinstance(structure, Mapping):
        for part in structure.values():
            yield from leaves(part)
    else:
        yield structure


@dataclass(frozen=True)
class Convolution:
    """Value `x` convolved, plus bias, plus value `residual`, then between two bounds, gives value `result`.

    `weight` and `bias`: names of tensors, (O, C / groups, kh, kw) and (O). `padding`: rows above and columns on the
    left; below and on the right as many as the shape of the result asks for. A dense layer's kernel is the whole map.
    """

    x: int
    result: int
    weight: str
    bias: str | None
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    bounds: tuple[float, float] = UNBOUNDED
    residual: int | None = None
    place: str = ""

    @property
    def inputs(self) -> tuple[int, ...]:
        """The values that it reads."""
        return (self.x,) if self.residual is None else (self.x, self.residual)

    def run(self, values: list[Tensor], size: Pair, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The result with PyTorch's own operations, (N, O, *size); `values`: of the inputs, (N, C, H, W)."""
        x, *residual = values
        reach = [d * (k - 1) + 1 for d, k in zip(self.dilation, weight.shape[2:], strict=True)]
        sides = zip(size, self.stride, reach, self.padding, x.shape[2:], strict=True)
        after = [(out - 1) * stride + width - pad - length for out, stride, width, pad, length in sides]
        x = F.pad(x, (self.padding[1], after[1], self.padding[0], after[0]))
        result = F.conv2d(x, weight, bias, self.stride, 0, self.dilation, self.groups)
        return bounded(sum(residual, result), self.bounds)


@dataclass(frozen=True)
class Pool:
    """Windows over value `x`, their largest or mean, give value `result`; `kind`: one of POOLINGS."""

    x: int
    result: int
    kind: str
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    ceil: bool
    place: str = ""

    @property
    def inputs(self) -> tuple[int, ...]:
        """The values that it reads."""
        return (self.x,)

    def run(self, values: list[Tensor]) -> Tensor:
        """The result with PyTorch's own operations."""
        if self.kind == "MAXIMUM":
            return F.max_pool2d(values[0], self.kernel, self.stride, self.padding, self.dilation, self.ceil)
        padded = self.kind == "PADDED_MEAN"
        return F.avg_pool2d(values[0], self.kernel, self.stride, self.padding, self.ceil, padded)


@dataclass(frozen=True)
class Sum:
    """Value `x`, plus value `y`, if any, then between two bounds, gives value `result`."""

    x: int
    result: int
    y: int | None = None
    bounds: tuple[float, float] = UNBOUNDED
    place: str = ""

    @property
    def inputs(self) -> tuple[int, ...]:
        """The values that it reads."""
        return (self.x,) if self.y is None else (self.x, self.y)

    def run(self, values: list[Tensor]) -> Tensor:
        """The result with PyTorch's own operations."""
        return bounded(sum(values[1:], values[0]), self.bounds)


@dataclass(frozen=True)
class Concatenation:
    """The channels of the values `inputs`, one after the other, give value `result`."""

    inputs: tuple[int, ...]
    result: int
    place: str = ""

    def run(self, values: list[Tensor]) -> Tensor:
        """The result with PyTorch's own operations."""
        return torch.cat(values, 1)


@dataclass(frozen=True)
class Chain:
    """Convolutions of which each reads what the one before gives, and nothing else does; computed together."""

    steps: tuple[Convolution, ...]

    @property
    def result(self) -> int:
        """What the last one gives."""
        return self.steps[-1].result

    @property
    def inputs(self) -> tuple[int, ...]:
        """The values that they read, without those that they make."""
        made = {step.result for step in self.steps}
        return tuple(value for step in self.steps for value in step.inputs if value not in made)


Step = Convolution | Pool | Sum | Concatenation | Operation


def bounded(values: Tensor, bounds: tuple[float, float]) -> Tensor:
    """`values` moved between two bounds."""
    return values if bounds == UNBOUNDED else values.clamp(*bounds)


def results_of(step: Step | Chain) -> tuple[int, ...]:
    """The values that a step gives."""
    if isinstance(step, Operation):
        return tuple(number for number in step.results if number is not None)
    return (step.result,)


def inputs_of(step: Step | Chain) -> tuple[int, ...]:
    """The values that a step reads."""
    if isinstance(step, Operation):
        return tuple(leaf.number for leaf in leaves(step.arguments) if isinstance(leaf, Value))
    return step.inputs
