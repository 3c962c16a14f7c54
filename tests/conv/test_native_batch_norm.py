"""Batch normalization with its activation function, against PyTorch's in float64."""

import copy

import pytest
import torch
from torch import nn

from svertka.conv import native_batch_norm, native_support
from svertka.conv.accelerate import accelerate, restore
from svertka.conv.native_batch_norm import ACTIVATIONS, can_normalize

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
    return nn.Sequential(layer, *([] if kind is None else [kind(inplace=True)]))


def run(network, x, upstream):
    """The result, the gradients of x and the parameters, and the layer's statistics."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    network.zero_grad()
    result = network(x)
    result.backward(upstream)
    return [result.detach(), x.grad, *(each.grad for each in network.parameters()), *network.buffers()]


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
        kernels.batch_norm(sizes, x[1:].clone(), vector, vector, x, vector, vector, 1)
    with pytest.raises(ValueError, match="mean holds 3 numbers"):
        kernels.batch_norm(sizes, x, vector, vector, x, vector[1:].clone(), vector, 1)
    with pytest.raises(ValueError, match="bias_gradient holds 3 numbers"):
        kernels.batch_norm_gradients(sizes, x, x, vector, vector, vector, vector, x, vector, vector[1:].clone(), 1)
    with pytest.raises(ValueError, match="channels=0 must be from 1"):
        kernels.batch_norm(
            kernels.BatchNorm(5, 0, 1e-5, kernels.Activation.NONE, 0.0, 1.0), x, vector, vector, x, vector, vector, 1
        )
