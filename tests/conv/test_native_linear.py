"""Dense layers for few inputs at once, against products in float64."""

import copy
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fences import Fenced
from svertka.conv import native_linear, native_support
from svertka.conv.accelerate import accelerate, restore

pytestmark = pytest.mark.skipif(native_support.why_not() is not None, reason=str(native_support.why_not()))


def test_products_of_random_shapes_stay_inside_their_tensors(instructions, large_count):
    for seed in range(large_count(30, 2000)):
        choose = random.Random(seed)
        torch.manual_seed(seed)
        rows = choose.choice((1, 2, 3, 7, 8, 9, 16, 17, 31, 32, 40))
        inputs = choose.choice((1, 3, 15, 16, 17, 31, 64, 100, 256, 1023, 1024, 1025, 1100))
        outputs = choose.choice((1, 2, 3, 4, 5, 7, 8, 9, 16, 19, 24, 50))
        threads = choose.choice((1, 2, 3))
        x, weight, gradient = torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(rows, outputs)
        bias = torch.randn(outputs) if choose.random() < 0.7 else None
        fenced = lambda tensor: Fenced(tensor, at_end=choose.random() < 0.7).numbers  # noqa: E731, B023
        numbers, weights, upstream = fenced(x), fenced(weight), fenced(gradient)
        summands = None if bias is None else fenced(bias)
        result, of_x, of_weight = (fenced(torch.full_like(one, torch.nan)) for one in (gradient, x, weight))
        shape = native_support.kernels.LinearShape(rows, inputs, outputs)
        native_support.kernels.linear_forward(shape, numbers, weights, summands, result, threads)
        native_support.kernels.linear_input_gradient(shape, upstream, weights, of_x, threads)
        native_support.kernels.linear_weight_gradient(shape, upstream, numbers, of_weight, threads)
        x, weight, gradient = x.double(), weight.double(), gradient.double()
        exact = F.linear(x, weight, None if bias is None else bias.double()), gradient @ weight, gradient.T @ x
        for found, expected, terms in zip((result, of_x, of_weight), exact, (inputs, outputs, rows), strict=True):
            error = (found.view(expected.shape) - expected).abs().max()
            assert error <= 2e-6 * (1 + terms**0.5), f"seed {seed}: {rows}, {inputs}, {outputs}"


def test_large_weight_gradients_do_not_depend_on_threads(instructions):
    rows, inputs, outputs = 3, 1024 * 16, 67  # stored past the caches
    torch.manual_seed(1)
    x, weight, gradient = torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(rows, outputs)
    shape = native_support.kernels.LinearShape(rows, inputs, outputs)
    found = []
    for threads in (1, 2, 3):
        of_weight, of_x, result = torch.empty_like(weight), torch.empty_like(x), torch.empty_like(gradient)
        native_support.kernels.linear_forward(shape, x, weight, None, result, threads)
        native_support.kernels.linear_input_gradient(shape, gradient, weight, of_x, threads)
        native_support.kernels.linear_weight_gradient(shape, gradient, x, of_weight, threads)
        found.append((result, of_x, of_weight))
    torch.testing.assert_close(found[0][2], gradient.T @ x, rtol=1e-4, atol=1e-4)
    for others in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], others, strict=True))


def test_sizes_beyond_the_tensors_are_refused():
    shape, small = native_support.kernels.LinearShape(2, 3, 4), torch.zeros(5)
    for kernel in ("linear_input_gradient", "linear_weight_gradient"):
        with pytest.raises(ValueError, match="these sizes need"):
            getattr(native_support.kernels, kernel)(shape, small, small, small, 1)
    with pytest.raises(ValueError, match="these sizes need"):
        native_support.kernels.linear_forward(shape, small, small, None, small, 1)


@pytest.fixture
def calls(monkeypatch):
    """The names of the kernels that were called."""
    found = []
    for name in ("linear_forward", "linear_input_gradient", "linear_weight_gradient"):
        kernel = getattr(native_support.kernels, name)

        def call(*arguments, name=name, kernel=kernel):
            found.append(name)
            kernel(*arguments)

        monkeypatch.setattr(native_support.kernels, name, call)
    monkeypatch.setattr(native_linear, "MIN_WEIGHTS", 1)
    return found


def passes(layer, x, upstream, *, autocast=False):
    layer.zero_grad()
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        result = layer(x)
    result.backward(upstream.to(result.dtype))
    return [result.detach(), x.grad, *(each.grad for each in layer.parameters())]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 40), (2, 3, 40), (32, 40)], ids=str)
def test_an_accelerated_layer_has_the_gradients_of_pytorch(shape, bias, calls):
    torch.manual_seed(1)
    layer = nn.Linear(40, 24, bias=bias)
    x, upstream = torch.randn(shape), torch.randn(*shape[:-1], 24)
    exact = passes(copy.deepcopy(layer).double(), x.double(), upstream.double())
    for found, expected in zip(passes(accelerate(layer), x, upstream), exact, strict=True):
        assert found.shape == expected.shape
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    assert calls == ["linear_forward", "linear_input_gradient", "linear_weight_gradient"]
    passes(restore(layer), x, upstream)
    assert len(calls) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_under_autocast_results_are_bfloat16_and_gradients_have_the_dtypes_of_their_tensors(dtype, calls):
    torch.manual_seed(1)
    layer, x, upstream = nn.Linear(300, 24), torch.randn(7, 300).to(dtype), torch.randn(7, 24).bfloat16()
    exact = passes(copy.deepcopy(layer).double(), x.bfloat16().double(), upstream.double())
    own = passes(layer, x, upstream, autocast=True)
    found = passes(accelerate(layer), x, upstream, autocast=True)
    assert [one.dtype for one in found] == [one.dtype for one in own]
    assert found[0].dtype == torch.bfloat16
    assert len(calls) == 3
    for one, expected, limit in zip(found, exact, (4e-3, 4e-3, 1e-5, 1e-5), strict=True):
        assert (one.double() - expected).norm() <= limit * expected.norm()


def test_gradients_are_differentiable(calls):
    torch.manual_seed(1)
    layer = accelerate(nn.Linear(4, 3))
    x = torch.randn(2, 4, requires_grad=True)
    own = nn.Linear(4, 3)
    own.load_state_dict(layer.state_dict())
    second = []
    for one in (layer, own):
        (of_x,) = torch.autograd.grad(one(x).square().sum(), x, create_graph=True)
        second.append(torch.autograd.grad(of_x.square().sum(), [x, *one.parameters()]))
    for found, expected in zip(*second, strict=True):
        torch.testing.assert_close(found, expected)


def test_frozen_weights_and_inputs_without_gradients_take_no_product(calls):
    layer = accelerate(nn.Linear(6, 5))
    layer.weight.requires_grad_(False)
    layer(torch.ones(2, 6)).sum().backward()
    assert calls == ["linear_forward"]
    with torch.no_grad():
        layer(torch.ones(2, 6))
    assert calls == ["linear_forward"] * 2


def test_other_calls_are_left_to_pytorch(calls):
    layer = accelerate(nn.Linear(6, 5))
    layer(torch.ones(33, 6))
    layer(torch.ones(6))
    layer(torch.ones(0, 6))
    accelerate(nn.Linear(6, 5).double())(torch.ones(2, 6).double())
    with torch.autocast("cpu", torch.float16):
        layer(torch.ones(2, 6))
    torch.func.vmap(layer)(torch.ones(3, 2, 6))
    assert calls == []
