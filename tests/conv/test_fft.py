import pytest
import torch

from svertka.conv import fft, sparse_matrix
from svertka.conv_shape import ConvShape

KERNELS = ((1, 1), (3, 3), (2, 5), (7, 7), (11, 11), (15, 4), (1, 31))


def test_three_passes_are_those_of_the_matrix(each_case, agree) -> None:
    # Each result goes through sums of all pixels and taps, so that its error is relative to all of them.
    dtypes = torch.float64, torch.float32
    each_case(lambda case: agree(fft, case, dtypes, case.norms(), ulps=2), kernels=KERNELS)


def test_adjoint_identity(each_case, adjoint) -> None:
    each_case(lambda case: adjoint(fft, case), kernels=KERNELS)


def test_results_that_share_a_place_on_the_circle() -> None:
    # 7 + 2 · 8 positions of a single tap, on a circle of 15
    shape = ConvShape.of((1, 1, 7, 7), (1, 1, 1, 1), padding=8)
    x = torch.randn(shape.input, dtype=torch.float64)
    result = fft.forward(x, torch.full(shape.weight, 3.0, dtype=torch.float64), shape)
    torch.testing.assert_close(result, torch.nn.functional.pad(3 * x, (8, 8, 8, 8)))
    gradient = torch.randn(shape.output, dtype=torch.float64)
    torch.testing.assert_close(
        fft.weight_gradient(gradient, x, shape).squeeze(),
        (gradient[:, :, 8:15, 8:15] * x).sum(),
        rtol=1e-12,
        atol=1e-12,
    )


def test_what_is_not_finite_is_not_hidden(each_case, spoil) -> None:
    def check(case) -> None:
        spoiled = spoil(case)
        for result, exact in zip(spoiled.passes(fft), spoiled.passes(sparse_matrix), strict=True):
            assert not result[~exact.isfinite()].isfinite().any()

    each_case(check, kernels=KERNELS)


def test_what_is_not_finite_stays_in_its_picture_and_group() -> None:
    shape = ConvShape.of((3, 4, 20, 20), (6, 2, 5, 5), groups=2)
    x, weight = torch.randn(shape.input), torch.randn(shape.weight)
    x[1, 3, 10, 10] = torch.inf
    finite = fft.forward(x, weight, shape).isfinite()
    assert not finite[1, 3:].any()
    assert finite[1, :3].all()
    assert finite[0].all()
    assert finite[2].all()


@pytest.mark.parametrize(("taps", "out_channels"), [(3, 64), (11, 32), (27, 8)])
def test_error_at_256_channels(taps: int, out_channels: int, error) -> None:
    shape = ConvShape.of((1, 256, 28, 28), (out_channels, 256, taps, taps), padding=taps // 2)
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(shape.input, generator=generator), torch.randn(shape.weight, generator=generator)
    exact = torch.conv2d(x.double(), weight.double(), padding=taps // 2)
    root_mean_square, largest = error(fft.forward(x, weight, shape), exact)
    assert root_mean_square <= 5e-7  # measured 3.1e-7 to 3.5e-7
    assert largest <= 4e-6  # measured 1.9e-6


def test_good_sizes_are_the_next_without_large_factors() -> None:
    good = sorted(2**a * 3**b * 5**c for a in range(10) for b in range(7) for c in range(5))
    for least in range(1, 500):
        assert fft.find_fft_size(least) == next(size for size in good if size >= least)


def test_why_not() -> None:
    shape = ConvShape.of((1, 4, 32, 32), (8, 4, 3, 3), stride=2, dilation=3)
    assert fft.why_not(shape, torch.float32) is None
    assert fft.why_not(shape, torch.float16) == "Fourier transforms are made of float32 and float64, not float16"
