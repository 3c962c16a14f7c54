from collections.abc import Callable
from random import Random

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from svertka.data.loader import BatchLoader
from svertka.data.preprocessing import Preprocess
from svertka.errors import DataError, UsageError
from svertka.inspection import layer_outputs, list_layers, project, top_patches
from svertka.models.registry import MODELS, find_model

# fmt: off
SIZES = {
    "lenet5": 32, "squeezenet1_1": 83, "resnet18": 71, "resnet20": 33, "airbench": 32, "googlenet": 65,
    "efficientnet_lite0": 79, "alexnet": 131, "zfnet": 129, "vgg16": 63, "googlenet_bn": 64, "inception_v3": 113,
    "inception_v4": 99, "inception_resnet_v2": 95, "resnet50": 97,
}
# fmt: on


@pytest.fixture(params=range(5))
def some_networks(request: pytest.FixtureRequest, large_count: Callable[[int, int], int]) -> list[str]:
    """One fifth of the models; only the first of them without --large."""
    return list(SIZES)[request.param :: 5][: large_count(1, 3)]


def pictures_for(name: str, count: int, seed: int = 1) -> Tensor:
    size, generator = SIZES[name], torch.Generator().manual_seed(seed)
    # Smooth, so that their strongest places are not all at the border.
    coarse = torch.randn(count, MODELS[name].channels, size // 6, size // 6, generator=generator)
    smooth = nn.functional.interpolate(coarse, (size, size), mode="bicubic")
    return (smooth + 0.3 * torch.randn(smooth.shape, generator=generator)).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["lenet5", "squeezenet1_1", "resnet18"])
