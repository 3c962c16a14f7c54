import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from svertka.conv_shape import ConvShape, output_size
from svertka.errors import UsageError


@given(
    size=st.integers(1, 60),
    kernel=st.integers(1, 9),
    stride=st.integers(1, 5),
    padding=st.integers(0, 6),
    dilation=st.integers(1, 4),
)
def test_output_size_is_that_of_pytorch(size: int, kernel: int, stride: int, padding: int, dilation: int) -> None:
    signal, weight = torch.zeros(1, 1, size), torch.zeros(1, 1, kernel)
    if dilation * (kernel - 1) + 1 > size + 2 * padding:
        with pytest.raises(UsageError, match="use a larger input"):
            output_size(size, kernel, stride, padding, dilation)
    else:
        expected = torch.conv1d(signal, weight, stride=stride, padding=padding, dilation=dilation).shape[2]
        assert output_size(size, kernel, stride, padding, dilation) == expected


STEPS = st.tuples(st.integers(1, 3), st.integers(1, 3))


@given(
    sides=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    channels=st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6)),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=STEPS,
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    dilation=STEPS,
    groups=st.integers(1, 3),
)
def test_a_convolution_fits_where_pytorch_convolves(
    sides, channels, kernel, stride, padding, dilation, groups: int
) -> None:
    inputs, weight = (2, channels[0], *sides), (channels[1], channels[2], *kernel)
    try:
        expected = torch.conv2d(torch.zeros(inputs), torch.zeros(weight), None, stride, padding, dilation, groups)
    except RuntimeError:
        with pytest.raises(UsageError) as refusal:
            ConvShape.of(inputs, weight, stride, padding, dilation, groups)
        assert f"{inputs} and weights of shape {weight} do not fit: " in str(refusal.value)
        return
    shape = ConvShape.of(inputs, weight, stride, padding, dilation, groups)
    assert (shape.input, shape.weight, shape.output) == (inputs, weight, expected.shape)
    assert shape.multiply_adds == expected.numel() * channels[2] * kernel[0] * kernel[1]


@pytest.mark.parametrize(
    ("inputs", "weight", "settings", "sentence"),
    [
        ((3, 8, 8), (4, 3, 3, 3), {}, "the input has 3 axes; give it 4: images, channels, rows, columns"),
        (
            (1, 3, 8, 8),
            (4, 27),
            {},
            "the weights have 2 axes; give them 4: output channels, input channels, rows, columns",
        ),
        ((1, 3, 0, 8), (4, 3, 3, 3), {}, "an axis other than the batch is empty; make it at least 1 long"),
        ((1, 3, 8, 8), (4, 3, 3, 3), {"stride": 0}, "stride=(0, 0), dilation=(1, 1), padding=(0, 0); strides and"),
        ((1, 3, 8, 8), (4, 3, 3, 3), {"padding": (0, -1)}, "padding is at least 0"),
        ((1, 64, 8, 8), (6, 21, 3, 3), {"groups": 3}, "groups=3 must divide 64 input and 6 output channels; use a"),
        ((1, 3, 8, 8), (4, 4, 3, 3), {}, "the weights read 4 channels, the input has 3; give it 4"),
        (
            (1, 4, 8, 8),
            (4, 4, 3, 3),
            {"groups": 2},
            "the weights read 4 channels in each of 2 groups, the input has 4; give it 8",
        ),
        (
            (1, 3, 4, 8),
            (4, 3, 3, 3),
            {"dilation": 2},
            "the kernel spans 5 pixels, the padded input is 4 high; use a larger",
        ),
        (
            (1, 3, 8, 1),
            (4, 3, 3, 4),
            {"padding": 1},
            "the kernel spans 4 pixels, the padded input is 3 wide; use a larger",
        ),
    ],
)
def test_what_does_not_fit_is_said_with_both_shapes(inputs, weight, settings, sentence: str) -> None:
    with pytest.raises(UsageError) as refusal:
        ConvShape.of(inputs, weight, **settings)
    start, _, problem = str(refusal.value).partition(" do not fit: ")
    assert start == f"an input of shape {inputs} and weights of shape {weight}"
    assert sentence in problem


@pytest.mark.parametrize("stride", [(1, 2, 3), 1.5, (1, 1.5), "2"])
def test_a_setting_is_one_number_or_two(stride) -> None:
    with pytest.raises(UsageError, match="must be a whole number or two of them, vertical and horizontal"):
        ConvShape.of((1, 3, 8, 8), (4, 3, 3, 3), stride=stride)


def test_an_empty_batch_fits() -> None:
    shape = ConvShape.of((0, 3, 8, 8), (4, 3, 3, 3), stride=2, padding=1)
    assert (shape.output, shape.multiply_adds, shape.span) == ((0, 4, 4, 4), 0, (3, 3))
