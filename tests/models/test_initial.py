import math

import pytest
import torch
from torch import nn

from svertka.models.initial import Initial, initialise


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
