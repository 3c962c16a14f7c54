"""Bounds hold for the instruction, too, which rounds in an order of its own and takes denormal numbers for zero."""

from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from svertka.conv import aten, native_support, native_winograd, native_winograd_bf16
from svertka.conv.winograd import make_transforms
from svertka.conv_shape import ConvShape

pytestmark = pytest.mark.skipif(native_support.why_not() is not None, reason=str(native_support.why_not()))


@pytest.fixture
def pictures(normal: Callable[..., Any]) -> Callable[..., Any]:
    """As `normal`, with pictures and gradients of bfloat16; weights are float32, as they are under autocast."""

    def draw(shape: ConvShape, seed: int = 0) -> Any:
        case = normal(shape, seed)
        return replace(case, x=case.x.bfloat16(), gradient=case.gradient.bfloat16())

    return draw


def rounding(outputs: int, taps: int) -> float:
    """What rounding both factors makes, as root mean square, of the result that suffers most of those of a tile.

    Relative to a result of normal numbers. Along an axis it is magnified √(Σₖ Aₖᵢ² ‖Gₖ‖² ‖Bₖ‖² / r) times for result i
    (`svertka.conv.winograd`); a factor is off by at most half a unit of eight digits, evenly distributed.
    """
    one_axis = make_transforms(outputs, taps)
    g, b = (torch.tensor([[float(x) for x in row] for row in matrix]) for matrix in (one_axis.kernel, one_axis.data))
    a = torch.tensor([[float(x) for x in row] for row in one_axis.inverse])
    magnified = (a.square() * (g.square().sum(1) * b.square().sum(1))[:, None]).sum(0).max() / taps  # squared
    return float(magnified) * (2 / 3) ** 0.5 / 256


def test_random_convolutions_agree_with_float64(
    instructions: str, large_count: Callable[[int, int], int], pictures: Callable[..., Any], three_by_three: Any
) -> None:
    @settings(max_examples=large_count(12, 1500), deadline=None)
    @given(shape=three_by_three, seed=st.integers(0, 2**32), threads=st.sampled_from((1, 2, 3)))
    def checked(shape: ConvShape, seed: int, threads: int) -> None:
        torch.set_num_threads(threads)
        case = pictures(shape, seed)
        products = 9 * shape.in_channels, 9 * shape.out_channels, shape.batch * shape.out_height * shape.out_width
        off = rounding(4, 3), rounding(4, 3), rounding(3, 4)
        results, exactly = case.passes(native_winograd_bf16), case.to(torch.float64).passes(aten)
        for result, exact, count, one in zip(results, exactly, products, off, strict=True):
            # Ten times the root mean square, of sums that read no padding; and the result's own rounding. Of a sum of
            # few products of normal numbers larger ones are met.
            assert ((result - exact).abs() < 10 * one * max(count, 9 * 16) ** 0.5 + exact.abs() / 256).all()
            assert result.is_contiguous(memory_format=torch.channels_last)
        assert [result.dtype for result in results] == [torch.bfloat16, torch.bfloat16, torch.float32]

    checked()


def test_the_error_at_256_channels_is_below_the_limit(
    instructions: str, error: Callable[..., tuple[float, float]], pictures: Callable[..., Any]
) -> None:
    case = pictures(ConvShape(2, 256, 256, 28, 28, (3, 3), padding=(1, 1)))
    for result, exact in zip(case.passes(native_winograd_bf16), case.to(torch.float64).passes(aten), strict=True):
        root_mean_square, _ = error(result, exact)
        assert 0.002 < root_mean_square < native_winograd_bf16.LIMIT


def test_the_number_of_threads_changes_no_forward_result_and_repeats_the_weight_gradient(
    instructions: str, pictures: Callable[..., Any]
) -> None:
    for channels in (32, 300):  # the weight gradient in either plan
        shape = ConvShape(3, channels, channels, 19, 17, (3, 3), padding=(1, 1))
        case = pictures(shape)
        results = {}
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results[threads] = case.passes(native_winograd_bf16)
            assert torch.equal(results[threads][2], native_winograd_bf16.weight_gradient(case.gradient, case.x, shape))
        for one, other in ((1, 2), (1, 3)):
            assert torch.equal(results[one][0], results[other][0])
            assert torch.equal(results[one][1], results[other][1])


def test_an_empty_batch_gives_an_empty_result_and_no_gradient(instructions: str, pictures: Callable[..., Any]) -> None:
    shape = ConvShape(0, 20, 24, 8, 8, (3, 3), padding=(1, 1))
    result, input_gradient, weight_gradient = pictures(shape).passes(native_winograd_bf16)
    assert (result.shape, input_gradient.shape) == (shape.output, shape.input)
    assert torch.equal(weight_gradient, torch.zeros(shape.weight))


def test_a_value_that_is_not_finite_reaches_its_results_and_no_other_tile(
    instructions: str, pictures: Callable[..., Any]
) -> None:
    shape = ConvShape(2, 20, 40, 24, 24, (3, 3), padding=(1, 1))  # whole tiles only: 6×6 of 4×4
    case = pictures(shape)
    clean = native_winograd_bf16.forward(case.x, case.weight, shape)
    for value in (torch.nan, torch.inf, -torch.inf):
        spoiled = case.x.clone()
        spoiled[1, 3, 9, 14] = value
        result = native_winograd_bf16.forward(spoiled, case.weight, shape)
        assert not result[1, :, 8:11, 13:16].isfinite().any()  # what reads the pixel
        unharmed = torch.ones(24, 24, dtype=torch.bool)
        unharmed[8:12, 12:16] = False  # the tile they lie in
        assert torch.equal(result[0], clean[0])
        assert torch.equal(result[1][:, unharmed], clean[1][:, unharmed])
        assert not native_winograd_bf16.weight_gradient(case.gradient, spoiled, shape)[:, 3].isfinite().any()


def test_why_not() -> None:
    shape = ConvShape(1, 4, 4, 8, 8, (3, 3), padding=(1, 1))
    assert native_winograd_bf16.why_not(shape, torch.bfloat16) is None
    assert native_winograd_bf16.why_not(shape, torch.float32) == "it is for bfloat16"
    assert "3×3" in str(native_winograd_bf16.why_not(ConvShape(1, 4, 4, 8, 8, (5, 5)), torch.bfloat16))


@pytest.mark.parametrize("channels", [64, 48], ids=["whole cache lines", "half of a cache line at the end"])
def test_results_that_are_stored_past_the_caches(channels: int, instructions: str) -> None:
    shape = ConvShape.of((1, 3, 180, 181), (channels, 3, 3, 3), padding=1)
    assert prod(shape.output) > 2**20  # where such stores begin
    torch.manual_seed(1)
    x, weight = torch.randn(shape.input).bfloat16(), torch.randn(shape.weight)
    exact = F.conv2d(x.float(), weight, padding=1)
    for pairs in (True, False):
        result = native_winograd.forward(x, weight, shape, pairs=pairs)
        assert (result - exact).norm() <= native_winograd_bf16.LIMIT * exact.norm()
