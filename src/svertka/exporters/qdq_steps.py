"""Steps of a quantized network as ONNX operators between DequantizeLinear and QuantizeLinear nodes (QDQ).

Engines replace an operator that reads DequantizeLinear and feeds QuantizeLinear by one that computes with 8-bit
numbers. They expect no other operator in between, so that residual connections and activation functions, which are part
of a convolution in svertka, become operators of their own, and a ReLU or clamp that rounding implies is left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from svertka.compiler.activation_ranges import ActivationHistogram
from svertka.compiler.fusion import FusedNetwork
from svertka.compiler.ir import (
    LARGEST_BYTE,
    UNBOUNDED,
    Elementwise,
    FusedConvolution,
    Operand,
    Pair,
    Quantization,
    Step,
    TensorStep,
    clamp_to_bounds,
)
from svertka.compiler.quantization import can_quantize
from svertka.graph.operation_and_value_types import Constant, Operation, Value

Bounds = tuple[float, float]

LARGEST_BIAS = 2**30  # of 32 bits, so that sums of products fit beside it
MAP, VECTOR = 4, 2  # the axes of feature maps and of vectors


@dataclass(frozen=True)
class QdqQuantization(Quantization):
    """A quantization whose rounding becomes QuantizeLinear and DequantizeLinear in an exported graph."""

    def round(self, values: Tensor) -> Tensor:
        """Return the values after QuantizeLinear and DequantizeLinear."""
        scale = torch.tensor(self.scale, dtype=torch.float32, device="cpu")
        zero_point = torch.tensor(self.zero_point, dtype=torch.uint8, device="cpu")
        numbers = _call("QuantizeLinear", (values, scale, zero_point), values.shape, dtype=torch.uint8)
        return _call("DequantizeLinear", (numbers, scale, zero_point), values.shape)


@dataclass(frozen=True)
class QdqConvolution(TensorStep):
    """A convolution or dense layer with int8 weights and an int32 bias, as a Conv or Gemm of dequantized numbers.

    Attributes:
        layer: The layer, without residual and activation function.
        size: Height and width of its result; None for a dense layer, whose kernel covers the whole map.
        quantization: That of its input.
    """

    layer: FusedConvolution
    size: Pair | None
    quantization: Quantization

    @property
    def x(self) -> int:
        """The number of the input value."""
        return self.layer.x

    @property
    def result(self) -> int:
        """The number of the output value."""
        return self.layer.result

    @property
    def place(self) -> str:
        """The path of the module."""
        return self.layer.place

    @property
    def inputs(self) -> tuple[int, ...]:
        """The numbers of the values that it reads."""
        return (self.layer.x,)

    @property
    def operands(self) -> tuple[Operand, ...]:
        """What it reads, in the order of the arguments of `run`."""
        names = self.layer.weight, self.layer.weight_scale, self.layer.bias
        return (self.layer.x, *(Constant(name) for name in names if name is not None))

    def run(self, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        """Return the result.

        Args:
            x: The input, (N, C, H, W) or (N, C) float32.
            weight: (O, C / groups, kh, kw) int8.
            scale: That of the weights of each output channel, (O) float32.
            bias: (O) int32, in units of the scales of input and weights.
        """
        layer, channels = self.layer, len(weight)
        numbers = weight if self.size is not None else weight.flatten(1)
        factors = _dequantize_channels(numbers, scale)
        summands = _dequantize_channels(bias, scale * self.quantization.scale)
        if self.size is None:
            if x.dim() != VECTOR:  # engines expect DequantizeLinear right before Gemm
                x = QdqQuantization(self.quantization.scale, self.quantization.zero_point).round(x.flatten(1))
            result = _call("Gemm", (x, factors, summands), (x.shape[0], channels), {"transB": 1})
            return clamp_to_bounds(result, layer.bounds)
        reach = [rate * (taps - 1) + 1 for rate, taps in zip(layer.dilation, weight.shape[2:], strict=True)]
        sides = zip(self.size, layer.stride, reach, layer.padding, x.shape[2:], strict=True)
        after = [max(0, (out - 1) * stride + width - pad - length) for out, stride, width, pad, length in sides]
        settings = {
            "pads": [*layer.padding, *after],
            "strides": list(layer.stride),
            "dilations": list(layer.dilation),
            "kernel_shape": list(weight.shape[2:]),
            "group": layer.groups,
        }
        result = _call("Conv", (x, factors, summands), (x.shape[0], channels, *self.size), settings)
        return clamp_to_bounds(result, layer.bounds)


def separate_epilogues(fused: FusedNetwork, layers: set[int]) -> tuple[FusedNetwork, set[int]]:
    """Return the network with residuals and activation functions of some convolutions as steps of their own.

    Args:
        fused: The network in float32.
        layers: The convolutions, by the numbers of their results.

    Returns:
        The network, and the numbers of the results of these convolutions in it, without those that have no form in
        ONNX with 8 bits.
    """
    steps: list[Step] = []
    shapes, dtypes, found = dict(fused.shapes), dict(fused.dtypes), set()

    def add_value(like: int) -> int:
        number = max(shapes) + 1
        shapes[number], dtypes[number] = shapes[like], dtypes[like]
        return number

    for step in fused.steps:
        if not isinstance(step, FusedConvolution) or step.result not in layers or not _has_qdq_form(fused, step):
            steps.append(step)
            continue
        after = _list_epilogue(step)
        value = add_value(step.result) if after else step.result
        found.add(value)
        bounds = UNBOUNDED if after else step.bounds
        steps.append(
            replace(step, result=value, residual=None, multiply=False, activation="NONE", slope=0.0, bounds=bounds)
        )
        for number, one in enumerate(after, 1):
            is_last = number == len(after)
            result = step.result if is_last else add_value(step.result)
            steps.append(replace(one, x=value, result=result, bounds=step.bounds if is_last else UNBOUNDED))
            value = result
    return replace(fused, steps=tuple(steps), shapes=shapes, dtypes=dtypes), found


def _list_epilogue(step: FusedConvolution) -> list[Elementwise]:
    """Return what follows the products of a convolution, in order; the first operand and the results are unset."""
    found = []
    if step.activation != "NONE":
        found.append(Elementwise(-1, -1, activation=step.activation, slope=step.slope, place=step.place))
    if step.residual is not None:
        combination = "MULTIPLY" if step.multiply else "ADD"
        place = len(found) if step.residual_last else 0
        found.insert(place, Elementwise(-1, -1, step.residual, combination, place=step.place))
    return found


def _has_qdq_form(fused: FusedNetwork, step: FusedConvolution) -> bool:
    """Return whether a convolution of maps, or a dense layer of vectors, has an 8-bit form in ONNX."""
    if not can_quantize(step, tuple(fused.tensors[step.weight].shape)):
        return False
    x, result = fused.shapes[step.x], fused.shapes[step.result]
    if step.residual is not None and len(fused.shapes[step.residual]) != len(result):
        return False
    if len(x) == len(result) == MAP:
        return True
    taps = tuple(fused.tensors[step.weight].shape[2:])
    is_whole = taps == tuple((*x[2:], 1, 1)[:2]) and step.padding == (0, 0) and step.groups == 1
    return len(x) in (VECTOR, MAP) and len(result) == VECTOR and is_whole


def quantize_results(fused: FusedNetwork, observed: Mapping[int, ActivationHistogram]) -> FusedNetwork:
    """Return a quantized network in which the maps that 8-bit convolutions compute have 8 bits, too.

    Engines compute a Conv with 8-bit numbers only if QuantizeLinear follows.
    """
    outputs = {leaf.number for leaf in fused.output.leaves if isinstance(leaf, Value)}
    more = {
        step.result: observed[step.result].find_quantization()
        for step in fused.steps
        if isinstance(step, FusedConvolution)
        and step.weight_scale is not None
        and len(fused.shapes[step.result]) == MAP
        and step.result not in {*fused.quantizations, *outputs}
        and step.result in observed
    }
    return replace(fused, quantizations={**more, **fused.quantizations})


def make_qdq_steps(fused: FusedNetwork) -> FusedNetwork:
    """Return a quantized network whose 8-bit layers and values become QDQ operators when it is exported."""
    tensors, steps, float_maps = dict(fused.tensors), [], set()
    for step in fused.steps:
        made: Any = step
        quantization = fused.quantizations.get(step.result) if not isinstance(step, Operation) else None
        if isinstance(step, FusedConvolution) and step.weight_scale is not None:
            made = _make_convolution(fused, step, tensors)
        elif isinstance(step, FusedConvolution):
            float_maps.add(step.result)
            if quantization is not None:
                made = replace(step, bounds=_tighten_bounds(step.bounds, quantization))
        elif isinstance(step, Elementwise) and quantization is not None:
            is_copy = step.x in float_maps and step == Elementwise(step.x, step.result)
            narrow = _tighten_bounds if is_copy else _drop_implied_bounds
            made = replace(step, bounds=narrow(step.bounds, quantization))
        steps.append(made)
    quantizations = {value: QdqQuantization(one.scale, one.zero_point) for value, one in fused.quantizations.items()}
    return replace(fused, steps=tuple(steps), tensors=tensors, quantizations=quantizations)


def _make_convolution(fused: FusedNetwork, step: FusedConvolution, tensors: dict[str, Tensor]) -> QdqConvolution:
    """Return a layer with weights and a bias in integers, which are added to `tensors`."""
    assert step.weight_scale is not None
    assert step.bias is not None
    of_x = fused.quantizations[step.x]
    numbers, scale, bias = (fused.tensors[name] for name in (step.weight, step.weight_scale, step.bias))
    wide = torch.maximum(scale.double(), bias.double().abs() / (of_x.scale * LARGEST_BIAS)).float()
    ratio = (scale.double() / wide.double())[:, None, None, None]
    units = bias.double() / (wide.double() * of_x.scale)
    of_weight, of_scale, of_bias = (f"{step.weight}.{kind}" for kind in ("rounded", "rounded_scale", "rounded_bias"))
    tensors[of_weight] = (numbers * ratio).round().to(torch.int8)
    tensors[of_scale] = wide
    tensors[of_bias] = units.round().to(torch.int32)
    quantization = fused.quantizations.get(step.result)
    bounds = step.bounds if quantization is None else _drop_implied_bounds(step.bounds, quantization)
    size: Any = fused.shapes[step.result][2:]
    layer = replace(step, weight=of_weight, weight_scale=of_scale, bias=of_bias, bounds=bounds)
    return QdqConvolution(layer, size or None, of_x)


def _drop_implied_bounds(bounds: Bounds, quantization: Quantization) -> Bounds:
    """Return `bounds`, or none if the numbers that 8 bits can stand for are within them after rounding."""
    low, high = (
        float(quantization.quantize(torch.tensor(bound, dtype=torch.float64, device="cpu"))) for bound in bounds
    )
    return UNBOUNDED if (low, high) == (0, LARGEST_BYTE) else bounds


def _tighten_bounds(bounds: Bounds, quantization: Quantization) -> Bounds:
    """Return bounds that are a quarter of a step within the 8-bit numbers, so that rounding gives the same.

    ONNX Runtime cannot remove such a clamp. Without it, a float convolution between DequantizeLinear and QuantizeLinear
    would get 8-bit weights, with one scale for all channels.
    """
    low, high = (quantization.scale * (number - quantization.zero_point) for number in (0.25, LARGEST_BYTE - 0.25))
    return max(bounds[0], low), min(bounds[1], high)


def _dequantize_channels(numbers: Tensor, scale: Tensor) -> Tensor:
    """Return integers after DequantizeLinear with a scale for each index of axis 0."""
    zero_points = torch.zeros(len(scale), dtype=numbers.dtype, device="cpu")
    return _call("DequantizeLinear", (numbers, scale, zero_points), numbers.shape, {"axis": 0})


def _call(
    name: str,
    inputs: Sequence[Tensor],
    shape: Sequence[Any],
    attributes: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return the result, of this shape and dtype, of an ONNX operator in a graph that is being exported."""
    result: Tensor = torch.onnx.ops.symbolic(name, inputs, dict(attributes or {}), dtype=dtype, shape=shape)
    return result
