"""Derivatives of the operator, and what tracing makes of it."""

import functools

import pytest
import torch
import torch.nn.functional as F

from svertka.conv import native_support, native_winograd_bf16
from svertka.conv.api import conv2d, conv_transpose2d
from svertka.conv.autotune import ALGORITHMS
from svertka.conv.operator import convolve_transposed
from svertka.conv_shape import ConvShape

NAMES = [name for name in ALGORITHMS if not native_support.why_not() or not name.startswith("native")]


@pytest.mark.parametrize("name", ["auto", "aten", "winograd", "fft", "gemm"])  # the others do not take float64
def test_first_and_second_derivatives(name):
    torch.manual_seed(1)
    options = {"padding": 1, "algorithm": name} | ({} if name == "winograd" else {"stride": (2, 1), "groups": 2})
    groups = options.get("groups", 1)
    shapes = (2, 2, 5, 4), (2, 2 // groups, 3, 3), (2,)
    tensors = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    torch.autograd.gradcheck(lambda *given: conv2d(*given, **options), tensors)
    # Fast: along one direction, not along each, which takes many seconds for second derivatives.
    torch.autograd.gradgradcheck(lambda *given: conv2d(*given, **options), tensors, fast_mode=True)
    transposed = [tensors[0], torch.randn(2, 3, 3, 3, dtype=torch.float64, requires_grad=True)]
    torch.autograd.gradgradcheck(lambda *given: conv_transpose2d(*given, None, 2, 1, 1), transposed, fast_mode=True)


@pytest.mark.parametrize("name", ["aten", "gemm"])
def test_derivatives_of_the_transposed_one(name):
    torch.manual_seed(5)
    shape = ConvShape.of((2, 3, 8, 7), (2, 3, 3, 3), stride=2, padding=1)  # 4×4: a row beyond the smallest, 7×7
    sizes = shape.output, shape.weight, (3,)
    x, weight, bias = (torch.randn(size, dtype=torch.float64, requires_grad=True) for size in sizes)

    def transposed(*tensors):
        return convolve_transposed(*tensors, shape, (1, 0), name)

    expected = F.conv_transpose2d(x, weight, bias, 2, 1, (1, 0))
    torch.testing.assert_close(transposed(x, weight, bias), expected)
    torch.testing.assert_close(transposed(x.detach(), weight.detach(), None), expected - bias[:, None, None])
    torch.autograd.gradcheck(transposed, (x, weight, bias))
    torch.autograd.gradgradcheck(transposed, (x, weight, bias), fast_mode=True)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("upcast", "native_winograd_bf16")])
