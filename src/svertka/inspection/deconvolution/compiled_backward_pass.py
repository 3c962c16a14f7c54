"""The compiled backward pass of deconvolution from one layer, for batches of units and images.

This pass is a network of its own (`backward_graph`). It runs on windows outside which the
gradients are 0 (`gradient_windows`), from one activation, for a batch of units and images. Stages between changes of
the windows are compiled (`backward_stages`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from svertka.compiler.optimize import Optimized, optimize
from svertka.data.dataset import Ints
from svertka.inspection.deconvolution.backward_graph import (
    Cone,
    Copied,
    Pair,
    Rectified,
    Scaled,
    Transposed,
    Unpooled,
    Windows,
)
from svertka.inspection.deconvolution.backward_stages import (
    Stage,
    StageNetwork,
    TransposedNetwork,
    find_stages,
)
from svertka.inspection.deconvolution.gradient_windows import Window, find_windows, keeps_positions
from svertka.inspection.deconvolution.max_unpooling import (
    PooledWindows,
    can_unpool,
    can_unpool_and_transpose,
    max_unpool,
    pack_weights,
    unpool_and_transpose,
)

BATCH_SIZE = 8  # units and images at a time

Switches = Callable[[int, int], Tensor]  # of the image and the max-pool of these numbers, (h, w, C) int8
CompiledStages = dict[object, Optimized]


class PlacedGradient(NamedTuple):
    """Gradients (N, C, h, w), and the positions of their first row and column in the map, (N, 2)."""

    values: Tensor
    starts: Ints


class CompiledBackwardPass:
    """Projects units of one layer, in float32 on the CPU.

    Args:
        cone: The gradients between the layer and the image.
        compiled: Compiled stages of other layers of the same network, which are used and added to.

    Attributes:
        used: The keys of the compiled stages that were used.

    Raises:
        UsageError: A stage cannot be compiled.
    """

    def __init__(self, cone: Cone, windows: dict[int, Window], compiled: CompiledStages) -> None:
        self._windows, self._compiled = windows, compiled
        self.used: set[object] = set()
        self._first, self._filters, self._factors = _follow_activation(cone)
        self._cone = replace(cone, terms={value: some for value, some in cone.terms.items() if value < self._first})
        # The weights of transposed convolutions of gradients that come from max-unpooling alone, which are mostly 0.
        self._packed = {one.result: pack_weights(one) for one in _find_transposed_after_unpooling(self._cone)}
        self._stages = [
            stage
            for stage in find_stages(self._cone, self._first, windows)
            if not self._packed.keys() >= set(stage.inner)
        ]

    def project(self, units: Ints, positions: Ints, images: Ints, switches: Switches) -> Iterator[PlacedGradient]:
        """Yield the gradients of the image for batches of activations.

        Args:
            units: (N,) channels of the layer.
            positions: (N, 2) rows and columns in its feature map.
            images: (N,) numbers of images.
            switches: Returns the switches of an image.
        """
        for first in range(0, len(units), BATCH_SIZE):
            batch = np.minimum(np.arange(first, first + BATCH_SIZE), len(units) - 1)  # the last is repeated
            run = _Run(positions[batch], images[batch], self._windows, switches)
            found = self._run(run, units[batch], positions[batch])
            count = min(BATCH_SIZE, len(units) - first)
            yield PlacedGradient(found.values[:count], found.starts[:count])

    def _run(self, run: "_Run", units: Ints, positions: Ints) -> PlacedGradient:
        run.gradients[self._first] = self._plant(units, positions, run.starts(self._first))
        for stage in self._stages:
            if (
                0 in stage.added
                and stage.is_copy
                and len(stage.added[0]) == 1
                and isinstance(stage.added[0][0], Transposed)
            ):
                return self._transpose(run, 0, stage.added[0][0])  # also what is outside of the image
            added = [self._add(run, value, terms) for value, terms in stage.added.items()]
            if not stage.is_copy:
                place = next(iter(stage.inner))
                added = self._run_stage(stage, [run.read(value, place) for value in stage.read] + added)
            for value, gradient in zip(stage.returned, added, strict=True):
                run.gradients[value] = PlacedGradient(gradient, run.starts(value))
        return run.gradients[0]

    def _plant(self, units: Ints, positions: Ints, starts: Ints) -> PlacedGradient:
        """Return the gradient of the first value, that of an activation of 1."""
        term, shape = self._filters, self._cone.shapes[self._first]
        height, width = (axis.length for axis in self._windows[self._first])
        values = torch.zeros(len(units), height, width, shape[0])
        factors = self._factors[torch.from_numpy(units)]
        if term is None:
            rows, columns = torch.from_numpy(positions - starts).T
            values[torch.arange(len(units)), rows, columns, torch.from_numpy(units)] = factors
            return PlacedGradient(values.permute(0, 3, 1, 2), starts)
        kernels = (term.weight[torch.from_numpy(units)] * factors[:, None, None, None]).permute(0, 2, 3, 1)
        corners = positions * term.stride - term.padding - starts
        channels = units // (len(term.weight) // term.groups) * term.weight.shape[1]
        for one, kernel, corner, channel in zip(values, kernels, corners.tolist(), channels.tolist(), strict=True):
            to, of = zip(
                *(_overlap(*axis) for axis in zip(corner, term.taps, term.dilation, one.shape[:2], strict=True)),
                strict=True,
            )
            one[to[0], to[1], channel : channel + kernel.shape[2]] = kernel[of]
        return PlacedGradient(values.permute(0, 3, 1, 2), starts)

    def _add(self, run: "_Run", value: int, terms: Sequence[Windows]) -> Tensor:
        """Return the sum of terms with other windows than `value`."""
        found = [
            max_unpool(run.find_pooled_windows(value, term), run.size(value))
            if isinstance(term, Unpooled)
            else run.move(self._transpose(run, value, term), value)
            for term in terms
        ]
        for other in found[1:]:
            found[0].add_(other)
        return found[0]

    def _transpose(self, run: "_Run", value: int, term: Windows) -> PlacedGradient:
        assert isinstance(term, Transposed)
        starts = run.starts(term.result) * term.stride - term.padding
        if term.result in self._packed:
            (pool,) = self._cone.terms[term.result]
            assert isinstance(pool, Unpooled)
            windows, size = run.find_pooled_windows(term.result, pool), run.size(term.result)
            return PlacedGradient(unpool_and_transpose(windows, size, term, self._packed[term.result]), starts)
        gradient = run.gradients[term.result].values
        key = "transposed", value, term.result, tuple(gradient.shape)
        return PlacedGradient(self._compile(key, lambda: TransposedNetwork(term), gradient), starts)

    def _run_stage(self, stage: Stage, inputs: list[Tensor]) -> list[Tensor]:
        whole = torch.cat(inputs, 1) if len(inputs) > 1 else inputs[0]
        key = "stage", stage.key, tuple(whole.shape)
        found = self._compile(key, lambda: StageNetwork(stage, self._cone), whole)
        return [found] if isinstance(found, Tensor) else list(found)

    def _compile(self, key: object, make: Callable[[], nn.Module], inputs: Tensor) -> Any:
        """Return what a network returns, compiled for inputs of this shape."""
        self.used.add(key)
        if key not in self._compiled:
            self._compiled[key] = optimize(make().eval(), tuple(inputs.shape))
        return self._compiled[key](inputs)


class _Run:
    """Gradients of one batch, by value.

    Args:
        positions: (N, 2) of the units.
        images: (N,) numbers of their images.
        windows: The window of each value.
        switches: Returns the switches of an image.
    """

    def __init__(self, positions: Ints, images: Ints, windows: dict[int, Window], switches: Switches) -> None:
        self._positions, self._images, self._windows, self._switches = positions, images, windows, switches
        self.gradients: dict[int, PlacedGradient] = {}
        self._starts: dict[Window, Ints] = {}

    def starts(self, value: int) -> Ints:
        """Return where the windows of a value start, (N, 2)."""
        window = self._windows[value]
        if window not in self._starts:
            axes = zip(window, self._positions.T, strict=True)
            self._starts[window] = np.stack([axis.starts(at) for axis, at in axes], 1)
        return self._starts[window]

    def read(self, value: int, place: int) -> Tensor:
        """Return the gradient of a value in the window of value `place`."""
        gradient = self.gradients[value]
        return gradient.values if self._windows[value] == self._windows[place] else self.move(gradient, place)

    def move(self, gradient: PlacedGradient, place: int) -> Tensor:
        """Return a gradient in the window of value `place`: without what is outside, and 0 elsewhere."""
        size = self.size(place)
        count, channels, *lengths = gradient.values.shape
        result = torch.zeros(count, *size, channels).permute(0, 3, 1, 2)
        corners = (gradient.starts - self.starts(place)).tolist()
        for to, of, corner in zip(result, gradient.values, corners, strict=True):
            (rows, from_rows), (columns, from_columns) = (
                _overlap(at, length, 1, limit) for at, length, limit in zip(corner, lengths, size, strict=True)
            )
            to[:, rows, columns] = of[:, from_rows, from_columns]
        return result

    def size(self, value: int) -> Pair:
        """Return the rows and columns of the window of a value."""
        rows, columns = self._windows[value]
        return rows.length, columns.length

    def find_pooled_windows(self, value: int, term: Unpooled) -> PooledWindows:
        """Return the gradients from which a term of a value is computed by max-unpooling."""
        gradient, origins = self.gradients[term.result]
        height, width = gradient.shape[2:]
        switches = [
            self._switches(image, term.pool)[row : row + height, column : column + width]
            for image, (row, column) in zip(self._images.tolist(), origins.tolist(), strict=True)
        ]
        offsets = origins * term.stride - term.padding - self.starts(value)
        return PooledWindows(gradient, torch.stack(switches), term, offsets)


def compile_backward_pass(cone: Cone, compiled: CompiledStages) -> CompiledBackwardPass | None:
    """Return the compiled backward pass from a layer to the image; None if a window or a weight does not allow it.

    Args:
        cone: The gradients between the layer and the image.
        compiled: Compiled stages of other layers of the same network, which are used and added to.
    """
    terms = [term for some in cone.terms.values() for term in some]
    tensors = [
        term.weight if isinstance(term, Transposed) else term.factors
        for term in terms
        if isinstance(term, Transposed | Scaled)
    ]
    windows = find_windows(cone)
    if (
        windows is None
        or any(one.dtype != torch.float32 or not one.is_cpu for one in tensors)
        or any(isinstance(term, Unpooled) and not can_unpool(term) for term in terms)
    ):
        return None
    return CompiledBackwardPass(cone, windows, compiled)


def _follow_activation(cone: Cone) -> tuple[int, Transposed | None, Tensor]:
    """Return the first value whose gradient is not 0 in one channel and position only.

    Returns:
        Its number; the transposed convolution that computes it, or None if the value is the last one with a single
        gradient; and the gradient of each unit before, (units,).
    """
    value, factors = cone.target, torch.ones(cone.shapes[cone.target][0])
    while True:
        readers = [(one, term) for one, some in cone.terms.items() for term in some if term.result == value]
        if len(readers) != 1:
            break
        ((reader, term),) = readers
        if isinstance(term, Transposed):
            return reader, term, factors
        if isinstance(term, Rectified):
            factors = factors.clamp_min(0)
        elif isinstance(term, Scaled):
            factors = factors * term.factors
        elif not isinstance(term, Copied):
            break
        value = reader
    return value, None, factors


def _find_transposed_after_unpooling(cone: Cone) -> Iterator[Transposed]:
    """Yield the transposed convolutions that change positions, and alone read the result of one max-unpooling."""
    for value, terms in cone.terms.items():
        for term in terms:
            if (
                isinstance(term, Transposed)
                and not keeps_positions(term, cone, value)
                and can_unpool_and_transpose(term)
                and [type(one) for one in cone.terms.get(term.result, ())] == [Unpooled]
                and sum(one.result == term.result for some in cone.terms.values() for one in some) == 1
            ):
                yield term


def _overlap(start: int, count: int, step: int, size: int) -> tuple[slice, slice]:
    """Return which of `size` places are among start, start + step, ... (`count`), and which of these they are."""
    first = max(0, -(start // step)) if start < 0 else 0
    last = max(first, min(count, -(-(size - start) // step)))
    begin = start + first * step
    return slice(begin, begin + (last - first) * step, step), slice(first, last)
