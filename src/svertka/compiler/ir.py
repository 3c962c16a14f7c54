"""The intermediate representation: captured ATen operations, and the fused steps made from them.

A `CapturedGraph` is a list of `Operation`s. Fusion turns most of them into `FusedConvolution`, `Pool`, `Elementwise`,
`Normalization` and `Concatenation` steps, which native kernels compute; the others remain operations.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from svertka.graph.captured_operations import Constant, Operation

Pair = tuple[int, int]
UNBOUNDED = (-math.inf, math.inf)
LARGEST_BYTE = 255
POOLINGS = "MAXIMUM", "MEAN", "PADDED_MEAN"  # names in the kernels; PADDED_MEAN counts padding
# Activation functions by their names in the kernels; the second argument is the slope.
ACTIVATIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "NONE": lambda x, _: x,
    "SIGMOID": lambda x, _: x.sigmoid(),
    "SILU": lambda x, _: F.silu(x),
    "HARD_SIGMOID": lambda x, _: F.hardsigmoid(x),
    "HARD_SWISH": lambda x, _: F.hardswish(x),
    "GELU": lambda x, _: F.gelu(x),
    "GELU_TANH": lambda x, _: F.gelu(x, approximate="tanh"),
    "TANH": lambda x, _: x.tanh(),
    "MISH": lambda x, _: F.mish(x),
    "ELU": lambda x, slope: F.elu(x, slope),
    "LEAKY_RELU": lambda x, slope: F.leaky_relu(x, slope),
}
# Combinations of two values by their names in the kernels; "FIRST" is the first value alone.
COMBINATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ADD": torch.add,
    "SUBTRACT": torch.sub,
    "MULTIPLY": torch.mul,
    "DIVIDE": torch.div,
    "MAXIMUM": torch.maximum,
    "MINIMUM": torch.minimum,
}


@dataclass(frozen=True)
class Quantization:
    """How unsigned 8-bit numbers stand for real ones: real = `scale` · (number - `zero_point`)."""

    scale: float
    zero_point: int

    @classmethod
    def covering(cls, low: float, high: float) -> "Quantization":
        """Return the quantization of the numbers from `low` to `high`, in which 0 is exact, as padding needs it."""
        low, high = min(low, 0.0), max(high, 0.0)
        scale = float(torch.tensor((high - low) / LARGEST_BYTE, dtype=torch.float32, device="cpu").clamp(min=1e-30))
        return cls(scale, round(-low / scale))

    def quantize(self, values: Tensor) -> Tensor:
        """Return the 8-bit numbers nearest to real `values`, in the dtype of `values`."""
        return (values / self.scale + self.zero_point).round().clamp(0, LARGEST_BYTE)

    def round(self, values: Tensor) -> Tensor:
        """Return the real numbers that 8-bit numbers can stand for and that are nearest to `values`."""
        return (self.quantize(values) - self.zero_point) * self.scale


@dataclass(frozen=True)
class BatchDependentSize:
    """An integer that depends on the batch size: `each` · batch size + `more`."""

    each: int
    more: int

    def of(self, batch_size: int) -> int:
        """Return the integer for a batch of `batch_size` images."""
        return self.each * batch_size + self.more


Shape = tuple[int | BatchDependentSize, ...]


@dataclass(frozen=True)
class CapturedGraph:
    """The operations of a network, with its tensors and its output.

    Attributes:
        operations: The operations in the order in which they run.
        shapes, dtypes: Shape and dtype of each value, by its number.
        constants: The network's tensors, by name.
        output: An `OutputStructure` with Value, Constant and BatchDependentSize as leaves.
        batch_size: The only batch size for which the graph is valid; None if it is valid for any.
        looked_at: Names of the constants whose values decided what was captured.
    """

    operations: tuple[Operation, ...]
    shapes: Mapping[int, Shape]
    dtypes: Mapping[int, torch.dtype]
    constants: Mapping[str, Tensor]
    output: Any
    batch_size: int | None = None
    looked_at: frozenset[str] = frozenset()


@dataclass(frozen=True)
class FusedConvolution:
    """A convolution or dense layer with its epilogue: bias, residual, activation function and clamp to `bounds`.

    Attributes:
        x, result: Numbers of the input and output values.
        weight: Name of the weights, (O, C / groups, kh, kw). The kernel of a dense layer covers the whole feature map.
        bias: Name of the bias, (O), or None.
        padding: Rows above and columns to the left; the shape of the result determines those below and to the right.
        bounds: Lower and upper bound of the result.
        residual: Number of the value added before the activation function, or None.
        place: The path of the module.
        activation, slope: One of ACTIVATIONS, and its second argument.
        multiply: Whether the residual is a factor instead of a summand.
        residual_last: Whether the residual comes after the activation function.
        gate: Number of the value (N, C, 1, 1) that the input of a 1×1 kernel is multiplied by, or None.
        weight_scale: Name of the factors, (O), of 8-bit weights, or None if weights are floats.
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
    activation: str = "NONE"
    slope: float = 0.0
    multiply: bool = False
    residual_last: bool = False
    gate: int | None = None
    weight_scale: str | None = None

    @property
    def inputs(self) -> tuple[int, ...]:
        """The numbers of the values that the step reads."""
        return (self.x, *(value for value in (self.residual, self.gate) if value is not None))

    def run(self, values: list[Tensor], size: Pair, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the result, (N, O, *size), computed with PyTorch's operations from inputs `values`, (N, C, H, W)."""
        x, *residual = values
        if self.gate is not None:
            x = x * residual.pop()
        reach = [d * (k - 1) + 1 for d, k in zip(self.dilation, weight.shape[2:], strict=True)]
        sides = zip(size, self.stride, reach, self.padding, x.shape[2:], strict=True)
        after = [(out - 1) * stride + width - pad - length for out, stride, width, pad, length in sides]
        x = F.pad(x, (self.padding[1], after[1], self.padding[0], after[0]))
        result = F.conv2d(x, weight, bias, self.stride, 0, self.dilation, self.groups)
        combine = COMBINATIONS["MULTIPLY" if self.multiply else "ADD"]
        if residual and not self.residual_last:
            result = combine(result, residual[0])
        result = ACTIVATIONS[self.activation](result, self.slope)
        if residual and self.residual_last:
            result = combine(result, residual[0])
        return clamp_to_bounds(result, self.bounds)


@dataclass(frozen=True)
class Pool:
    """Maximum or average pooling of value `x`; `kind` is one of POOLINGS."""

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
        """The numbers of the values that the step reads."""
        return (self.x,)

    def run(self, values: list[Tensor]) -> Tensor:
        """Return the result, computed with PyTorch's operations."""
        if self.kind == "MAXIMUM":
            return F.max_pool2d(values[0], self.kernel, self.stride, self.padding, self.dilation, self.ceil)
        padded = self.kind == "PADDED_MEAN"
        return F.avg_pool2d(values[0], self.kernel, self.stride, self.padding, self.ceil, padded)


@dataclass(frozen=True)
class Elementwise:
    """`combination` of value `x` with `y`, broadcast, then an activation function and a clamp to `bounds`.

    Attributes:
        x, result: Numbers of the first operand and of the result.
        y: Number of the second operand, a Constant, or None for combination "FIRST".
        combination: One of COMBINATIONS, or "FIRST".
        activation, slope: One of ACTIVATIONS, and its second argument.
        bounds: Lower and upper bound of the result.
        place: The path of the module.
    """

    x: int
    result: int
    y: int | Constant | None = None
    combination: str = "FIRST"
    activation: str = "NONE"
    slope: float = 0.0
    bounds: tuple[float, float] = UNBOUNDED
    place: str = ""

    @property
    def inputs(self) -> tuple[int, ...]:
        """The numbers of the values that the step reads."""
        return (self.x, self.y) if isinstance(self.y, int) else (self.x,)

    def run(self, x: Tensor, y: Tensor | None) -> Tensor:
        """Return the result, computed with PyTorch's operations."""
        result = x if y is None else COMBINATIONS[self.combination](x, y)
        return clamp_to_bounds(ACTIVATIONS[self.activation](result, self.slope), self.bounds)


@dataclass(frozen=True)
class Normalization:
    """Layer norm over the last axis of value `x`, or group norm if `groups` is not None; then a clamp to `bounds`.

    Attributes:
        x, result: Numbers of the input and output values.
        weight, bias: Names of the factors and summands of each channel, or None.
        epsilon: Added to the variance.
        groups: Number of groups of channels, axis 1.
        activation, slope: One of ACTIVATIONS, and its second argument.
        bounds: Lower and upper bound of the result.
        place: The path of the module.
    """

    x: int
    result: int
    weight: str | None
    bias: str | None
    epsilon: float
    groups: int | None = None
    activation: str = "NONE"
    slope: float = 0.0
    bounds: tuple[float, float] = UNBOUNDED
    place: str = ""

    @property
    def inputs(self) -> tuple[int, ...]:
        """The numbers of the values that the step reads."""
        return (self.x,)

    def run(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """Return the result, computed with PyTorch's operations."""
        if self.groups is None:
            result = F.layer_norm(x, x.shape[-1:], weight, bias, self.epsilon)
        else:
            result = F.group_norm(x, self.groups, weight, bias, self.epsilon)
        return clamp_to_bounds(ACTIVATIONS[self.activation](result, self.slope), self.bounds)


@dataclass(frozen=True)
class Concatenation:
    """The values `inputs`, concatenated along the channels."""

    inputs: tuple[int, ...]
    result: int
    place: str = ""

    def run(self, values: list[Tensor]) -> Tensor:
        """Return the result, computed with PyTorch's operations."""
        return torch.cat(values, 1)


@dataclass(frozen=True)
class Chain:
    """Convolutions that are computed together; only the next one reads the output of each."""

    steps: tuple[FusedConvolution, ...]

    @property
    def result(self) -> int:
        """The number of the last convolution's output."""
        return self.steps[-1].result

    @property
    def inputs(self) -> tuple[int, ...]:
        """The numbers of the values that they read and do not compute themselves."""
        made = {step.result for step in self.steps}
        return tuple(value for step in self.steps for value in step.inputs if value not in made)


Step = FusedConvolution | Pool | Elementwise | Normalization | Concatenation | Operation


def clamp_to_bounds(values: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Return `values` clamped to a lower and an upper bound."""
    return values if bounds == UNBOUNDED else values.clamp(*bounds)


def step_results(step: Step | Chain) -> tuple[int, ...]:
    """Return the numbers of the values that a step computes."""
    if isinstance(step, Operation):
        return tuple(number for number in step.results if number is not None)
    return (step.result,)
