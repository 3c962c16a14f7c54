import threading
from collections.abc import Callable
from functools import lru_cache
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from svertka.conv import aten, fft, native_fft, native_support
from svertka.conv_shape import ConvShape

pytestmark = pytest.mark.skipif(native_support.why_not() is not None, reason=str(native_support.why_not()))

Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def tensors(shape: ConvShape, seed: int = 0) -> Tensors:
    """x, weights and the gradient of the result, normally distributed, channels-last."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(size, generator=generator) for size in (shape.input, shape.weight, shape.output)]
    x, weight, gradient = (tensor.contiguous(memory_format=torch.channels_last) for tensor in drawn)
    return x, weight, gradient


def passes(x: torch.Tensor, weight: torch.Tensor, gradient: torch.Tensor, shape: ConvShape) -> Tensors:
    return (
        native_fft.forward(x, weight, shape),
        native_fft.input_gradient(gradient, weight, shape),
        native_fft.weight_gradient(gradient, x, shape),
    )


def exactly(
    x: torch.Tensor, weight: torch.Tensor, gradient: torch.Tensor, shape: ConvShape, algorithm: ModuleType = aten
) -> Tensors:
    """The same three in float64, by PyTorch's own algorithm if nothing else is asked for."""
    x, weight, gradient = x.double(), weight.double(), gradient.double()
    return (
        algorithm.forward(x, weight, shape),
        algorithm.input_gradient(gradient, weight, shape),
        algorithm.weight_gradient(gradient, x, shape),
    )


def sizes_of_sums(shape: ConvShape) -> list[float]:
    """For each pass the root mean square of results that read no padding: sums of so many products of normal numbers.

    All results of a tile go through the same transforms, so that each has an error of this size, even one that is zero.
    """
    taps = shape.kernel[0] * shape.kernel[1]
    products = taps * shape.in_channels, taps * shape.out_channels, shape.batch * shape.out_height * shape.out_width
    return [count**0.5 for count in products]


def assert_agree(results: Tensors, exact: Tensors, shape: ConvShape, bound: float) -> None:
    """The largest error of each pass is below `bound`, relative to the size of its sums."""
    for result, expected, size in zip(results, exact, sizes_of_sums(shape), strict=True):
        assert result.shape == expected.shape
        assert result.is_contiguous(memory_format=torch.channels_last)
        assert (result - expected).abs().max() < bound * size


STEPS = st.tuples(st.sampled_from((1, 1, 1, 2, 3)), st.sampled_from((1, 1, 1, 2, 3)))


@st.composite
def shapes(draw: st.DrawFn) -> ConvShape:
    """Channels around the widths of vectors, sizes from the smallest that fit, circles of all lengths."""
    kernel = draw(st.one_of(st.tuples(st.integers(5, 12), st.integers(5, 12)), st.sampled_from(((1, 31), (20, 2)))))
    padding = draw(st.tuples(st.integers(0, 14), st.integers(0, 14)))
    stride, dilation = draw(STEPS), draw(STEPS)
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, p, d in zip(kernel, padding, dilation, strict=True)]
    height, width = (size + draw(st.integers(0, 70)) for size in least)
    channels = st.one_of(st.integers(1, 6), st.sampled_from((8, 15, 16, 17, 33)))
    in_channels, out_channels = draw(channels), draw(channels)
    return ConvShape(
        draw(st.integers(1, 3)), in_channels, out_channels, height, width, kernel, stride, padding, dilation
    )


def test_random_convolutions_agree_with_float64(instructions: str, large_count: Callable[[int, int], int]) -> None:
    @settings(max_examples=large_count(12, 2000), deadline=None)
    @given(shape=shapes(), seed=st.integers(0, 2**32), threads=st.sampled_from((1, 2, 3)))
    def checked(shape: ConvShape, seed: int, threads: int) -> None:
        torch.set_num_threads(threads)
        operands = tensors(shape, seed)
        assert_agree(passes(*operands, shape), exactly(*operands, shape), shape, 5e-6)

    checked()


@lru_cache
def example(shape: ConvShape) -> tuple[Tensors, Tensors]:
    """Operands, and what becomes of them in float64."""
    operands = tensors(shape)
    # With many taps PyTorch's own would copy each pixel as many times: gigabytes.
    algorithm = fft if shape.kernel[0] * shape.kernel[1] > 200 else aten
    return operands, exactly(*operands, shape, algorithm=algorithm)


# Each takes another way through the plans.
PLANS = {
    "pictures in tiles, tiles in blocks": ConvShape(1, 4, 700, 150, 130, (5, 5), padding=(2, 0)),
    "kernels in portions": ConvShape(1, 128, 32, 20, 20, (31, 31), padding=(15, 15)),
    "both": ConvShape(47, 1200, 40, 6, 6, (5, 5), padding=(2, 2)),
    "many products a frequency": ConvShape(30, 40, 24, 11, 9, (7, 6), padding=(3, 3)),
    "one tile, its zeros shared": ConvShape(2, 20, 24, 56, 52, (15, 31), padding=(7, 15)),
    "more padding than taps": ConvShape(2, 5, 17, 40, 60, (5, 7), padding=(30, 9), stride=(1, 2)),
    "the longest kernel": ConvShape(1, 2, 3, 20, 200, (2, 128), padding=(0, 60)),
}


@pytest.mark.sample(14)
@pytest.mark.parametrize("plan", PLANS)
def test_every_plan_agrees_with_float64(instructions: str, plan: str) -> None:
    operands, exact = example(PLANS[plan])
    assert_agree(passes(*operands, PLANS[plan]), exact, PLANS[plan], 5e-6)


