"""Batch normalization with its activation function, against PyTorch's in float64."""

import copy

import pytest
import torch
from torch import nn

from svertka.conv import native_batch_norm, native_support
from svertka.conv.accelerate import accelerate, normalize_and_activate, restore
from svertka.conv.native_batch_norm import ACTIVATIONS, can_normalize
from svertka.models.registry import find_model

pytestmark = pytest.mark.skipif(native_support.why_not() is not None, reason=str(native_support.why_not()))

SHAPES = [(8, 64, 9, 7), (3, 33, 14, 13), (64, 24, 4, 3), (1, 17, 31, 32), (40, 600, 1, 1)]


def draw(shape, offset=20.0):
    numbers = 3 * torch.randn(shape) + offset
    return numbers.contiguous(memory_format=torch.channels_last)


def with_activation(channels, kind, **settings):
    layer = nn.BatchNorm2d(channels, **settings)
    with torch.no_grad():
        layer.weight.normal_()
        layer.bias.normal_()
    activation = [] if kind is None else [kind()] if kind is nn.GELU else [kind(inplace=True)]
    return nn.Sequential(layer, *activation)


def run(network, x, upstream):
    """The result, the gradients of x and the parameters, and the layer's statistics."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    network.zero_grad()
    result = network(x)
    result.backward(upstream)
    return [result.detach(), x.grad, *(each.grad for each in network.parameters()), *network.buffers()]


@pytest.mark.sample(20)
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("kind", ACTIVATIONS, ids=str)
def test_both_passes_and_the_statistics_are_those_of_pytorch(kind, threads, instructions, monkeypatch):
    torch.set_num_threads(threads)
    monkeypatch.setattr(native_batch_norm, "MIN_VALUES", 1)
    calls = []
    monkeypatch.setattr(native_support.kernels, "batch_norm", counted(native_support.kernels.batch_norm, calls))
    for seed, shape in enumerate(SHAPES):
        torch.manual_seed(seed)
        network, x = with_activation(shape[1], kind), draw(shape)
        upstream = torch.randn_like(x)
        exact = run(copy.deepcopy(network).double(), x.double(), upstream.double())
        found = run(accelerate(network), x, upstream)
        assert found[0].is_contiguous(memory_format=torch.channels_last)
        assert found[1].is_contiguous(memory_format=torch.channels_last)
        for one, other in zip(found, exact, strict=True):
            largest = float(other.abs().max())
            torch.testing.assert_close(one.double(), other.double(), rtol=0, atol=3e-5 * max(largest, 1))
    assert len(calls) == len(SHAPES)


def counted(function, calls):
    def call(*arguments):
        calls.append(1)
        return function(*arguments)

    return call


def test_the_derivative_of_gelu_is_off_by_at_most_4e_7(instructions, monkeypatch):
    monkeypatch.setattr(native_batch_norm, "MIN_VALUES", 1)
    places = torch.linspace(-9, 9, 20001)
    layer = nn.BatchNorm2d(len(places))
    with torch.no_grad():
        layer.weight.zero_()  # so that GELU's input is the bias
        layer.bias.copy_(places)
    upstream = torch.zeros(2, len(places), 1, 1)
    upstream[0] = 1
    run(accelerate(nn.Sequential(layer, nn.GELU())), torch.randn_like(upstream), upstream)
    x = places.double().requires_grad_()
    nn.functional.gelu(x).sum().backward()
    torch.testing.assert_close(layer.bias.grad.double(), x.grad, rtol=0, atol=4e-7)


@pytest.mark.parametrize("settings", [{"momentum": None}, {"momentum": 0.3}, {"track_running_stats": False}], ids=str)
def test_statistics_follow_the_settings(settings):
    torch.manual_seed(0)
    layer = nn.BatchNorm2d(32, **settings)
    twin = accelerate(copy.deepcopy(layer))
    for _ in range(3):
        x = draw((4, 32, 12, 12))
        assert can_normalize(layer, x)
        torch.testing.assert_close(twin(x), layer(x), rtol=1e-4, atol=1e-4)
    for one, other in zip(twin.buffers(), layer.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    layer.eval()
    twin.eval()
    assert not can_normalize(layer, x)
    torch.testing.assert_close(twin(x), layer(x), rtol=1e-4, atol=1e-4)


def test_gradients_can_be_derived_again():
    torch.manual_seed(0)
    network, x = with_activation(16, nn.SiLU), draw((4, 16, 16, 17), 0.0)

    def penalty(network, x):
        x = x.clone(memory_format=torch.preserve_format).requires_grad_()
        (of_x,) = torch.autograd.grad(network(x).pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(of_x.square().sum(), (x, *network.parameters()))

    exact = penalty(copy.deepcopy(network).double(), x.double())
    for one, other in zip(penalty(accelerate(network), x), exact, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))


def test_who_looks_between_the_two_layers_sees_what_pytorch_computes():
    torch.manual_seed(0)
    network, x = with_activation(16, nn.ReLU), draw((4, 16, 16, 17), 0.0)
    expected = copy.deepcopy(network)[0](x)
    accelerate(network)
    torch.testing.assert_close(network[0](x), expected, rtol=1e-4, atol=1e-4)  # the layer alone: no activation
    seen = []
    handle = network[0].register_forward_hook(lambda _, __, result: seen.append(result.clone()))
    torch.testing.assert_close(network(x), expected.relu(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-4)
    handle.remove()
    handle = network[1].register_forward_pre_hook(lambda _, arguments: (arguments[0] + 1,))
    torch.testing.assert_close(network(x), (expected + 1).relu(), rtol=1e-4, atol=1e-4)
    handle.remove()
    network[1].forward = lambda x: x - 7
    torch.testing.assert_close(network(x), expected - 7, rtol=1e-4, atol=1e-4)
    del network[1].forward
    network[1] = nn.Sigmoid()
    torch.testing.assert_close(network(x), expected.sigmoid(), rtol=1e-4, atol=1e-4)
    restore(network)
    assert not any("forward" in vars(module) for module in network.modules())


class BatchNormAct2d(nn.BatchNorm2d):
    """As timm's: with dropout and activation function, which its own `forward` calls."""

    __module__ = "timm.layers.norm_act"

    def __init__(self, channels, act):
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), act

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


