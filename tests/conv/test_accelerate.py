import copy
import math
import pickle
import random
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from svertka.conv import autotune, gemm, native_direct, native_support, native_winograd_bf16
from svertka.conv.accelerate import accelerate, restore
from svertka.conv.api import conv2d
from svertka.conv.operator import convolve
from svertka.data.builtin import open_builtin
from svertka.errors import UsageError
from svertka.models.registry import MODELS


def results(network, images):
    """Logits, and the gradients of all parameters."""
    network.zero_grad()
    logits = network(images)
    logits.square().sum().backward()
    return [logits.detach(), *(parameter.grad.clone() for parameter in network.parameters())]


@pytest.fixture
def pair():
    torch.manual_seed(0)
    network = MODELS["resnet20"].build().eval()
    return network, torch.randn(4, 3, 16, 16)


def test_it_computes_the_same_and_restores_to_the_bit(pair):
    network, images = pair
    plain = results(network, images)
    for one, other in zip(results(accelerate(network), images), plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))
    for one, other in zip(results(restore(network), images), plain, strict=True):
        assert torch.equal(one, other)
    assert "_conv_forward" not in vars(network.conv1)


def test_nothing_else_changes(pair):
    network, images = pair
    before, types = network.state_dict(), [type(layer) for layer in network.modules()]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    assert accelerate(network) is network
    assert [type(layer) for layer in network.modules()] == types
    assert network.state_dict().keys() == before.keys()
    weights = network.conv1.weight.detach().clone()
    network(images).sum().backward()
    optimizer.step()
    assert not torch.equal(network.conv1.weight, weights)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
def test_copies_are_accelerated_and_on_their_own(pair, duplicate):
    network, images = pair
    twin = duplicate(accelerate(network))
    assert torch.equal(twin(images), network(images))
    with torch.no_grad():
        twin.conv1.weight.zero_()
    assert not torch.equal(twin(images), network(images))
    restore(twin)
    assert "_conv_forward" in vars(network.conv1)
    assert "_conv_forward" not in vars(twin.conv1)


