"""One optimized network for several image sizes."""

import copy
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.compiler.test_optimize import TOLERANCE, error, with_statistics
from torch import Tensor, nn

from svertka.compiler.image_sizes import parse_sizes
from svertka.compiler.optimize import Optimized, optimize
from svertka.conv import native_support
from svertka.errors import UsageError
from svertka.models.registry import MODELS

SIZES = ((40, 40), (64, 64), (48, 72))


def built(name: str) -> nn.Module:
    torch.manual_seed(1)
    return with_statistics(MODELS[name].build(classes=10))


def test_each_size_is_right_and_weights_are_stored_once(tmp_path: Path) -> None:
    check_sizes("squeezenet1_1", tmp_path)


@pytest.mark.large
@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0", "googlenet_bn"])
def test_sizes_of_more_networks_are_right(name: str, tmp_path: Path) -> None:
    check_sizes(name, tmp_path)


def check_sizes(name: str, tmp_path: Path) -> None:
    """Compare each size of an optimized network of the registry, loaded again too, and its file, with those of one."""
    network = built(name)
    optimized = optimize(network, (3, *SIZES[0]), sizes=[SIZES[0][0], 64, (48, 72)])
    assert optimized.sizes == SIZES
    assert optimized.error < TOLERANCE
    path = tmp_path / "network.safetensors"
    optimized.save(path)
    loaded = Optimized.load(path)
    assert loaded.sizes == SIZES
    for size in SIZES:
        x = torch.randn(2, 3, *size)
        found = optimized(x)
        assert error(found, network, x) < TOLERANCE
        assert torch.equal(loaded(x), found)
    for network_of_sizes in (optimized, loaded):
        first, *others = network_of_sizes.compiled
        for other in others:
            assert all(other.packed[key] is packed for key, packed in first.packed.items())
            assert all(other.fused.tensors[key] is tensor for key, tensor in first.fused.tensors.items())
    alone = optimize(network, (3, *SIZES[0]))
    alone.save(tmp_path / "alone.safetensors")
    assert path.stat().st_size < 1.1 * (tmp_path / "alone.safetensors").stat().st_size
    assert len(pickle.dumps(optimized)) < 1.2 * len(pickle.dumps(alone))


def test_another_size_is_refused_with_those_that_there_are() -> None:
    optimized = optimize(nn.Conv2d(3, 4, 3), (3, 8, 8), sizes=[9, (8, 10)])
    with pytest.raises(
        UsageError,
        match="^the images are 3×8×9 and this network was optimized for 3×8×8, 3×9×9 or 3×8×10; resize them, or "
        r"optimize it again with sizes=\[\(8, 9\)\] too$",
    ):
        optimized(torch.randn(1, 3, 8, 9))


class Positions(nn.Module):
    """A position embedding, interpolated to the size of the maps, and a mask of their border."""

    def __init__(self, *, fixed: bool) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.patches, self.head = nn.Conv2d(3, 16, 4, 4), nn.Conv2d(16, 5, 1)
        self.positions, self.fixed = nn.Parameter(torch.randn(1, 16, 4, 4)), fixed

    def forward(self, x: Tensor) -> Tensor:
        y = self.patches(x)
        positions = self.positions
        if not self.fixed:
            positions = F.interpolate(positions, y.shape[2:], mode="bicubic")
        mask = torch.zeros(y.shape[2:])
        mask[1:-1, 1:-1] = 1
        return self.head((y + positions).relu() * mask).mean((2, 3))


def test_constants_that_depend_on_the_size_are_those_of_the_size(tmp_path: Path) -> None:
    network = Positions(fixed=False)
    optimized = optimize(network, (3, 16, 16), sizes=[32, (24, 40)])
    optimized.save(tmp_path / "network.safetensors")
    for one in (optimized, Optimized.load(tmp_path / "network.safetensors")):
        for size in optimized.sizes:
            x = torch.randn(3, 3, *size)
            assert error(one(x), network, x) < TOLERANCE


def test_a_size_that_the_network_does_not_take_is_refused() -> None:
    with pytest.raises(UsageError, match="^sizes= has 32×32, for which Positions cannot .*; or leave this size out$"):
        optimize(Positions(fixed=True), (3, 16, 16), sizes=[32])


