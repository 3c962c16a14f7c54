"""Networks of the zoo, small, as after some training."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from svertka.models.registry import MODELS


@pytest.fixture(scope="session")
def built() -> Callable[[str, int], tuple[nn.Module, int]]:
    """`built(name, size)`: a network in inference whose batch norms do something, and its channels."""

    def build(name: str, size: int) -> tuple[nn.Module, int]:
        torch.manual_seed(0)
        channels = 1 if name in ("mlp", "lenet5") else 3
        network = MODELS[name].build(classes=4, channels=channels, size=size).eval()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_var = torch.empty_like(module.bias).uniform_(0.5, 2)
        return network, channels

    return build
