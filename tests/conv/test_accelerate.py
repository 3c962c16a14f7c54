import copy
import pickle

import pytest
import torch
from torch import nn

from svertka.conv.accelerate import accelerate, restore
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


class Doubled(nn.Conv2d):
    """Computes in its own way."""

    def forward(self, x):
        return 2 * self._conv_forward(x, self.weight, self.bias)


def test_layers_with_a_way_of_their_own_are_left_alone():
    layer = Doubled(1, 1, 3)
    accelerate(layer)
    assert "_conv_forward" not in vars(layer)
