import copy
import math
import pickle

import pytest
import torch
from torch import nn

from svertka.conv import native, native_pairs
from svertka.conv.accelerate import accelerate, restore
from svertka.data.published import open_published
from svertka.models.zoo import MODELS


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
    layers = sum(isinstance(module, nn.Conv2d) for module in network.modules()) * native.multiplies_bfloat16()
    assert 0 < off() < 1.1 * math.hypot(plain, layers**0.5 * native_pairs.LIMIT)


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
def test_it_trains_as_well_within_the_spread_of_two_seeds(shared_data, large_count):
    steps, batch, window = large_count(4, 200), large_count(16, 64), large_count(1, 20)
    cifar = open_published("cifar10")
    some = slice(0, 20_000)
    pictures = torch.from_numpy(cifar.pictures.array[some]).permute(0, 3, 1, 2)  # channels-last as they lie
    data = pictures, torch.from_numpy(cifar.labels[some]).long()
    plain, engine = (losses(1, steps, batch, *data, with_engine=way) for way in (False, True))
    other = losses(2, steps, batch, *data, with_engine=False)

    def apart(one, another):
        """The mean distance of two curves, each smoothed over a window."""
        return float((one - another).unfold(0, window, window).mean(1).abs().mean())

    torch.testing.assert_close(engine[:2], plain[:2], rtol=1e-4, atol=1e-4)  # later rounding has grown
    assert apart(engine, plain) <= apart(other, plain)


class Doubled(nn.Conv2d):
    """Computes in its own way."""

    def forward(self, x):
        return 2 * self._conv_forward(x, self.weight, self.bias)


def test_layers_with_a_way_of_their_own_are_left_alone():
    layer = Doubled(1, 1, 3)
    accelerate(layer)
    assert "_conv_forward" not in vars(layer)


def test_strict_layers_spoil_only_what_reads_a_value():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ConvTranspose2d(8, 4, 3, padding=1))
    x = torch.randn(2, 8, 24, 24)
    x[0, 0, 9, 9] = math.nan
    expected = network(x).isnan()
    assert torch.equal(accelerate(network, strict=True)(x).isnan(), expected)
    assert accelerate(network)(x).isnan().sum() >= expected.sum()
