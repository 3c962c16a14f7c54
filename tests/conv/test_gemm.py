import torch

from svertka.conv import gemm, sparse_matrix
from svertka.conv_shape import ConvShape


def test_three_passes_are_those_of_the_matrix(each_case, agree) -> None:
    # In half precision, too; there the input's gradient is rounded at each of the patches that overlap.
    dtypes = torch.float64, torch.float32, torch.bfloat16, torch.float16
    each_case(lambda case: agree(gemm, case, dtypes, case.magnitudes, ulps=8))


def test_adjoint_identity(each_case, adjoint) -> None:
    each_case(lambda case: adjoint(gemm, case))


def test_what_is_not_finite_stays_where_the_definition_has_it(each_case, spoil) -> None:
    def check(case) -> None:
        spoiled = spoil(case)
        (result, inputs, weights), exact = spoiled.passes(gemm), spoiled.passes(sparse_matrix)
        assert torch.equal(result.isfinite(), exact[0].isfinite())
        assert torch.equal(inputs.isfinite(), exact[1].isfinite())
        if case.shape.padding == (0, 0):
            assert torch.equal(weights.isfinite(), exact[2].isfinite())
        assert not weights[~exact[2].isfinite()].isfinite().any()

    each_case(check)


def test_error_at_256_channels(error) -> None:
    shape = ConvShape.of((1, 256, 28, 28), (64, 256, 3, 3), padding=1)
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(shape.input, generator=generator), torch.randn(shape.weight, generator=generator)
    exact = gemm.forward(x.double(), weight.double(), shape)
    root_mean_square, largest = error(gemm.forward(x, weight, shape), exact)
    assert root_mean_square <= 5e-7  # measured 2.5e-7
    assert largest <= 4e-6  # measured 1.7e-6


def test_why_not() -> None:
    shape = ConvShape.of((1, 3, 32, 32), (16, 3, 3, 3))
    assert gemm.why_not(shape, torch.bfloat16) is None
    assert gemm.why_not(shape, torch.int32) == "it supports real numbers, not int32"
