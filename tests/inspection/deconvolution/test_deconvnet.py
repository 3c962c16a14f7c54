import doctest
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svertka.errors import UsageError
from svertka.inspection.activations import find_layer, follow_to_activation, list_layers
from svertka.inspection.backward_rules import ReLURule, backward_with_relu_rule
from svertka.inspection.deconvolution import deconvnet
from svertka.inspection.deconvolution.deconvnet import Deconvnet, describe_missing_relu_pooling, project, to_images

Make = Callable[[str, int], nn.Module]
Unchanged = Callable[[nn.Module], AbstractContextManager[None]]

# Name, side of the input, layers: chains, branches, sums; batch norm, local response norm, max-pools that round up.
NETWORKS = [
    ("squeezenet1_1", 95, ("features.0", "features.4.expand3x3", "features.7.squeeze", "features.12.cat")),
    ("vgg11_bn", 32, ("features.0", "features.8", "features.25")),
    ("zfnet", 79, ("conv1", "conv3", "conv5")),
    ("alexnet_owt", 95, ("features.3", "features.10")),
    ("googlenet", 96, ("conv3.conv", "inception3b.branch2.1.conv", "inception4a.cat")),
    ("resnet18", 64, ("conv1", "layer1.1.conv2", "layer2.0.relu2", "layer3.1.conv1")),
]
CASES = [(name, size, layer) for name, size, names in NETWORKS for layer in names]
UNITS = 4  # of each layer


def some(network: nn.Module, shape: tuple[int, ...], layer: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return units and positions of a layer, corners first."""
    _, channels, rows, columns = follow_to_activation(list_layers(network, shape), layer).shape
    random = np.random.default_rng(len(layer))
    places = np.stack([random.integers(0, rows, count), random.integers(0, columns, count)], axis=1)
    places[0], places[1:2] = 0, (rows - 1, columns - 1)
    return random.integers(0, channels, count), places


def plainly(network: nn.Module, images: Tensor, layer: str, units: np.ndarray, places: np.ndarray) -> Tensor:
    """Project on whole images, one at a time."""
    seen = follow_to_activation(list_layers(network, tuple(images.shape)), layer).name
    found = []
    for image, unit, place in zip(images, units, places, strict=True):
        inputs = image[None].clone().requires_grad_()
        outputs: list[Tensor] = []
        handle = network.get_submodule(seen).register_forward_hook(lambda *args, to=outputs: to.append(args[2]))
        network(inputs * 1)
        handle.remove()
        seed = torch.zeros_like(outputs[0])
        seed[0, unit, place[0], place[1]] = 1
        found.append(backward_with_relu_rule(outputs[0], inputs, seed, ReLURule.DECONVNET)[0])
    return torch.stack(found)


def largest_difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference relative to the largest value of each projection."""
    largest = expected.abs().amax((1, 2, 3), keepdim=True)
    assert (largest > 0).all()
    return float(((found - expected).abs() / largest).max())


@pytest.mark.sample(5)
@pytest.mark.parametrize(("name", "size", "layer"), CASES)
def test_projections_match_captum(exact_network: Make, captum: Any, name: str, size: int, layer: str):
    assert len(CASES) * UNITS >= 50
    network = exact_network(name, size)
    images = torch.randn(UNITS, 3, size, size, dtype=torch.float64)
    units, places = some(network, tuple(images.shape), layer, UNITS)
    seen = follow_to_activation(list_layers(network, tuple(images.shape)), layer)
    *path, last = seen.name.split(".")
    # A function has no module; these are concatenations, which end theirs.
    module = network.get_submodule(".".join(path) if last == "cat" else seen.name)
    theirs = captum.NeuronDeconvolution(network, module)
    expected = [
        theirs.attribute(image[None].clone(), (int(unit), *place.tolist()))
        for image, unit, place in zip(images, units, places, strict=True)
    ]
    assert largest_difference(project(network, images, layer, units, places), torch.cat(expected)) < 1e-5


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("squeezenet1_1", "features.9.expand3x3"),
        ("googlenet", "inception3a.branch2.1.conv"),
        ("resnet18", "layer2.0.conv1"),
    ],
)
@pytest.mark.parametrize("size", [128, 135])
def test_crops_give_the_same_projections_as_whole_images(exact_network: Make, name: str, layer: str, size: int):
    network = exact_network(name, 224)
    images = torch.randn(6, 3, size, size + 9, dtype=torch.float64)
    units, places = some(network, tuple(images.shape), layer, 6)
    deconvnet = Deconvnet(network, tuple(images.shape))
    found = deconvnet.project(images, layer, units, places)
    assert min(one.pixels.shape[1] * one.pixels.shape[2] for one in found) < 0.5 * size * (size + 9)
    expected = plainly(
        network, images, follow_to_activation(list_layers(network, tuple(images.shape)), layer).name, units, places
    )
    assert largest_difference(project(network, images, layer, units, places), expected) < 1e-12


