"""The functions against PyTorch's own in float64."""

import random
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from svertka.conv import autotune
from svertka.conv.api import PADDING_MODES, conv2d, conv_transpose2d
from svertka.conv_shape import ConvShape
from svertka.errors import UsageError

pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@st.composite
def convolutions(draw):
    """Pictures, weights and settings that fit."""
    groups = draw(st.integers(1, 3))
    kernel, stride, dilation = (draw(pairs) for _ in range(3))
    padding = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    size = [
        max(1, apart * (taps - 1) + 1 - 2 * pad) + draw(st.integers(0, 5))
        for taps, apart, pad in zip(kernel, dilation, padding, strict=True)
    ]
    channels, out_channels = (groups * draw(st.integers(1, 3)) for _ in range(2))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1 << 20)))
    shapes = (draw(st.integers(0, 2)), channels, *size), (out_channels, channels // groups, *kernel), (out_channels,)
    x, weight, bias = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    if draw(st.booleans()):
        x = x.contiguous(memory_format=torch.channels_last)
    if draw(st.booleans()):
        x = x.transpose(2, 3).contiguous().transpose(2, 3)  # dense, but in no order that has a name
    return x, weight, bias if draw(st.booleans()) else None, stride, padding, dilation, groups


@given(convolutions())
@settings(max_examples=150, deadline=None)
def test_it_and_its_gradients_are_pytorchs(case):
    x, weight, bias, *rest = case
    stride, padding, dilation, groups = rest
    ours = [one if one is None else one.clone().requires_grad_() for one in (x, weight, bias)]
    theirs = [one if one is None else one.clone().requires_grad_() for one in (x, weight, bias)]
    result = conv2d(*ours, stride=stride, padding=padding, dilation=dilation, groups=groups)
    expected = F.conv2d(*theirs, *rest)
    torch.testing.assert_close(result, expected)
    upstream = torch.randn_like(expected)
    result.backward(upstream)
    expected.backward(upstream)
    for one, other in zip(ours, theirs, strict=True):
        if one is not None:
            torch.testing.assert_close(one.grad, other.grad)


@given(convolutions(), st.tuples(st.integers(0, 2), st.integers(0, 2)))
@settings(max_examples=100, deadline=None)
def test_the_transposed_one_is_pytorchs(case, extra):
    gradient, weight, _, stride, padding, dilation, groups = case
    extra = tuple(min(more, max(step, apart) - 1) for more, step, apart in zip(extra, stride, dilation, strict=True))
    x = torch.randn(gradient.shape[0], weight.shape[0], 4, 5, dtype=torch.float64)
    bias = torch.randn(weight.shape[1] * groups, dtype=torch.float64)
    spans = [apart * (taps - 1) for apart, taps in zip(dilation, weight.shape[2:], strict=True)]
    assume(all(3 * step - 2 * pad + span >= 0 for step, pad, span in zip(stride, padding, spans, strict=True)))
    result = conv_transpose2d(x, weight, bias, stride, padding, extra, dilation, groups)
    torch.testing.assert_close(result, F.conv_transpose2d(x, weight, bias, stride, padding, extra, groups, dilation))


@pytest.mark.parametrize("mode", PADDING_MODES)
@pytest.mark.parametrize("padding", [1, (2, 0), "same", "valid"])
def test_padding_is_that_of_pytorchs_layer(mode, padding):
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(3, 4, (3, 4), padding=padding, padding_mode=mode, dilation=(1, 2)).double()
    for size in ((7, 9), (5, 8)):
        x = torch.randn(2, 3, *size, dtype=torch.float64)
        result = conv2d(x, layer.weight, layer.bias, padding=padding, padding_mode=mode, dilation=(1, 2))
        torch.testing.assert_close(result, layer(x))
        torch.testing.assert_close(conv2d(x[0], layer.weight, padding=padding, padding_mode=mode, dilation=(1, 2)),
                                   (layer(x) - layer.bias[:, None, None])[0])  # fmt: skip


X, W = torch.zeros(1, 4, 5, 5), torch.zeros(6, 4, 3, 3)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"weight": torch.zeros(6, 3, 3, 3)}, r"\(1, 4, 5, 5\) and weights of shape \(6, 3, 3, 3\) do not fit"),
        ({"weight": torch.zeros(6, 4, 7, 7)}, r"spans 7 pixels, the padded input is 5 high; use a larger input"),
        ({"groups": 3}, "groups=3 must divide 4 input and 6 output channels"),
        ({"stride": 0}, "strides and dilations are at least 1"),
        ({"algorithm": "strassen"}, "algorithm=strassen is not known; use auto or one of: aten, "),
        ({"algorithm": "winograd", "stride": 2}, "algorithm=winograd does not support this convolution: .*; use auto"),
        (
            {"algorithm": "winograd", "strict": True},
            "spreads NaN to results .* with strict=True use auto or one of: aten, upcast, native_grouped, ",
        ),
        ({"x": X.to("meta"), "weight": W.to("meta"), "strict": True}, "strict=True works only on the CPU, .* on meta"),
        (
            {"x": X.to_sparse()},
            "the input is a tensor of layout sparse_coo; convert it to a dense one, for example with .to_dense",
        ),
        ({"weight": W.to_sparse()}, "weight is a tensor of layout sparse_coo"),
        ({"x": X.tolist()}, "the input is list, not a tensor"),
        ({"weight": None}, "weight is NoneType, not a tensor"),
        ({"bias": 3}, "bias is int, not a tensor"),
        ({"x": X.cfloat()}, "the input is torch.complex64, weight torch.float32"),
        ({"x": X.to(torch.float8_e4m3fn), "weight": W.to(torch.float8_e4m3fn)}, "float8_e4m3fn cannot be convolved"),
        ({"x": X[0, 0]}, "the input has 2 axes; give it 4"),
        ({"padding": "same", "weight": W[0]}, "the weights have 3 axes; give them 4"),
        ({"groups": 1.0}, "groups=1.0 must be a whole number"),
        ({"groups": None}, "groups=None must be a whole number"),
        ({"padding": 10**10}, "none may be above 2147483647"),
        ({"stride": 10**30}, "none may be above 2147483647"),
        ({"padding": 10**9}, "the result, .*, takes .* GiB, more than the .* GiB of this machine"),
        ({"padding": (-1, 2), "padding_mode": "reflect"}, "must be at least 0"),
        ({"padding_mode": []}, "is not known; use zeros, "),
        ({"algorithm": []}, "is not known; use auto or one of: aten, "),
        ({"stride": (1, 2, 3)}, "must be a whole number or two of them"),
        ({"bias": torch.zeros(4)}, r"bias of shape \(4,\) must be \(6,\)"),
        ({"padding": "half"}, "padding=half is not known; use pixels, same or valid"),
        ({"padding": "same", "stride": 2}, "padding=same needs stride=1"),
        ({"padding": 5, "padding_mode": "reflect"}, "is too small for padding=5 by reflect"),
        ({"padding_mode": "mirror"}, "padding_mode=mirror is not known; use zeros, "),
        ({"x": X.long()}, "the input of torch.int64 cannot be convolved"),
        ({"weight": W.bfloat16()}, "the input is torch.float32, weight torch.bfloat16; convert both to one dtype"),
        ({"weight": W.to("meta")}, "the input is on cpu, weight on meta; move both to one device"),
    ],
)
def test_what_cannot_be_is_one_sentence(arguments, said):
    with pytest.raises(UsageError, match=said):
        conv2d(**({"x": X, "weight": W} | arguments))