class Caching(nn.Module):
    """A network that stores the mask of the first size that it sees, and of every later one."""

    def __init__(self) -> None:
        super().__init__()
        self.masks: dict[Any, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[2:]
        if size not in self.masks:
            self.masks[size] = torch.arange(size[0] * size[1]).reshape(size) % 3.0
        return (x * self.masks[size]).sum((2, 3))


def test_a_network_that_caches_what_depends_on_the_size_is_right() -> None:
    network = Caching()
    optimized = optimize(network, (3, 8, 8), sizes=[(8, 10)])
    assert not network.masks
    for size in optimized.sizes:
        x = torch.randn(2, 3, *size)
        torch.testing.assert_close(optimized(x), Caching()(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision", [pytest.param("bf16", marks=pytest.mark.large), "int8"])
def test_lower_precisions_have_sizes(precision: str, tmp_path: Path) -> None:
    network = built("squeezenet1_1")
    torch.manual_seed(3)
    images = F.interpolate(torch.randn(100, 3, 5, 5), (40, 40), mode="bicubic")
    calibration = {"calibration": images} if precision == "int8" else {}
    optimized = optimize(network, images[:2], sizes=[64], precision=precision, **calibration)
    path, alone = tmp_path / "network.safetensors", tmp_path / "alone.safetensors"
    optimized.save(path)
    optimize(network, images[:2], precision=precision, **calibration).save(alone)
    assert path.stat().st_size < 1.1 * alone.stat().st_size
    loaded = Optimized.load(path)
    for size in ((40, 40), (64, 64)):
        x = F.interpolate(images[:8], size, mode="bilinear")
        with torch.inference_mode():
            expected = network(x)
        root_mean_square = (optimized(x) - expected).square().mean().sqrt()
        assert root_mean_square < 0.1 * expected.square().mean().sqrt()
        assert torch.equal(loaded(x), optimized(x))
    if precision == "int8" and native_support.why_not() is None:
        first, other = optimized.compiled
        packed = [(first.packed[name], other.packed[name]) for name in first.packed]
        assert all(one is same for one, same in packed)
        assert first.fused.quantizations != other.fused.quantizations


def test_threads_with_two_sizes_do_not_meet() -> None:
    optimized = optimize(built("resnet20"), (3, 32, 32), sizes=[24])
    images = [torch.randn(1 + number % 3, 3, *optimized.sizes[number % 2]) for number in range(8)]
    expected = [optimized(image) for image in images]
    again = copy.deepcopy(optimized)  # without plans, which the threads make at once
    found: dict[int, list[Tensor]] = {}

    def work(number: int) -> None:
        found[number] = [again(images[number]) for _ in range(10)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(images))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(one, expected[number]) for number in range(len(images)) for one in found[number])


def test_summaries_list_the_sizes() -> None:
    optimized = optimize(nn.Conv2d(3, 4, 3), (3, 8, 8), sizes=[9, 8, (8, 10), 9])
    assert optimized.sizes == ((8, 8), (9, 9), (8, 10))
    assert repr(optimized).startswith("Optimized(1\N{NO-BREAK SPACE}layer for 3×8×8, 3×9×9 or 3×8×10 images, fp32; ")
    assert "3×8×8, 3×9×9 or 3×8×10 images" in optimized._repr_html_()
    assert optimized.to_dict()["sizes"] == [[8, 8], [9, 9], [8, 10]]


def test_an_optimized_network_is_reused_for_its_sizes() -> None:
    optimized = optimize(nn.Conv2d(3, 4, 3), (3, 8, 8), sizes=[9, 10])
    assert optimize(optimized, (3, 9, 9), sizes=[8]) is optimized
    with pytest.raises(UsageError, match="is already optimized, for another size"):
        optimize(optimized, (3, 9, 9), sizes=[11])


def test_exported_graphs_are_those_of_their_size() -> None:
    optimized = optimize(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), (3, 8, 8), sizes=[12])
    x = torch.randn(2, 3, 12, 12)
    exported = torch.export.export(optimized, (x,)).module()
    torch.testing.assert_close(exported(x), optimized(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sizes", [[0], [224, "256"], [(1, 2, 3)], [True], [8.0], [(8, -1)], [None]])
def test_what_is_no_size_is_refused(sizes: Any) -> None:
    with pytest.raises(UsageError, match="^sizes= has .*, which is not a size in pixels; give a number such as 224"):
        optimize(nn.Conv2d(3, 4, 3), (3, 8, 8), sizes=sizes)


@pytest.mark.parametrize("sizes", [256, None, "256", {256: 1}, torch.tensor([256])])
def test_what_is_no_list_of_sizes_is_refused(sizes: Any) -> None:
    with pytest.raises(UsageError, match="^sizes=.* is not a list of sizes; give one such as"):
        parse_sizes(sizes)


def test_a_size_that_needs_more_memory_than_there_is_is_refused() -> None:
    for example in ((3, 8, 8), torch.randn(1, 3, 8, 8)):
        with pytest.raises(UsageError, match="needs? more memory than this machine has"):
            optimize(nn.Conv2d(3, 4, 3), example, sizes=[10**8])
