"""Memory planning: offsets in one arena, which values share if they are not needed at the same time."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from svertka import torch_internals
from svertka.compiler.ir import Attention, Concatenation, ConvolutionChain, Step, step_output_numbers
from svertka.graph.operation_and_value_types import Operation, find_operator_by_name

ALIGNMENT = 64  # numbers; a multiple of the sizes of vectors and cache lines


@cache
def may_return_view(name: str) -> bool:
    """Return whether the operator `name` may return a view of its input, or the input itself.

    Operators with their own kernels declare this in their schema. Composite operators do not: in inference, dropout
    returns its input, and einsum of one operand returns a transposed view.
    """
    function = find_operator_by_name(name)
    declared = any(returned.alias_info is not None for returned in function._schema.returns)
    return declared or torch_internals.is_composite(function.name())


def find_last_uses(steps: Sequence[Step | ConvolutionChain | Attention], kept: Iterable[int]) -> dict[int, int]:
    """Return, for each value, the index of the last step that may read its memory; len(steps) for `kept` values.

    Reading a view of a value counts as reading the value.
    """
    last: dict[int, int] = dict.fromkeys(kept, len(steps))
    for number in reversed(range(len(steps))):
        step = steps[number]
        until = number
        if isinstance(step, Operation) and may_return_view(step.name):
            until = max([number, *(last.get(result, number) for result in step_output_numbers(step))])
        for value in step.inputs:
            last[value] = max(last.get(value, until), until)
        for value in step_output_numbers(step):
            last.setdefault(value, number)
    return last


@dataclass(frozen=True)
class FeatureMapSize:
    """The size of a feature map; a vector is a map of one pixel."""

    batch: int
    channels: int
    height: int
    width: int

    @property
    def pixels(self) -> int:
        """The pixels of all images in the batch."""
        return self.batch * self.height * self.width


def find_concatenated_in_place(steps: Sequence[Step | ConvolutionChain], made: set[int]) -> dict[int, tuple[int, int]]:
    """Return the concatenation and the index of the part, for each value that is stored inside a concatenation.

    A concatenation that is the beginning of another one is its part 0. DenseNet concatenates the outputs of all earlier
    layers of a block before each layer (Huang et al. 2017, equation 2), and each output is then written only once.

    Args:
        steps: The steps in the order in which they run.
        made: Values that native kernels compute; only these can be stored inside another.
    """
    concatenations = [step for step in steps if isinstance(step, Concatenation) and step.axis == 1]
    found: dict[int, tuple[int, int]] = {}
    for step in concatenations:
        longer = [one for one in concatenations if one is not step and one.inputs[: len(step.inputs)] == step.inputs]
        whole = max(longer, key=lambda one: len(one.inputs), default=step)
        if len(whole.inputs) > len(step.inputs) and step.result in made:
            found[step.result] = whole.result, 0
        else:
            whole = step
        for number, part in enumerate(step.inputs):
            if part in made and part not in found and whole.inputs.count(part) == 1:
                found[part] = whole.result, number
    return found


def assign_offsets(
    steps: Sequence[Step | ConvolutionChain | Attention],
    sizes: Mapping[int, int],
    roots: Mapping[int, int],
    kept: Iterable[int],
) -> tuple[dict[int, int], int]:
    """Return the offset in the arena of each memory, and the size of the arena, in numbers.

    Memories that are needed at the same time, directly or through views, do not overlap.

    Args:
        steps: The steps in the order in which they run.
        sizes: Size of each memory in the arena, by the value that owns it.
        roots: The value that owns the memory of each value; values without one are not stored in the arena.
        kept: Values needed to the end.
    """
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for number, step in enumerate(steps):
        for value in (*step_output_numbers(step), *step.inputs):
            if roots.get(value) in sizes:
                first.setdefault(roots[value], number)
    for value, number in find_last_uses(steps, kept).items():
        root = roots.get(value)
        if root in first:
            last[root] = max(last.get(root, number), number)
    offsets: dict[int, int] = {}
    for value in sorted(first, key=lambda one: (-sizes[one], one)):
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
    return offsets, max((offsets[value] + sizes[value] for value in offsets), default=0)
