import pytest
import torch

from svertka.conv import native_grouped, native_support, sparse_matrix
from svertka.conv_shape import ConvShape

pytestmark = pytest.mark.skipif(native_support.why_not() is not None, reason=str(native_support.why_not()))

SHAPES = [
    ConvShape.of((3, 33, 9, 10), (33, 1, 3, 3), padding=1, groups=33),
    ConvShape.of((2, 16, 15, 9), (16, 1, 3, 3), stride=2, padding=1, groups=16),
    ConvShape.of((2, 20, 14, 13), (20, 1, 5, 5), stride=2, padding=2, groups=20),
    ConvShape.of((2, 17, 8, 29), (17, 1, 7, 7), padding=3, groups=17),
    ConvShape.of((1, 6, 12, 11), (12, 1, 3, 5), stride=(1, 3), padding=(0, 2), dilation=(2, 1), groups=6),
    ConvShape.of((2, 32, 7, 7), (32, 4, 3, 3), padding=1, groups=8),
    ConvShape.of((2, 24, 9, 8), (12, 6, 3, 3), stride=2, padding=1, groups=4),
    ConvShape.of((1, 40, 7, 6), (80, 20, 3, 3), padding=1, groups=2),
    ConvShape.of((2, 12, 8, 7), (4, 3, 3, 3), padding=1, groups=4),
    ConvShape.of((1, 40, 9, 8), (20, 20, 5, 5), stride=(2, 1), padding=2, groups=2),
    ConvShape.of((1, 170, 6, 9), (170, 1, 5, 5), padding=2, groups=170),  # weights of two parts of the channels
    ConvShape.of((2, 40, 2, 5), (40, 1, 3, 3), padding=(2, 1), groups=40),  # two lines, of which some are padding
    ConvShape.of((0, 8, 5, 5), (8, 1, 3, 3), groups=8),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_the_definition(shape, normal, agree, instructions):
    case = normal(shape)
    agree(native_grouped, case, (torch.float32,), case.magnitudes, 4)


def test_random_convolutions_are_the_definition(each_case, agree):
    def check(case):
        if native_grouped.why_not(case.shape, torch.float32) is None:
            agree(native_grouped, case, (torch.float32,), case.magnitudes, 4)

    each_case(check)


def test_the_bias_is_added_and_threads_change_nothing(normal):
    case = normal(SHAPES[5])
    bias = torch.randn(32)
    torch.set_num_threads(1)
    alone = native_grouped.forward(case.x, case.weight, case.shape, bias)
    expected = sparse_matrix.forward(case.x.double(), case.weight.double(), case.shape) + bias[:, None, None]
    torch.testing.assert_close(alone.double(), expected, rtol=1e-5, atol=1e-5)
    torch.set_num_threads(3)
    assert torch.equal(native_grouped.forward(case.x, case.weight, case.shape, bias), alone)


@pytest.mark.sample(16)
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[2], SHAPES[5], SHAPES[7]], ids=str)
def test_weight_gradients_of_several_threads_are_the_definition(shape, threads, normal, instructions):
    case = normal(shape)
    torch.set_num_threads(threads)
    result = native_grouped.weight_gradient(case.gradient, case.x, shape)
    assert (result - case.exact[2]).abs().max() <= 1e-6 * case.magnitudes[2]
    assert torch.equal(native_grouped.weight_gradient(case.gradient, case.x, shape), result)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        (ConvShape.of((1, 4, 5, 5), (4, 4, 3, 3)), "it is for groups"),
        (ConvShape.of((1, 4, 5, 5), (4, 1, 3, 3), padding=3, groups=4), "padding .* larger than the kernel"),
    ],
)
def test_why_not(shape, said):
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(native_grouped.why_not(shape, torch.float32))


def test_the_kernel_checks_its_tensors():
    shape = SHAPES[0]
    x, weight, output = torch.zeros(shape.input), torch.zeros(297), torch.zeros(shape.output)
    sizes = native_support.convolution_window(shape)
    with pytest.raises(ValueError, match="weights holds 296 numbers; these sizes need 297"):
        native_support.kernels.grouped_forward(sizes, 33, x, torch.zeros(296), None, output, 1)
    with pytest.raises(ValueError, match="output holds 2 numbers"):
        native_support.kernels.grouped_forward(sizes, 33, x, weight, None, torch.zeros(2), 1)
    with pytest.raises(ValueError, match="2 groups must divide 33 input"):
        native_support.kernels.grouped_forward(sizes, 2, x, weight, None, output, 1)
    with pytest.raises(ValueError, match="result holds 296 numbers; these sizes need 297"):
        native_support.kernels.grouped_weight_gradient(sizes, 33, output, x, torch.zeros(296), 1)
    with pytest.raises(ValueError, match="2 groups must divide 33 input"):
        native_support.kernels.grouped_weight_gradient(sizes, 2, output, x, weight, 1)


def test_the_kernel_of_strided_depthwise_input_gradients_checks_its_tensors():
    shape = SHAPES[1]
    gradient, weight, result = torch.zeros(shape.output), torch.zeros(144), torch.zeros(shape.input)
    sizes, kernel = native_support.convolution_window(shape), native_support.kernels.depthwise_input_gradient
    kernel(sizes, gradient, weight, result, 1)
    for name, spoiled in (("gradient", (gradient[1:], weight, result)), ("weights", (gradient, weight[1:], result)),
                          ("result", (gradient, weight, result[1:]))):  # fmt: skip
        with pytest.raises(ValueError, match=f"{name} holds"):
            kernel(sizes, *spoiled, 1)
    more = native_support.convolution_window(ConvShape.of((1, 4, 5, 5), (8, 1, 3, 3), groups=4))
    with pytest.raises(ValueError, match="as many outputs as inputs"):
        kernel(more, gradient, weight, result, 1)