def test_every_algorithm_adds_the_bias(name):
    torch.manual_seed(6)
    side, stride = {"native_fft": (5, 1), "space_to_depth": (5, 2)}.get(name, (3, 1))
    groups = 2 if name == "native_grouped" else 1
    x, bias = torch.randn(2, 4, 9, 8), torch.randn(6, requires_grad=True)
    weight = torch.randn(6, 4 // groups, side, side)
    expected = F.conv2d(x, weight, bias, stride, padding=1, groups=groups)
    found = conv2d(x, weight, bias, stride, padding=1, groups=groups, algorithm=name)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    upstream = torch.randn_like(found)
    torch.testing.assert_close(torch.autograd.grad(found, bias, upstream)[0], upstream.sum((0, 2, 3)))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", ["aten", "gemm"])
def test_with_one_channel_the_weights_tell_the_memory_order_as_in_pytorch(layout, name):
    x = torch.randn(2, 1, 8, 9)  # in both orders at once
    weight = torch.nn.Conv2d(1, 4, 3).to(memory_format=layout).weight
    assert weight.is_contiguous()
    assert weight.is_contiguous(memory_format=torch.channels_last)
    found, expected = conv2d(x, weight, algorithm=name), F.conv2d(x, weight)
    assert found.stride() == expected.stride()


def test_where_pytorchs_own_is_fastest_its_own_derivatives_are_used():
    x, weight = torch.randn(2, 4, 9, 8), torch.randn(5, 4, 3, 3, requires_grad=True)
    assert type(conv2d(x, weight, algorithm="aten").grad_fn) is type(F.conv2d(x, weight).grad_fn)
    last = weight.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    assert conv2d(x, last, algorithm="aten").stride() == F.conv2d(x, last).stride()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_pytorch_takes_it_for_an_operator_of_its_own(layout):
    torch.manual_seed(2)
    x, weight = torch.randn(2, 3, 8, 9).contiguous(memory_format=layout), torch.randn(4, 3, 3, 3)
    gradient = torch.randn(2, 4, 8, 9).contiguous(memory_format=layout)
    rest = ([1, 1], [1, 1], [1, 1], 1, "aten")
    for one in (x, weight, gradient):
        one.requires_grad_()
    bias = torch.randn(4, requires_grad=True)
    # Only the fake tensors depend on the memory order.
    kinds = ["test_faketensor"]
    if layout == torch.contiguous_format:
        kinds += ["test_schema", "test_autograd_registration", "test_aot_dispatch_dynamic"]
    check = functools.partial(torch.library.opcheck, test_utils=kinds)
    check(torch.ops.svertka.convolution, (x, weight, None, *rest))
    check(torch.ops.svertka.convolution, (x, weight, bias, *rest))
    check(torch.ops.svertka.input_gradient, (gradient, weight, [8, 9], *rest))
    check(torch.ops.svertka.weight_gradient, (gradient, x, [3, 3], *rest))
    x, gradient = (one.detach().bfloat16().requires_grad_() for one in (x, gradient))
    rest = (*rest[:-1], "upcast")  # the others round parts of sums, in an order that depends on memory orders
    check(torch.ops.svertka.convolution, (x, weight, bias, *rest))
    check(torch.ops.svertka.input_gradient, (gradient, weight, [8, 9], *rest))
    check(torch.ops.svertka.weight_gradient, (gradient, x, [3, 3], *rest))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_memory_order_is_that_of_the_input(layout):
    x = torch.randn(2, 3, 8, 9).contiguous(memory_format=layout).requires_grad_()
    for name in ("aten", "gemm", "fft", "auto"):
        result = conv2d(x, torch.randn(4, 3, 3, 3), algorithm=name)
        assert result.is_contiguous(memory_format=layout)
        upstream = torch.randn_like(result)
        assert torch.autograd.grad(result, x, upstream)[0].is_contiguous(memory_format=layout)


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(4, 3, 3, 3))

    def forward(self, x):
        return conv2d(x, self.weight, padding=1).relu()


def test_it_is_compiled_and_exported_whole():
    torch.manual_seed(3)
    layer, x = Layer(), torch.randn(2, 3, 8, 8)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
    compiled(x).sum().backward()
    traced = layer.weight.grad.clone()
    layer.weight.grad = None
    layer(x).sum().backward()
    torch.testing.assert_close(traced, layer.weight.grad)
    program = torch.export.export(layer, (x,))
    assert any("svertka.convolution" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(x), layer(x))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # PyTorch's own use of it
def test_forward_mode_derivatives_are_pytorchs():
    torch.manual_seed(4)
    x, tangent, weight = (torch.randn(*shape, dtype=torch.float64) for shape in 2 * [(1, 2, 5, 5)] + [(3, 2, 3, 3)])
    found = torch.func.jvp(lambda image: conv2d(image, weight, padding=1), (x,), (tangent,))[1]
    torch.testing.assert_close(found, F.conv2d(tangent, weight, padding=1))  # it is linear
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, tangent)
        result = torch.autograd.forward_ad.unpack_dual(conv2d(dual, weight, padding=1))
        torch.testing.assert_close(result.tangent, F.conv2d(tangent, weight, padding=1))


@pytest.mark.parametrize(
    "name", [*(name for name in NAMES if name not in ("winograd", "fft", "native_grouped", "native_direct")), "auto"]
)
@pytest.mark.parametrize("within", [False, True])
def test_autocast_computes_in_its_dtype(name, within):
    """`within`: whether derivatives are taken under autocast, too."""
    torch.manual_seed(7)
    side, stride = {"native_fft": (5, 1), "space_to_depth": (5, 2)}.get(name, (3, 1))
    x = torch.randn(2, 3, 9, 8).bfloat16().float().contiguous(memory_format=torch.channels_last).requires_grad_()
    weight, bias = (torch.randn(size).bfloat16().float().requires_grad_() for size in ((4, 3, side, side), (4,)))
    exact = F.conv2d(x.double(), weight.double(), bias.double(), stride, padding=1)
    upstream = torch.randn(exact.shape).bfloat16().contiguous(memory_format=torch.channels_last)
    gradients = torch.autograd.grad(exact, (x, weight, bias), upstream.double())
    with torch.autocast("cpu", torch.bfloat16):
        result = conv2d(x, weight, bias, stride, padding=1, algorithm=name)
        if within:
            found = torch.autograd.grad(result, (x, weight, bias), upstream)
    if not within:
        found = torch.autograd.grad(result, (x, weight, bias), upstream)
    assert result.dtype == torch.bfloat16
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    assert all(one.dtype == torch.float32 for one in found)  # that of what they are the gradients of
    # Half a unit of the last of eight digits where a result is rounded once, float32 sums before that; PyTorch's own
    # rounds parts of sums, too, where bfloat16 is imitated.
    digits, of_largest = (1 / 64, 1 / 64) if name in ("aten", "gemm") else (1 / 256, 1e-5)
    if name == "native_winograd_bf16" or (name == "auto" and native_support.multiplies_bfloat16()):
        # They round what is transformed: some of these, of their root mean square.
        digits, of_largest = 1 / 256, 5 * native_winograd_bf16.LIMIT
    for one, other in zip((result, *found), (exact.detach(), *gradients), strict=True):
        atol = of_largest * float(other.abs().max())
        torch.testing.assert_close(one, other, check_dtype=False, rtol=digits, atol=atol)


