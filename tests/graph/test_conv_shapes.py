import pytest
import torch
from torch import nn

from svertka.graph.conv_shapes import find_conv_shapes
from svertka.graph.summary import trace
from svertka.models.registry import MODELS


@pytest.mark.parametrize("name", ["resnet18", "alexnet", "googlenet_bn"])
def test_their_multiply_adds_are_those_of_the_trace(name):
    model = MODELS[name]
    with torch.device("meta"):
        network = model.build()
    layers = [layer for layer in trace(network, (1, *model.input_shape)).layers if layer.kind == "Conv2d"]
    found = {name: shape.multiply_adds for name, shape in find_conv_shapes(network, (1, *model.input_shape)).items()}
    assert found == {layer.name: layer.multiply_adds for layer in layers}


def test_settings_and_order():
    layers = nn.Conv2d(4, 6, (3, 5), stride=2, padding=(1, 2), groups=2), nn.ReLU(), nn.Conv2d(6, 2, 1, padding="same")
    network = nn.Sequential(*layers)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    found = find_conv_shapes(network, (3, 4, 9, 10))
    assert list(found) == ["0", "2"]
    assert found["0"].input == (3, 4, 9, 10)
    assert (found["0"].stride, found["0"].padding, found["0"].groups) == ((2, 2), (1, 2), 2)
    assert found["2"].output == (3, 2, 5, 5)
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in before.items())
    assert not network[0]._forward_pre_hooks
