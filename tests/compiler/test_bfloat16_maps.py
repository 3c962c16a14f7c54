"""Networks with maps of bfloat16, compared with rounding in float64 and with the float network."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svertka.compiler import convolution_chain_tiling
from svertka.compiler.bfloat16_maps import list_bfloat16_maps
from svertka.compiler.ir import Concatenation, ConvolutionChain, FusedConvolution, Pool
from svertka.compiler.optimize import Optimized, optimize
from svertka.compiler.reference import run_reference
from svertka.conv import native_support
from svertka.errors import RunError
from svertka.tensor_files import read_tensors_and_header, write_tensors

pytestmark = pytest.mark.skipif(bool(native_support.why_not()), reason="no kernels here")


@pytest.fixture(autouse=True)
def multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps are bfloat16 on any CPU: kernels without the instruction emulate it."""
    monkeypatch.setattr(native_support, "multiplies_bfloat16", lambda: True)


class Branches(nn.Module):
    """Layers with kernels for bfloat16 and layers without."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, stride=2, padding=1)
        self.left, self.right = nn.Conv2d(32, 16, 1), nn.Conv2d(32, 24, 3, padding=1)
        self.wide = nn.Conv2d(32, 24, 5, padding=2)
        self.depthwise, self.project = nn.Conv2d(64, 64, 3, padding=1, groups=64), nn.Conv2d(64, 64, 1)
        self.odd, self.back = nn.Conv2d(64, 33, 1), nn.Conv2d(33, 64, 1)
        self.squeeze, self.gated = nn.Conv2d(64, 64, 1), nn.Conv2d(64, 48, 1)
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.stem(x).relu(), 3, 2, 1)
        x = torch.cat([self.left(x).relu(), self.right(x).relu(), self.wide(x).relu()], 1)
        x = (x + self.project(F.silu(self.depthwise(x)))).relu()
        x = self.back(self.odd(x).relu())
        x = self.gated(x * self.squeeze(x.mean((2, 3), keepdim=True)).sigmoid()).relu()
        scores: Tensor = self.head(x.mean((2, 3)))
        return scores


def images(count: int, size: int = 32) -> Tensor:
    """Images that bfloat16 represents."""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(count)).bfloat16().float()


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return Branches().eval()


def exact(optimized: Optimized, x: Tensor) -> Tensor:
    """The same steps in float64, with the maps rounded that are bfloat16."""
    compiled = optimized.compiled[0]
    with torch.no_grad():
        result: Tensor = run_reference(compiled.fused, compiled.read_weight, x.double())
    return result


def error(found: Tensor, expected: Tensor) -> float:
    """Root mean square, relative."""
    difference = (found - expected).detach()
    return float(difference.square().mean().sqrt() / expected.detach().square().mean().sqrt())


def narrow_places(optimized: Optimized) -> set[str]:
    """The modules whose results are bfloat16."""
    fused = optimized.compiled[0].fused
    narrow = list_bfloat16_maps(fused)
    return {step.place for step in fused.steps if isinstance(step, FusedConvolution) and step.result in narrow}


def test_maps_are_bfloat16_between_kernels_that_support_it(network: nn.Module) -> None:
    optimized = optimize(network, images(2), precision="bf16", strict=True)
    # wide: Winograd adds four results; odd: whole pairs; back: read by a gated convolution; head: the output.
    assert narrow_places(optimized) == {"stem", "left", "right", "depthwise", "project", "gated"}
    fused = optimized.compiled[0].fused
    narrow = list_bfloat16_maps(fused)
    others = [step.result for step in fused.steps if isinstance(step, Concatenation | Pool)]
    assert len(narrow.intersection(others)) == 3  # the concatenation, the first pool and the last one
    assert not narrow_places(optimize(network, images(2)))


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("threads", [1, 3])
def test_kernels_compute_what_rounding_in_float64_gives(network: nn.Module, strict: bool, threads: int) -> None:
    optimized = optimize(network, images(2), precision="bf16", strict=strict)
    torch.set_num_threads(threads)
    for count in (1, 3):
        assert error(optimized(images(count)), exact(optimized, images(count))) < (0.002 if strict else 0.02)


def test_rounding_is_small(network: nn.Module) -> None:
    optimized = optimize(network, images(2), precision="bf16", strict=True)
    assert 1e-4 < error(optimized(images(4)), network.double()(images(4).double())) < 0.02


def test_chains_have_rows_of_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution_chain_tiling, "MIN_TILED_FLOATS", 0)
    monkeypatch.setattr(convolution_chain_tiling, "MAX_TILE_FLOATS", 3000)
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(8, 32, 1), nn.ReLU6(), nn.Conv2d(32, 32, 5, 2, 2, groups=32), nn.SiLU(), nn.Conv2d(32, 16, 1),
        nn.Conv2d(16, 48, 1), nn.ReLU(), nn.Conv2d(48, 48, 3, 1, 1, groups=48), nn.Conv2d(48, 14, 1),
        nn.AvgPool2d(3, 2),
    ]  # fmt: skip
    network = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), *layers).eval()
    optimized = optimize(network, images(2), precision="bf16")
    plan = optimized.compiled[0].plan(3)
    chains = [step for step, _ in plan.ranges if isinstance(step, ConvolutionChain)]
    assert any(step.x in plan.narrow and step.result in plan.narrow for chain in chains for step in chain.steps)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for count in (1, 3):
            assert error(optimized(images(count)), exact(optimized, images(count))) < 0.002


def test_a_file_keeps_bfloat16_maps(network: nn.Module, tmp_path: Path) -> None:
    path, x = tmp_path / "network.safetensors", images(3)
    optimized = optimize(network, images(2), precision="bf16")
    optimized.save(path)
    loaded = Optimized.load(path)
    assert torch.equal(loaded(x), optimized(x))
    assert narrow_places(loaded) == narrow_places(optimized)


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the header of an optimized network."""
    tensors, header = read_tensors_and_header(path)
    whole: Any = json.loads(json.dumps(header["optimized"]))
    change(whole)
    write_tensors(path, tensors, {"optimized": whole})


