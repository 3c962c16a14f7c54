"""The backward pass of deconvolution as a graph of its own.

The gradient of each value of a forward pass is a sum of terms, each computed from the gradient of a later value. Only
max-pooling depends on the image, by its switches.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from svertka.graph.operation_and_value_types import Constant, Operation, Value, find_operator_by_name
from svertka.graph.summary import Layer, LayerCapture, capture_layers

Pair = tuple[int, int]
Shape = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Term:
    """A part of a value's gradient that depends on the gradient of `result`."""

    result: int

    def __deepcopy__(self, _: Any) -> "Term":
        """Return the term itself, which never changes."""
        return self


class Copied(Term):
    """The gradient of `result`."""


class Rectified(Term):
    """The positive part of the gradient of `result`."""


class Unknown(Term):
    """A part that is computed by an operation without a rule."""


@dataclass(frozen=True, eq=False)
class Scaled(Term):
    """The gradient of `result` times the factor of each channel, (C,)."""

    factors: Tensor


@dataclass(frozen=True, eq=False)
class ChannelRange(Term):
    """The gradient of some channels of `result`, from `first` on."""

    first: int


@dataclass(frozen=True, eq=False)
class Windows(Term):
    """Tap t of position i of `result` belongs to pixel i · stride + t · dilation − padding, (y, x) each."""

    taps: Pair
    stride: Pair
    padding: Pair
    dilation: Pair


@dataclass(frozen=True, eq=False)
class Transposed(Windows):
    """A transposed convolution; `weight` is (channels of `result`, C / groups, *taps)."""

    weight: Tensor
    groups: int


@dataclass(frozen=True, eq=False)
class Unpooled(Windows):
    """Max-unpooling by the switches of max-pooling `pool`, its number in the forward pass; rectified if `rectify`."""

    pool: int
    rectify: bool = False


@dataclass(frozen=True)
class Cone:
    """The gradients between a value and the image.

    Attributes:
        target: The value whose gradient is given.
        terms: The terms of each other value that contributes to the gradient of the image, by number, the last first.
        shapes: (C, H, W) of each value.
    """

    target: int
    terms: Mapping[int, Sequence[Term]]
    shapes: Mapping[int, Shape]


class BackwardGraph:
    """The gradients of all values of a network's forward pass.

    Args:
        network: Any nn.Module.
        shape: Shape of the input, (1, C, H, W).

    Attributes:
        pools: The max-pools in the order in which they run, and the width of their inputs; None for unknown ones.

    Raises:
        UsageError: The network cannot be traced with such an input.
    """

    def __init__(self, network: nn.Module, shape: tuple[int, ...]) -> None:
        capture = capture_layers(network, shape)
        self._outputs = {call.key: number for call, (_, number) in capture.outputs.items() if call.key}
        self._shapes = {number: one[1:] for number, one in capture.shapes.items() if len(one) == 4 and one[0] == 1}
        self._terms: dict[int, list[Term]] = {}
        self.pools: list[tuple[Unpooled, int] | None] = []
        rules = _Rules(capture, self._shapes)
        for operation in capture.operations:
            for source, term in rules.terms(operation):
                if operation.name.startswith("max_pool2d_with_indices"):
                    self.pools.append((term, self._shapes[source][2]) if isinstance(term, Unpooled) else None)
                self._terms.setdefault(source, []).append(term)

    def cone(self, layer: Layer) -> Cone | None:
        """Return the gradients between `layer` and the image; None if the rules do not cover them."""
        target = self._outputs.get(layer.call) if layer.call else None
        if target is None or target not in self._shapes or layer.maps is None or not layer.maps.is_standard:
            return None
        inside, terms = {target}, {}
        for value in range(target - 1, -1, -1):
            if found := [term for term in self._terms.get(value, ()) if term.result in inside]:
                if value not in self._shapes or any(isinstance(term, Unknown) for term in found):
                    return None
                inside.add(value)
                terms[value] = found
        return Cone(target, _merge(terms), self._shapes) if 0 in terms else None


def _merge(terms: Mapping[int, Sequence[Term]]) -> dict[int, list[Term]]:
    """Return the terms that are still read with ReLUs merged into unpooling, and scales into convolutions."""
    merged = {value: [_merge_term(term, terms) for term in some] for value, some in terms.items()}
    read, kept = {0}, {}
    for value in sorted(merged):  # the image first
        if value in read:
            kept[value] = merged[value]
            read.update(term.result for term in merged[value])
    return dict(sorted(kept.items(), reverse=True))


def _merge_term(term: Term, terms: Mapping[int, Sequence[Term]]) -> Term:
    while len(before := terms.get(term.result, ())) == 1:
        (one,) = before
        if isinstance(one, Copied):
            term = replace(term, result=one.result)
        elif isinstance(term, Rectified) and isinstance(one, Unpooled):
            return replace(one, rectify=True)
        elif isinstance(term, Transposed) and isinstance(one, Scaled):
            term = replace(term, result=one.result, weight=term.weight * one.factors[:, None, None, None])
        else:
            break
    return term


