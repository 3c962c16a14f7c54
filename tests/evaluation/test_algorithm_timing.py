import pytest
import torch
from torch import nn

import svertka
from svertka.errors import UsageError


def test_a_convolution_is_timed_by_every_algorithm_and_one_is_taken_for_each_pass() -> None:
    found = svertka.tune(shape=(2, 8, 12, 12), weight=(8, 8, 3, 3), padding=1, threads=1)
    for one_pass in ("forward", "input_gradient", "weight_gradient"):
        trials = [trial for trial in found if trial["pass"] == one_pass]
        timed = [trial for trial in trials if trial["seconds"] is not None]
        assert sum(bool(trial["taken"]) for trial in timed) == 1
        assert all(trial["error"] < 1e-4 for trial in timed)
        assert all(trial["why_not"] for trial in trials if trial["seconds"] is None)


def test_a_network_is_timed_layer_by_layer() -> None:
    layers = {trial["layer"] for trial in svertka.tune("lenet5", batch=1, threads=1)}
    assert {"c1", "c5"} <= layers


def test_a_convolution_that_is_not_timed_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("svertka.conv.autotune.time_algorithms_for_all_passes", lambda layer, *_: [{"layer": layer}])
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 8, 2, groups=4), nn.Flatten(), nn.LazyLinear(2))
    network(torch.zeros(1, 3, 8, 8))
    assert svertka.tune(network, batch=1, size=8, threads=1) == [{"layer": "0"}]
    assert "no algorithm for them: 1 (ConvTranspose2d)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"name": "lenet5", "shape": (1, 1, 8, 8), "weight": (1, 1, 3, 3)},
        {"shape": (1, 1, 8, 8)},
        {"name": "lenet6"},
        {"shape": (1, 1, 2, 2), "weight": (1, 1, 3, 3)},
    ],
)
def test_what_cannot_be_timed_is_one_sentence(options: dict) -> None:
    with pytest.raises(UsageError):
        svertka.tune(**options)
