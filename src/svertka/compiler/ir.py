"""The intermediate representation: captured ATen operations, and the fused steps made from them.

A `CapturedGraph` is a list of `Operation`s. Fusion turns most of them into the other steps, which native kernels
compute; the others remain operations.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from svertka.graph.operation_and_value_types import Constant, Operation

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
# Functions of one value by their native names.
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "FIRST": lambda x: x,
    "SQUARE_ROOT": torch.sqrt,
    "RECIPROCAL_SQUARE_ROOT": torch.rsqrt,
    "EXPONENTIAL": torch.exp,
}
# Combinations of two values by their native names; the second of "PRELU" are slopes.
COMBINATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ADD": torch.add,
    "SUBTRACT": torch.sub,
    "MULTIPLY": torch.mul,
    "DIVIDE": torch.div,
    "MAXIMUM": torch.maximum,
    "MINIMUM": torch.minimum,
    "PRELU": lambda x, slope: torch.where(x > 0, x, x * slope),
}
# Statistics over axes by their native names.
STATISTICS: dict[str, Callable[..., Tensor]] = {
    "SUM": torch.sum,
    "MEAN": torch.mean,
    "NORM": torch.linalg.vector_norm,
    "MAXIMUM": torch.amax,
    "MINIMUM": torch.amin,
    "VARIANCE": torch.var,
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


Operand = int | Constant | None  # the number of a value, a tensor of the network, or nothing


class TensorStep:
    """A step on tensors of any rank."""

    @property
    def operands(self) -> tuple[Operand, ...]:
        """What it reads, in the order of the arguments of `run`."""
        raise NotImplementedError


class _FixedOperands(TensorStep):
    """A step with a fixed number of operands."""

    @property
    def inputs(self) -> tuple[int, ...]:
        """The numbers of the values it reads."""
        return tuple(operand for operand in self.operands if isinstance(operand, int))


@dataclass(frozen=True)
class Elementwise(_FixedOperands):
    """A function of `x`, or of `x` and `y`, broadcast; then an activation function and a clamp to `bounds`.

    Attributes:
        x: Number of the first operand, or a Constant, which without `y` is repeated to the shape of the result.
        result: Number of the result.
        y: Number of the second operand, a Constant, or None.
        combination: One of COMBINATIONS, or without `y` one of FUNCTIONS.
        activation, slope: One of ACTIVATIONS, and its second argument.
        bounds: Lower and upper bound of the result.
        place: The path of the module.
    """

    x: int | Constant
    result: int
    y: int | Constant | None = None
    combination: str = "FIRST"
    activation: str = "NONE"
    slope: float = 0.0
    bounds: tuple[float, float] = UNBOUNDED
    place: str = ""

    @property
    def operands(self) -> tuple[Operand, ...]:
        """What it reads, in the order of the arguments of `run`."""
        return (self.x, self.y)

    def run(self, x: Tensor, y: Tensor | None) -> Tensor:
        """Return the result, computed with PyTorch's operations."""
        result = FUNCTIONS[self.combination](x) if y is None else COMBINATIONS[self.combination](x, y)
        return apply_activation(self, result)


