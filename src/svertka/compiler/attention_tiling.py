"""Tiling of attention, computed for a few heads at a time so that their scores stay in the cache."""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from svertka.compiler.ir import Attention, ConvolutionChain, MatrixProduct, Softmax, Step

MAX_SCORES = 1 << 16  # computed together, a quarter of a cache of 1 MiB; at least those of one head

Steps = list[Step | ConvolutionChain | Attention]


def fuse_attention(
    steps: Sequence[Step | ConvolutionChain], shapes: Mapping[int, tuple[int, ...]], kept: Iterable[int]
) -> Steps:
    """Return `steps` with one step for each product, softmax and product that use the scores only once.

    It stands where the second product does. All three must have the same axes before those of the matrices.

    Args:
        steps: The steps in the order in which they run.
        shapes: The shapes of values.
        kept: Values needed to the end.
    """
    uses = Counter(value for step in steps for value in step.inputs) + Counter(kept)
    made = {step.result: step for step in steps if isinstance(step, MatrixProduct | Softmax)}

    def attention_of(step: Step | ConvolutionChain) -> Attention | None:
        softmax = made.get(step.x) if isinstance(step, MatrixProduct) else None
        scores = made.get(softmax.x) if isinstance(softmax, Softmax) else None
        if not (isinstance(step, MatrixProduct) and isinstance(softmax, Softmax) and isinstance(scores, MatrixProduct)):
            return None
        shape = shapes[softmax.result]
        alike = len(shape) > 2 and all(shapes[value][:-2] == shape[:-2] for value in (*scores.inputs, *step.inputs))
        once = uses[scores.result] == uses[softmax.result] == 1
        alone = softmax.axis == len(shape) - 1 and softmax.y is None
        return Attention(scores, softmax, step) if alike and once and alone else None

    found: Steps = []
    inside: set[int] = set()
    for step in reversed(steps):
        attention = attention_of(step)
        if attention is not None:
            inside |= {attention.scores.result, attention.softmax.result}
            found.append(attention)
        elif not (isinstance(step, MatrixProduct | Softmax) and step.result in inside):
            found.append(step)
    return found[::-1]


def iter_head_ranges(shape: Sequence[int]) -> Iterator[tuple[range, ...]]:
    """Yield the heads whose scores are computed together: for each axis before those of a matrix, their indices.

    Args:
        shape: The shape of all scores, (…, M, N).
    """
    axis, inner = 0, math.prod(shape[1:])
    while axis < len(shape) - 3 and inner > MAX_SCORES:
        axis += 1
        inner //= shape[axis]
    size = max(MAX_SCORES // max(inner, 1), 1)
    whole = [range(one) for one in shape[axis + 1 : -2]]
    for index in itertools.product(*(range(one) for one in shape[:axis])):
        for start in range(0, shape[axis], size):
            stop = min(start + size, shape[axis])
            yield (*(range(one, one + 1) for one in index), range(start, stop), *whole)