def test_timms_layers_are_computed_at_once(monkeypatch):
    torch.manual_seed(0)
    layer, x = BatchNormAct2d(16, nn.SiLU(inplace=True)), draw((4, 16, 16, 17), 0.0)
    upstream = torch.randn_like(x)
    exact = run(copy.deepcopy(layer).double(), x.double(), upstream.double())
    calls = []
    monkeypatch.setattr(native_support.kernels, "batch_norm", counted(native_support.kernels.batch_norm, calls))
    for one, other in zip(run(accelerate(layer), x, upstream), exact, strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=0, atol=1e-4 * max(float(other.abs().max()), 1))
    assert calls == [1]
    layer.drop = nn.Dropout(1.0)
    assert not layer(x).any()
    layer.drop, layer.act = nn.Identity(), nn.Tanh()
    assert layer(x).abs().max() <= 1
    assert calls == [1]
    restore(layer)
    assert "forward" not in vars(layer)


def test_a_hook_for_all_modules_is_called_for_both():
    network, x = accelerate(with_activation(16, nn.ReLU)), draw((4, 16, 16, 17), 0.0)
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, _, __: seen.append(type(module)))
    try:
        network(x)
    finally:
        handle.remove()
    assert seen == [nn.BatchNorm2d, nn.ReLU, nn.Sequential]


@pytest.mark.parametrize(
    ("x", "change"),
    [
        (draw((4, 16, 16, 17)).contiguous(), None),
        (draw((4, 16, 16, 17)).double(), lambda layer: layer.double()),
        (draw((4, 16, 16, 17)), lambda layer: layer.eval()),
        (draw((4, 16, 16, 17)), lambda layer: nn.BatchNorm2d(16, affine=False)),
        (draw((1, 16, 3, 3)), None),
    ],
    ids=["contiguous", "float64", "inference", "no weights", "small"],
)
def test_other_calls_are_left_to_pytorch(x, change):
    layer = nn.BatchNorm2d(16)
    layer = layer if change is None else change(layer)
    assert not can_normalize(layer, x)
    twin = copy.deepcopy(layer)
    assert torch.equal(accelerate(layer)(x), twin(x))