def test_top_patches_match_a_brute_force_search(name: str, quiet: None) -> None:
    torch.manual_seed(1)
    network = find_model(name).build(size=SIZES[name])
    pictures = pictures_for(name, 40)
    pictures[30:35] = pictures[0]  # of equals the first counts
    batches = [(some, some.flatten(1)[:, 0] > 0) for some in pictures.split(16)]
    found = top_patches(network, [(some, labels.long()) for some, labels in batches], count=3)
    assert len(found) == {"lenet5": 3, "squeezenet1_1": 26, "resnet18": 20}[name]
    seen = list({patches.observed_layer for patches in found.values()})
    with torch.no_grad():
        outputs_of = [layer_outputs(network, some, seen) for some, _ in batches]
    labels = torch.cat([labels for _, labels in batches]).numpy()
    for layer, patches in found.items():
        maps = torch.cat([output[patches.observed_layer] for output in outputs_of]).numpy()
        assert (patches.layer, patches.num_images, patches.feature_map_size) == (layer, 40, maps.shape[2:])
        for unit in range(maps.shape[1]):
            best = maps[:, unit].max(axis=(1, 2))
            strongest = np.argsort(-best, kind="stable")[:3]
            order = [picture for picture in strongest if best[picture] > 0 or maps.min() < 0]  # none is constant
            assert patches.images[unit].tolist() == [*order, -1, -1, -1][:3]
            assert patches.values[unit, : len(order)].tolist() == best[order].tolist()
            assert np.isnan(patches.values[unit, len(order) :]).all()
            for picture, place in zip(order, patches.positions[unit], strict=False):
                assert tuple(place) == np.unravel_index(maps[picture, unit].argmax(), patches.feature_map_size)
            assert (patches.boxes[unit, len(order) :] == -1).all()
            assert patches.activation_rate[unit] == np.float32((best > 0).mean())
            assert patches.is_dead[unit] == (not order)
            if (best > 0).any():
                share = best[labels & (best > 0)].sum() / best[best > 0].sum()
                np.testing.assert_allclose(patches.class_shares[unit], [1 - share, share], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(patches.class_frequencies, [1 - labels.mean(), labels.mean()], rtol=1e-6)


def test_pixels_outside_the_box_do_not_change_the_activation(
    some_networks: list[str], large_count: Callable[[int, int], int], quiet: None
) -> None:
    """Checked on the plain network; 1,000 units over all models under --large."""
    for name in some_networks:
        torch.manual_seed(2)
        network = find_model(name).build(size=SIZES[name]).eval()
        pictures, noise = pictures_for(name, 2), pictures_for(name, 2, seed=5) * 10
        found = top_patches(network, pictures, count=2)
        random = Random(name)
        units = [(layer, unit) for layer, patches in found.items() for unit in np.flatnonzero(~patches.is_dead)]
        for layer, unit in random.sample(units, min(large_count(3, 68), len(units))):
            patches = found[layer]
            changed = noise.clone(memory_format=torch.preserve_format)
            ranks = [rank for rank in range(2) if patches.images[unit, rank] >= 0]
            for rank in ranks:
                picture, (top, left, bottom, right) = patches.images[unit, rank], patches.boxes[unit, rank]
                changed[picture, :, top:bottom, left:right] = pictures[picture, :, top:bottom, left:right]
            with torch.no_grad():
                output = layer_outputs(network, changed, [patches.observed_layer])[patches.observed_layer]
            for rank in ranks:
                row, column = patches.positions[unit, rank]
                value = output[patches.images[unit, rank], unit, row, column]
                assert value == patches.values[unit, rank], (name, layer, unit)


def test_every_pixel_inside_the_box_affects_the_activation(
    some_networks: list[str],
    positive: Callable[[nn.Module], nn.Module],
    large_count: Callable[[int, int], int],
    quiet: None,
) -> None:
    """With positive weights nothing cancels, so every pixel that matters has a gradient."""
    for name in some_networks:
        network = positive(find_model(name).build(size=SIZES[name]))
        picture = torch.rand(1, *pictures_for(name, 1).shape[1:], dtype=torch.float64, requires_grad=True)
        found = top_patches(network, picture.detach(), count=1)
        random = Random(name)
        units = [(layer, unit) for layer, patches in found.items() for unit in np.flatnonzero(~patches.is_dead)]
        for layer, unit in random.sample(units, min(large_count(3, 68), len(units))):
            patches = found[layer]
            output = layer_outputs(network, picture, [patches.observed_layer])[patches.observed_layer]
            row, column = patches.positions[unit, 0]
            (gradient,) = torch.autograd.grad(output[0, unit, row, column], picture)
            inside = np.zeros(picture.shape[2:], bool)
            top, left, bottom, right = patches.boxes[unit, 0]
            inside[top:bottom, left:right] = True
            counts = gradient[0].numpy().any(axis=0)
            assert not counts[~inside].any()
            assert np.array_equal(counts, inside), (name, layer, unit)


def test_all_forms_of_data_give_the_same_result(quiet: None) -> None:
    torch.manual_seed(1)
    network = find_model("lenet5").build()
    rows = np.random.default_rng(1).integers(0, 256, (70, 28, 28, 1), np.uint8)
    preprocess = Preprocess(size=28, resize=28, mean=(0.5,), std=(0.3,))
    network = nn.Sequential(nn.ZeroPad2d(2), network)
    labels, indices = np.arange(70) % 3, np.arange(69, -1, -1)
    batches = BatchLoader(rows, labels, indices, preprocess, batch_size=32, prefetch=True)
    found = top_patches(network, batches, "1.c3")["1.c3"]
    again = top_patches(network, batches.epoch(0), ["1.c3"])["1.c3"]
    assert np.array_equal(again.images, found.images)
    assert np.array_equal(again.class_shares, found.class_shares)
    images = torch.cat([batch.images for batch in batches.epoch(0)])
    for data in (images, images.split(32), iter(images.split(32))):
        same = top_patches(network, data, "1.c3")["1.c3"]
        assert np.array_equal(same.values, found.values, equal_nan=True)
        assert np.array_equal(np.where(same.images < 0, -1, 69 - same.images), found.images)
        assert (same.class_shares, same.class_frequencies) == (None, None)
    np.testing.assert_allclose(found.class_frequencies, [24 / 70, 23 / 70, 23 / 70])


def test_layers_after_the_requested_ones_do_not_run() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.Linear(4, 4))
    runs: list[Tensor] = []
    network[2].register_forward_hook(lambda _, __, output: runs.append(output))
    found = top_patches(network, torch.rand(3, 1, 8, 8), ["0", "1"])
    assert not runs
    assert (found["0"].observed_layer, found["1"].observed_layer) == ("1", "1")
    assert network.training
    assert network[0].weight.requires_grad