@dataclass(frozen=True)
class Normalization(_FixedOperands):
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
    def operands(self) -> tuple[Operand, ...]:
        """What it reads, in the order of the arguments of `run`."""
        return (self.x, *(None if name is None else Constant(name) for name in (self.weight, self.bias)))

    def run(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """Return the result, computed with PyTorch's operations."""
        if self.groups is None:
            result = F.layer_norm(x, x.shape[-1:], weight, bias, self.epsilon)
        else:
            result = F.group_norm(x, self.groups, weight, bias, self.epsilon)
        return apply_activation(self, result)


@dataclass(frozen=True)
class MatrixProduct(_FixedOperands):
    """The products of the matrices in values `x`, (…, M, K), and `y`, (…, K, N), times `scale`."""

    x: int
    y: int
    result: int
    scale: float = 1.0
    place: str = ""

    @property
    def operands(self) -> tuple[Operand, ...]:
        """What it reads, in the order of the arguments of `run`."""
        return (self.x, self.y)

    def run(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the result, computed with PyTorch's operations."""
        return torch.matmul(x, y) * self.scale


@dataclass(frozen=True)
class Softmax(_FixedOperands):
    """The softmax of `scale` · `x` + `y` along `axis`; `y` is a Constant, broadcast, or None."""

    x: int
    result: int
    axis: int
    y: Constant | None = None
    scale: float = 1.0
    place: str = ""

    @property
    def operands(self) -> tuple[Operand, ...]:
        """What it reads, in the order of the arguments of `run`."""
        return (self.x, self.y)

    def run(self, x: Tensor, y: Tensor | None) -> Tensor:
        """Return the result, computed with PyTorch's operations."""
        scores = x * self.scale
        return (scores if y is None else scores + y).softmax(self.axis)


@dataclass(frozen=True)
class Reduction(_FixedOperands):
    """A statistic of value `x` over some axes, then an activation function and a clamp to `bounds`.

    Attributes:
        x, result: Numbers of the input and output values.
        statistic: One of STATISTICS.
        axes: That are reduced, in ascending order.
        keep: Whether the result has these axes, with one element each.
        correction: Subtracted from the number of elements in a variance.
        activation, slope: One of ACTIVATIONS, and its second argument.
        bounds: Lower and upper bound of the result.
        place: The path of the module.
    """

    x: int
    result: int
    statistic: str
    axes: tuple[int, ...]
    keep: bool
    correction: float = 0.0
    activation: str = "NONE"
    slope: float = 0.0
    bounds: tuple[float, float] = UNBOUNDED
    place: str = ""

    @property
    def operands(self) -> tuple[Operand, ...]:
        """What it reads, in the order of the arguments of `run`."""
        return (self.x,)

    def run(self, x: Tensor) -> Tensor:
        """Return the result, computed with PyTorch's operations."""
        more = {"correction": self.correction} if self.statistic == "VARIANCE" else {}
        result = STATISTICS[self.statistic](x, dim=self.axes, keepdim=self.keep, **more)
        return apply_activation(self, result)


@dataclass(frozen=True)
class Interpolation(_FixedOperands):
    """A map of another size, interpolated along both axes, then an activation function and a clamp to `bounds`.

    Row i of the result is the sum of the rows row_indices[i] of `x`, times row_weights[i]; columns likewise. Upsampling
    of any kind is of this form, and so are averages over windows of different sizes.

    Attributes:
        x, result: Numbers of the input and output values, (N, C, H, W) and (N, C, H', W').
        row_indices, row_weights: Names of tensors, (H', number of rows that are added).
        column_indices, column_weights: Names of tensors, (W', number of columns that are added).
        activation, slope: One of ACTIVATIONS, and its second argument.
        bounds: Lower and upper bound of the result.
        place: The path of the module.
    """

    x: int
    result: int
    row_indices: str
    row_weights: str
    column_indices: str
    column_weights: str
    activation: str = "NONE"
    slope: float = 0.0
    bounds: tuple[float, float] = UNBOUNDED
    place: str = ""

    @property
    def operands(self) -> tuple[Operand, ...]:
        """What it reads, in the order of the arguments of `run`."""
        names = self.row_indices, self.row_weights, self.column_indices, self.column_weights
        return (self.x, *map(Constant, names))

    def run(self, x: Tensor, rows: Tensor, row_weights: Tensor, columns: Tensor, column_weights: Tensor) -> Tensor:
        """Return the result, computed with PyTorch's operations."""
        lines = (x[:, :, rows] * row_weights[:, :, None]).sum(3)
        result = (lines[..., columns] * column_weights).sum(4)
        return apply_activation(self, result)


@dataclass(frozen=True)
class Padding(_FixedOperands):
    """Value `x` with `before` and `after` elements equal to `value` around it, along each axis."""

    x: int
    result: int
    before: tuple[int, ...]
    after: tuple[int, ...]
    value: float = 0.0
    place: str = ""

    @property
    def operands(self) -> tuple[Operand, ...]:
        """What it reads, in the order of the arguments of `run`."""
        return (self.x,)

    def run(self, x: Tensor) -> Tensor:
        """Return the result, computed with PyTorch's operations."""
        width = [side for sides in zip(reversed(self.before), reversed(self.after), strict=True) for side in sides]
        return F.pad(x, width, value=self.value)


@dataclass(frozen=True)
class Concatenation(TensorStep):
    """The values `inputs`, concatenated along `axis`."""

    inputs: tuple[int, ...]
    result: int
    place: str = ""
    axis: int = 1

    @property
    def operands(self) -> tuple[Operand, ...]:
        """What it reads, in the order of the arguments of `run`."""
        return self.inputs

    def run(self, *values: Tensor) -> Tensor:
        """Return the result, computed with PyTorch's operations."""
        return torch.cat(values, self.axis)


@dataclass(frozen=True)
class ConvolutionChain:
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


@dataclass(frozen=True)
class Attention:
    """The product of a softmax, along the last axis, of a product; only the next step reads the scores."""

    scores: MatrixProduct
    softmax: Softmax
    product: MatrixProduct

    @property
    def result(self) -> int:
        """The number of the second product."""
        return self.product.result

    @property
    def inputs(self) -> tuple[int, ...]:
        """The numbers of the values that it reads and does not compute itself."""
        return (*self.scores.inputs, self.product.y)


ActivatedStep = Elementwise | Normalization | Reduction | Interpolation
StridedStep = (
    Elementwise | Normalization | MatrixProduct | Softmax | Reduction | Interpolation | Padding | Concatenation
)
KernelStep = FusedConvolution | Pool | StridedStep
Step = KernelStep | Operation


def apply_activation(step: ActivatedStep, values: Tensor) -> Tensor:
    """Return `values` after the activation function of `step`, clamped to its bounds."""
    return clamp_to_bounds(ACTIVATIONS[step.activation](values, step.slope), step.bounds)


def clamp_to_bounds(values: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Return `values` clamped to a lower and an upper bound."""
    return values if bounds == UNBOUNDED else values.clamp(*bounds)


def step_output_numbers(step: Step | ConvolutionChain | Attention) -> tuple[int, ...]:
    """Return the numbers of the values that a step computes."""
    if isinstance(step, Operation):
        return tuple(number for number in step.results if number is not None)
    if isinstance(step, Attention):
        return (step.scores.result, step.result)
    return (step.result,)