def test_every_kind_of_layer():
    torch.manual_seed(1)
    layers = [
        nn.Conv2d(4, 6, 3, padding="same", padding_mode="reflect", groups=2),
        nn.Conv2d(4, 6, (3, 5), stride=(2, 1), padding=(1, 2), dilation=(1, 2), bias=False),
        nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"),
        nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1),
    ]
    x = torch.randn(2, 4, 12, 13)
    for layer in layers:
        expected = layer(x)
        torch.testing.assert_close(accelerate(layer)(x), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(layer(x[0]), expected[0], rtol=1e-4, atol=1e-5)
    size = [24, 26]
    torch.testing.assert_close(layers[3](x, output_size=size), restore(layers[3])(x, output_size=size))


def test_under_autocast_it_computes_in_bfloat16_and_learns_in_float32(pair):
    network, images = pair
    network, images = (
        network.to(memory_format=torch.channels_last),
        images.contiguous(memory_format=torch.channels_last),
    )
    exact = results(copy.deepcopy(network).double(), images.double())
    seen = []
    network.layer3.register_forward_hook(lambda _, __, output: seen.append(output))

    def off():
        with torch.autocast("cpu", torch.bfloat16):
            found = results(network, images)
        assert seen[-1].dtype == torch.bfloat16
        assert seen[-1].is_contiguous(memory_format=torch.channels_last)
        assert all(parameter.grad.dtype == torch.float32 for parameter in network.parameters())
        apart = sum(float((one - other).square().sum()) for one, other in zip(found[1:], exact[1:], strict=True))
        return (apart / sum(float(other.square().sum()) for other in exact[1:])) ** 0.5

    plain = off()
    accelerate(network)
    # Each result is rounded once, in PyTorch's no seldomer; where processors multiply bfloat16, Winograd's products
    # lose up to LIMIT a layer.
    layers = sum(isinstance(module, nn.Conv2d) for module in network.modules()) * native_support.multiplies_bfloat16()
    assert 0 < off() < 1.1 * math.hypot(plain, layers**0.5 * native_winograd_bf16.LIMIT)


def losses(seed, steps, batch, pictures, labels, *, with_engine):
    """Cross-entropies of the steps of training ResNet-20 from `seed`, which draws first weights and batches."""
    torch.manual_seed(seed)
    network = MODELS["resnet20"].build().to(memory_format=torch.channels_last)
    if with_engine:
        accelerate(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    found = []
    for _ in range(steps):
        chosen = torch.randint(len(labels), (batch,))
        images = (pictures[chosen].float() / 255 - 0.47) / 0.25
        loss = nn.functional.cross_entropy(network(images), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return torch.tensor(found)


@pytest.mark.large
@pytest.mark.timeout(900)
def test_it_trains_as_well_within_the_spread_of_two_seeds(shared_data):
    steps, batch, window = 200, 64, 20
    cifar = open_builtin("cifar10")
    some = slice(0, 20_000)
    pictures = torch.from_numpy(cifar.images.array[some]).permute(0, 3, 1, 2)  # channels-last as they lie
    data = pictures, torch.from_numpy(cifar.labels[some]).long()
    plain, engine = (losses(1, steps, batch, *data, with_engine=way) for way in (False, True))
    other = losses(2, steps, batch, *data, with_engine=False)

    def apart(one, another):
        """The mean distance of two curves, each smoothed over a window."""
        return float((one - another).unfold(0, window, window).mean(1).abs().mean())

    # Rounding grows from step to step; PyTorch's gradients of batch normalization are off by 1e-5.
    torch.testing.assert_close(engine[:2], plain[:2], rtol=1e-3, atol=1e-4)
    assert apart(engine, plain) <= apart(other, plain)


class Doubled(nn.Conv2d):
    """Computes in its own way, by `forward`."""

    def forward(self, x):
        return 2 * self._conv_forward(x, self.weight, self.bias)


class Standardized(nn.Conv2d):
    """By `_conv_forward`: weight standardization."""

    def _conv_forward(self, x, weight, bias):
        weight = (weight - weight.mean((1, 2, 3), keepdim=True)) / (weight.std((1, 2, 3), keepdim=True) + 1e-5)
        return super()._conv_forward(x, weight, bias)


class Called(nn.Conv2d):
    """By `__call__`."""

    def __call__(self, *arguments):
        return super().__call__(*arguments) + 1


class Shuffled(nn.Conv2d):
    """By the weight that it says it has."""

    def reset_parameters(self):
        nn.init.normal_(self._parameters["weight"])
        nn.init.normal_(self._parameters["bias"])

    def __getattr__(self, name):
        found = super().__getattr__(name)
        return found.flip(0) if name == "weight" else found


class Same(nn.Conv2d):
    """Has only more methods."""

    def describe(self):
        return "a convolution"


class Halved(nn.Module):
    def forward(self, weight):
        return weight / 2


class TransposedOnce(nn.ConvTranspose2d):
    def forward(self, x, output_size=None):
        return super().forward(x, output_size) - 1


def wraps_sideways(layer):
    """As people patch layers for seamless textures."""
    layer._conv_forward = lambda x, weight, bias: F.conv2d(F.pad(x, (1, 1, 1, 1), mode="circular"), weight, bias)
    return layer


def pads_otherwise(layer):
    """As others do."""
    layer.padding_mode, layer._reversed_padding_repeated_twice = "circular", [2, 0, 0, 2]
    return layer


def doubled(layer):
    """As libraries do that add hooks by replacing `forward`."""
    original = layer.forward
    layer.forward = lambda *arguments: 2 * original(*arguments)
    return layer


def parametrized(layer):
    nn.utils.parametrize.register_parametrization(layer, "weight", Halved())
    return layer


def hooked(layer):
    layer.register_forward_hook(lambda _, __, output: output + 1)
    layer.register_forward_pre_hook(lambda _, arguments: (arguments[0] * 2,))
    return layer


def lazy(_):
    return nn.LazyConv2d(8, 3, padding=1)


def old_weight_norm(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(layer)


KINDS = (nn.Conv2d, nn.ConvTranspose2d, Doubled, Standardized, Called, Shuffled, Same, TransposedOnce)
CHANGES = {
    "nothing": lambda layer: layer,
    "wraps_sideways": wraps_sideways,
    "pads_otherwise": pads_otherwise,
    "doubled": doubled,
    "parametrized": parametrized,
    "hooked": hooked,
    "lazy": lazy,
    "weight_norm": nn.utils.parametrizations.weight_norm,
    "old_weight_norm": old_weight_norm,
    "spectral_norm": nn.utils.parametrizations.spectral_norm,
    "settings": lambda layer: setattr(layer, "dilation", (2, 2)) or layer,
}


OF_WEIGHTS = "lazy", "parametrized", "weight_norm", "old_weight_norm", "spectral_norm"


def drawn_layer(choose):
    """A layer of 8 channels, changed in some way; what changes it once more, accelerated; and their names."""
    kind = choose.choice(KINDS)
    layer = kind(8, 8, 3, padding=1)
    fits = [name for name in CHANGES if isinstance(layer, nn.Conv2d) or name in ("nothing", "doubled", "hooked")]
    before = choose.choice(fits)
    # The weight is replaced once at most.
    after = choose.choice(
        [name for name in fits if name not in OF_WEIGHTS or (before not in OF_WEIGHTS and name != "lazy")]
    )
    return CHANGES[before](layer), CHANGES[after], (kind.__name__, before, after)


def state(network):
    """What of a network's layers others see, but for a weight that is computed in every pass."""
    return [
        (type(layer), {key: id(value) for key, value in vars(layer).items() if key != "weight"})
        for layer in network.modules()
    ]


def test_no_layer_that_somebody_has_changed_is_computed_otherwise(large_count):
    for seed in range(large_count(120, 5000)):
        choose = random.Random(seed)
        torch.manual_seed(seed)
        layer, changed, name = drawn_layer(choose)
        network = nn.Sequential(layer, nn.ReLU(), layer if choose.random() < 0.3 else nn.Conv2d(8, 8, 1)).eval()
        x = torch.randn(2, 8, 12, 11)
        twin = copy.deepcopy(network) if name[1:] == ("nothing", "nothing") else None
        with torch.no_grad():
            expected = network(x)
        before = state(network)

        def like(one, other, name=name):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4, msg=lambda text: f"{name}: {text}")

        with torch.no_grad():
            for _ in range(choose.randint(1, 2)):
                like(accelerate(network)(x), expected)
            if choose.random() < 0.5:
                restore(network)
                for (_, attributes), (_, others) in zip(state(network), before, strict=True):
                    assert attributes == others, name
                assert torch.equal(network(x), expected)
                accelerate(network, strict=choose.random() < 0.5)
            # Somebody changes a layer that is accelerated: as if it were not.
            changed(layer)
            found = network(x)
            restore(network)
            like(found, network(x))
            if twin is not None:
                assert torch.equal(network(x), twin(x))
            restore(network)


def test_what_is_replaced_in_pytorch_itself_is_called(monkeypatch):
    layer, x = nn.Conv2d(8, 8, 3), torch.randn(1, 8, 9, 9)
    accelerate(layer)
    monkeypatch.setattr(nn.Conv2d, "_conv_forward", lambda self, x, weight, bias: x)
    assert layer(x) is x
    other = accelerate(nn.Conv2d(8, 8, 3))
    assert "_conv_forward" not in vars(other)


def recorded(network, x, tmp_path):
    """What others make of a network, as functions of x."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(network, x)
        exported = torch.export.export(network, (x,))
        assert "svertka::" not in str(traced.inlined_graph)
        assert "svertka." not in str(exported.graph)
        yield traced
        yield exported.module()
        yield torch.fx.symbolic_trace(network)

        class Everything(torch.fx.Tracer):
            def is_leaf_module(self, *_):
                return False

        yield torch.fx.GraphModule(network, Everything().trace(network))
        pytest.importorskip("onnx")
        for number, dynamo in enumerate((False, True)):
            torch.onnx.export(network, (x,), tmp_path / f"{number}.onnx", dynamo=dynamo, verbose=False)


def test_an_accelerated_network_is_traced_and_exported_with_pytorchs_convolutions(tmp_path):
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(8, 4, 3, stride=2)
    network, x, y = nn.Sequential(*layers).eval(), torch.randn(2, 3, 9, 9), torch.randn(2, 3, 9, 9)
    expected = network(y)
    for one in recorded(accelerate(network), x, tmp_path):
        torch.testing.assert_close(one(y), expected, rtol=1e-4, atol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with pytest.raises(UsageError, match="accelerated Conv2d; call svertka.restore on the network first"):
            torch.jit.script(network)
        torch.jit.script(restore(network))


def test_who_counts_operations_counts_those_of_an_accelerated_network():
    network, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 4, 3)), torch.randn(2, 3, 9, 9)
    counted = []
    for one in (network, accelerate(copy.deepcopy(network))):
        with FlopCounterMode(display=False) as counter:
            one(x).sum().backward()
        counted.append(counter.get_total_flops())
    assert counted[0] == counted[1] > 0


def test_an_accelerated_network_is_compiled():
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 4, 3)), torch.randn(2, 3, 9, 9)
    expected = network(x)
    compiled = torch.compile(accelerate(network), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-5)


def test_strict_layers_spoil_only_what_reads_a_value():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ConvTranspose2d(8, 4, 3, padding=1))
    x = torch.randn(2, 8, 24, 24)
    x[0, 0, 9, 9] = math.nan
    expected = network(x).isnan()
    assert torch.equal(accelerate(network, strict=True)(x).isnan(), expected)
    assert accelerate(network)(x).isnan().sum() >= expected.sum()


class SameConv2d(nn.Conv2d):
    """Pads so that the size is divided by the stride, as TensorFlow does."""

    def forward(self, x):
        sides = zip(x.shape[2:], self.kernel_size, self.stride, strict=True)
        missing = [max((-(-side // step) - 1) * step + taps - side, 0) for side, taps, step in sides]
        below, right = missing
        x = F.pad(x, (right // 2, right - right // 2, below // 2, below - below // 2))
        return F.conv2d(x, self.weight, self.bias, self.stride, (0, 0), self.dilation, self.groups)


class StandardizedConv2d(nn.Conv2d):
    """Weights without mean and with variance 1 (Qiao et al. 2019)."""

    def forward(self, x):
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True)
        weight = (self.weight - mean) * (variance + 1e-6).rsqrt()
        return F.conv2d(x, weight, self.bias, stride=self.stride, padding=self.padding, groups=self.groups)


def gradients(layer, x, upstream):
    """The result of `layer`, and the gradients of `x` and the parameters."""
    x = x.clone().requires_grad_()
    layer.zero_grad()
    result = layer(x)
    result.backward(upstream)
    return [result.detach(), x.grad, *(parameter.grad.clone() for parameter in layer.parameters())]


@pytest.mark.parametrize("kind", [SameConv2d, StandardizedConv2d])
@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions_inside_a_forward_of_their_own_are_replaced(kind, groups, monkeypatch):
    torch.manual_seed(1)
    layer = kind(8, 12, 3, stride=2, padding=1, groups=groups)
    x = torch.randn(2, 8, 13, 11)
    upstream = torch.randn_like(layer(x))
    exact = gradients(copy.deepcopy(layer).double(), x.double(), upstream.double())
    calls = []
    counted = lambda *args, **named: calls.append(1) or conv2d(*args, **named)  # noqa: E731
    monkeypatch.setattr("svertka.conv.accelerate.conv2d", counted)
    for one, other in zip(gradients(accelerate(layer), x, upstream), exact, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-4)
    assert len(calls) == 1
    assert "forward" not in vars(restore(layer))
    gradients(layer, x, upstream)
    assert len(calls) == 1


def test_dense_layers_are_products_of_our_own(monkeypatch):
    torch.manual_seed(1)
    layer = nn.Linear(40, 24)
    x, upstream = torch.randn(3, 10, 11, 40), torch.randn(3, 10, 11, 24)
    exact = gradients(copy.deepcopy(layer).double(), x.double(), upstream.double())
    monkeypatch.setattr(
        autotune, "select_algorithm", lambda *_: native_direct if native_support.why_not() is None else gemm
    )
    accelerate(layer)
    called = []
    monkeypatch.setattr("svertka.conv.accelerate.convolve", lambda *args: called.append(1) or convolve(*args))
    for one, other in zip(gradients(layer, x, upstream), exact, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-4)
    assert called == [1]
    few = torch.randn(255, 40)
    assert torch.equal(layer(few), F.linear(few, layer.weight, layer.bias))
    assert called == [1]
    assert not {"forward", "__prepare_scriptable__"} & vars(restore(layer)).keys()
