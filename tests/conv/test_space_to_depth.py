from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from svertka.conv import native_support, space_to_depth, sparse_matrix
from svertka.conv_shape import ConvShape

pytestmark = pytest.mark.skipif(native_support.why_not() is not None, reason=str(native_support.why_not()))


@st.composite
def shapes(draw: st.DrawFn) -> ConvShape:
    """Strides and kernels that leave three taps a phase; sizes of which a stride may leave pixels unread."""
    stride = draw(st.sampled_from(((2, 2), (1, 2), (3, 1), (4, 4), (2, 3))))
    kernel = tuple(draw(st.integers(2 * step + 1, 3 * step)) for step in stride)
    padding = draw(st.tuples(st.integers(0, 6), st.integers(0, 6)))
    height, width = (
        max(1, taps - 2 * pad) + draw(st.integers(0, 20)) for taps, pad in zip(kernel, padding, strict=True)
    )
    batch, in_channels, out_channels = draw(st.tuples(st.integers(0, 3), st.integers(1, 9), st.integers(1, 20)))
    return ConvShape.of((batch, in_channels, height, width), (out_channels, in_channels, *kernel), stride, padding)


def test_random_convolutions_agree_with_the_matrix(large_count: Callable[[int, int], int]) -> None:
    @settings(max_examples=large_count(40, 500), deadline=None)
    @given(shape=shapes(), seed=st.integers(0, 2**32), last=st.booleans())
    def checked(shape: ConvShape, seed: int, last: bool) -> None:
        generator = torch.Generator().manual_seed(seed)
        order = torch.channels_last if last else torch.contiguous_format
        x, weight, gradient = (
            torch.randn(size, generator=generator).contiguous(memory_format=order)
            for size in (shape.input, shape.weight, shape.output)
        )
        exact = (
            sparse_matrix.forward(x.double(), weight.double(), shape),
            sparse_matrix.input_gradient(gradient.double(), weight.double(), shape),
            sparse_matrix.weight_gradient(gradient.double(), x.double(), shape),
        )
        found = (
            space_to_depth.forward(x, weight, shape),
            space_to_depth.input_gradient(gradient, weight, shape),
            space_to_depth.weight_gradient(gradient, x, shape),
        )
        products = shape.in_channels * shape.kernel[0] * shape.kernel[1]
        back = shape.out_channels * 9
        positions = max(1, shape.batch * shape.out_height * shape.out_width)
        for result, expected, count in zip(found, exact, (products, back, positions), strict=True):
            assert result.shape == expected.shape
            if result.numel():  # as for native_winograd: sums of so many products of normal numbers
                assert (result - expected).abs().max() < 2e-5 * count**0.5

    checked()


def test_error_of_the_first_layer_of_alexnet(error: Callable[..., tuple[float, float]]) -> None:
    shape = ConvShape.of((2, 3, 224, 224), (64, 3, 11, 11), stride=4, padding=2)
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(shape.input, generator=generator), torch.randn(shape.weight, generator=generator)
    exact = torch.conv2d(x.double(), weight.double(), stride=4, padding=2)
    root_mean_square, largest = error(space_to_depth.forward(x, weight, shape), exact)
    assert root_mean_square <= 1.5e-6
    assert largest <= 1e-5


@pytest.mark.parametrize(
    ("kernel", "options", "reason"),
    [
        (3, {}, "it is for strides of 2 and more"),
        (7, {"stride": 2}, "it leaves 4×4 taps without stride, and the kernels are for 3×3"),
        (5, {"stride": 2, "dilation": 2}, "it is for taps side by side, without groups"),
        (5, {"stride": 2, "groups": 2}, "it is for taps side by side, without groups"),
        (5, {"stride": 2}, None),
    ],
)
def test_why_not(kernel: int, options: dict[str, int], reason: str | None) -> None:
    weight = 4, 4 // options.get("groups", 1), kernel, kernel
    assert space_to_depth.why_not(ConvShape.of((1, 4, 32, 32), weight, **options), torch.float32) == reason


def test_float64_is_too_exact_for_it() -> None:
    shape = ConvShape.of((1, 4, 32, 32), (4, 4, 5, 5), stride=2)
    assert space_to_depth.why_not(shape, torch.float64) == "the kernels compute float32 and bfloat16, not float64"
