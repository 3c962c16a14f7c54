"""Bounds hold for the instruction, too, which rounds in an order of its own and takes denormal numbers for zero."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from svertka.conv import native, native_pairs
from svertka.conv.winograd import transforms
from svertka.geometry import ConvShape

pytestmark = pytest.mark.skipif(native.why_not() is not None, reason=str(native.why_not()))

Passes = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def tensors(shape: ConvShape, seed: int = 0) -> Passes:
    """x, weights and the gradient of the result, normally distributed, channels-last; pictures in bfloat16."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(size, generator=generator) for size in (shape.input, shape.weight, shape.output)]
    x, weight, gradient = (tensor.contiguous(memory_format=torch.channels_last) for tensor in drawn)
    return x.bfloat16(), weight, gradient.bfloat16()


def passes(x: torch.Tensor, weight: torch.Tensor, gradient: torch.Tensor, shape: ConvShape) -> Passes:
    return (
        native_pairs.forward(x, weight, shape),
        native_pairs.input_gradient(gradient, weight, shape),
        native_pairs.weight_gradient(gradient, x, shape),
    )


def exactly(x: torch.Tensor, weight: torch.Tensor, gradient: torch.Tensor, shape: ConvShape) -> Passes:
    """The same three in float64 by PyTorch."""
    x, weight, gradient = x.double(), weight.double(), gradient.double()
    return (
        F.conv2d(x, weight, padding=shape.padding),
        torch.nn.grad.conv2d_input(shape.input, weight, gradient, padding=shape.padding),
        torch.nn.grad.conv2d_weight(x, shape.weight, gradient, padding=shape.padding),
    )


def rounding(outputs: int, taps: int) -> float:
    """What rounding both factors makes, as root mean square, of the result that suffers most of those of a tile.

    Relative to a result of normal numbers. Along an axis it is magnified √(Σₖ Aₖᵢ² ‖Gₖ‖² ‖Bₖ‖² / r) times for result i
    (`svertka.conv.winograd`); a factor is off by at most half a unit of eight digits, evenly distributed.
    """
    one_axis = transforms(outputs, taps)
    g, b = (torch.tensor([[float(x) for x in row] for row in matrix]) for matrix in (one_axis.kernel, one_axis.data))
    a = torch.tensor([[float(x) for x in row] for row in one_axis.inverse])
    magnified = (a.square() * (g.square().sum(1) * b.square().sum(1))[:, None]).sum(0).max() / taps  # squared
    return float(magnified) * (2 / 3) ** 0.5 / 256


@st.composite
def shapes(draw: st.DrawFn) -> ConvShape:
    """Channels around the widths of vectors, even and odd numbers of tiles and channels of all kinds."""
    padding = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    height, width = (max(1, 3 - 2 * pad) + draw(st.integers(0, 21)) for pad in padding)
    channels = st.one_of(st.integers(1, 40), st.sampled_from((64, 65, 130, 272)))
    in_channels, out_channels = draw(channels), draw(channels)
    return ConvShape(draw(st.integers(1, 5)), in_channels, out_channels, height, width, (3, 3), padding=padding)


def test_random_convolutions_agree_with_float64(instructions: str, large_count: Callable[[int, int], int]) -> None:
    @settings(max_examples=large_count(30, 1500), deadline=None)
    @given(shape=shapes(), seed=st.integers(0, 2**32), threads=st.sampled_from((1, 2, 3)))
    def checked(shape: ConvShape, seed: int, threads: int) -> None:
        torch.set_num_threads(threads)
        operands = tensors(shape, seed)
        products = 9 * shape.in_channels, 9 * shape.out_channels, shape.batch * shape.out_height * shape.out_width
        off = rounding(4, 3), rounding(4, 3), rounding(3, 4)
        results = passes(*operands, shape)
        for result, exact, count, one in zip(results, exactly(*operands, shape), products, off, strict=True):
            # Ten times the root mean square, of sums that read no padding; and the result's own rounding. Of a sum of
            # few products of normal numbers larger ones are met.
            assert ((result - exact).abs() < 10 * one * max(count, 9 * 16) ** 0.5 + exact.abs() / 256).all()
            assert result.is_contiguous(memory_format=torch.channels_last)
        assert [result.dtype for result in results] == [torch.bfloat16, torch.bfloat16, torch.float32]

    checked()


def test_the_error_at_256_channels_is_below_the_limit(
    instructions: str, error: Callable[..., tuple[float, float]]
) -> None:
    shape = ConvShape(2, 256, 256, 28, 28, (3, 3), padding=(1, 1))
    operands = tensors(shape)
    for result, exact in zip(passes(*operands, shape), exactly(*operands, shape), strict=True):
        root_mean_square, _ = error(result, exact)
        assert 0.002 < root_mean_square < native_pairs.LIMIT


def test_the_number_of_threads_changes_no_forward_result_and_repeats_the_weight_gradient(instructions: str) -> None:
    for channels in (32, 300):  # the weight gradient in either plan
        shape = ConvShape(3, channels, channels, 19, 17, (3, 3), padding=(1, 1))
        operands = tensors(shape)
        results = {}
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results[threads] = passes(*operands, shape)
            assert torch.equal(results[threads][2], native_pairs.weight_gradient(operands[2], operands[0], shape))
        for one, other in ((1, 2), (1, 3)):
            assert torch.equal(results[one][0], results[other][0])
            assert torch.equal(results[one][1], results[other][1])


def test_an_empty_batch_gives_an_empty_result_and_no_gradient(instructions: str) -> None:
    shape = ConvShape(0, 20, 24, 8, 8, (3, 3), padding=(1, 1))
    result, input_gradient, weight_gradient = passes(*tensors(shape), shape)
    assert (result.shape, input_gradient.shape) == (shape.output, shape.input)
    assert torch.equal(weight_gradient, torch.zeros(shape.weight))


def test_a_value_that_is_not_finite_reaches_its_results_and_no_other_tile(instructions: str) -> None:
    shape = ConvShape(2, 20, 40, 24, 24, (3, 3), padding=(1, 1))  # whole tiles only: 6×6 of 4×4
    x, weight, gradient = tensors(shape)
    clean = native_pairs.forward(x, weight, shape)
    for value in (torch.nan, torch.inf, -torch.inf):
        spoiled = x.clone()
        spoiled[1, 3, 9, 14] = value
        result = native_pairs.forward(spoiled, weight, shape)
        assert not result[1, :, 8:11, 13:16].isfinite().any()  # what reads the pixel
        unharmed = torch.ones(24, 24, dtype=torch.bool)
        unharmed[8:12, 12:16] = False  # the tile they lie in
        assert torch.equal(result[0], clean[0])
        assert torch.equal(result[1][:, unharmed], clean[1][:, unharmed])
        assert not native_pairs.weight_gradient(gradient, spoiled, shape)[:, 3].isfinite().any()


def test_why_not() -> None:
    shape = ConvShape(1, 4, 4, 8, 8, (3, 3), padding=(1, 1))
    assert native_pairs.why_not(shape, torch.bfloat16) is None
    assert native_pairs.why_not(shape, torch.float32) == "it is for bfloat16"
    assert "3×3" in str(native_pairs.why_not(ConvShape(1, 4, 4, 8, 8, (5, 5)), torch.bfloat16))
