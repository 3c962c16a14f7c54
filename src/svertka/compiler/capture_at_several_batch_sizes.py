"""Capture of a network for any batch size, by comparing captures of several; or for one, where they differ."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from svertka.compiler.ir import BatchDependentSize, CapturedGraph
from svertka.compiler.output_structure import OutputStructure
from svertka.compiler.repeatable_capture import StaticGraphCapture
from svertka.errors import UsageError
from svertka.graph.network_copy import copy_with_meta_tensors, named_tensors
from svertka.graph.operation_and_value_types import Operation, map_leaves

CAPTURED_BATCH_SIZES = (
    2,
    3,
    5,
)  # captured with each: the first two show what depends on the batch size, the third confirms it


def capture_graph(network: nn.Module, shape: tuple[int, ...]) -> CapturedGraph:
    """Capture `network` in inference for inputs of `shape`, (N, C, H, W), for any batch size if possible.

    Nothing is computed and `network` is not changed. Decisions that depend on the input's shape become fixed;
    `DynamicBatchCapturer.make_same_graph_checker` tells whether another batch size leads to the same ones.

    Raises:
        UsageError: As for `StaticGraphCapture`.
    """
    return DynamicBatchCapturer(network, shape[1:]).capture(shape[0])


class DynamicBatchCapturer:
    """Captures `network` for any number of images of `shape`, (C, H, W); without its forward hooks if not `hooks`."""

    def __init__(self, network: nn.Module, shape: tuple[int, ...], *, hooks: bool = True) -> None:
        self.network, self.shape, self.hooks = network, shape, hooks
        self.constants = dict(named_tensors(network))

    def capture(self, batch_size: int) -> CapturedGraph:
        """Return the graph for any batch size; where batch sizes differ, for `batch_size` images only."""
        first = self._capture_runs(batch_size, runs=3)
        whole = self._merge()
        return whole if whole is not None and _matches(whole, first) else first.recording

    def make_same_graph_checker(self, recording: CapturedGraph) -> "SameGraphChecker":
        """Return a check of whether other batch sizes lead to the same graph. It keeps no weights alive."""
        alone = DynamicBatchCapturer(
            copy_with_meta_tensors(self.network, hooks=self.hooks)[0], self.shape, hooks=self.hooks
        )
        read = recording.looked_at & self.constants.keys()
        own = {name: tensor for name, tensor in recording.constants.items() if name not in self.constants}
        alone.constants |= {name: self.constants[name].detach().clone() for name in read}
        return SameGraphChecker(alone, replace(recording, constants=own))

    def _capture_runs(self, batch_size: int, runs: int = 1) -> StaticGraphCapture:
        """Run one copy `runs` times and return the first capture; a later run must repeat the one before."""
        twin, named = copy_with_meta_tensors(self.network, hooks=self.hooks)
        constants, shape = self.constants, (batch_size, *self.shape)
        captures = [first := StaticGraphCapture(self.network, twin, named, shape, constants)]
        for _ in range(1, runs):
            captures.append(StaticGraphCapture(self.network, twin, named, shape, constants, captures[-1]))
            if _are_equal(
                captures[-1].operations, captures[-2].operations
            ):  # caches filled in the first run make it different
                return first
        if runs > 1:
            raise UsageError(
                f"{type(self.network).__name__} computes something else each time it runs; an optimized network must "
                "not keep state between runs"
            )
        return first

    def _merge(self) -> CapturedGraph | None:
        """Return the graph for any batch size; None if batch sizes lead to different graphs."""
        try:
            one, other, third = (self._capture_runs(batch) for batch in CAPTURED_BATCH_SIZES)
        except UsageError:  # the network may only work with the batch size of the example
            return None
        merged = _merge(one, other)
        return merged if merged is not None and _matches(merged, third) else None


class SameGraphChecker:
    """Whether a captured network computes the same graph for a batch size; results are cached."""

    def __init__(self, followed: DynamicBatchCapturer, recording: CapturedGraph) -> None:
        self._followed, self._recording = followed, recording
        self._known: dict[int, bool] = {}

    def __call__(self, batch_size: int) -> bool:
        """Return whether it does for `batch_size` images.

        Raises:
            UsageError: The network cannot run on a batch of this size.
        """
        if batch_size not in self._known:
            self._known[batch_size] = _matches(self._recording, self._followed._capture_runs(batch_size))
        return self._known[batch_size]


def _merge(one: StaticGraphCapture, other: StaticGraphCapture) -> CapturedGraph | None:
    """Return the graph of both, with a BatchDependentSize for integers that differ; None if they differ otherwise."""
    step = other.batch - one.batch

    def both(a: Any, b: Any) -> Any:
        if type(a) is int and type(b) is int and a != b:
            if (b - a) % step:
                raise _DifferentError
            each = (b - a) // step
            return BatchDependentSize(each, a - each * one.batch)
        if isinstance(a, list | tuple) and type(a) is type(b) and len(a) == len(b):
            return type(a)([both(x, y) for x, y in zip(a, b, strict=True)])
        if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
            return {key: both(a[key], b[key]) for key in a}
        if not _are_equal(a, b):
            raise _DifferentError
        return a

    if len(one.operations) != len(other.operations):
        return None
    try:
        operations = []
        for a, b in zip(one.operations, other.operations, strict=True):
            if (a.name, a.results) != (b.name, b.results):
                return None
            operations.append(Operation(a.name, both(a.arguments, b.arguments), a.results, a.place))
        shapes = both(one.shapes, other.shapes)
        output = OutputStructure(one.output.template, both(one.output.leaves, other.output.leaves))
    except _DifferentError:
        return None
    return replace(one.recording, operations=tuple(operations), shapes=shapes, output=output, batch_size=None)


class _DifferentError(Exception):
    """Two captures are not of the same graph."""


def _matches(recording: CapturedGraph, capture: StaticGraphCapture) -> bool:
    """Return whether `capture` has captured what `recording` describes for its batch size."""

    def sized(leaf: Any) -> Any:
        return leaf.of(capture.batch) if isinstance(leaf, BatchDependentSize) else leaf

    if len(recording.operations) != len(capture.operations):
        return False
    same = all(
        a.name == b.name and a.results == b.results and _are_equal(map_leaves(dict(a.arguments), sized), b.arguments)
        for a, b in zip(recording.operations, capture.operations, strict=True)
    )
    own = {name: recording.constants[name] for name in capture.own if name in recording.constants}
    return (
        same
        and _are_equal(map_leaves(dict(recording.shapes), sized), capture.shapes)
        and _are_equal(recording.output.map_leaves(sized).leaves, capture.output.leaves)
        and _are_equal(own, capture.own)
    )


def _are_equal(a: Any, b: Any) -> bool:
    """Return whether two structures are equal, including types; NaN equals NaN."""
    if type(a) is not type(b):
        return False
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_are_equal, a, b))
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(_are_equal(a[key], b[key]) for key in a)
    if isinstance(a, Operation):
        return (a.name, a.results) == (b.name, b.results) and _are_equal(dict(a.arguments), dict(b.arguments))
    if isinstance(a, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num())
    return bool(a == b or (a != a and b != b))
