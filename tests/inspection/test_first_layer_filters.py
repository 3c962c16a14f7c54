import math

import numpy as np
import pytest
import torch
from torch import nn

from svertka.errors import UsageError
from svertka.inspection.first_layer_filters import FirstLayerFilters, get_first_layer_filters


def test_first_layer_weights_become_images():
    network = nn.Sequential(nn.Identity(), nn.Conv2d(3, 5, (2, 4)), nn.Conv2d(5, 1, 1))
    with torch.no_grad():
        network[1].weight[3] = 0
    found = get_first_layer_filters(network)
    assert found.layer == "1"
    assert found.weights.shape == (5, 2, 4, 3)
    assert np.array_equal(found.weights[2, 1, 3], network[1].weight[2, :, 1, 3].detach())
    pictures = found.to_images()
    assert pictures.dtype == np.uint8
    assert (pictures[3] == 128).all()
    for weights, picture in zip(found.weights, pictures, strict=True):
        largest = np.abs(weights).max() or 1
        assert np.abs((picture.astype(float) - 128) / 127 - weights / largest).max() <= 0.5 / 127 + 1e-6
    network[1].weight.data.fill_(0)
    assert found.weights.any()  # a copy


def waves() -> FirstLayerFilters:
    """Edges of 12 orientations with four phases and three colors each, and one zero filter, shuffled."""
    y, x = np.mgrid[-3:4, -3:4]
    envelope = np.exp(-(x**2 + y**2) / 8)
    kinds = [(direction, color) for color in range(3) for direction in range(12)]
    filters = []
    for direction, color in kinds:
        for phase in range(4):
            angle = math.pi * direction / 12
            wave = envelope * np.cos(1.2 * (x * math.cos(angle) + y * math.sin(angle)) + phase * math.pi / 2)
            filters.append(wave[..., None] * ([1, 1, 1], [1, -1, 0], [-0.5, -0.5, 1])[color])
    filters.append(np.zeros((7, 7, 3)))
    return FirstLayerFilters("edges", np.array(filters, np.float32))


def test_similarity_order_groups_orientations_and_colors():
    every = waves()
    shuffled = np.random.default_rng(1).permutation(len(every.weights))
    order = shuffled[FirstLayerFilters("edges", every.weights[shuffled]).similarity_order]
    assert sorted(order) == list(range(len(order)))
    edges = order[order < 144]
    colors = edges // 48
    assert np.count_nonzero(np.diff(colors)) == 2  # three blocks
    same_or_next = np.abs(np.diff(edges // 4 % 12)) % 11 <= 1
    assert same_or_next.mean() > 0.8  # 0.24 for a random order


def test_similarity_order_of_gray_single_and_zero_filters():
    assert get_first_layer_filters(nn.Conv2d(1, 1, 5)).similarity_order.tolist() == [0]
    assert sorted(get_first_layer_filters(nn.Conv2d(1, 6, 5)).similarity_order) == list(range(6))
    assert sorted(FirstLayerFilters("dead", np.zeros((4, 3, 3, 1), np.float32)).similarity_order) == list(range(4))


def test_networks_without_image_filters_are_rejected():
    with pytest.raises(UsageError, match="Linear has no convolution"):
        get_first_layer_filters(nn.Linear(2, 2))
    with pytest.raises(UsageError, match="layer=0, the first convolution of Sequential, reads 2 channels"):
        get_first_layer_filters(nn.Sequential(nn.Conv2d(2, 2, 3)))
    with pytest.raises(UsageError, match="layer=0 has weights on the meta device, which have no values"):
        get_first_layer_filters(nn.Sequential(nn.Conv2d(3, 2, 3, device="meta")))
