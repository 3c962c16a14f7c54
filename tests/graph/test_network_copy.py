import copy

import pytest
import torch
from torch import Tensor, nn

from svertka.errors import UsageError
from svertka.graph.network_copy import copy_network, copy_sharing_parameters, copy_with_meta_tensors


class CachedBias(nn.Module):
    """Attention with relative biases that are looked up once in inference, as in LeViT."""

    def __init__(self) -> None:
        super().__init__()
        self.biases = nn.Parameter(torch.randn(5))
        self.distances = (torch.arange(4)[:, None] - torch.arange(4)).abs()
        self.cache: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            biases = self.biases[self.distances]
        else:
            key = str(x.device)
            if key not in self.cache:
                self.cache[key] = self.biases[self.distances]
            biases = self.cache[key]
        return (x.flatten(2) @ x.flatten(2).transpose(1, 2) + biases).softmax(-1)


def test_tensors_that_a_network_computed_and_keeps_are_copied():
    network, x = CachedBias().eval(), torch.randn(2, 4, 3, 3)
    expected = network(x)
    assert not network.cache["cpu"].is_leaf
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(network)
    copied = copy_network(network)
    assert torch.equal(copied.cache["cpu"], network.cache["cpu"])
    assert copied.cache["cpu"].data_ptr() != network.cache["cpu"].data_ptr()
    assert torch.equal(copied(x), expected)
    assert torch.equal(copy_sharing_parameters(network)(x), expected)
    assert copy_with_meta_tensors(network)[0](x.to("meta")).shape == expected.shape
    assert not network.cache["cpu"].is_leaf


def test_a_copy_keeps_the_mode_and_shares_nothing():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    network[1].eval()
    copied = copy_network(network)
    assert [module.training for module in copied.modules()] == [True, True, False]
    with torch.no_grad():
        copied[0].weight.zero_()
    assert network[0].weight.abs().max() > 0


def test_what_cannot_be_copied_is_named():
    network = nn.Linear(3, 2)
    network.log = (line for line in "ab")
    with pytest.raises(UsageError, match="Linear cannot be copied \\(cannot pickle 'generator' object\\); remove"):
        copy_network(network)
