from types import SimpleNamespace

import pytest
import torch
from torch import nn

from svertka.classifier import Classifier, Config
from svertka.conv import native_support
from svertka.data.preprocessing import Preprocess
from svertka.evaluation import inference_speed
from svertka.evaluation.inference_speed import BATCH, measure_speeds


class Slow(nn.Module):
    """Takes a known time a picture, by a clock of its own; what it does depends on values, so it is not optimized."""

    def __init__(self, seconds: float, clock: list[float]) -> None:
        super().__init__()
        self.seconds, self.clock, self.seen = seconds, clock, []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert not self.training
        assert images.is_inference()
        self.seen.append(tuple(images.shape))
        late = 10 if len(self.seen) % 4 == 0 else 1  # as on a busy machine now and then
        self.clock[0] += late * self.seconds * len(images) + 0 * float(images[0, 0, 0, 0])
        return torch.zeros(len(images), 2)


CONFIG = Config(model="mlp", names=("a", "b"), preprocess=Preprocess(size=9, resize=9, mean=(0.0,) * 3, std=(1.0,) * 3))


def test_medians_match_known_times(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(inference_speed, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(inference_speed, "SPENT", 0.5)
    networks = [Slow(0.005, clock), Slow(0.002, clock)]
    found = measure_speeds([Classifier(network, CONFIG) for network in networks], torch.device("cpu"))
    for network, speed in zip(networks, found, strict=True):
        assert speed.seconds == pytest.approx(network.seconds)
        assert speed.per_second == pytest.approx(1 / network.seconds)
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