def test_a_nested_tensor_is_refused():  # not made above: PyTorch takes a second for the first one
    with pytest.raises(UsageError, match="the input is a tensor of layout nested"):
        conv2d(torch.nested.nested_tensor([X[0], X[0]], layout=torch.jagged), W)


def test_a_transposed_one_that_cannot_be_is_one_sentence():
    with pytest.raises(UsageError, match=r"\(1, 4, 5, 5\) and weights of shape \(6, 4, 3, 3\) do not fit"):
        conv_transpose2d(X, W)
    weight = W.transpose(0, 1)
    for more, said in (
        ({"padding": 100}, "gives -193×-193 pixels with padding=100; use less padding"),
        ({"stride": 10**9}, "takes .* GiB, more than"),
        ({"groups": "2"}, "groups='2' must be a whole number"),
        ({"groups": 3}, "groups=3 must divide 18 input and 4 output channels"),
        ({"bias": torch.zeros(4)}, r"bias of shape \(4,\) must be \(6,\)"),
        ({"stride": 0}, "strides and dilations are at least 1"),
        ({"strict": True, "x": X.to("meta"), "weight": weight.to("meta")}, "strict=True works only on the CPU"),
    ):
        with pytest.raises(UsageError, match=said):
            conv_transpose2d(**({"x": X, "weight": weight} | more))
    with pytest.raises(UsageError, match="output_padding=2 must be at least 0 and smaller than stride or dilation"):
        conv_transpose2d(X, W.transpose(0, 1), stride=2, output_padding=2)


