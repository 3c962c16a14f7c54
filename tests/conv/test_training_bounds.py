"""What the kernels of training read and write: each tensor ends, or begins, beside a page that may not be touched.

The modules of the algorithms run as they are; only the tensors that they pass to kernels are copied between such pages.
"""

import copy
import random
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from tests.conv.conftest import Case
from tests.conv.test_native_batch_norm import Block, assert_near, draw, run, run_block, with_activation
from torch import Tensor, nn

from fences import Fenced
from svertka.conv import (
    native_batch_norm,
    native_direct,
    native_fft,
    native_grouped,
    native_support,
    native_winograd,
)
from svertka.conv.accelerate import accelerate
from svertka.conv_shape import ConvShape

pytestmark = pytest.mark.skipif(native_support.why_not() is not None, reason=str(native_support.why_not()))

KERNELS = [
    "direct_pack", "direct_forward", "direct_weight_gradient", "grouped_forward", "grouped_weight_gradient",
    "depthwise_input_gradient", "batch_norm", "batch_norm_gradients", "winograd_forward", "winograd_weight_gradient",
    "fft_forward", "fft_weight_gradient",
]  # fmt: skip


def in_memory(tensor: Tensor) -> Tensor:
    """The numbers of a dense tensor in the order in which they are in memory."""
    return tensor.as_strided((tensor.numel(),), (1,), tensor.storage_offset())


def between_pages(kernel: Callable[..., None], at_end: Callable[[], bool], calls: list[str]) -> Callable[..., None]:
    """A function that calls `kernel` with copies of its tensors between pages that may not be touched."""

    def call(*arguments: Any) -> None:
        fenced = [(one, Fenced(in_memory(one), at_end=at_end())) for one in arguments if isinstance(one, Tensor)]
        inside = {id(one): area.numbers for one, area in fenced}
        kernel(*(inside.get(id(one), one) for one in arguments))
        for one, area in fenced:
            in_memory(one).copy_(area.numbers)
        calls.append(kernel.__name__)

    return call


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels that were called, each with its tensors between pages that may not be touched."""
    found: list[str] = []
    choose = random.Random(0)
    for name in KERNELS:
        kernel = getattr(native_support.kernels, name)
        monkeypatch.setattr(native_support.kernels, name, between_pages(kernel, lambda: choose.random() < 0.7, found))
    return found


def drawn_shape(choose: random.Random, algorithm: ModuleType) -> ConvShape:
    """A convolution whose channels are around the widths of vectors, mostly in groups or with a stride."""
    if algorithm is native_winograd:
        ins, outs = (choose.choice((1, 3, 8, 16, 17, 33, 64)) for _ in range(2))
        sizes = choose.randint(1, 3), ins, choose.randint(3, 20), choose.randint(3, 20)
        return ConvShape.of(sizes, (outs, ins, 3, 3), padding=(choose.randrange(3), choose.randrange(3)))
    groups = choose.choice((1, 1, 2, 5))
    ins, outs = (groups * choose.choice((1, 2, 3, 4, 8, 9, 16, 17, 33)) for _ in range(2))
    if choose.random() < 0.5:
        groups = ins = outs = choose.choice((1, 3, 7, 8, 15, 16, 17, 31, 32, 33, 47, 64, 65))
    taps = choose.choice(((1, 1), (3, 3), (3, 3), (5, 5), (7, 7), (2, 4), (9, 9)))
    stride, dilation = choose.choice(((1, 1), (2, 2), (2, 2), (1, 3), (3, 2))), choose.choice(((1, 1), (1, 1), (2, 1)))
    padding = tuple(choose.randrange(side) for side in taps)
    sides = [
        max(1, d * (k - 1) + 1 - 2 * p) + choose.randint(0, 12) for k, d, p in zip(taps, dilation, padding, strict=True)
    ]
    weight = (outs, ins // groups, *taps)
    return ConvShape.of((choose.randint(1, 3), ins, *sides), weight, stride, padding, dilation, groups)


@pytest.mark.sample(8)
@pytest.mark.parametrize(
    "algorithm",
    [native_direct, native_grouped, native_winograd, native_fft],
    ids=["direct", "grouped", "winograd", "fft"],
)
def test_convolutions_and_their_gradients_stay_inside(
    algorithm: ModuleType,
    instructions: str,
    calls: list[str],
    normal: Callable[..., Case],
    large_count: Callable[[int, int], int],
) -> None:
    checked = 0
    for seed in range(large_count(30, 2000)):
        choose = random.Random(seed)
        shape = drawn_shape(choose, algorithm)
        if algorithm.why_not(shape, torch.float32) is not None or checked == large_count(5, 2000):
            continue
        torch.set_num_threads(choose.choice((1, 2, 3)))
        case = normal(shape, seed)
        for found, expected, scale in zip(case.passes(algorithm), case.exact, case.norms(), strict=True):
            assert (found - expected).abs().max() <= 1e-5 * scale, f"seed {seed}: {shape}"
        checked += 1
    assert checked >= 5
    assert len(calls) >= 3 * checked


def test_batch_normalization_and_its_gradients_stay_inside(
    instructions: str, calls: list[str], monkeypatch: pytest.MonkeyPatch, large_count: Callable[[int, int], int]
) -> None:
    monkeypatch.setattr(native_batch_norm, "MIN_VALUES", 1)
    count = large_count(8, 1000)
    for seed in range(count):
        choose = random.Random(seed)
        torch.manual_seed(seed)
        torch.set_num_threads(choose.choice((1, 2, 3)))
        shape = (
            choose.randint(2, 5),
            choose.choice((1, 3, 8, 15, 16, 17, 33, 70)),
            *(choose.randint(1, 9) for _ in "yx"),
        )
        dtype = choose.choice((torch.float32, torch.bfloat16))
        x, upstream = draw(shape, 5.0).to(dtype), draw(shape, 0.0).to(dtype)
        if choose.random() < 0.5:
            # In bfloat16, results are rounded up to the limit of ReLU6, and their gradients are zero.
            kind = nn.ReLU if dtype == torch.bfloat16 else choose.choice((nn.ReLU, nn.ReLU6))
            block, residual = Block(shape[1], kind), draw(shape, 1.0).to(dtype)
            exact = run_block(copy.deepcopy(block).double(), x.double(), residual.double(), upstream.double())
            assert_near(run_block(accelerate(block), x, residual, upstream), exact, dtype)
        else:
            layer = with_activation(shape[1], choose.choice(list(native_batch_norm.ACTIVATIONS))).train()
            exact = run(copy.deepcopy(layer).double(), x.double(), upstream.double())
            assert_near(run(accelerate(layer), x, upstream), exact, dtype)
    assert calls.count("batch_norm") == calls.count("batch_norm_gradients") == count
