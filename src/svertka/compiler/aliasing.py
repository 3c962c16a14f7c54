"""Which operations may give a view of what they are given, so that its memory has to stay as it is meanwhile."""

from collections.abc import Iterable, Sequence
from functools import cache

import torch

from svertka.compiler.ir import Operation, overload_of
from svertka.compiler.steps import Chain, Step, inputs_of, results_of


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
