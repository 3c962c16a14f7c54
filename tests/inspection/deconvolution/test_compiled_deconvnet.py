from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svertka.inspection.activations import find_layer, follow_to_activation, list_layers
from svertka.inspection.backward_rules import ReLURule, backward_with_relu_rule
from svertka.inspection.checked_forward_pass import StopForward
from svertka.inspection.deconvolution import compiled_backward_pass, deconvnet, max_pool_switches
from svertka.inspection.deconvolution.backward_graph import BackwardGraph, Unpooled
from svertka.inspection.deconvolution.deconvnet import Deconvnet, Projection
from svertka.inspection.deconvolution.max_unpooling import PooledWindows, find_switches, max_unpool

Make = Callable[[str, int], nn.Module]

# Name, side of the input, layers: chains, branches with max-pooling, sums, batch norm, average pooling.
NETWORKS = [
    ("squeezenet1_1", 95, ("features.0", "features.7.expand3x3", "features.12.expand1x1")),
    ("vgg11_bn", 32, ("features.4", "features.25")),
    ("alexnet_owt", 95, ("features.3", "features.10")),
    ("googlenet_bn", 64, ("inception3a.branch4.1.conv", "inception4b.branch2.0.conv")),
    ("resnet18", 64, ("layer1.0.conv1", "layer2.0.conv2", "layer3.0.downsample.0")),
    ("resnet20", 32, ("layer1.1.conv1",)),
    ("inception_v3", 75, ("Mixed_5c.branch3x3dbl_1.conv",)),
]
CASES = [(name, size, layer) for name, size, names in NETWORKS for layer in names]
UNITS = 11  # not a whole number of batches


