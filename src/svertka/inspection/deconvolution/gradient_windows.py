"""Windows of feature maps outside which the gradients of a unit's backward pass are 0."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from svertka.data.dataset import Ints
from svertka.inspection.deconvolution.backward_graph import Cone, Term, Transposed, Windows


class WindowAxis(NamedTuple):
    """One axis of windows of the same length, one for each position of a unit.

    Attributes:
        jump, low: The window of position i starts at jump · i + low, or where it still fits into the map.
        length: Length of the windows.
        size: Length of the map.
    """

    jump: int
    low: int
    length: int
    size: int

    def starts(self, positions: Ints) -> Ints:
        """Return where the windows of these positions start."""
        return np.clip(positions * self.jump + self.low, 0, self.size - self.length)


Window = tuple[WindowAxis, WindowAxis]
Spans = tuple[tuple[int, int, int], ...]  # jump, first and last position for position 0 of a unit, on each axis

MAX_SHARE = 0.55  # of the area of a larger window; from there on, gradients stay in the larger one


def keeps_positions(term: Term, cone: Cone, value: int) -> bool:
    """Return whether a term of `value` has the positions of its result, so that both can have the same window."""
    if not isinstance(term, Windows):
        return True
    reach = tuple((taps - 1) * dilation for taps, dilation in zip(term.taps, term.dilation, strict=True))
    return (
        isinstance(term, Transposed)
        and term.stride == (1, 1)
        and cone.shapes[value][1:] == cone.shapes[term.result][1:]
        and tuple(2 * padding for padding in term.padding) == reach
    )


def find_windows(cone: Cone) -> dict[int, Window] | None:
    """Return the window of each value; None if the positions of some value are irregular.

    Values with the same positions have the same window, except after a value from which all later ones are computed
    and after which windows grow.
    """
    spans: dict[int, Spans] = {cone.target: ((1, 0, 0), (1, 0, 0))}
    for value, terms in cone.terms.items():
        found = [_spread(spans[term.result], term) for term in terms]
        if any(one[axis][0] != found[0][axis][0] for one in found for axis in (0, 1)):
            return None
        spans[value] = _unite(found)
    groups = {value: [value] for value in spans}
    last = _find_last_values(cone, spans)
    for value, terms in cone.terms.items():
        for term in terms:
            joined = groups[term.result], groups[value]
            if joined[0] is not joined[1] and term.result not in last and keeps_positions(term, cone, value):
                groups |= dict.fromkeys(joined[0] + joined[1], joined[0] + joined[1])
    windows: dict[int, Window] = {}
    for value, group in groups.items():
        union = _unite([spans[one] for one in group])
        rows, columns = (
            WindowAxis(jump, first, min(last - first + 1, size), size)
            for (jump, first, last), size in zip(union, cone.shapes[value][1:], strict=True)
        )
        windows[value] = rows, columns
    return windows


def _find_last_values(cone: Cone, spans: Mapping[int, Spans]) -> set[int]:
    """Return the values after which larger windows begin: all later values are computed from each of them alone."""
    order = [cone.target, *cone.terms]
    oldest_read = {value: max(term.result for term in terms) for value, terms in cone.terms.items()}
    alone, oldest = [0], 0
    for before, value in reversed(list(pairwise(order))):
        oldest = max(oldest, oldest_read[value])
        if oldest <= before:
            alone.append(before)
    areas = {value: math.prod(last - first + 1 for _, first, last in spans[value]) for value in alone}
    return {value for later, value in pairwise(alone) if areas[value] < MAX_SHARE * areas[later]}


def _spread(span: Spans, term: Term) -> Spans:
    """Return the jump and the first and last position to which a term carries a gradient, on each axis."""
    if not isinstance(term, Windows):
        return span
    axes = zip(span, term.taps, term.stride, term.padding, term.dilation, strict=True)
    return tuple(
        (jump * stride, first * stride - padding, last * stride - padding + (taps - 1) * dilation)
        for (jump, first, last), taps, stride, padding, dilation in axes
    )


def _unite(spans: Sequence[Spans]) -> Spans:
    return tuple(
        (axis[0][0], min(one[1] for one in axis), max(one[2] for one in axis)) for axis in zip(*spans, strict=True)
    )
