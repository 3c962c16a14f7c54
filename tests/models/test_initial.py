import math

import pytest
import torch
from torch import nn

from svertka.models.initial import Initial, draw_small, initialise, signal_vanishes
from svertka.models.weights import head_of
from svertka.models.zoo import MODELS


@pytest.mark.parametrize(("initial", "deviation"), [
    ("gaussian", 0.01),
    ("glorot", math.sqrt(2 / (9 * 32 + 9 * 64))),
    ("he", math.sqrt(2 / (9 * 32))),
])  # fmt: skip
def test_the_papers_deviations(initial: Initial, deviation: float) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(32, 64, 3), nn.BatchNorm2d(64), nn.Linear(64, 10))
    before = [parameter.clone() for parameter in network[1].parameters()]
    initialise(network, initial)
    # 18,432 numbers: the deviation of their deviation is half a percent.
    assert float(network[0].weight.detach().std()) == pytest.approx(deviation, rel=0.02)
    assert abs(float(network[0].weight.detach().mean())) < 4 * deviation / math.sqrt(18_432)
    assert not network[0].bias.any()
    assert not network[2].bias.any()
    assert all(torch.equal(old, new) for old, new in zip(before, network[1].parameters(), strict=True))


@pytest.mark.parametrize(("name", "vanishes"), [
    ("squeezenet1_1", True), ("zfnet", True), ("lenet5", False), ("vgg11", False), ("resnet20", False),
])  # fmt: skip
def test_weights_through_which_no_signal_passes_are_found_and_drawn_anew(name: str, vanishes: bool) -> None:
    torch.manual_seed(0)
    model = MODELS[name]
    network = model.build(10, 3, max(model.smallest, 48)).train()
    images = torch.randn(16, 3, max(model.smallest, 48), max(model.smallest, 48))
    assert signal_vanishes(network, images) == vanishes
    assert network.training
    if vanishes:
        initialise(network, "he")
        draw_small(network, head_of(model))
        assert not signal_vanishes(network, images)
