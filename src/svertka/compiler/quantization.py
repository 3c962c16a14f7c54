"""Quantization: which values of a network have 8 bits, with which scales, and the 8-bit weights of its convolutions.

A convolution with 8-bit weights reads maps of 8 bits. What computes such a map, writes it in 8 bits if it can: other
convolutions, pools, concatenations and elementwise operations. All other steps compute with floats. Where a value is
needed in the other form, an elementwise step converts it.
"""

from collections.abc import Callable, Container, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from svertka.compiler.activation_ranges import ActivationHistogram
from svertka.compiler.fusion import FusedNetwork, select_read_tensors
from svertka.compiler.ir import (
    LARGEST_BYTE,
    Concatenation,
    Elementwise,
    FusedConvolution,
    MatrixProduct,
    Pool,
    Quantization,
    Step,
    step_output_numbers,
)
from svertka.compiler.step_checks import has_int8_kernel
from svertka.graph.operation_and_value_types import Constant, Operation, Value, map_leaves

LARGEST_WEIGHT = 127
MAX_TERMS = (2**31 - 1) // (LARGEST_BYTE * 128)  # of a sum of 32 bits
MAX_RANGE_RATIO = 8  # of the parts of a concatenation: with one scale, the smallest has 5 bits
MIN_GROUP = 16  # input channels of a group that is multiplied as a matrix


def can_quantize(step: FusedConvolution, shape: tuple[int, ...]) -> bool:
    """Return whether there are 8-bit kernels for a convolution with weights of `shape`."""
    depthwise = step.groups == shape[0] and shape[1] == 1
    terms = shape[1] * shape[2] * shape[3]
    return terms <= MAX_TERMS and (step.groups == 1 or depthwise or shape[1] >= MIN_GROUP)