def test_autocast_reaches_the_operators_too_and_their_derivatives():
    torch.manual_seed(8)
    x, weight = torch.randn(2, 3, 6, 6, requires_grad=True), torch.randn(4, 3, 3, 3, requires_grad=True)
    settings = ([1, 1], [1, 1], [1, 1], 1, "auto")
    with torch.autocast("cpu", torch.bfloat16):
        result = torch.ops.svertka.convolution(x, weight, None, *settings)
        (gradient,) = torch.autograd.grad(result.float().square().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(gradient.square().sum(), weight)
    assert (result.dtype, gradient.dtype, second.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    exact = F.conv2d(x, weight, padding=1)
    (first,) = torch.autograd.grad(exact.square().sum(), x, create_graph=True)
    (expected,) = torch.autograd.grad(first.square().sum(), weight)
    for one, other in ((gradient.detach(), first.detach()), (second, expected)):  # a handful of roundings, 1/256 each
        torch.testing.assert_close(one, other, rtol=0, atol=0.02 * float(other.abs().max()))


def test_under_autocast_it_is_exported_as_an_operator_on_bfloat16():
    torch.manual_seed(9)
    layer, x = Layer(), torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        program = torch.export.export(layer, (x,))
        expected = layer(x)
    (node,) = (node for node in program.graph.nodes if "svertka.convolution" in str(node.target))
    assert node.meta["val"].dtype == torch.bfloat16
    assert node.meta["val"].stride() == expected.stride()
    assert torch.equal(program.module()(x), expected)


def test_what_autocast_leaves_in_float64_stays_so():
    x, weight = torch.randn(1, 2, 5, 5, dtype=torch.float64), torch.randn(3, 2, 3, 3, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        result, expected = conv2d(x, weight), F.conv2d(x, weight)
    assert result.dtype == expected.dtype == torch.float64
    torch.testing.assert_close(result, expected)


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of PyTorch's own vmap
@pytest.mark.parametrize("algorithm", ["auto", "gemm"])
@pytest.mark.parametrize(("convolve", "size"), [(conv2d, (8, 6, 3, 3)), (conv_transpose2d, (6, 8, 3, 3))])
def test_rows_of_a_jacobian_are_derived_at_once(convolve, size, algorithm):
    settings = {"algorithm": algorithm} if convolve is conv2d else {"strict": True}
    x, weight = torch.randn(2, 6, 5, 5, requires_grad=True), torch.randn(size, requires_grad=True)
    y = convolve(x, weight, padding=1, **settings)
    rows = torch.randn(4, *y.shape)
    found = torch.autograd.grad(y, (x, weight), rows, is_grads_batched=True, retain_graph=True)
    expected = [torch.autograd.grad(y, (x, weight), row, retain_graph=True) for row in rows]
    for one, another in zip(found, map(torch.stack, zip(*expected, strict=True)), strict=True):
        torch.testing.assert_close(one, another, rtol=1e-4, atol=1e-4)


def test_a_hessian_is_computed_at_once():
    x, weight = torch.randn(1, 6, 3, 3), torch.randn(8, 6, 3, 3)
    found, expected = (
        torch.autograd.functional.hessian(
            lambda x: conv2d(x, weight, padding=1, algorithm="gemm").pow(3).sum(), x, vectorize=at_once
        )
        for at_once in (True, False)
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
