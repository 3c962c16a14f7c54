"""Files of a layer against patches and projections computed one by one."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from svertka.graph.summary import trace
from svertka.inspection import top_patches
from svertka.inspection.atlas.classifier_and_images import AtlasInputs, open_atlas_inputs
from svertka.inspection.atlas.layer_data import (
    AtlasLayer,
    _draw_tiles,
    _preferred_classes,
    order_by_similarity,
    take_first_units,
    units_to_json,
)
from svertka.inspection.deconvolution.deconvnet import Deconvnet, project, to_images
from svertka.inspection.maximally_activating_patches import LayerPatches

LAYER = "features.3.expand3x3"


@pytest.fixture(scope="module")
def inputs(squeezenet_run: Path, photographs: Path) -> AtlasInputs:
    place = torch.device("cpu")
    return open_atlas_inputs(squeezenet_run, photographs, images=None, device=place, threads=1, cache_limit=None)


@pytest.fixture(scope="module")
def layer(inputs: AtlasInputs) -> AtlasLayer:
    network = inputs.classifier.network
    images = inputs.network_inputs(np.arange(len(inputs)))
    labels = torch.from_numpy(inputs.dataset.labels)
    found = top_patches(network, [(images, labels)], LAYER)[LAYER]
    layer = next(one for one in trace(network, inputs.input_shape).layers if one.name == LAYER)
    return AtlasLayer(index=3, layer=layer, patches=found, filters=None, image_size=inputs.image_size)


def test_tiles_match_single_patches_and_projections(inputs: AtlasInputs, layer: AtlasLayer) -> None:
    network = inputs.classifier.network
    patches, projections = _draw_tiles(layer, inputs, Deconvnet(network, inputs.input_shape), range(40, 44))
    side = layer.tile.window
    assert (side, layer.tile.crisp) == (15, True)
    compared = 0
    for unit in range(40, 44):
        for place in range(9):
            picture = layer.patches.images[unit, place]
            if picture < 0:
                continue
            compared += 1
            top, left, bottom, right = layer.patches.boxes[unit, place]
            one = np.array([picture])
            whole = project(
                network, inputs.network_inputs(one), LAYER, unit, layer.patches.positions[unit, place][None]
            )
            y, x = side - (bottom - top) if top == 0 else 0, side - (right - left) if left == 0 else 0
            inside = np.s_[y : y + bottom - top, x : x + right - left]
            tile = (unit - 40) * 9 + place
            assert np.array_equal(patches[tile][..., :3][inside], inputs.pixels(one)[0, top:bottom, left:right])
            expected = to_images(whole[..., top:bottom, left:right])[0].astype(int)
            assert np.abs(projections[tile][..., :3][inside] - expected).max() <= 1  # rounded after other windows
            assert patches[tile][..., 3].sum() == 255 * (bottom - top) * (right - left)
    assert compared > 9


def test_units_to_json_is_valid_json(layer: AtlasLayer) -> None:
    slots = np.arange(24) + 100
    told = units_to_json(layer, slots)
    assert json.loads(json.dumps(told, allow_nan=False)) is not None
    assert len(told["values"]) == len(told["similar"]) == layer.num_units == 64  # type: ignore[arg-type]
    shown = np.array(told["pictures"])
    assert np.array_equal(shown >= 0, layer.patches.images >= 0)
    assert shown.max() <= 123


def test_take_first_units(layer: AtlasLayer) -> None:
    few = take_first_units(layer.patches, 5)
    assert len(few.values) == len(few.similar_units) == len(few.activation_rate) == 5
    assert take_first_units(layer.patches, None) is take_first_units(layer.patches, 99) is layer.patches


def patches(similar: list[list[int]], classes: list[list[float]] | None, base: list[float] | None) -> LayerPatches:
    units = len(similar)
    nothing = np.zeros((units, 1), np.int64)
    return LayerPatches(
        layer="x", observed_layer="x", feature_map_size=(1, 1), num_images=1,
        values=nothing.astype(np.float32), images=nothing,
        positions=nothing, boxes=nothing, activation_rate=np.ones(units, np.float32),
        histogram=nothing, histogram_edges=np.ones(2, np.float32),
        class_shares=None if classes is None else np.array(classes, np.float32),
        class_frequencies=None if base is None else np.array(base, np.float32),
        similar_units=np.array(similar, np.int64), correlations=np.zeros((units, 1), np.float32),
    )  # fmt: skip


def test_preferred_classes_exceed_their_share_of_the_images() -> None:
    found = patches([[-1]] * 3, [[0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.6, 0.4, 0.0]], [0.6, 0.3, 0.1])
    assert _preferred_classes(found) == [[(2, 0.2)], [(2, 0.8)], [(1, 0.4)]]
    assert _preferred_classes(patches([[-1]], None, None)) == [[]]


@given(st.data())
def test_similarity_order_has_every_unit_once_and_follows_the_most_similar(data: st.DataObject) -> None:
    units = data.draw(st.integers(1, 8))
    row = st.lists(st.integers(-1, units - 1), min_size=3, max_size=3)
    similar = data.draw(st.lists(row, min_size=units, max_size=units))
    order = order_by_similarity(patches(similar, None, None))
    assert sorted(order) == list(range(units))
    for one, after in pairwise(order):
        before = order[: order.index(one) + 1]
        left = [unit for unit in similar[one] if unit >= 0 and unit not in before]
        assert after == (left[0] if left else min(unit for unit in range(units) if unit not in before))
