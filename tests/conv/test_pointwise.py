import pytest
import torch

from svertka.conv import matrix, pointwise
from svertka.geometry import ConvShape


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("inputs", "weight", "stride", "groups"),
    [
        ((2, 5, 4, 3), (7, 5, 1, 1), 1, 1),
        ((2, 6, 7, 8), (4, 3, 1, 1), (2, 3), 2),  # the last rows and columns are seen, or not
        ((1, 1, 6, 5), (3, 1, 1, 1), 2, 1),
        ((0, 4, 3, 3), (2, 4, 1, 1), 1, 1),
    ],
)
def test_three_passes_are_those_of_the_matrix(inputs, weight, stride, groups, order):
    shape = ConvShape.of(inputs, weight, stride, groups=groups)
    generator = torch.Generator().manual_seed(0)
    x, weights, gradient = (
        torch.randn(size, generator=generator, dtype=torch.float64).contiguous(memory_format=order)
        for size in (shape.input, shape.weight, shape.output)
    )
    for one_pass, operands in (
        ("forward", (x, weights)),
        ("input_gradient", (gradient, weights)),
        ("weight_gradient", (gradient, x)),
    ):
        exact = getattr(matrix, one_pass)(*operands, shape)
        torch.testing.assert_close(getattr(pointwise, one_pass)(*operands, shape), exact)
        rounded = getattr(pointwise, one_pass)(*(tensor.float() for tensor in operands), shape)
        torch.testing.assert_close(rounded.double(), exact, rtol=1e-5, atol=1e-5)


def test_why_not():
    assert pointwise.why_not(ConvShape(1, 4, 4, 8, 8, (1, 1), stride=(2, 2)), torch.float64) is None
    for shape in (ConvShape(1, 4, 4, 8, 8, (1, 3)), ConvShape(1, 4, 4, 8, 8, (1, 1), padding=(0, 1))):
        assert pointwise.why_not(shape, torch.float32) == "it is made for kernels of one pixel without padding"