class _Rules:
    """The terms of the operations of a captured forward pass."""

    def __init__(self, capture: LayerCapture, shapes: Mapping[int, Shape]) -> None:
        self._capture, self._shapes, self._pools = capture, shapes, 0

    def terms(self, operation: Operation) -> Iterator[tuple[int, Term]]:
        """Yield the terms of the values that an operation reads, by their numbers."""
        name, result = operation.name.partition(".")[0], operation.results[0]
        schema = find_operator_by_name(operation.name)._schema.arguments
        given = {one.name: one.default_value for one in schema} | dict(operation.arguments)
        rule = getattr(self, f"_{name.strip('_')}", None)
        pool, self._pools = self._pools, self._pools + (name == "max_pool2d_with_indices")
        if result is None:
            return
        term = None if rule is None or result not in self._shapes else rule(result, given)
        if isinstance(term, Unpooled):
            term = replace(term, pool=pool)
        if isinstance(term, list):  # a term for each of the given values
            yield from term
            return
        for number in operation.inputs:
            yield number, term or Unknown(result)

    def _relu(self, result: int, _: Mapping[str, Any]) -> Term | None:
        return Rectified(result)

    def _hardtanh(self, result: int, given: Mapping[str, Any]) -> Term | None:
        return Rectified(result) if given["min_val"] == 0 else None

    def _alias(self, result: int, _: Mapping[str, Any]) -> Term | None:
        return Copied(result)

    _clone = _detach = _alias

    def _add(self, result: int, given: Mapping[str, Any]) -> Term | None:
        values = [one for one in (given["self"], given["other"]) if isinstance(one, Value)]
        same = all(self._shapes.get(one.number) == self._shapes[result] for one in values)
        return Copied(result) if same and given["alpha"] == 1 and len(set(values)) == len(values) else None

    def _cat(self, result: int, given: Mapping[str, Any]) -> list[tuple[int, Term]] | None:
        if given["dim"] not in (1, -3) or not all(isinstance(one, Value) for one in given["tensors"]):
            return None
        found: list[tuple[int, Term]] = []
        first = 0
        for one in given["tensors"]:
            if one.number not in self._shapes:
                return None
            found.append((one.number, ChannelRange(result, first)))
            first += self._shapes[one.number][0]
        return found

    def _native_batch_norm(self, result: int, given: Mapping[str, Any]) -> Term | None:
        weight, variance = self._tensor(given["weight"]), self._tensor(given["running_var"])
        if given["training"] or variance is None or (weight is None and given["weight"] is not None):
            return None
        scale = (variance.double() + given["eps"]).rsqrt()
        return Scaled(result, (scale if weight is None else scale * weight.double()).to(variance.dtype))

    def _convolution(self, result: int, given: Mapping[str, Any]) -> Term | None:
        weight = self._tensor(given["weight"])
        if weight is None or weight.ndim != 4 or given["transposed"]:
            return None
        taps, stride, padding, dilation = _pairs(weight.shape[2:], given["stride"], given["padding"], given["dilation"])
        return Transposed(result, taps, stride, padding, dilation, weight, given["groups"])

    def _avg_pool2d(self, result: int, given: Mapping[str, Any]) -> Term | None:
        taps, stride, padding, one = _pairs(
            given["kernel_size"], given["stride"] or given["kernel_size"], given["padding"], 1
        )
        whole = given["count_include_pad"] or padding == (0, 0)
        if given["ceil_mode"] or not whole or given["divisor_override"]:
            return None
        channels = self._shapes[result][0]
        weight = torch.full((channels, 1, *taps), 1 / math.prod(taps), dtype=torch.float32, device="cpu")
        return Transposed(result, taps, stride, padding, one, weight, channels)

    def _max_pool2d_with_indices(self, result: int, given: Mapping[str, Any]) -> Term | None:
        taps, stride, padding, dilation = _pairs(
            given["kernel_size"], given["stride"] or given["kernel_size"], given["padding"], given["dilation"]
        )
        return Unpooled(result, taps, stride, padding, dilation, pool=0)

    def _tensor(self, symbol: Any) -> Tensor | None:
        """Return a tensor of the network; None if there is none, or it is computed."""
        if not isinstance(symbol, Constant):
            return None
        found = self._capture.constants.get(symbol.name)
        return None if found is None or found.is_meta else found.detach()


def _pairs(*settings: Any) -> Iterator[Pair]:
    for one in settings:
        values = list(one) if isinstance(one, Sequence) else [one]
        yield int(values[0]), int(values[-1])