class Dense(nn.Module):
    """A block of DenseNet."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.relu = nn.BatchNorm2d(channels), nn.ReLU()
        self.conv = nn.Conv2d(channels, 4, 3, padding=1, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        return torch.cat([maps, self.conv(self.relu(self.norm(maps)))], 1)


class Doubled(nn.Module):
    """A sum of a branch with max-pooling and one with a strided convolution."""

    def __init__(self, channels: int, pool: nn.Module, conv: nn.Module) -> None:
        super().__init__()
        self.pool, self.conv, self.change = pool, conv, nn.Conv2d(channels, channels, 1)

    def forward(self, maps: Tensor) -> Tensor:
        return self.change(self.pool(maps)) + self.conv(maps)


def densenet() -> nn.Module:
    blocks = [Dense(8), Dense(12), nn.Conv2d(16, 8, 1), nn.AvgPool2d(2), Dense(8), Dense(12), nn.Conv2d(16, 5, 1)]
    return nn.Sequential(nn.Conv2d(3, 8, 5, 2, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1), *blocks, nn.ReLU())


def irregular() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, (3, 5), (1, 2), (0, 3)), nn.ReLU6(),
        nn.MaxPool2d((2, 3), (2, 1), ceil_mode=True),
        nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=3), nn.ReLU(),
        Doubled(6, nn.MaxPool2d(3, 2, 1), nn.Conv2d(6, 6, 3, 2, 1)), nn.AvgPool2d(3, 1, 1),
        nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True),
    )  # fmt: skip


def randomize(network: nn.Module) -> nn.Module:
    """Give a network random batch-norm statistics and biases."""
    for key, values in network.state_dict().items():
        if key.endswith("running_var") or (key.endswith("weight") and values.ndim == 1):
            values.uniform_(0.5, 1.5)
        elif key.endswith(("bias", "running_mean")):
            values.normal_(0, 0.1)
    return network.eval()


def by_autograd(network: nn.Module, image: Tensor, layer: str, unit: int, place: np.ndarray) -> Tensor:
    """Project on a whole image. The image is in the same memory order, so that maxima that nearly tie are the same."""
    inputs = image[None].clone(memory_format=torch.channels_last).requires_grad_()
    outputs: list[Tensor] = []
    handle = network.get_submodule(layer).register_forward_hook(lambda *args: outputs.append(args[2] * 1))
    network(inputs * 1)
    handle.remove()
    seed = torch.zeros_like(outputs[0])
    seed[0, unit, place[0], place[1]] = 1
    return backward_with_relu_rule(outputs[0], inputs, seed, ReLURule.DECONVNET)[0]


def whole(projection: Projection, like: Tensor) -> Tensor:
    """Return a projection as an image."""
    found = torch.zeros_like(like)
    pixels, top, left = projection
    found[:, top : top + pixels.shape[1], left : left + pixels.shape[2]] = pixels
    return found


def check(network: nn.Module, images: Tensor, layer: str, monkeypatch: pytest.MonkeyPatch, seed: int = 1) -> None:
    """Compare compiled projections of units at random positions, corners first, with those by autograd."""
    monkeypatch.setattr(deconvnet, "MIN_COMPILED", 1)
    seen = follow_to_activation(list_layers(network, tuple(images.shape)), layer)
    random = np.random.default_rng(seed)
    units = random.integers(0, seen.shape[1], UNITS)
    places = np.stack([random.integers(0, size, UNITS) for size in seen.shape[2:]], 1)
    places[0], places[1] = 0, np.array(seen.shape[2:]) - 1
    which = random.integers(0, len(images), UNITS)
    projects = Deconvnet(network, tuple(images.shape))
    with monkeypatch.context() as only:
        only.setattr(deconvnet, "_are_close", lambda *_: True)  # so that wrong ones are not computed again
        found = projects.project(images, layer, units, places, which)
    assert seen.name in projects._is_right
    for one, unit, place, image in zip(found, units, places, images[which], strict=True):
        expected = by_autograd(network, image, seen.name, int(unit), place)
        assert (whole(one, expected) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.sample(3)
@pytest.mark.parametrize(("name", "size", "layer"), CASES)
def test_compiled_projections_are_those_by_autograd(
    name: str, size: int, layer: str, exact_network: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = exact_network(name, size)
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(2))
    try:
        check(network.float(), images, layer, monkeypatch)
    finally:
        network.double()  # other tests share it


@pytest.mark.parametrize("make", [densenet, irregular])
def test_compiled_projections_of_other_layers_are_those_by_autograd(
    make: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    network = randomize(make())
    names = [name for name, _ in network.named_children()]
    images = torch.randn(2, 3, 41, 46)
    for number, name in enumerate(names):
        if isinstance(network.get_submodule(name), nn.Conv2d):
            check(network, images, name, monkeypatch, number)


def random_network(seed: int) -> nn.Sequential:
    """Return a chain of random convolutions, pools, norms, blocks and ReLUs."""
    random = np.random.default_rng(seed)
    layers: list[nn.Module] = []
    channels = 3

    def choose(*values: int) -> int:
        return int(random.choice(values))

    for _ in range(choose(3, 4, 5, 6)):
        kind = choose(0, 1, 2, 3, 4, 5)
        if kind < 3:
            size, dilation, out = choose(1, 2, 3), choose(1, 1, 2), choose(4, 8)
            groups = choose(1, 2) if channels % 2 == 0 else 1
            padding = choose(0, 1, size // 2 * dilation)
            layers.append(nn.Conv2d(channels, out, size, choose(1, 1, 2), padding, dilation, groups))
            channels = out
        elif kind == 3:
            size = choose(2, 3)
            layers.append(nn.MaxPool2d(size, choose(1, 2), choose(0, 1), ceil_mode=bool(choose(0, 1))))
        elif kind == 4:
            layers.append(nn.AvgPool2d(2, choose(1, 2)))
        else:
            layers.append(nn.BatchNorm2d(channels))
        if choose(0, 1):
            layers.append(nn.ReLU(inplace=bool(choose(0, 1))))
    layers += [nn.Conv2d(channels, 5, choose(1, 3), padding=1), nn.ReLU()]
    torch.manual_seed(seed)
    return nn.Sequential(*layers)


@pytest.mark.sample(4)
@pytest.mark.parametrize("seed", range(24))
def test_compiled_projections_of_random_networks_are_those_by_autograd(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = randomize(random_network(seed))
    check(network, torch.randn(2, 3, 48, 45), str(len(network) - 2), monkeypatch, seed)


@pytest.mark.parametrize(
    "pool", [nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2, 2, ceil_mode=True), nn.MaxPool2d((3, 2), (1, 2))]
)
def test_max_unpooling_is_the_gradient_of_max_pooling(pool: nn.MaxPool2d) -> None:
    torch.manual_seed(1)
    maps = torch.randn(1, 5, 9, 11, requires_grad=True)
    given = pool.kernel_size, pool.stride, pool.padding, pool.dilation
    taps, stride, padding, dilation = ((one, one) if isinstance(one, int) else one for one in given)
    outputs, indices = F.max_pool2d(maps, taps, stride, padding, dilation, pool.ceil_mode, return_indices=True)
    term = Unpooled(1, taps, stride, padding, dilation, pool=0)
    gradient = torch.randn_like(outputs)
    (expected,) = torch.autograd.grad(outputs, maps, gradient)
    switches = find_switches(indices, term, 11)[None]
    windows = PooledWindows(gradient, switches, term, -np.array([padding]))
    assert torch.equal(max_unpool(windows, (9, 11)), expected)
    # A window of the result that begins before the first position, and one that begins behind it.
    above = F.pad(expected, (3, 0, 4, 0))
    assert torch.equal(max_unpool(windows._replace(offsets=windows.offsets + np.array([4, 3])), (13, 14)), above)
    assert torch.equal(
        max_unpool(windows._replace(offsets=windows.offsets - np.array([4, 3])), (5, 8)), expected[..., 4:, 3:]
    )


def small() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3)
    )


def test_wrong_compiled_projections_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    network, images = small(), torch.randn(2, 3, 24, 24)
    arguments = images, "5", range(8), (4, 4), [0, 1] * 4
    expected = Deconvnet(network, (1, 3, 24, 24)).project(*arguments)
    monkeypatch.setattr(deconvnet, "MIN_COMPILED", 1)
    for name in ("max_unpool", "unpool_and_transpose"):
        right = getattr(compiled_backward_pass, name)
        monkeypatch.setattr(compiled_backward_pass, name, lambda *args, right=right: 2 * right(*args))
    found = Deconvnet(network, (1, 3, 24, 24)).project(*arguments)
    assert all(torch.equal(one.pixels, other.pixels) for one, other in zip(found, expected, strict=True))


def test_changed_weights_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deconvnet, "MIN_COMPILED", 1)
    network, images = small(), torch.randn(2, 3, 24, 24)
    projects = Deconvnet(network, (1, 3, 24, 24))
    projects.project(images, "5", range(8), (4, 4), [0] * 8)
    with torch.no_grad():
        network[0].weight.neg_()
    found = projects.project(images, "5", range(8), (4, 4), [0] * 8)
    expected = Deconvnet(network, (1, 3, 24, 24)).project(images, "5", range(8), (4, 4), [0] * 8)
    assert all(torch.equal(one.pixels, other.pixels) for one, other in zip(found, expected, strict=True))


def test_images_run_forward_once_for_many_layers_and_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deconvnet, "MIN_COMPILED", 1)
    network, images = small(), torch.randn(3, 3, 24, 24)
    projects = Deconvnet(network, (1, 3, 24, 24))
    projects._is_right = {"4": True, "5": True}  # a check runs forward, too
    ran: list[int] = []
    network[0].register_forward_pre_hook(lambda _, inputs: ran.append(len(inputs[0])))
    for layer in ("3", "5", "5"):
        projects.project(images.clone(), layer, range(8), (4, 4), [0, 1, 2, 0, 1, 2, 0, 1])
    assert sum(ran) == 3


def test_switches_of_the_latest_images_are_kept_within_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Unpooled(1, (2, 2), (2, 2), (0, 0), (1, 1), pool=0)
    ran: list[Tensor] = []

    def run(images: Tensor) -> None:
        ran.append(images)
        with suppress(StopForward):
            F.max_pool2d(images, 2)

    switches = max_pool_switches.MaxPoolSwitches(run, [(pool, 4)])
    images = torch.randn(3, 2, 4, 4)
    monkeypatch.setattr(max_pool_switches, "MAX_BYTES", 16)  # two images of 2·2·2 bytes
    with torch.no_grad():
        for number in (0, 1, 0, 2, 0, 1):  # 2 replaces 1, and 1 replaces 2
            switches.of(images[number])
    assert [int((images == one[0]).all((1, 2, 3)).nonzero()) for one in ran] == [0, 1, 2, 1]
    assert switches._num_bytes == 16


def test_a_layer_after_local_response_normalization_has_no_backward_graph() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.LocalResponseNorm(3), nn.Conv2d(4, 4, 3), nn.ReLU())
    known, graph = list_layers(network, (1, 3, 16, 16)), BackwardGraph(network, (1, 3, 16, 16))
    assert graph.cone(find_layer(known, "1")) is not None
    assert graph.cone(find_layer(known, "3")) is None
