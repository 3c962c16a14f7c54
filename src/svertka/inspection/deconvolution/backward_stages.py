"""Stages of a backward pass: gradients on the same windows, which are computed together by a compiled network."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svertka.inspection.deconvolution.backward_graph import (
    ChannelRange,
    Cone,
    Rectified,
    Scaled,
    Term,
    Transposed,
    Windows,
)
from svertka.inspection.deconvolution.gradient_windows import Window, keeps_positions


@dataclass(frozen=True, eq=False)
class Stage:
    """Values with the same window, whose gradients are computed together.

    Attributes:
        inner: The terms of each value whose results have the same positions, in the order of computation.
        added: The terms whose results have other positions, of the values that have such.
        read: Values of earlier stages that are read by `inner`; their windows may be smaller.
        returned: Values that later stages read.
    """

    inner: Mapping[int, Sequence[Term]]
    added: Mapping[int, Sequence[Windows]]
    read: tuple[int, ...]
    returned: tuple[int, ...]

    @property
    def is_copy(self) -> bool:
        """Whether the gradients are those that are added."""
        return not any(self.inner.values())

    @property
    def key(self) -> tuple[object, ...]:
        """What the network of the stage depends on, given the whole network."""
        terms = tuple(
            (value, *((type(term).__name__, term.result) for term in some)) for value, some in self.inner.items()
        )
        return terms, tuple(self.added), self.read, self.returned


def find_stages(cone: Cone, first: int, windows: Mapping[int, Window]) -> Iterator[Stage]:
    """Yield the stages from the gradient of value `first` to that of the image.

    Args:
        cone: The gradients of all values after `first`.
        first: The value whose gradient is given.
        windows: The window of each value.
    """
    terms = cone.terms
    depth = {first: 0}  # changes of windows before each value
    inner: dict[int, list[Term]] = {}
    added: dict[int, list[Windows]] = {}
    for value, some in terms.items():
        inner[value] = [one for one in some if keeps_positions(one, cone, value)]
        added[value] = [one for one in some if isinstance(one, Windows) and not keeps_positions(one, cone, value)]
        moves = added[value] + [one for one in inner[value] if windows[one.result] != windows[value]]
        depth[value] = max(depth[one.result] + (one in moves) for one in some)
    stages: dict[tuple[int, Window], list[int]] = {}
    for value in terms:
        stages.setdefault((depth[value], windows[value]), []).append(value)
    for place in sorted(stages, key=lambda one: one[0]):
        values = set(stages[place])
        outside = {one.result for value, some in terms.items() if value not in values for one in some}
        outside |= {one.result for value in values for one in added[value]} | {0}
        read = {one.result for value in values for one in inner[value]} - values
        yield Stage(
            {value: inner[value] for value in stages[place]},
            {value: added[value] for value in stages[place] if added[value]},
            tuple(sorted(read, reverse=True)),
            tuple(value for value in stages[place] if value in outside),
        )


class StageNetwork(nn.Module):
    """Computes the gradients that a stage returns.

    The input has the channels of the values that it reads, then of those to whose gradients others are added.

    Args:
        stage: The stage.
        cone: The gradients that it is part of.
    """

    def __init__(self, stage: Stage, cone: Cone) -> None:
        super().__init__()
        self._stage, self._channels = stage, {value: shape[0] for value, shape in cone.shapes.items()}
        self._tensors = nn.ParameterList()
        self._places: dict[int, int] = {}  # of the tensor of each term, by its id
        for term in (one for some in stage.inner.values() for one in some):
            if isinstance(term, Transposed | Scaled):
                self._places[id(term)] = len(self._tensors)
                tensor = _transpose(term) if isinstance(term, Transposed) else term.factors[:, None, None]
                self._tensors.append(nn.Parameter(tensor, requires_grad=False))

    def forward(self, inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return the gradients, (N, C, h, w) each."""
        given = [*self._stage.read, *self._stage.added]
        parts = torch.split(inputs, [self._channels[value] for value in given], 1) if len(given) > 1 else [inputs]
        count = len(self._stage.read)
        gradients = dict(zip(given[:count], parts[:count], strict=True))
        added = dict(zip(given[count:], parts[count:], strict=True))
        for value, terms in self._stage.inner.items():
            total = added.get(value)
            for term in terms:
                one = self._compute(value, term, gradients[term.result])
                total = one if total is None else total + one
            assert total is not None
            gradients[value] = total
        found = tuple(gradients[value] for value in self._stage.returned)
        return found if len(found) > 1 else found[0]

    def _compute(self, value: int, term: Term, gradient: Tensor) -> Tensor:
        if isinstance(term, Transposed):
            weight = self._tensors[self._places[id(term)]]
            return F.conv2d(gradient, weight, None, 1, term.padding, term.dilation, term.groups)
        if isinstance(term, Scaled):
            factors: Tensor = self._tensors[self._places[id(term)]]
            return gradient * factors
        if isinstance(term, ChannelRange):
            return gradient[:, term.first : term.first + self._channels[value]]
        return F.relu(gradient) if isinstance(term, Rectified) else gradient


class TransposedNetwork(nn.Module):
    """A transposed convolution without padding."""

    def __init__(self, term: Transposed) -> None:
        super().__init__()
        self._term, self._weight = term, nn.Parameter(term.weight, requires_grad=False)

    def forward(self, gradient: Tensor) -> Tensor:
        """Return the transposed convolution of (N, C, h, w)."""
        term = self._term
        return F.conv_transpose2d(gradient, self._weight, None, term.stride, 0, 0, term.groups, term.dilation)


def _transpose(term: Transposed) -> Tensor:
    """Return the weights of the convolution that equals a transposed one of stride 1."""
    outs, ins, *taps = term.weight.shape
    grouped = term.weight.reshape(term.groups, outs // term.groups, ins, *taps)
    return grouped.transpose(1, 2).reshape(term.groups * ins, outs // term.groups, *taps).flip(2, 3).contiguous()
