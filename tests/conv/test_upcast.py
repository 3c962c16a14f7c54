import torch

from svertka.conv import sparse_matrix, upcast
from svertka.conv_shape import ConvShape


def test_three_passes_are_those_of_the_matrix_rounded_once(each_case) -> None:
    def check(case) -> None:
        rounded = case.to(torch.bfloat16)
        expected = zip(rounded.to(torch.float64).passes(sparse_matrix), case.magnitudes, strict=True)
        for result, (exact, scale) in zip(rounded.passes(upcast), expected, strict=True):
            # Half a unit of the last digit of the result, and what sums in float32 are off by.
            digits = 0 if result.dtype == torch.float32 else 1 / 256
            assert ((result - exact).abs() <= digits * exact.abs() + 1e-5 * scale).all()
        assert [one.dtype for one in rounded.passes(upcast)] == [torch.bfloat16, torch.bfloat16, torch.float32]

    each_case(check)


def test_why_not() -> None:
    shape = ConvShape.of((1, 3, 32, 32), (16, 3, 3, 3))
    assert upcast.why_not(shape, torch.bfloat16) is None
    assert upcast.why_not(shape, torch.float32) == "it is for bfloat16"