def test_a_file_of_an_older_version_keeps_float32_maps(network: nn.Module, tmp_path: Path) -> None:
    path, x = tmp_path / "network.safetensors", images(3)
    optimized = optimize(network, images(2), precision="bf16", strict=True)
    optimized.save(path)

    def make_older(whole: dict[str, Any]) -> None:
        whole["format"] = 6
        (content,) = whole["sizes"]
        content["dtypes"] = {value: {"is": "dtype", "of": "float32"} for value in content["dtypes"]}

    rewrite(path, make_older)
    older = Optimized.load(path)
    assert not narrow_places(older)
    assert 0 < error(older(x), optimized(x)) < 0.01
    older.save(path)
    assert torch.equal(Optimized.load(path)(x), older(x))


@pytest.mark.parametrize("place", ["odd", "wide", "head"])
def test_a_file_with_other_bfloat16_maps_is_refused(network: nn.Module, tmp_path: Path, place: str) -> None:
    path = tmp_path / "network.safetensors"
    optimize(network, images(2), precision="bf16").save(path)

    def narrow(whole: dict[str, Any]) -> None:
        (content,) = whole["sizes"]
        (result,) = [step["result"] for step in content["steps"] if step["place"] == place]
        content["dtypes"][str(result)] = {"is": "dtype", "of": "bfloat16"}

    rewrite(path, narrow)
    with pytest.raises(RunError, match="a kernel would read or write bfloat16"):
        Optimized.load(path)


def test_a_cpu_without_bfloat16_products_keeps_float32_maps(
    network: nn.Module, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path, x = tmp_path / "network.safetensors", images(3)
    optimized = optimize(network, images(2), precision="bf16")
    optimized.save(path)
    monkeypatch.setattr(native_support, "multiplies_bfloat16", lambda: False)
    loaded = Optimized.load(path)
    assert not loaded.compiled[0].plan(3).narrow
    assert error(loaded(x), optimized(x)) < 0.03
    loaded.save(path)  # without bfloat16 where the weights are float32 now
    assert torch.equal(Optimized.load(path)(x), loaded(x))


def drawn_network(choose: random.Random) -> nn.Module:
    """Layers in a row, of any kind, with residual connections and concatenations."""

    class Drawn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.kinds, channels = nn.ModuleList(), [], 3
            for _ in range(choose.randint(2, 7)):
                kind = choose.choice(("plain", "plain", "depthwise", "add", "concatenate", "pool", "multiply"))
                outs, side = choose.choice((4, 6, 7, 16, 18, 32, 40)), choose.choice((1, 1, 3, 5))
                groups = 1
                if kind == "depthwise":
                    outs, groups = channels, channels
                elif kind in ("add", "multiply"):
                    outs = channels
                self.layers.append(nn.Conv2d(channels, outs, side, 1, side // 2, groups=groups))
                self.kinds.append((kind, choose.choice(("relu", "silu", "hardtanh"))))
                channels = channels + outs if kind == "concatenate" else outs
            self.head = nn.Linear(channels, 4)

        def forward(self, x: Tensor) -> Tensor:
            for layer, (kind, activation) in zip(self.layers, self.kinds, strict=True):
                y = layer(x)
                if kind == "add":
                    y = y + x
                elif kind == "multiply":
                    y = y * x
                y = getattr(F, activation)(y)
                if kind == "concatenate":
                    y = torch.cat([x, y], 1)
                x = F.max_pool2d(y, 3, 2, 1) if kind == "pool" else y
            scores: Tensor = self.head(x.mean((2, 3)))
            return scores

    return Drawn().eval()


def test_random_networks_are_those_of_rounded_maps(large_count: Callable[[int, int], int]) -> None:
    narrow = 0
    for seed in range(large_count(4, 1500)):
        choose = random.Random(seed)
        torch.manual_seed(seed)
        torch.set_num_threads(choose.choice((1, 1, 2)))
        network, x = drawn_network(choose), images(2, choose.randint(8, 20))
        optimized = optimize(network, tuple(x.shape), precision="bf16", strict=True)
        narrow += len(list_bfloat16_maps(optimized.compiled[0].fused))
        found, expected = optimized(x), exact(optimized, x)
        scale = float(network.double()(x.double()).detach().abs().max())
        assert float((found - expected).abs().max()) < 0.02 * scale, f"seed {seed}"
    assert narrow
