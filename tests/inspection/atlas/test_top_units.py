from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import svertka
from svertka.inspection.atlas.top_units import UNITS_PER_LAYER, find_top_units, read_largest_activations_of_atlas
from svertka.run import Run


@pytest.fixture
def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 10, 3), nn.ReLU(), nn.Flatten(), nn.Linear(160, 2)
    )


def test_top_units_and_their_boxes(network: nn.Sequential) -> None:
    image = torch.rand(1, 14, 14)
    found = find_top_units(network, image, {})
    first = network[:2](image[None])[0].detach()
    of_first = [one for one in found if one.layer == "0"]
    assert len(of_first) == UNITS_PER_LAYER
    order = first.flatten(1).max(1).values.argsort(descending=True)[:UNITS_PER_LAYER]
    assert [one.unit for one in of_first] == order.tolist()
    for one in of_first:
        assert one.share is None
        top, left, bottom, right = one.box
        assert (bottom - top, right - left) == (3, 3)
        assert one.value == pytest.approx(float(first[one.unit, top, left]))
        assert one.value == pytest.approx(float(first[one.unit].max()))
    assert {one.layer for one in found} == {"0", "3"}


def test_units_are_ranked_by_share_of_the_recorded_maximum(network: nn.Sequential) -> None:
    image = torch.rand(1, 14, 14)
    values = network[:2](image[None])[0].flatten(1).max(1).values.detach().double().numpy()
    best = values * np.linspace(1, 4, 8) + 1e-12
    best[5] = 0  # a unit that the atlas knows as dead
    found = find_top_units(network, image, {"0": best})
    assert {one.layer for one in found} == {"0"}
    expected = [k for k in np.argsort(np.linspace(1, 4, 8)) if k != 5 and values[k] > 0][:UNITS_PER_LAYER]
    assert [one.unit for one in found] == expected
    for one in found:
        assert one.share == pytest.approx(values[one.unit] / best[one.unit])


def test_largest_activations_are_read_from_an_atlas(digit_folder: Path, tmp_path: Path, quiet: None) -> None:
    run: Run = svertka.train(digit_folder, model="lenet5", epochs=1, output=tmp_path / "run")
    svertka.look(run, images=8, units=120)
    best = read_largest_activations_of_atlas(run.folder / "atlas")
    assert {name: len(values) for name, values in best.items()} == {"c1": 6, "c3": 16, "c5": 120}
    assert all((values >= 0).all() for values in best.values())
    picture = run.classifier().preprocess(next(digit_folder.rglob("*.png")))
    for one in find_top_units(run.classifier().network, picture, best):
        assert one.share is not None
        assert 0 < one.share < 3


@pytest.mark.parametrize(
    "content", [b"", b"<html>", b'<script type="application/json" id="facts">{}</script>', b"\xff"]
)
def test_other_folders_give_no_activations(tmp_path: Path, content: bytes) -> None:
    assert read_largest_activations_of_atlas(tmp_path) == {}
    (tmp_path / "index.html").write_bytes(content)
    assert read_largest_activations_of_atlas(tmp_path) == {}