def test_infinite_and_missing_numbers_stay_in_their_channel():
    x = draw((4, 32, 16, 16), 0.0)
    x[0, 3, 2, 1], x[1, 7, 0, 0] = torch.nan, torch.inf
    network = accelerate(with_activation(32, nn.ReLU))
    bad = ~run(network, x, torch.ones_like(x))[1].isfinite().all(0).all(-1).all(-1)
    assert bad.nonzero().flatten().tolist() == [3, 7]


def test_the_kernels_check_their_tensors():
    kernels = native_support.kernels
    sizes = kernels.BatchNorm(5, 4, 1e-5, kernels.Activation.NONE, 0.0, 1.0)
    x, vector = torch.zeros(20), torch.zeros(4)
    with pytest.raises(ValueError, match="input holds 19 numbers; these sizes need 20"):
        kernels.batch_norm(sizes, x[1:].clone(), vector, vector, None, x, vector, vector, 1)
    with pytest.raises(ValueError, match="mean holds 3 numbers"):
        kernels.batch_norm(sizes, x, vector, vector, None, x, vector[1:].clone(), vector, 1)
    with pytest.raises(ValueError, match="residual holds 19 numbers"):
        kernels.batch_norm(sizes, x, vector, vector, x[1:].clone(), x, vector, vector, 1)
    with pytest.raises(TypeError, match="output must be bfloat16"):
        kernels.batch_norm(sizes, x.bfloat16(), vector, vector, None, x, vector, vector, 1)
    vectors, short = (vector, vector, vector, vector), vector[1:].clone()
    with pytest.raises(ValueError, match="bias_gradient holds 3 numbers"):
        kernels.batch_norm_gradients(sizes, x, x, None, *vectors, x, None, vector, short, 1)
    with pytest.raises(TypeError, match="output is missing"):
        kernels.batch_norm_gradients(sizes, x, x, None, *vectors, x, x, vector, vector, 1)
    none = kernels.BatchNorm(5, 0, 1e-5, kernels.Activation.NONE, 0.0, 1.0)
    with pytest.raises(ValueError, match="channels=0 must be from 1"):
        kernels.batch_norm(none, x, vector, vector, None, x, vector, vector, 1)
    silu = kernels.BatchNorm(5, 4, 1e-5, kernels.Activation.SILU, 0.0, 1.0)
    with pytest.raises(ValueError, match="a residual is added before limits"):
        kernels.batch_norm(silu, x, vector, vector, x, x, vector, vector, 1)


class Block(nn.Module):
    """Batch normalization, a sum with a second input, and an activation function, as in a residual network."""

    def __init__(self, channels, kind):
        super().__init__()
        self.norm, self.activation = with_activation(channels, kind)

    def forward(self, x, residual):
        return normalize_and_activate(self.norm, self.activation, x, residual)


def run_block(block, x, residual, upstream):
    """The result, all gradients and the statistics."""
    x, residual = (one.clone(memory_format=torch.preserve_format).requires_grad_() for one in (x, residual))
    result = block(x, residual)
    result.backward(upstream)
    return [result.detach(), x.grad, residual.grad, *(one.grad for one in block.parameters()), *block.buffers()]


@pytest.mark.parametrize(
    ("kind", "dtype"), [(nn.ReLU, torch.float32), (nn.ReLU6, torch.float32), (nn.ReLU, torch.bfloat16)], ids=str
)
def test_a_residual_is_added_by_the_same_kernel(kind, dtype, instructions, monkeypatch):
    monkeypatch.setattr(native_batch_norm, "MIN_VALUES", 1)
    calls = []
    monkeypatch.setattr(native_support.kernels, "batch_norm", counted(native_support.kernels.batch_norm, calls))
    for seed, shape in enumerate(SHAPES):
        torch.manual_seed(seed)
        torch.set_num_threads(1 + seed % 3)
        block, upstream = Block(shape[1], kind), draw(shape, 0.0).to(dtype)
        x, residual = draw(shape, 2.0).to(dtype), draw(shape, 1.0).to(dtype)
        exact = run_block(copy.deepcopy(block).double(), x.double(), residual.double(), upstream.double())
        found = run_block(accelerate(block), x, residual, upstream)
        assert [one.dtype for one in found] == [dtype] * 3 + [torch.float32] * 4 + [torch.int64]
        assert_near(found, exact, dtype)
    assert len(calls) == len(SHAPES)


