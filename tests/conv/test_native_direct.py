import pytest
import torch

from svertka.conv import native_direct, native_support, sparse_matrix
from svertka.conv_shape import ConvShape

pytestmark = pytest.mark.skipif(native_support.why_not() is not None, reason=str(native_support.why_not()))

SHAPES = [
    ConvShape.of((3, 33, 9, 10), (40, 33, 1, 1)),
    ConvShape.of((2, 40, 15, 14), (17, 40, 1, 1)),
    ConvShape.of((8, 24, 12, 12), (144, 24, 1, 1)),
    ConvShape.of((2, 16, 15, 9), (70, 16, 1, 1), stride=2),
    ConvShape.of((2, 20, 14, 13), (20, 20, 3, 3), stride=2, padding=1),
    ConvShape.of((1, 3, 31, 29), (24, 3, 7, 7), stride=2, padding=3),
    ConvShape.of((2, 6, 12, 11), (12, 6, 3, 5), stride=(1, 3), padding=(0, 2), dilation=(2, 1)),
    ConvShape.of((40, 64, 5, 5), (128, 64, 1, 1)),
    ConvShape.of((0, 8, 5, 5), (8, 8, 3, 3)),
]


@pytest.mark.sample(12)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_the_definition(shape, normal, agree, instructions):
    case = normal(shape)
    agree(native_direct, case, (torch.float32,), case.magnitudes, 4)


def test_random_convolutions_are_the_definition(each_case, agree):
    def check(case):
        if native_direct.why_not(case.shape, torch.float32) is None:
            agree(native_direct, case, (torch.float32,), case.magnitudes, 4)

    each_case(check)


def test_the_bias_is_added_and_threads_change_nothing(normal):
    case = normal(SHAPES[0])
    bias = torch.randn(40)
    torch.set_num_threads(1)
    alone = native_direct.forward(case.x, case.weight, case.shape, bias)
    expected = sparse_matrix.forward(case.x.double(), case.weight.double(), case.shape) + bias[:, None, None]
    torch.testing.assert_close(alone.double(), expected, rtol=1e-5, atol=1e-5)
    torch.set_num_threads(3)
    assert torch.equal(native_direct.forward(case.x, case.weight, case.shape, bias), alone)


@pytest.mark.sample(12)
@pytest.mark.parametrize("threads", [2, 3, 5])
@pytest.mark.parametrize("shape", [SHAPES[2], SHAPES[4], SHAPES[7]], ids=str)
def test_weight_gradients_of_several_threads_are_the_definition(shape, threads, normal, instructions):
    case = normal(shape)
    torch.set_num_threads(threads)
    result = native_direct.weight_gradient(case.gradient, case.x, shape)
    assert (result - case.exact[2]).abs().max() <= 1e-6 * case.magnitudes[2]
    assert torch.equal(native_direct.weight_gradient(case.gradient, case.x, shape), result)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        (ConvShape.of((1, 4, 5, 5), (4, 1, 3, 3), groups=4), "it is for one group"),
        (ConvShape.of((1, 4, 5, 5), (4, 4, 3, 3), padding=3), "padding .* larger than the kernel"),
    ],
)
def test_why_not(shape, said):
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(native_direct.why_not(shape, torch.float32))


def test_the_kernels_check_their_tensors():
    shape = SHAPES[0]
    x, output, weight = torch.zeros(shape.input), torch.zeros(shape.output), torch.zeros(40 * 33)
    sizes, panel = native_support.convolution_window(shape), native_support.kernels.panel_width()
    room = torch.zeros(-(-40 // panel) * panel * 33)
    native_support.kernels.direct_pack(40, 1, 33, weight, False, room)
    with pytest.raises(ValueError, match=r"weights holds 1319 numbers; these sizes need 1320"):
        native_support.kernels.direct_pack(40, 1, 33, weight[1:].clone(), False, room)
    with pytest.raises(ValueError, match=f"packed holds {room.numel() - 1} numbers"):
        native_support.kernels.direct_pack(40, 1, 33, weight, False, room[1:].clone())
    with pytest.raises(ValueError, match=f"packed holds 5 numbers; these sizes need {room.numel()}"):
        native_support.kernels.direct_forward(sizes, x, torch.zeros(5), None, output, 1)
    with pytest.raises(ValueError, match="output holds 2 numbers"):
        native_support.kernels.direct_forward(sizes, x, room, None, torch.zeros(2), 1)
    with pytest.raises(ValueError, match="result holds 1319 numbers"):
        native_support.kernels.direct_weight_gradient(sizes, output, x, torch.zeros(1319), 1)
    with pytest.raises(ValueError, match="gradient holds 7 numbers"):
        native_support.kernels.direct_weight_gradient(sizes, torch.zeros(7), x, weight, 1)