@pytest.mark.parametrize(("taps", "out_channels"), [(11, 32), (27, 2)])
def test_the_error_at_256_channels_is_as_stated(
    instructions: str, taps: int, out_channels: int, error: Callable[..., tuple[float, float]]
) -> None:
    shape = ConvShape(1, 256, out_channels, 28, 28, (taps, taps), padding=(taps // 2, taps // 2))
    operands, exact = example(shape)
    for result, expected in zip(passes(*operands, shape), exact, strict=True):
        root_mean_square, largest = error(result, expected)
        assert root_mean_square < 4e-7
        assert largest < 4e-6


def test_adjoint_identity(instructions: str, large_count: Callable[[int, int], int]) -> None:
    @settings(max_examples=large_count(5, 500), deadline=None)
    @given(shape=shapes(), seed=st.integers(0, 2**32))
    def checked(shape: ConvShape, seed: int) -> None:
        x, weight, gradient = tensors(shape, seed)
        result, input_gradient, weight_gradient = (each.double() for each in passes(x, weight, gradient, shape))
        paired = (result * gradient).sum()
        bound = 1e-7 * x.norm() * weight.norm() * gradient.norm()
        assert abs(paired - (x * input_gradient).sum()) <= bound
        assert abs(paired - (weight * weight_gradient).sum()) <= bound

    checked()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_any_memory_order_is_taken(layout: torch.memory_format) -> None:
    shape = ConvShape(2, 5, 6, 19, 18, (6, 5), padding=(1, 0))
    operands = tensors(shape)
    expected = passes(*operands, shape)
    others = [tensor.repeat_interleave(2, 3)[..., ::2] for tensor in operands]
    in_layout = [tensor.contiguous(memory_format=layout) for tensor in operands]
    for results in (passes(*others, shape), passes(*in_layout, shape)):
        assert all(torch.equal(result, one) for result, one in zip(results, expected, strict=True))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_value_that_is_not_finite_reaches_its_results_and_no_other_picture(instructions: str, value: float) -> None:
    shape = ConvShape(3, 20, 18, 30, 30, (9, 9), padding=(4, 4))
    x, weight, gradient = tensors(shape)
    clean = passes(x, weight, gradient, shape)
    x[1, 3, 9, 14] = gradient[2, 17, 0, 29] = value
    result, input_gradient, weight_gradient = passes(x, weight, gradient, shape)
    assert not result[1, :, 5:14, 10:19].isfinite().any()  # all that read it
    assert torch.equal(result[::2], clean[0][::2])
    assert not input_gradient[2, :, :5, 25:].isfinite().any()
    assert torch.equal(input_gradient[:2], clean[1][:2])
    assert not weight_gradient[:, 3].isfinite().any()
    assert not weight_gradient[17, :, 4:, :5].isfinite().any()  # whose taps it met


def test_tiny_numbers_are_computed_with(instructions: str) -> None:
    shape = ConvShape(1, 16, 16, 12, 12, (5, 5), padding=(2, 2))
    x, weight, gradient = tensors(shape)
    x, gradient = x * 1e-39, gradient * 1e-39  # denormal
    results, exact = passes(x, weight, gradient, shape), exactly(x, weight, gradient, shape)
    for result, expected in zip(results[:2], exact[:2], strict=True):
        assert (result - expected).abs().max() < 1e-41  # 7,000 units of the smallest denormal, of 1e-38


def test_an_empty_batch_gives_an_empty_result_and_no_gradient(instructions: str) -> None:
    shape = ConvShape(0, 20, 24, 8, 8, (5, 5), padding=(2, 2))
    result, input_gradient, weight_gradient = passes(*tensors(shape), shape)
    assert result.shape == shape.output
    assert input_gradient.shape == shape.input
    assert torch.equal(weight_gradient, torch.zeros(shape.weight))


def test_the_number_of_threads_changes_nothing() -> None:
    for shape in (PLANS["both"], PLANS["one tile, its zeros shared"]):
        operands, _ = example(shape)
        results = {}
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results[threads] = passes(*operands, shape)
        for other in (results[2], results[3]):
            assert all(torch.equal(a, b) for a, b in zip(results[1], other, strict=True))


def test_several_python_threads_may_compute_at_once() -> None:
    shapes_here = [ConvShape(2, 17 * i, 24, 20, 14 + i, (5 + i, 5), padding=(2, 2)) for i in range(1, 5)]
    operands = [tensors(shape) for shape in shapes_here]
    expected = [passes(*three, shape) for three, shape in zip(operands, shapes_here, strict=True)]
    wrong = []

    def work(i: int) -> None:
        torch.set_num_threads(1 + i % 2)
        for _ in range(10):
            results = passes(*operands[i], shapes_here[i])
            wrong.extend(i for result, one in zip(results, expected[i], strict=True) if not torch.equal(result, one))

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_what_the_kernels_cannot_do_has_a_reason() -> None:
    assert native_fft.why_not(ConvShape(1, 4, 4, 99, 99, (5, 5), (2, 3), (4, 0), (1, 6)), torch.float32) is None
    for shape, dtype, reason in (
        (ConvShape(1, 4, 4, 8, 8, (5, 5)), torch.float64, "the kernels compute float32 and bfloat16, not float64"),
        (ConvShape(1, 4, 4, 8, 8, (5, 5), groups=2), torch.float32, "the kernels have no groups"),
        (ConvShape(1, 4, 4, 8, 8, (3, 8)), torch.float32, "the kernels are for 25 taps or more"),
        (
            ConvShape(1, 4, 4, 8, 900, (5, 33), dilation=(1, 4)),
            torch.float32,
            "the kernels are for taps that span at most 128 pixels",
        ),
    ):
        assert native_fft.why_not(shape, dtype) == reason
