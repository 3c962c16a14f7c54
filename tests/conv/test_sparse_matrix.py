import torch
import torch.nn.functional as F

from svertka.conv import sparse_matrix
from svertka.conv_shape import ConvShape


def test_a_2x2_kernel_on_a_3x3_picture_is_the_matrix_written_by_hand() -> None:
    weight = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    written = sparse_matrix.build_matrix(weight, ConvShape.of((1, 1, 3, 3), weight.shape))
    assert written.to_dense().tolist() == [
        [1, 2, 0, 3, 4, 0, 0, 0, 0],
        [0, 1, 2, 0, 3, 4, 0, 0, 0],
        [0, 0, 0, 1, 2, 0, 3, 4, 0],
        [0, 0, 0, 0, 1, 2, 0, 3, 4],
    ]
    strided = sparse_matrix.build_matrix(weight, ConvShape.of((1, 1, 3, 3), weight.shape, stride=2, padding=1))
    assert strided.to_dense().tolist() == [
        [4, 0, 0, 0, 0, 0, 0, 0, 0],
        [0, 3, 4, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 2, 0, 0, 4, 0, 0],
        [0, 0, 0, 0, 1, 2, 0, 3, 4],
    ]


def test_groups_make_blocks() -> None:
    weight = torch.tensor([2.0, 3.0]).reshape(2, 1, 1, 1)
    written = sparse_matrix.build_matrix(weight, ConvShape.of((1, 2, 1, 2), weight.shape, groups=2))
    assert written.to_dense().tolist() == torch.diag(torch.tensor([2.0, 2.0, 3.0, 3.0])).tolist()


def test_it_is_the_convolution_of_pytorch_and_its_gradients(each_case) -> None:
    def check(case) -> None:
        shape, settings = case.shape, (case.shape.stride, case.shape.padding, case.shape.dilation, case.shape.groups)
        x, weight = case.x.clone().requires_grad_(), case.weight.clone().requires_grad_()
        result = F.conv2d(x, weight, None, *settings)
        expected = result, *torch.autograd.grad(result, (x, weight), case.gradient)
        for ours, theirs in zip(case.passes(sparse_matrix), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
        entries = sparse_matrix.build_matrix(case.weight, shape)
        flat = torch.stack([entries @ picture.flatten() for picture in case.x]) if shape.batch else case.x.flatten(1)
        assert not shape.batch or torch.equal(flat.reshape(shape.output), case.passes(sparse_matrix)[0])

    each_case(check)


def test_its_transpose_is_the_transposed_convolution(each_case) -> None:
    def check(case) -> None:
        shape = case.shape
        steps = zip(shape.input[2:], shape.output[2:], shape.span, shape.stride, shape.padding, strict=True)
        # What the strides did not reach at the far side.
        beyond = [size - ((positions - 1) * s - 2 * p + span) for size, positions, span, s, p in steps]
        expected = F.conv_transpose2d(
            case.gradient, case.weight, None, shape.stride, shape.padding, beyond, shape.groups, shape.dilation
        )
        torch.testing.assert_close(
            sparse_matrix.input_gradient(case.gradient, case.weight, shape), expected, rtol=1e-12, atol=1e-12
        )

    each_case(check)


def test_adjoint_identity(each_case, adjoint) -> None:
    each_case(lambda case: adjoint(sparse_matrix, case))


def test_without_padding_it_has_an_entry_for_each_multiplication() -> None:
    shape = ConvShape.of((1, 6, 13, 9), (4, 3, 3, 2), stride=(2, 1), dilation=(1, 3), groups=2)
    assert len(sparse_matrix.build_matrix(torch.ones(shape.weight), shape).values()) == shape.multiply_adds


def test_why_not() -> None:
    small = ConvShape.of((500, 3, 32, 32), (16, 3, 3, 3))
    assert sparse_matrix.why_not(small, torch.float64) is None
    assert sparse_matrix.why_not(small, torch.float16) == "sparse products are made of float32 and float64, not float16"
    large = ConvShape.of((1, 64, 224, 224), (64, 64, 3, 3), padding=1)
    assert (
        sparse_matrix.why_not(large, torch.float64)
        == "its matrix has up to 1,849,688,064 entries, more than 33,554,432"
    )
