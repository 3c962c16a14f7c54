"""A network followed for several batch sizes, and written down for any; or for one alone, where those differ."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from svertka.compiler.capture import Tape
from svertka.compiler.ir import Operation, Recording, Size, replaced
from svertka.compiler.network_copy import empty_twin
from svertka.compiler.output_structure import Output
from svertka.errors import UsageError
from svertka.graph.summary import tensors_of

BATCHES = 2, 3, 5  # recorded with each: from the first two is told what depends on the batch, the third proves it


def record(network: nn.Module, shape: tuple[int, ...]) -> Recording:
    """What `network` does in inference with inputs of `shape`, for any number of pictures where that can be told.

    Nothing is computed, and nothing in `network` is touched. What it decides by an input's shape is decided for good;
    whether it decides the same for another number of pictures, `Followed.repeats` tells.

    Raises:
        UsageError: as for `tape.Tape`.
    """
    return Followed(network, shape[1:]).recording(shape[0])


class Followed:
    """`network`, to be followed with any number of images of `shape`, (C, H, W); `hooks`: with its forward hooks."""

    def __init__(self, network: nn.Module, shape: tuple[int, ...], *, hooks: bool = True) -> None:
        self.network, self.shape, self.hooks = network, shape, hooks
        self.constants = dict(tensors_of(network))

    def recording(self, pictures: int) -> Recording:
        """What the network does, for any number of images, or, where that differs, for so many `pictures`."""
        first = self._tapes(pictures, runs=3)
        whole = self._merged()
        return whole if whole is not None and _is_for(whole, first) else first.recording

    def repeats(self, recording: Recording) -> "Repeats":
        """Whether the network does the same for other batch sizes; for as long as you like: it keeps no weights."""
        alone = Followed(empty_twin(self.network, hooks=self.hooks)[0], self.shape, hooks=self.hooks)
        read = recording.looked_at & self.constants.keys()
        own = {name: tensor for name, tensor in recording.constants.items() if name not in self.constants}
        alone.constants |= {name: self.constants[name].detach().clone() for name in read}
        return Repeats(alone, replace(recording, constants=own))

    def _tapes(self, pictures: int, runs: int = 1) -> Tape:
        """The tape of the first run, with so many runs of one copy, the later of which must do the same."""
        twin, named = empty_twin(self.network, hooks=self.hooks)
        constants, shape = self.constants, (pictures, *self.shape)
        tapes = [first := Tape(self.network, twin, named, shape, constants)]
        for _ in range(1, runs):
            tapes.append(Tape(self.network, twin, named, shape, constants, tapes[-1]))
            if _alike(tapes[-1].operations, tapes[-2].operations):  # what is made once and kept differs the first time
                return first
        if runs > 1:
            raise UsageError(
                f"{type(self.network).__name__} does something else each time it runs; an optimized network keeps "
                "nothing from one run to the next"
            )
        return first

    def _merged(self) -> Recording | None:
        """What the network does for any number of images; None where that is not one thing."""
        try:
            one, other, third = (self._tapes(batch) for batch in BATCHES)
        except UsageError:  # this network may want the number of pictures that it was given
            return None
        merged = _merged(one, other)
        return merged if merged is not None and _is_for(merged, third) else None


class Repeats:
    """Whether a network that was recorded does the same for a batch size, calls with which are remembered."""

    def __init__(self, followed: Followed, recording: Recording) -> None:
        self._followed, self._recording = followed, recording
        self._known: dict[int, bool] = {}

    def __call__(self, pictures: int) -> bool:
        """Whether it does.

        Raises:
            UsageError: the network cannot run on so many.
        """
        if pictures not in self._known:
            self._known[pictures] = _is_for(self._recording, self._followed._tapes(pictures))
        return self._known[pictures]


def _merged(one: Tape, other: Tape) -> Recording | None:
    """What both did, with Size where they differ as their batches do; None where they differ otherwise."""
    step = other.batch - one.batch

    def both(a: Any, b: Any) -> Any:
        if type(a) is int and type(b) is int and a != b:
            if (b - a) % step:
                raise _DifferentError
            each = (b - a) // step
            return Size(each, a - each * one.batch)
        if isinstance(a, list | tuple) and type(a) is type(b) and len(a) == len(b):
            return type(a)([both(x, y) for x, y in zip(a, b, strict=True)])
        if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
            return {key: both(a[key], b[key]) for key in a}
        if not _alike(a, b):
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
        output = Output(one.output.template, both(one.output.leaves, other.output.leaves))
    except _DifferentError:
        return None
    return replace(one.recording, operations=tuple(operations), shapes=shapes, output=output, pictures=None)


class _DifferentError(Exception):
    """Two recordings are not the same network."""


def _is_for(recording: Recording, tape: Tape) -> bool:
    """Whether `tape` did what `recording` says for as many pictures."""

    def sized(leaf: Any) -> Any:
        return leaf.of(tape.batch) if isinstance(leaf, Size) else leaf

    if len(recording.operations) != len(tape.operations):
        return False
    same = all(
        a.name == b.name and a.results == b.results and _alike(replaced(dict(a.arguments), sized), b.arguments)
        for a, b in zip(recording.operations, tape.operations, strict=True)
    )
    own = {name: recording.constants[name] for name in tape.own if name in recording.constants}
    return (
        same
        and _alike(replaced(dict(recording.shapes), sized), tape.shapes)
        and _alike(recording.output.with_leaves(sized).leaves, tape.output.leaves)
        and _alike(own, tape.own)
    )


def _alike(a: Any, b: Any) -> bool:
    """Whether two arguments are the same, down to their types; NaN is the same as NaN."""
    if type(a) is not type(b):
        return False
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_alike, a, b))
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(_alike(a[key], b[key]) for key in a)
    if isinstance(a, Operation):
        return (a.name, a.results) == (b.name, b.results) and _alike(dict(a.arguments), dict(b.arguments))
    if isinstance(a, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num())
    return bool(a == b or (a != a and b != b))
