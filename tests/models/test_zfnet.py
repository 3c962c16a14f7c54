import pytest
import torch
from torch import nn

from svertka.graph.summary import measure_network_size, trace
from svertka.models.zfnet import ZFNet


@pytest.fixture
def network():
    with torch.device("meta"):
        return ZFNet()


def test_size_is_the_arithmetic_of_figure_3(network):
    convolutions = [(96, 3, 7, 110), (256, 96, 5, 26), (384, 256, 3, 13), (384, 384, 3, 13), (256, 384, 3, 13)]
    dense = [(4096, 256 * 6 * 6), (4096, 4096), (1000, 4096)]
    weights = [outputs * inputs * kernel**2 for outputs, inputs, kernel, _ in convolutions]
    biases = sum(row[0] for row in (*convolutions, *dense))
    dense_weights = sum(outputs * inputs for outputs, inputs in dense)
    found = measure_network_size(network, (1, 3, 224, 224))
    assert found.parameters == sum(weights) + dense_weights + biases == 62_357_608
    products = sum(weight * side**2 for weight, (*_, side) in zip(weights, convolutions, strict=True))
    assert found.multiply_adds == products + dense_weights


def test_maps_are_those_of_figure_3(network):
    shapes = {layer.name: layer.shape for layer in trace(network, (1, 3, 224, 224)).layers}
    names = ("conv1", "pool1", "conv2", "pool2", "conv3", "conv4", "conv5", "pool5")
    assert [shapes[name][1:3] for name in names] == [
        (96, 110), (96, 55), (256, 26), (256, 13), (384, 13), (384, 13), (256, 13), (256, 6)
    ]  # fmt: skip


def test_response_norm_follows_the_first_two_pools(network):
    names = [name for name, _ in network.named_children()]
    assert names[:8] == ["conv1", "relu1", "pool1", "norm1", "conv2", "relu2", "pool2", "norm2"]


def test_no_convolution_has_groups(network):
    """AlexNet's two groups are gone (§3)."""
    assert all(layer.groups == 1 for layer in network.children() if isinstance(layer, nn.Conv2d))


@pytest.mark.parametrize("size", [47, 64, 65, 97, 225])
def test_any_size_other_classes_and_channels(size):
    with torch.device("meta"):
        network = ZFNet(7, 1, size)
        assert network(torch.empty(2, 1, size + 2, size)).shape == (2, 7)


def test_first_values_and_gradient():
    torch.manual_seed(0)
    network = ZFNet(10, 3, 64)
    for name, values in network.named_parameters():
        if name.endswith("bias"):
            assert not values.any(), name
        else:
            assert abs(values.std() / 0.01 - 1) < 6 / (2 * values.numel()) ** 0.5, name  # six standard errors
    # raw pixel values, as in the paper, with a standard deviation near 60
    network(torch.randn(2, 3, 64, 64) * 60).square().sum().backward()
    assert all(values.grad.abs().sum() > 0 for values in network.parameters())
