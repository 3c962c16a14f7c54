"""Attention in tiles of heads: which steps form one, and that its results are those of PyTorch."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch.nn.functional as F
from tests.compiler.compiled_functions import Function, compile_exactly
from torch import Tensor

from svertka.compiler.attention_tiling import MAX_SCORES, fuse_attention, iter_head_ranges
from svertka.compiler.ir import Attention, MatrixProduct, Softmax, Step
from svertka.conv import native_support
from svertka.graph.operation_and_value_types import Constant

SHAPES = {0: (2, 3, 5, 4), 1: (2, 3, 4, 7), 2: (2, 3, 7, 6), 3: (2, 3, 5, 7), 4: (2, 3, 5, 7), 5: (2, 3, 5, 6)}
PRODUCT, SOFTMAX, LAST = MatrixProduct(0, 1, 3), Softmax(3, 4, 3), MatrixProduct(4, 2, 5)


def test_two_products_and_a_softmax_form_attention() -> None:
    assert fuse_attention([PRODUCT, SOFTMAX, LAST], SHAPES, [5]) == [Attention(PRODUCT, SOFTMAX, LAST)]


def test_other_steps_keep_their_order() -> None:
    before, between = MatrixProduct(7, 7, 1), MatrixProduct(8, 8, 2)
    shapes = SHAPES | {7: (4, 4), 8: (6, 6)}
    found = fuse_attention([before, PRODUCT, SOFTMAX, between, LAST], shapes, [5])
    assert found == [before, between, Attention(PRODUCT, SOFTMAX, LAST)]


@pytest.mark.parametrize(
    ("steps", "shapes", "kept"),
    [
        ([PRODUCT, SOFTMAX, LAST], SHAPES, [5, 4]),
        ([PRODUCT, SOFTMAX, LAST], SHAPES, [5, 3]),
        ([PRODUCT, Softmax(3, 4, 2), LAST], SHAPES, [5]),
        ([PRODUCT, Softmax(3, 4, 3, Constant("mask")), LAST], SHAPES, [5]),
        ([PRODUCT, SOFTMAX, LAST], SHAPES | {1: (4, 7)}, [5]),
        ([PRODUCT, SOFTMAX, LAST], {value: shape[2:] for value, shape in SHAPES.items()}, [5]),
        ([PRODUCT, SOFTMAX, MatrixProduct(2, 4, 5)], SHAPES, [5]),
    ],
    ids=["softmax-kept", "scores-kept", "other-axis", "mask", "shared-matrix", "one-matrix", "softmax-on-the-right"],
)
def test_steps_that_are_no_attention(steps: list[Step], shapes: dict[int, tuple[int, ...]], kept: list[int]) -> None:
    assert fuse_attention(steps, shapes, kept) == steps


@pytest.mark.parametrize(
    "shape",
    [(3, 300, 300), (1, 1, 8, 8), (64, 3, 49, 49), (2, 12, 197, 197), (5, 4, 256, 256), (2, 3, 5, 40, 90), (7, 1, 1)],
)
def test_tiles_cover_every_head_once(shape: tuple[int, ...]) -> None:
    tiles = list(iter_head_ranges(shape))
    heads = [head for tile in tiles for head in itertools.product(*tile)]
    assert sorted(heads) == sorted(itertools.product(*map(range, shape[:-2])))
    counts = [math.prod(map(len, tile)) for tile in tiles]
    assert counts[0] == max(counts)
    assert counts[0] == 1 or counts[0] * shape[-2] * shape[-1] <= MAX_SCORES


@pytest.mark.skipif(bool(native_support.why_not()), reason="no kernels here")
def test_results_of_several_tiles(tmp_path: Path) -> None:
    def attend(_: Any, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2).unflatten(2, (3, 2)).transpose(1, 2)  # (N, 3 heads, tokens, 2)
        return F.scaled_dot_product_attention(tokens, tokens * 2, tokens.relu()).transpose(1, 2).flatten(2)

    optimized = compile_exactly(Function(attend), (6, 20, 16), tmp_path)
    assert optimized.compiled[0].plan(3).size < 3 * 3 * 320**2  # not all scores are stored at once
