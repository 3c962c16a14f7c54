import copy

import pytest
import torch
from torch import nn

from svertka.graph.trace import count
from svertka.models.zoo import MODELS

LENET5 = (
    28 * 28 * 6 * 25
    + 10 * 10 * 16 * 6 * 25  # computed with all 96 kernels, of which the paper connects 60
    + 120 * 16 * 25
    + 84 * 120
)
RESNET20 = (  # 40.6 M; the 40.8 M that are usually quoted include batch norm
    32 * 32 * 16 * 27
    + 6 * (32 * 32 * 16 * 144)
    + 16 * 16 * 32 * 144 + 5 * (16 * 16 * 32 * 288)
    + 8 * 8 * 64 * 288 + 5 * (8 * 8 * 64 * 576)
    + 64 * 10
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "parameters", "multiply_adds"),
    [("mlp", 238_510, 784 * 300 + 300 * 10), ("lenet5", 60_000, LENET5), ("resnet20", 269_722, RESNET20)],
)
def test_counts_are_those_of_hand_arithmetic(name, parameters, multiply_adds):
    model = MODELS[name]
    counted = count(model.build(), (1, *model.input))
    assert (counted.parameters, counted.trainable, counted.multiply_adds) == (parameters, parameters, multiply_adds)


def test_multiply_adds_grow_with_the_batch_and_fall_with_groups():
    network = nn.Conv2d(8, 8, 3, groups=4, bias=False)
    assert count(network, (5, 8, 6, 6)).multiply_adds == 5 * 4 * 4 * 8 * 2 * 9


def test_frozen_parameters_are_counted_apart():
    network = MODELS["resnet20"].build()
    network.conv1.requires_grad_(False)
    counted = count(network, (1, 3, 32, 32))
    assert counted.parameters - counted.trainable == 432


def test_the_network_stays_as_it_was():
    network = MODELS["resnet20"].build().train()
    network.layer1.eval()
    before = copy.deepcopy(network)
    count(network, (1, 3, 32, 32))
    assert [module.training for module in network.modules()] == [module.training for module in before.modules()]
    after = network.state_dict()
    for name, tensor in before.state_dict().items():
        assert torch.equal(tensor, after[name]), name