def test_boxes_are_clipped_at_the_border() -> None:
    network = nn.Sequential(nn.Conv2d(1, 1, 5, stride=2, padding=2), nn.MaxPool2d(2), nn.Conv2d(1, 1, 1))
    for parameter in network.parameters():
        nn.init.ones_(parameter)
    pictures = torch.zeros(2, 1, 16, 20)
    pictures[0, 0, 0, 19] = pictures[1, 0, 7, 8] = 1
    found = top_patches(network, pictures, "2")["2"]
    assert found.positions[0, 0].tolist() == [0, 4]
    assert found.boxes[0, 0].tolist() == [0, 14, 5, 20]
    assert found.boxes[0, 1].tolist() == [2, 2, 9, 9]


@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [
        (torch.rand(2, 1, 32, 32), {"layers": "c9"}, UsageError, "layer=c9 is not in the network; use c5 or c3 or c1"),
        (
            torch.rand(2, 1, 32, 32),
            {"layers": "output"},
            UsageError,
            "layer=output has outputs of shape 10, not",
        ),
        (torch.rand(2, 1, 32, 32), {"count": 0}, UsageError, "count=0 must be 1 to 10000"),
        (torch.rand(2, 1, 32, 32), {"count": 10**12}, UsageError, "count=1000000000000 must be 1 to 10000"),
        (torch.rand(2, 3, 32, 32), {}, UsageError, "LeNet5 cannot be traced with an input of 2×3×32×32; c1 says"),
        (torch.rand(2, 32, 32), {}, UsageError, "images of shape 2×32×32; four axes are required"),
        (torch.rand(0, 1, 32, 32), {}, DataError, "data contains no images"),
        ([], {}, DataError, "data contains no images"),
        ([torch.rand(2, 1, 32, 32), torch.rand(2, 1, 36, 36)], {}, DataError, "images of 1×32×32 and 1×36×36; give"),
    ],
)
def test_invalid_input_is_rejected(data, options, error, message) -> None:
    network = find_model("lenet5").build()
    with pytest.raises(error, match=message):
        top_patches(network, data, **options)


def test_network_without_feature_maps_is_rejected() -> None:
    with pytest.raises(UsageError, match="Sequential has no convolution"):
        top_patches(nn.Sequential(nn.Flatten(), nn.Linear(4, 4)), torch.rand(2, 1, 2, 2))


def test_lenet_layers_have_the_names_of_the_paper() -> None:
    assert {"c1", "c3", "c5"} <= {layer.name for layer in list_layers(find_model("lenet5").build(), (1, 1, 32, 32))}


class ChannelsLast(nn.Module):
    """The same maps as (N, C, H, W), as (N, H, W, C) or as tokens (N, L, C) behind a class token."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.first, self.second, self.head = nn.Conv2d(3, 6, 4, 4), nn.Linear(6, 7), nn.Linear(7, 2)
        self.class_token = nn.Parameter(torch.ones(1, 1, 6))

    def forward(self, images: Tensor) -> Tensor:
        maps = self.first(images).relu()
        if self.kind == "standard":
            maps = F.conv2d(maps, self.second.weight[:, :, None, None], self.second.bias).relu()
            return self.head(maps.mean((2, 3)))
        if self.kind == "channels-last":
            return self.head(self.second(maps.permute(0, 2, 3, 1)).relu().mean((1, 2)))
        tokens = torch.cat([self.class_token.expand(len(images), -1, -1), maps.flatten(2).transpose(1, 2)], 1)
        return self.head(self.second(tokens).relu()[:, 1:].mean(1))


@pytest.mark.parametrize("kind", ["channels-last", "tokens"])
def test_patches_and_projections_of_other_layouts_are_those_of_the_standard_one(kind):
    images = torch.randn(20, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    standard, other = ChannelsLast("standard"), ChannelsLast(kind)
    expected = top_patches(standard, images, "relu:2", count=4)["relu:2"]
    found = top_patches(other, images, "relu:2", count=4)["relu:2"]
    assert found.feature_map_size == expected.feature_map_size == (8, 8)
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-4)
    np.testing.assert_array_equal(found.images, expected.images)
    np.testing.assert_array_equal(found.positions, expected.positions)
    np.testing.assert_array_equal(found.boxes, expected.boxes)
    ours, theirs = (project(one, images[:3], "relu:2", [0, 3, 6]) for one in (other, standard))
    torch.testing.assert_close(ours, theirs)
