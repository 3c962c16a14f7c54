"""Networks on many windows of an image, compared with the same networks on single crops."""

import copy
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svertka.graph.cut import cut_network, find_stages
from svertka.graph.shared_crops import MAX_RECOMPUTED_SHARE, Ints, SharedCrops, make_shared_crops
from svertka.models.head_kinds import set_head_kind
from svertka.models.registry import MODELS

Built = Callable[[str, int], tuple[nn.Module, int]]

SIZES = {
    "squeezenet1_1": 64,
    "resnet18": 96,
    "efficientnet_lite0": 96,
    "vgg11_bn": 64,
    "googlenet_bn": 64,
    "lenet5": 32,
}


def without_padding(network: nn.Module) -> nn.Module:
    """The same with no zeros around anything."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.MaxPool2d):
            module.padding = 0
        if isinstance(module, nn.MaxPool2d):
            module.ceil_mode = False
    return network


def crops(image: Tensor, parts: SharedCrops, places: Ints) -> Iterator[Tensor]:
    """What `parts` computes for `places`, cut from the image."""
    for y, x in (places * parts.stride).tolist():
        yield image[:, :, y : y + parts.window[0], x : x + parts.window[1]]


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", SIZES)
@torch.inference_mode()
def test_an_image_of_the_input_size_is_one_window(built: Built, name: str) -> None:
    network, channels = built(name, SIZES[name])
    before = copy.deepcopy(network.state_dict())
    parts = make_shared_crops(network, (1, channels, SIZES[name], SIZES[name]))
    image = torch.rand(1, channels, SIZES[name], SIZES[name], generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(parts(image, np.zeros((1, 2), int)), network(image), rtol=1e-5, atol=1e-5)
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())


# At sizes after which the pools have no pixel left over: crops then see what windows see.
@pytest.mark.parametrize(("name", "size"), [("lenet5", 32), ("mlp", 28), ("alexnet_owt", 195)])
@torch.inference_mode()
def test_without_padding_windows_equal_crops(built: Built, name: str, size: int) -> None:
    network, channels = built(name, size)
    parts = make_shared_crops(without_padding(network), (1, channels, size, size))
    image = torch.rand(1, channels, size + 70, size + 50, generator=torch.Generator().manual_seed(1))
    most = (torch.tensor([70, 50]) // torch.tensor(parts.stride)).tolist()
    places = np.random.default_rng(0).integers(0, most, (40, 2), endpoint=True)
    expected = torch.cat([network(crop) for crop in crops(image, parts, places)])
    torch.testing.assert_close(parts(image, places), expected, rtol=1e-4, atol=1e-6)
    assert expected.std(0).min() > 0
    # All but the dense layers has been shared.
    assert name == "mlp" or not any(isinstance(module, nn.Conv2d) for module in parts.rest.modules())


@torch.inference_mode()
def test_with_padding_shared_crops_are_closer_than_fully_convolutional(
    built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, channels = built("resnet18", 96)
    shape = (1, channels, 96, 96)
    image = torch.rand(1, channels, 224, 192, generator=torch.Generator().manual_seed(1))
    some = make_shared_crops(network, shape)
    assert 0.2 < some.share <= MAX_RECOMPUTED_SHARE
    monkeypatch.setattr("svertka.graph.shared_crops.MAX_RECOMPUTED_SHARE", 0.01)
    few = make_shared_crops(network, shape)
    assert few.share <= 0.01
    places = np.stack(np.meshgrid(range(5), range(4), indexing="ij"), -1).reshape(-1, 2) * 32
    expected = torch.cat([network(crop) for crop in crops(image, some, places // some.stride)])
    errors = [float((parts(image, places // parts.stride) - expected).square().mean()) for parts in (some, few)]
    assert errors[0] < errors[1] / 2


@pytest.mark.parametrize("name", ["squeezenet1_1", "resnet18"])
@torch.inference_mode()
def test_a_prefix_is_cut_where_the_whole_network_is(built: Built, name: str) -> None:
    network, channels = built(name, SIZES[name])
    shape = (1, channels, SIZES[name], SIZES[name])
    parts = make_shared_crops(network, shape)
    halves = cut_network(network, find_stages(network, shape)[-1].name, shape)
    assert halves.prefix is not None
    below = make_shared_crops(halves.prefix, shape, parts.place)
    assert (below.stride, below.shape) == (parts.stride, parts.shape)
    image = torch.rand(1, channels, SIZES[name] + 64, SIZES[name] + 32, generator=torch.Generator().manual_seed(1))
    places = np.array([(0, 0), (1, 2), (2, 1)])
    scores = halves.rest(below(image, places))
    torch.testing.assert_close(scores, parts(image, places), rtol=1e-5, atol=1e-5)


def test_a_larger_head_changes_nothing(built: Built) -> None:
    network, channels = built("vgg11_bn", SIZES["vgg11_bn"])
    shape = (1, channels, SIZES["vgg11_bn"], SIZES["vgg11_bn"])
    place = make_shared_crops(network, shape).place
    set_head_kind(network, MODELS["vgg11_bn"], "adaptation", 2000)
    assert make_shared_crops(network, shape).place == place


@torch.inference_mode()
def test_global_layers_see_the_whole_window() -> None:
    class Excited(nn.Module):
        """Scales its maps by what they are in the mean."""

        def __init__(self) -> None:
            super().__init__()
            self.body, self.mean = nn.Conv2d(3, 8, 5, stride=2), nn.AdaptiveAvgPool2d(1)
            self.flat, self.head = nn.Flatten(), nn.Linear(8, 4)

        def forward(self, images: Tensor) -> Tensor:
            maps = self.body(images)
            scores: Tensor = self.head(self.flat(self.mean((maps * self.mean(maps)).relu())))
            return scores

    torch.manual_seed(0)
    network, image = Excited(), torch.rand(1, 3, 60, 50)
    parts = make_shared_crops(network, (1, 3, 31, 31))
    places = np.array([(0, 0), (3, 9), (14, 2)])
    expected = torch.cat([network(crop) for crop in crops(image, parts, places)])
    torch.testing.assert_close(parts(image, places), expected, rtol=1e-5, atol=1e-6)


class SizeBound(nn.Module):
    """A network whose layers after the first see the whole image; optionally with a branch that no graph holds."""

    def __init__(self, *, branches: bool) -> None:
        super().__init__()
        self.branches = branches
        self.stem, self.norm = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.GroupNorm(2, 8)
        self.up, self.head = nn.ConvTranspose2d(8, 8, 4, 2, 1, groups=4), nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        if self.branches and images.mean() < -100:
            images = -images
        maps = F.silu(self.norm(self.stem(images)))
        scores: Tensor = self.head(F.silu(self.up(maps)).mean((2, 3)))
        return scores


@pytest.mark.parametrize("branches", [False, True])
@torch.inference_mode()
def test_layers_that_see_the_whole_image_run_per_window(*, branches: bool) -> None:
    torch.manual_seed(0)
    network, image = SizeBound(branches=branches).eval(), torch.rand(1, 3, 60, 50)
    parts = make_shared_crops(network, (1, 3, 32, 32))
    assert parts.stride == ((1, 1) if branches else (2, 2))
    places = np.array([(0, 0), (6, 9), (14, 2)])
    expected = torch.cat([network(crop) for crop in crops(image, parts, places)])
    found = parts(image, places)
    if branches:
        torch.testing.assert_close(found, expected)
    else:  # windows see pixels around them where crops see zeros, in the first layer alone
        assert (found - expected).abs().max() < 0.1 * expected.abs().max()
