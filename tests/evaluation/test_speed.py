import time

import torch
from torch import nn

from svertka.classifier import Classifier, Config
from svertka.data.preprocess import Preprocess
from svertka.evaluation.speed import BATCH, speeds


class Slow(nn.Module):
    """Takes a known time a picture."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds, self.seen = seconds, []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert not self.training
        assert images.is_inference()
        self.seen.append(tuple(images.shape))
        time.sleep(self.seconds * len(images))
        return torch.zeros(len(images), 2)


def test_known_times_are_found() -> None:
    config = Config(
        model="mlp", names=("a", "b"), preprocess=Preprocess(size=9, resize=9, mean=(0.0,) * 3, std=(1.0,) * 3)
    )
    networks = [Slow(0.005), Slow(0.002)]
    found = speeds([Classifier(network, config) for network in networks], torch.device("cpu"))
    for network, speed in zip(networks, found, strict=True):
        # Sleeping takes longer than asked for, never shorter; on a busy machine much longer.
        assert network.seconds <= speed.seconds < 10 * network.seconds
        assert 0.1 / network.seconds < speed.per_second <= 1 / network.seconds
        assert {*network.seen} == {(1, 3, 9, 9), (BATCH, 3, 9, 9)}