class WithPosition(nn.Module):
    """A layer whose output depends on the absolute position."""

    def forward(self, inputs: Tensor) -> Tensor:
        ramp = torch.linspace(-3, 3, inputs.shape[3], dtype=inputs.dtype)
        return inputs * ramp * ramp


class OneSizeOnly(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + torch.ones(1, 1, 32, 32, dtype=inputs.dtype)


@pytest.mark.parametrize(
    "odd", [WithPosition(), OneSizeOnly(), nn.AdaptiveAvgPool2d(16), nn.AdaptiveMaxPool2d(8)], ids=str
)
def test_networks_that_depend_on_the_image_size_get_whole_images(odd: nn.Module, assert_unchanged: Unchanged):
    torch.manual_seed(1)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), odd, nn.Conv2d(4, 4, 3), nn.ReLU()).double()
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    units, places = np.array([0, 1, 2]), np.array([[2, 2], [1, 4], [3, 0]])
    expected = plainly(network, images, "4", units, places)
    with assert_unchanged(network):
        assert largest_difference(project(network, images, "3", units, places), expected) < 1e-12


class Written(nn.Module):
    """One network with different forms of ReLU."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.relu, self.inplace, self.others = nn.ReLU(), nn.ReLU(inplace=True), nn.ModuleList(nn.ReLU() for _ in "abc")
        torch.manual_seed(1)
        self.first, self.left, self.right, self.last = (nn.Conv2d(c, 4, 3, padding=1) for c in (3, 4, 4, 8))

    def rectify(self, number: int, maps: Tensor) -> Tensor:
        ways: dict[str, Callable[[Tensor], Tensor]] = {
            "modules": self.others[number], "reused": self.relu, "in place": self.inplace, "function": F.relu,
            "function in place": lambda maps: F.relu(maps, inplace=True), "method": lambda maps: maps.relu_(),
        }  # fmt: skip
        return ways[self.way](maps)

    def forward(self, inputs: Tensor) -> Tensor:
        maps = F.max_pool2d(self.rectify(0, self.first(inputs)), 3, stride=2, padding=1)
        branches = torch.cat([self.left(maps), self.right(maps) + maps], dim=1)
        return self.rectify(2, self.last(self.rectify(1, branches)))


@pytest.mark.parametrize("way", ["reused", "in place", "function", "function in place", "method"])
def test_all_forms_of_relu_give_the_same_projections(way: str, assert_unchanged: Unchanged):
    images = torch.randn(5, 3, 24, 24)
    expected = project(Written("modules"), images, "last", range(4), image_indices=range(4))
    network = Written(way).train()
    with assert_unchanged(network):
        assert torch.equal(project(network, images, "last", range(4), image_indices=range(4)), expected)


def test_default_position_is_the_maximum(exact_network: Make):
    network = exact_network("squeezenet1_1", 95)
    images = torch.randn(3, 3, 95, 95, dtype=torch.float64)
    maps = network.features[:5](images)  # features.3 and 4 are fire modules
    strongest = maps.flatten(2).argmax(2)
    units = [5, 9]
    for picture in range(3):
        places = [divmod(int(strongest[picture, unit]), maps.shape[3]) for unit in units]
        expected = project(network, images[picture], "features.4.cat", units, places)
        assert torch.equal(project(network, images[picture], "features.4.cat", units), expected)
        one = project(network, images[picture], "features.4.cat", units[1])
        assert one.shape == (1, 3, 95, 95)
        assert largest_difference(one, expected[1:]) < 1e-12


def test_images_run_forward_once_for_many_units(exact_network: Make):
    network = exact_network("squeezenet1_1", 95)
    images = torch.randn(2, 3, 95, 95, dtype=torch.float64)
    ran: list[int] = []
    handle = network.features[0].register_forward_hook(lambda _, inputs, __: ran.append(len(inputs[0])))
    # So late that every window is a whole picture.
    units, pictures = [0, 1, 2, 3, 4, 5, 6], [0, 1, 0, 0, 1, 0, 0]
    found = project(network, images, "features.12.cat", units, (2, 2), pictures)
    handle.remove()
    assert sum(ran) == 2
    for number, (unit, picture) in enumerate(zip(units, pictures, strict=True)):
        one = project(network, images[picture], "features.12.cat", unit, (2, 2))
        assert largest_difference(found[number : number + 1], one) < 1e-12


def test_inference_mode_works_and_images_are_unchanged():
    network = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 2, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2))
    images = torch.randn(2, 3, 8, 8)
    before = images.clone()
    expected = project(network, images, "3", [0, 1], (1, 1))
    with torch.inference_mode():
        found = project(network, images * 1, "3", [0, 1], (1, 1))
    assert torch.equal(found, expected)
    assert torch.equal(images, before)
    assert not found.requires_grad


def test_network_that_fails_is_left_unchanged(assert_unchanged: Unchanged):
    class Failing(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            if not inputs.is_meta:
                raise MemoryError("too much")
            return inputs

    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), Failing(), nn.ReLU()).train()
    image = torch.randn(3, 8, 8)
    with assert_unchanged(network), pytest.raises(MemoryError):
        project(network, image, "2", 0)


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"layer": "conv1"}, "layer=conv1 is not in the network; use"),
        ({"layer": "4"}, "layer=4 has outputs of shape 7, not feature maps"),
        ({"units": 4}, "4 is not a unit of layer 0; use 0 to 3"),
        ({"units": [1, -1]}, "-1 is not a unit of layer 0; use 0 to 3"),
        ({"positions": (0, 6)}, "6 is not a column of layer 0; use 0 to 5"),
        ({"positions": [(6, 0), (0, 0)]}, "6 is not a row of layer 0; use 0 to 5"),
        ({"image_indices": [0, 2]}, "2 is not an image; use 0 to 1"),
        ({"units": [0, 1, 2]}, "3 units and 2 images cannot be paired; give as many of both"),
        ({"images": torch.zeros(2, 1, 8, 8)}, "cannot be traced with an input of 2×1×8×8"),
    ],
)
def test_invalid_arguments_are_rejected(asked: dict[str, Any], sentence: str):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(6), nn.Flatten(), nn.Linear(4, 7))
    with pytest.raises(UsageError, match=sentence):
        project(network, **{"images": torch.zeros(2, 3, 8, 8), "layer": "0", "units": [0, 1]} | asked)


def test_no_units_give_no_projections():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    assert project(network, torch.zeros(1, 3, 8, 8), "0", []).shape == (0, 3, 8, 8)


def test_the_example_in_the_docstring():
    assert doctest.testmod(deconvnet) == doctest.TestResults(failed=0, attempted=3)


def test_projections_become_images():
    projections = torch.zeros(4, 3, 2, 2)
    projections[0, 0, 0, 1], projections[0, 2, 1, 0] = 0.5, -1
    projections[1] = 7
    projections[2] = 1e-30
    pictures = to_images(projections)
    assert (pictures.shape, pictures.dtype) == ((4, 2, 2, 3), np.uint8)
    assert pictures[0].tolist() == [[[128, 128, 128], [192, 128, 128]], [[128, 128, 1], [128, 128, 128]]]
    assert (pictures[1:3] == 255).all()
    assert (pictures[3] == 128).all()
    gray = to_images(torch.tensor([[[[-2.0, 0.0, 1.0]]]]))
    assert gray.tolist() == [[[[1] * 3, [128] * 3, [192] * 3]]]


def test_outlier_does_not_reduce_the_contrast_of_other_values():
    projection = torch.randn(1, 3, 50, 50, generator=torch.Generator().manual_seed(1))
    projection[0, 0, 0, 0] = -100
    projection[:, :, 25:] = 0  # what the unit does not see
    (picture,) = to_images(projection)
    spread = projection[projection != 0].square().mean().sqrt()
    assert picture[0, 0, 0] == 1
    expected = 128 + 127 * projection[0, :, 1:25].permute(1, 2, 0) / (4 * spread)
    assert np.abs(picture[1:25] - expected.numpy()).max() <= 0.5 + 1e-3


def test_missing_layers_are_described(exact_network: Make):
    shape = (1, 3, 64, 64)
    for name in ("squeezenet1_1", "googlenet", "resnet18"):
        assert describe_missing_relu_pooling(exact_network(name, 224), (1, 3, 224, 224)) is None
    residual = describe_missing_relu_pooling(exact_network("resnet20", 32), (1, 3, 32, 32))
    assert residual
    assert residual.startswith("CIFARResNet has no max-pooling")
    pooled = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Tanh(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1922, 2))
    assert "has no ReLU, so nothing is rectified" in (describe_missing_relu_pooling(pooled, shape) or "")
    neither = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Tanh(), nn.AvgPool2d(2))
    assert "has neither ReLU nor max-pooling" in (describe_missing_relu_pooling(neither, shape) or "")
    functions = Written("function in place")
    assert describe_missing_relu_pooling(functions, shape) is None
    in_place = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 4, 3), nn.MaxPool2d(2))
    assert describe_missing_relu_pooling(in_place, shape) is None


def test_projections_of_pretrained_weights(shared_data: Path, captum: Any):
    from svertka.classifier import Classifier

    classifier = Classifier.load(f"squeezenet1_1:{shared_data / 'weights' / 'squeezenet1_1-imagenet.safetensors'}")
    network = classifier.network.double()
    names = ("n01440764_tench.JPEG", "n01749939_green_mamba.JPEG")
    images = torch.stack([classifier.preprocess(shared_data / "imagenet-samples" / name) for name in names]).double()
    for layer, module in (("features.4.expand1x1", "features.4.expand1x1_relu"), ("features.10.cat", "features.10")):
        found = project(network, images, layer, 3)
        seen = find_layer(list_layers(network, tuple(images.shape)), module if "relu" in module else layer)
        theirs = captum.NeuronDeconvolution(network, network.get_submodule(module))

        def strongest(maps: Tensor) -> Tensor:
            return maps[:, 3].flatten(1).amax(1)

        assert seen.shape[1] > 3
        assert largest_difference(found, theirs.attribute(images.clone(), strongest)) < 1e-5
