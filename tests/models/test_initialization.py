import math

import pytest
import torch
from torch import nn

from svertka.models.initialization import InitScheme, init_head, init_weights, signal_vanishes
from svertka.models.registry import MODELS
from svertka.models.weights import head_tensor_names


@pytest.mark.parametrize(("scheme", "std"), [
    ("gaussian", 0.01),
    ("glorot", math.sqrt(2 / (9 * 32 + 9 * 64))),
    ("he", math.sqrt(2 / (9 * 32))),
])  # fmt: skip
def test_standard_deviations_of_the_schemes(scheme: InitScheme, std: float) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(32, 64, 3), nn.BatchNorm2d(64), nn.Linear(64, 10))
    before = [parameter.clone() for parameter in network[1].parameters()]
    init_weights(network, scheme)
    # 18,432 numbers: the standard error of their standard deviation is half a percent.
    assert float(network[0].weight.detach().std()) == pytest.approx(std, rel=0.02)
    assert abs(float(network[0].weight.detach().mean())) < 4 * std / math.sqrt(18_432)
    assert not network[0].bias.any()
    assert not network[2].bias.any()
    assert all(torch.equal(old, new) for old, new in zip(before, network[1].parameters(), strict=True))


@pytest.mark.parametrize(("name", "vanishes"), [
    ("squeezenet1_1", True), ("zfnet", True), ("lenet5", False), ("vgg11", False), ("resnet20", False),
])  # fmt: skip
def test_vanishing_signals_are_detected_and_fixed(name: str, vanishes: bool) -> None:
    torch.manual_seed(0)
    model = MODELS[name]
    network = model.build(10, 3, max(model.min_size, 48)).train()
    images = torch.randn(16, 3, max(model.min_size, 48), max(model.min_size, 48))
    assert signal_vanishes(network, images) == vanishes
    assert network.training
    if vanishes:
        init_weights(network, "he")
        init_head(network, head_tensor_names(model))
        assert not signal_vanishes(network, images)