@pytest.mark.parametrize("taps", [3, 5])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_strict_spoils_what_pytorch_spoils(taps, bad):
    torch.manual_seed(0)
    x, weight = torch.randn(1, 16, 16, 16), torch.randn(16, 16, taps, taps)
    clean = F.conv2d(x, weight, padding=taps // 2)
    x[0, 1, 5, 5] = bad
    for size in (16, 13):  # the transposed one and layers follow `conv2d`
        expected, result = (
            convolved(x[..., :size], weight, padding=taps // 2)
            for convolved in (F.conv2d, partial(conv2d, strict=True))
        )
        assert torch.equal(result.isnan(), expected.isnan())
        assert torch.equal(result.isinf(), expected.isinf())
    untouched = torch.ones(16, 16, dtype=torch.bool)
    untouched[5 - taps // 2 : 6 + taps // 2, 5 - taps // 2 : 6 + taps // 2] = False
    result = conv2d(x, weight, padding=taps // 2, strict=True)
    # Sums of up to 400 products of normal numbers: another order of addition changes the fifth digit.
    torch.testing.assert_close(result[..., untouched], clean[..., untouched], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(
        conv_transpose2d(x, weight, padding=taps // 2, strict=True), F.conv_transpose2d(x, weight, padding=taps // 2),
        equal_nan=True, rtol=1e-3, atol=1e-3,
    )  # fmt: skip


@pytest.mark.parametrize("taps", [3, 5, 7])
def test_only_without_strict_values_near_the_largest_number_overflow(taps):
    """Tiles and spectra are sums of values: fine up to 1e30, but not near 3.4e38."""
    torch.manual_seed(0)
    x, weight = torch.rand(1, 16, 24, 24) * 2 - 1, torch.randn(16, 16, taps, taps)
    shape = ConvShape.of(x.shape, weight.shape, padding=taps // 2)
    exact = F.conv2d(x.double(), weight.double(), padding=taps // 2)
    scale = float(F.conv2d(x.abs(), weight.abs(), padding=taps // 2).max())  # no sum of some of the products is larger
    for name, one in autotune.ALGORITHMS.items():
        if one.why_not(shape, torch.float32) is None:
            result = conv2d(x * 1e30, weight / scale, padding=taps // 2, algorithm=name)
            torch.testing.assert_close(result.double() / 1e30, exact / scale, rtol=0, atol=1e-5)
    largest = 2.9e38
    result = conv2d(x * largest, weight / scale, padding=taps // 2, strict=True)
    torch.testing.assert_close(result.double() / largest, exact / scale, rtol=0, atol=1e-5)
    if taps == 3:
        assert not conv2d(x * largest, weight / scale, padding=1, algorithm="winograd").isfinite().all()


# Ways in which a tensor of a shape can lie in memory, from numbers drawn by `full`.
VIEWS = {
    "plain": lambda full, shape: full(shape),
    "channels last": lambda full, shape: full(shape).contiguous(memory_format=torch.channels_last),
    "columns first": lambda full, shape: full((*shape[:2], *shape[:1:-1])).transpose(2, 3),
    "batch last": lambda full, shape: full((*shape[1:], shape[0])).permute(3, 0, 1, 2),
    "every second": lambda full, shape: full([2 * side + 1 for side in shape])[
        tuple(slice(0, 2 * side, 2) for side in shape)
    ],
    "a part": lambda full, shape: full((shape[0] + 2, shape[1], shape[2], shape[3] + 3))[1:-1, ..., 2:-1],
    "one image for all": lambda full, shape: full((1, *shape[1:])).expand(shape),
    "one channel for all": lambda full, shape: full((shape[0], 1, *shape[2:])).expand(shape),
    "one number for all": lambda full, shape: full((1, 1, 1, 1)).expand(shape),
    "overlapping": lambda full, shape: full((sum(shape) + 1,)).as_strided(shape, (1, 1, 1, 1)),
    "negated": lambda full, shape: torch._neg_view(full(shape)),
    "negated, channels last": lambda full, shape: torch._neg_view(
        full(shape).contiguous(memory_format=torch.channels_last)
    ),
}
PRECISE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float64: 1e-12}  # of the sums of magnitudes


def drawn(choose, shape, dtype):
    generator = torch.Generator().manual_seed(choose.randrange(1 << 30))

    def full(shape):
        return torch.randn(tuple(shape), generator=generator, dtype=torch.float64).to(dtype)

    return VIEWS[choose.choice(sorted(VIEWS))](full, shape)


def drawn_case(choose):
    """Whether it is a transposed one, three tensors, and keyword settings that fit."""
    dtype = choose.choice((*PRECISE, torch.float32))
    kernel = choose.choice(((1, 1), (3, 3), (3, 3), (3, 3), (5, 5), (7, 7), (2, 3), (11, 2)))
    stride, dilation = ([choose.choice((1, 1, 1, 2, 3)) for _ in range(2)] for _ in range(2))
    if choose.random() < 0.5:
        stride, dilation = [1, 1], [1, 1]
    padding = [choose.randint(0, 4) for _ in range(2)]
    groups = choose.choice((1, 1, 1, 2, 3))
    channels, outs = groups * choose.randint(1, 18), groups * choose.randint(1, 18)
    if choose.random() < 0.3:
        groups = channels
        outs = channels * choose.choice((1, 2))
    reach = [apart * (taps - 1) + 1 for apart, taps in zip(dilation, kernel, strict=True)]
    least = [max(1, side - 2 * pad) for side, pad in zip(reach, padding, strict=True)]
    size = choose.randint(0, 9), channels, *(side + choose.randint(0, 12) for side in least)
    transposed = choose.random() < 0.4
    if transposed:  # a position more on each side for each pixel of padding, so that some is left
        size = *size[:2], *(side + 2 * pad for side, pad in zip(size[2:], padding, strict=True))
    weight = (channels, outs // groups, *kernel) if transposed else (outs, channels // groups, *kernel)
    tensors = drawn(choose, size, dtype), drawn(choose, weight, dtype), drawn(choose, (1, 1, 1, outs), dtype)[0, 0, 0]
    settings = {"stride": tuple(stride), "padding": tuple(padding), "dilation": tuple(dilation), "groups": groups}
    return transposed, tensors, settings


def test_whatever_lies_in_memory_is_convolved_as_pytorch_does(large_count):
    for seed in range(large_count(60, 5000)):
        choose = random.Random(seed)
        transposed, tensors, settings = drawn_case(choose)
        ours = [tensor.detach().requires_grad_(choose.random() < 0.6) for tensor in tensors]
        theirs = [one.detach().resolve_neg().double().clone().requires_grad_(one.requires_grad) for one in ours]
        function, exactly = (conv_transpose2d, F.conv_transpose2d) if transposed else (conv2d, F.conv2d)
        result, expected = function(*ours, **settings), exactly(*theirs, **settings)
        precise, dtype = PRECISE[tensors[0].dtype], tensors[0].dtype
        assert result.dtype == dtype

        def near(one, other, magnitudes, seed=seed, precise=precise):
            """`magnitudes`: of the sums that these are."""
            assert one.shape == other.shape, seed
            largest = float(magnitudes.max()) if magnitudes.numel() else 0
            assert ((one.double() - other).abs() <= precise * (1 + largest)).all(), seed

        absolute = [one.detach().abs().requires_grad_(one.requires_grad) for one in theirs]
        magnitudes = exactly(*absolute, **settings)
        near(result.detach(), expected.detach(), magnitudes.detach())
        if result.requires_grad:
            upstream = torch.randn(expected.shape).to(dtype)
            if choose.random() < 0.3:
                upstream = upstream[:, :1, :1, :1].expand(upstream.shape)
            result.backward(upstream)
            expected.backward(upstream.double())
            magnitudes.backward(upstream.double().abs())
            for one, other, size in zip(ours, theirs, absolute, strict=True):
                if one.requires_grad:
                    assert one.grad.dtype == dtype
                    near(one.grad, other.grad, size.grad)


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64, torch.float16])
def test_the_default_dtype_and_device_change_nothing(default):
    torch.manual_seed(0)
    x, weight = torch.randn(2, 7, 11, 11), torch.randn(9, 7, 3, 3)
    expected = F.conv2d(x, weight, padding=1)
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        with torch.device("meta"):
            result = conv2d(x, weight, padding=1)
    finally:
        torch.set_default_dtype(before)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)