def assert_near(found, exact, dtype):
    """Compare with float64: each number in float32, the root mean square error in bfloat16.

    Half a unit in the last place of bfloat16 is 0.2 to 0.4 %.
    """
    for one, other in zip(found, exact, strict=True):
        if one.dtype == torch.bfloat16:
            error = (one.double() - other).square().mean().sqrt() / other.square().mean().sqrt()
            assert error < 0.006
        else:
            slack = 3e-5 if dtype == torch.float32 else 4e-3
            torch.testing.assert_close(
                one.double(), other.double(), rtol=0, atol=slack * max(float(other.abs().max()), 1)
            )


@pytest.mark.parametrize("kind", ACTIVATIONS, ids=str)
def test_bfloat16_images_have_float32_statistics(kind, instructions, monkeypatch):
    monkeypatch.setattr(native_batch_norm, "MIN_VALUES", 1)
    calls = []
    monkeypatch.setattr(native_support.kernels, "batch_norm", counted(native_support.kernels.batch_norm, calls))
    for seed, shape in enumerate(SHAPES):
        torch.manual_seed(seed)
        network, x = with_activation(shape[1], kind), draw(shape, 5.0).bfloat16()
        upstream = torch.randn_like(x)
        exact = run(copy.deepcopy(network).double(), x.double(), upstream.double())
        with torch.autocast("cpu", torch.bfloat16):
            found = run(accelerate(network), x, upstream)
        assert [one.dtype for one in found] == [torch.bfloat16] * 2 + [torch.float32] * 4 + [torch.int64]
        assert_near(found, exact, torch.bfloat16)
    assert len(calls) == len(SHAPES)


def test_gradients_of_a_sum_can_be_derived_again():
    torch.manual_seed(0)
    block, x, residual = Block(16, nn.ReLU), draw((4, 16, 16, 17), 0.0), draw((4, 16, 16, 17), 0.0)

    def penalty(block, *inputs):
        inputs = [one.clone(memory_format=torch.preserve_format).requires_grad_() for one in inputs]
        gradients = torch.autograd.grad(block(*inputs).pow(3).sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum(one.square().sum() for one in gradients), (*inputs, *block.parameters()))

    exact = penalty(copy.deepcopy(block).double(), x.double(), residual.double())
    for one, other in zip(penalty(accelerate(block), x, residual), exact, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))


def test_who_looks_into_a_block_sees_what_pytorch_computes():
    torch.manual_seed(0)
    block, x, residual = Block(16, nn.ReLU), draw((4, 16, 16, 17), 0.0), draw((4, 16, 16, 17), 0.0)
    expected = copy.deepcopy(block).norm(x)
    accelerate(block)
    seen = []
    handle = block.norm.register_forward_hook(lambda _, __, result: seen.append(result.clone()))
    torch.testing.assert_close(block(x, residual), (expected + residual).relu(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-4)
    handle.remove()
    block.activation = nn.GELU("tanh")  # the kernels have the exact one
    expected = torch.nn.functional.gelu(expected + residual, approximate="tanh")
    torch.testing.assert_close(block(x, residual), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(block(x.mul(2), residual[:1]), block(x.mul(2), residual[:1].expand_as(x)))  # a broadcast sum


def test_a_residual_network_adds_its_shortcuts_in_the_kernels(monkeypatch):
    torch.manual_seed(0)
    network = find_model("resnet20").build().to(memory_format=torch.channels_last)
    x, residuals, compute = draw((4, 3, 32, 32), 0.0), [], native_support.kernels.batch_norm
    monkeypatch.setattr(
        native_support.kernels, "batch_norm", lambda *all_: residuals.append(all_[4] is not None) or compute(*all_)
    )
    found, exact = accelerate(copy.deepcopy(network)), network.double()
    for layer in found.modules():
        if isinstance(layer, nn.Conv2d):
            restore(layer)  # only normalization is tested here
    for one, images in ((found, x), (exact, x.double())):
        one(images).square().sum().backward()
    assert (len(residuals), sum(residuals)) == (19, 9)
    for one, other in zip(found.parameters(), exact.parameters(), strict=True):
        error = (one.grad.double() - other.grad).norm() / other.grad.norm()
        assert error < 1e-3
