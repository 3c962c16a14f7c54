"""Where the values of an optimized network lie: in one piece of memory, parts of which are used again and again."""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch

from svertka.compiler.ir import Chain, Concatenation, Operation, Step, inputs_of, overload_of, results_of

ALIGNMENT = 64  # numbers: a multiple of every vector, and no two buffers in one cache line


@cache
def may_alias(name: str) -> bool:
    """Whether the operation `name` may give a view, or the very tensor that it is given.

    Operators with kernels of their own say so in their schema. Those that are made of others need not: dropout gives
    in inference what it is given, and einsum of one operand a transposed view.
    """
    function = overload_of(name)
    declared = any(returned.alias_info is not None for returned in function._schema.returns)
    key = "CompositeImplicitAutograd"
    return declared or torch._C._dispatch_has_kernel_for_dispatch_key(function.name(), key)


def last_uses(steps: Sequence[Step | Chain], kept: Iterable[int]) -> dict[int, int]:
    """For each value the number of the last step that may read its memory; len(steps) for the `kept` ones.

    A view of a value that is read later counts as a use of the value.
    """
    last: dict[int, int] = dict.fromkeys(kept, len(steps))
    for number in reversed(range(len(steps))):
        step = steps[number]
        until = number
        if isinstance(step, Operation) and may_alias(step.name):
            until = max([number, *(last.get(result, number) for result in results_of(step))])
        for value in inputs_of(step):
            last[value] = max(last.get(value, until), until)
        for value in results_of(step):
            last.setdefault(value, number)
    return last


@dataclass(frozen=True)
class Slot:
    """Where a map lies: `offset` numbers from the beginning, each pixel `step` numbers behind the one before."""

    offset: int
    step: int


@dataclass(frozen=True)
class Maps:
    """Sizes of a value as the kernels see it; dense vectors are maps of one pixel."""

    batch: int
    channels: int
    height: int
    width: int

    @property
    def pixels(self) -> int:
        """Of all pictures."""
        return self.batch * self.height * self.width


def inner_parts(steps: Sequence[Step | Chain], made: set[int]) -> dict[int, tuple[int, int]]:
    """Values that are computed right where a concatenation wants them: value → (the concatenation's, which part).

    `made`: values that kernels compute, which can be put anywhere.
    """
    found: dict[int, tuple[int, int]] = {}
    for step in steps:
        if isinstance(step, Concatenation):
            for number, part in enumerate(step.inputs):
                if part in made and part not in found and step.inputs.count(part) == 1:
                    found[part] = step.result, number
    return found


def slots(
    steps: Sequence[Step | Chain],
    maps: Mapping[int, Maps],
    inner: Mapping[int, tuple[int, int]],
    kept: Iterable[int],
    elsewhere: Container[int | None],
) -> tuple[dict[int, Slot], int]:
    """A slot for each of `maps` that does not lie `elsewhere`, and how many numbers all of them need together.

    No two values that are needed at the same time, they or views of them, overlap. `inner`: as `inner_parts` gives it.
    `kept`: values needed to the end.
    """
    here = {value for value in maps if value not in elsewhere}

    def root(value: int) -> int:
        while value in inner:
            value = inner[value][0]
        return value

    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for number, step in enumerate(steps):
        for value in (*results_of(step), *inputs_of(step)):
            if value in here:
                first.setdefault(root(value), number)
    for value, number in last_uses(steps, kept).items():
        if value in here:
            last[root(value)] = max(last.get(root(value), number), number)
    sizes = {value: maps[value].pixels * maps[value].channels for value in first}
    offsets: dict[int, int] = {}
    for value in sorted(sizes, key=lambda one: (-sizes[one], one)):
        meanwhile = sorted(
            (offsets[other], offsets[other] + sizes[other])
            for other in offsets
            if first[other] <= last[value] and first[value] <= last[other]
        )
        offset = 0
        for begin, end in meanwhile:
            if offset + sizes[value] <= begin:
                break
            offset = max(offset, -(-end // ALIGNMENT) * ALIGNMENT)
        offsets[value] = offset
    total = max((offsets[value] + sizes[value] for value in offsets), default=0)

    parts = {step.result: step.inputs for step in steps if isinstance(step, Concatenation)}
    found: dict[int, Slot] = {}

    def slot(value: int) -> Slot:
        if value not in found:
            if value in inner:
                outer, number = inner[value]
                whole = slot(outer)
                before = sum(maps[part].channels for part in parts[outer][:number])
                found[value] = Slot(whole.offset + before, whole.step)
            else:
                found[value] = Slot(offsets[value], maps[value].channels)
        return found[value]

    return {value: slot(value) for value in maps if value in here and root(value) in offsets}, total
