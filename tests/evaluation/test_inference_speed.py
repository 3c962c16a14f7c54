import time

import pytest
import torch
from torch import nn

from svertka.classifier import Classifier, Config
from svertka.conv import native_support
from svertka.data.preprocessing import Preprocess
from svertka.evaluation.inference_speed import BATCH, measure_speeds


class Slow(nn.Module):
    """Takes a known time a picture; what it does depends on values, so that it cannot be optimized."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds, self.seen = seconds, []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert not self.training
        assert images.is_inference()
        self.seen.append(tuple(images.shape))
        time.sleep(self.seconds * len(images) + 0 * float(images[0, 0, 0, 0]))
        return torch.zeros(len(images), 2)


CONFIG = Config(model="mlp", names=("a", "b"), preprocess=Preprocess(size=9, resize=9, mean=(0.0,) * 3, std=(1.0,) * 3))


def test_medians_match_known_times() -> None:
    networks = [Slow(0.005), Slow(0.002)]
    found = measure_speeds([Classifier(network, CONFIG) for network in networks], torch.device("cpu"))
    for network, speed in zip(networks, found, strict=True):
        # Sleeping takes longer than asked for, never shorter; on a busy machine much longer.
        assert network.seconds <= speed.seconds < 10 * network.seconds
        assert 0.1 / network.seconds < speed.per_second <= 1 / network.seconds
        assert {*network.seen} == {(1, 3, 9, 9), (BATCH, 3, 9, 9)}


@pytest.mark.skipif(bool(native_support.why_not()), reason="no kernels here")
def test_networks_are_optimized_before_timing() -> None:
    class Counted(nn.Conv2d):
        runs = 0

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.runs += 1
            return super().forward(images)

    network = Counted(3, 2, 9)
    (found,) = measure_speeds([Classifier(network, CONFIG)], torch.device("cpu"))
    assert found.seconds > 0
    assert network.runs == 0