def quantize_weights(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return 8-bit numbers for `weight`, (O, C, kh, kw), and the scale of each output channel, (O) float32."""
    largest = weight.flatten(1).abs().amax(1)
    scale = torch.where(largest > 0, largest / LARGEST_WEIGHT, 1.0).float()
    numbers = (weight / scale[:, None, None, None]).round().clamp(-LARGEST_WEIGHT, LARGEST_WEIGHT)
    return numbers.to(torch.int8), scale


def unfuse_gates(fused: FusedNetwork, layers: Container[int]) -> FusedNetwork:
    """Return the network with products instead of gates of convolutions, which 8-bit kernels do not have.

    Args:
        fused: The network.
        layers: The convolutions, by the numbers of their results. The product of each has the same number for any
            choice of others.
    """
    steps: list[Step] = []
    shapes, dtypes = dict(fused.shapes), dict(fused.dtypes)
    product = max(shapes)
    for step in fused.steps:
        if isinstance(step, FusedConvolution) and step.gate is not None:
            product += 1
            if step.result in layers:
                shapes[product], dtypes[product] = shapes[step.x], dtypes[step.x]
                steps.append(Elementwise(step.x, product, step.gate, "MULTIPLY", place=step.place))
                step = replace(step, x=product, gate=None)
        steps.append(step)
    return replace(fused, steps=tuple(steps), shapes=shapes, dtypes=dtypes)


def quantize_network(
    fused: FusedNetwork, observed: Mapping[int, ActivationHistogram], layers: Container[int]
) -> FusedNetwork:
    """Return the network with some of its convolutions in 8 bits.

    Args:
        fused: The network in float32, without gates.
        observed: The numbers of its values on calibration images.
        layers: The convolutions to quantize, by the numbers of their results.
    """
    return _Quantizer(fused, observed, layers).build()


class _Quantizer:
    """Makes the steps of the quantized network, in order."""

    def __init__(
        self, fused: FusedNetwork, observed: Mapping[int, ActivationHistogram], layers: Container[int]
    ) -> None:
        self.fused, self.observed = fused, observed
        self.own = {value: numbers.find_quantization() for value, numbers in observed.items()}
        self.uneven = self._find_uneven()
        self.layers = {
            step.result
            for step in fused.steps
            if isinstance(step, FusedConvolution)
            and step.result in layers
            and step.x in observed
            and not self.uneven.intersection(step.inputs)
            and can_quantize(step, tuple(fused.tensors[step.weight].shape))
        }
        self.wanted = self._find_wanted()
        self.quantizations = self._choose_quantizations()
        self.steps: list[Step] = []
        self.shapes, self.dtypes, self.tensors = dict(fused.shapes), dict(fused.dtypes), dict(fused.tensors)
        self.bytes: dict[int, Quantization] = {}  # the values of 8 bits
        self.converted: dict[int, int] = {}  # value -> its copy in the other form

    def build(self) -> FusedNetwork:
        """Return the quantized network."""
        for step in self.fused.steps:
            if isinstance(step, FusedConvolution) and step.result in self.layers:
                self._add_convolution(step)
            elif self._has_byte_form(step):
                self._add(_with_inputs(step, self._as_bytes), in_bytes=True)
            else:
                self._add(_with_inputs(step, self._as_floats), in_bytes=False)
        output = self.fused.output.map_leaves(
            lambda leaf: Value(self._as_floats(leaf.number)) if isinstance(leaf, Value) else leaf
        )
        tensors = select_read_tensors(self.tensors, self.steps, output)
        return replace(
            self.fused, steps=tuple(self.steps), shapes=self.shapes, dtypes=self.dtypes, tensors=tensors,
            output=output, quantizations=self.bytes,
        )  # fmt: skip

    def _find_uneven(self) -> set[int]:
        """Return the concatenations of parts with very different ranges, and their pools, which stay floats."""
        uneven: set[int] = set()
        for step in self.fused.steps:
            if isinstance(step, Concatenation):
                scales = [self.own[value].scale for value in step.inputs if self._has_range(value)]
                if len(scales) > 1 and max(scales) > MAX_RANGE_RATIO * min(scales):
                    uneven.add(step.result)
            if isinstance(step, Pool | Concatenation) and uneven.intersection(step.inputs):
                uneven.add(step.result)
        return uneven

    def _has_range(self, value: int) -> bool:
        return value in self.observed and not self.observed[value].is_zero

    def _find_wanted(self) -> set[int]:
        """Return the values that are needed in 8 bits."""
        wanted: set[int] = set()
        for step in reversed(self.fused.steps):
            in_bytes = isinstance(step, FusedConvolution) and step.result in self.layers
            if in_bytes or (wanted.intersection(step_output_numbers(step)) and self._fits_bytes(step)):
                wanted.update(step.inputs)
        return wanted

    def _fits_bytes(self, step: Step) -> bool:
        """Return whether a step that is no convolution has an 8-bit kernel, and ranges for all of its values."""
        if not isinstance(step, Pool | Concatenation | Elementwise):
            return False
        if not isinstance(step, Pool) and not has_int8_kernel(step):
            return False
        values = (*step.inputs, step.result)
        if self.uneven.intersection(values):
            return False
        return all(value in self.observed and len(self.fused.shapes[value]) in (2, 4) for value in values)

    def _has_byte_form(self, step: Step) -> bool:
        return not isinstance(step, Operation) and step.result in self.wanted and self._fits_bytes(step)

    def _choose_quantizations(self) -> dict[int, Quantization]:
        """Return a quantization for each value in 8 bits; parts of a concatenation and maximum pools share theirs."""
        same = {value: value for value in self.wanted}

        def root(value: int) -> int:
            while same[value] != value:
                value = same[value]
            return value

        for step in self.fused.steps:
            if not isinstance(step, Pool | Concatenation) or not self._has_byte_form(step):
                continue
            if isinstance(step, Concatenation) or step.kind == "MAXIMUM":  # these only move numbers
                for value in step.inputs:
                    same[root(value)] = root(step.result)
        members: dict[int, list[Quantization]] = {root(value): [] for value in self.wanted}
        for value in filter(self._has_range, self.wanted):
            members[root(value)].append(self.own[value])
        shared = {number: _cover(several or [self.own[number]]) for number, several in members.items()}
        return {value: shared[root(value)] for value in self.wanted}

    def _add_convolution(self, step: FusedConvolution) -> None:
        """Append a convolution with 8-bit weights, its bias corrected for the mean error of these weights."""
        weight = self.tensors[step.weight]
        numbers, scale = quantize_weights(weight)
        name = f"{step.place}.int8.{step.result}"
        error = (numbers * scale.double()[:, None, None, None] - weight).sum((2, 3))  # (O, C / groups)
        means = self.observed[step.x].channel_means.view(step.groups, -1)  # (groups, C / groups)
        shift = (error.view(step.groups, -1, error.shape[1]) * means[:, None]).sum(2).flatten()
        bias = 0 if step.bias is None else self.tensors[step.bias]
        self.tensors |= {f"{name}.weight": numbers, f"{name}.scale": scale, f"{name}.bias": (bias - shift).float()}
        names = {"weight": f"{name}.weight", "weight_scale": f"{name}.scale", "bias": f"{name}.bias"}
        self._add(replace(_with_inputs(step, self._as_bytes), **names), in_bytes=step.result in self.wanted)

    def _add(self, step: Any, *, in_bytes: bool) -> None:
        self.steps.append(step)
        if in_bytes:
            self.bytes[step.result] = self.quantizations[step.result]
            self.dtypes[step.result] = torch.uint8

    def _as_bytes(self, value: int) -> int:
        return value if value in self.bytes else self._convert(value, to_bytes=True)

    def _as_floats(self, value: int) -> int:
        return self._convert(value, to_bytes=False) if value in self.bytes else value

    def _convert(self, value: int, *, to_bytes: bool) -> int:
        """Return the copy of `value` in the other form, which is appended if there is none."""
        if value not in self.converted:
            copy = self.converted[value] = max(self.shapes) + 1
            self.shapes[copy], self.dtypes[copy] = self.shapes[value], torch.float32
            self.quantizations[copy] = self.quantizations[value]
            self._add(Elementwise(value, copy), in_bytes=to_bytes)
        return self.converted[value]


def _cover(several: list[Quantization]) -> Quantization:
    """Return one quantization for the ranges of several."""
    if len(set(several)) == 1:
        return several[0]
    lows = [-one.zero_point * one.scale for one in several]
    highs = [(LARGEST_BYTE - one.zero_point) * one.scale for one in several]
    return Quantization.covering(min(lows), max(highs))


def _with_inputs(step: Any, number: Callable[[int], int]) -> Any:
    """Return a step that reads other values: `number(value)` instead of each."""
    if isinstance(step, Operation):
        moved = map_leaves(
            dict(step.arguments), lambda leaf: Value(number(leaf.number)) if isinstance(leaf, Value) else leaf
        )
        return replace(step, arguments=moved)
    if isinstance(step, Concatenation):
        return replace(step, inputs=tuple(map(number, step.inputs)))
    if isinstance(step, MatrixProduct):
        return replace(step, x=number(step.x), y=number(step.y))
    names = {} if isinstance(step.x, Constant) else {"x": number(step.x)}
    if isinstance(step, FusedConvolution) and step.residual is not None:
        names["residual"] = number(step.residual)
    if isinstance(step, Elementwise) and isinstance(step.y, int):
        names["y"] = number(step.y)
    return replace(step, **names)
