"""Chains of convolutions computed a few rows at a time, compared with PyTorch."""

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from svertka.compiler import convolution_chain_tiling
from svertka.compiler.convolution_chain_tiling import ChainTiling, find_input_rows
from svertka.compiler.ir import ConvolutionChain, FusedConvolution
from svertka.compiler.memory_planner import FeatureMapSize
from svertka.compiler.optimize import optimize
from svertka.conv import native_support

kernels = pytest.mark.skipif(bool(native_support.why_not()), reason="no kernels here")


def step(number: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> FusedConvolution:
    """One that reads value `number` and gives the next."""
    return FusedConvolution(number, number + 1, "w", None, (stride, 1), (padding, 0), (dilation, 1), 1)


@st.composite
def chains(draw: st.DrawFn) -> tuple[ConvolutionChain, list[FeatureMapSize], list[int]]:
    """Steps of any stride, padding and dilation, their maps, and the rows of their kernels."""
    steps, maps, taps = [], [FeatureMapSize(1, 1, draw(st.integers(1, 40)), 1)], []
    for number in range(draw(st.integers(2, 5))):
        size, stride, dilation = draw(st.integers(1, 5)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
        padding, more = draw(st.integers(0, size)), draw(st.integers(0, 2))
        height = (maps[-1].height + 2 * padding + more - dilation * (size - 1) - 1) // stride + 1
        if height < 1:
            break
        steps.append(step(number, stride, padding, dilation))
        taps.append(size)
        maps.append(FeatureMapSize(1, 1, height, 1))
    return ConvolutionChain(tuple(steps)), maps, taps


@given(drawn=chains(), room=st.integers(1, 60), segments=st.integers(1, 4))
@settings(max_examples=300, deadline=None)
def test_every_row_is_computed_once_from_rows_in_memory(
    drawn: tuple[ConvolutionChain, list[FeatureMapSize], list[int]], room: int, segments: int
) -> None:
    chain, maps, taps = drawn
    if not chain.steps:
        return
    last = len(chain.steps) - 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolution_chain_tiling, "MAX_TILE_FLOATS", room)
        found = ChainTiling(chain, maps, taps, min(segments, maps[-1].height), [1] * len(maps))
    made: list[int] = []
    for segment in found.segments:
        memory: dict[int, int] = {}  # of one thread: at which place which row of which map, as map · 1000 + row
        for part in segment:
            if part.below:
                start = found.starts[part.number + 1]
                for row in range(part.kept):
                    memory[start + row] = memory[start + row + part.below]
            for row in part.makes:
                one = chain.steps[part.number]
                for needed in find_input_rows(one, taps[part.number], range(row, row + 1), maps[part.number].height):
                    assert needed in part.reads
                    if part.number:
                        place = found.starts[part.number] + needed - part.reads.start
                        assert memory[place] == 1000 * part.number + needed
                if part.number == last:
                    made.append(row)
                else:
                    place = found.starts[part.number + 1] + row - part.first
                    end = found.room if part.number + 2 > last else found.starts[part.number + 2]
                    assert found.starts[part.number + 1] <= place < end
                    memory[place] = 1000 * (part.number + 1) + row
    assert made == list(range(maps[-1].height))


class Narrow(nn.Module):
    """Widened by 1×1, each channel by itself, narrowed again; plus what went in, where it is as large."""

    def __init__(self, channels: int, wide: int, taps: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.widen = nn.Conv2d(channels, wide, 1)
        padding = dilation * (taps // 2)
        self.each = nn.Conv2d(wide, wide, taps, stride, padding, dilation, wide)
        self.narrow = nn.Conv2d(wide, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.narrow(self.each(self.widen(x).clamp(0, 6)).relu())
        return x + y if y.shape == x.shape else y


@kernels
@settings(max_examples=40, deadline=None)
@given(
    data=st.data(),
    blocks=st.integers(1, 3),
    sides=st.tuples(st.integers(5, 34), st.integers(5, 34)),
    images=st.integers(1, 5),
    rows=st.integers(1, 6),
    seed=st.integers(0, 1000),
)
def test_chains_compute_what_the_network_does(
    data: st.DataObject, blocks: int, sides: tuple[int, int], images: int, rows: int, seed: int
) -> None:
    torch.manual_seed(seed)
    channels = data.draw(st.integers(1, 20))
    parts: list[nn.Module] = [nn.Conv2d(3, channels, 3, 2, 1), nn.ReLU()]
    for _ in range(blocks):
        sizes: list[Any] = [st.integers(1, 70), st.integers(1, 6), st.integers(1, 3), st.integers(1, 2)]
        parts.append(Narrow(channels, *(data.draw(size) for size in sizes)))
    network = nn.Sequential(*parts).eval()
    x = torch.randn(images, 3, *sides)
    with torch.inference_mode():
        expected = network.double()(x.double()).float()
        network.float()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolution_chain_tiling, "MAX_TILE_FLOATS", rows * 40 * sides[1])
        patch.setattr(convolution_chain_tiling, "MIN_TILED_FLOATS", 0)
        found = optimize(network, x)(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@kernels
def test_maps_that_fit_in_the_cache_are_not_tiled() -> None:
    parts = nn.Conv2d(8, 64, 1), nn.Conv2d(64, 64, 3, padding=1, groups=64), nn.Conv2d(64, 8, 1)
    network = nn.Sequential(*parts).eval()
    for side, threads, tiled in ((16, 1, False), (48, 1, True), (48, 2, False), (80, 2, True)):  # two divide an image
        torch.set_num_threads(threads)
        optimized = optimize(network, torch.randn(1, 8, side, side))
        chains = [step for step, _ in optimized.compiled[0].plan(1).ranges if isinstance(step, ConvolutionChain)]
        assert bool(chains) == tiled


@kernels
def test_intermediate_maps_need_no_arena_memory() -> None:
    wide = nn.Sequential(nn.Conv2d(8, 96, 1), nn.Conv2d(96, 96, 3, padding=1, groups=96), nn.Conv2d(96, 8, 1)).eval()
    torch.set_num_threads(2)
    optimized = optimize(wide, torch.randn(1, 8, 40, 40))
    assert optimized.compiled[0].plan(4).size <= 2 * 4 * 8 * 40 * 40


@kernels
@pytest.mark.parametrize(
    ("what", "together"),
    [
        ("nothing else", ["widen", "each", "narrow"]),
        ("returned", ["each", "narrow"]),
        ("read twice", ["each", "narrow"]),
        ("weights larger", ["widen", "each"]),
    ],
)
def test_maps_with_other_readers_are_not_tiled(what: str, together: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution_chain_tiling, "MIN_TILED_FLOATS", 0)

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            side = 400 if what == "weights larger" else 16
            self.widen, self.each = nn.Conv2d(8, side, 1), nn.Conv2d(side, side, 3, padding=1, groups=side)
            self.narrow = nn.Conv2d(side, side, 1)

        def forward(self, x: Tensor) -> Any:
            wide = self.widen(x)
            narrow = self.narrow(self.each(wide))
            return (narrow, wide) if what == "returned" else narrow + wide if what == "read twice" else narrow

    torch.manual_seed(0)
    network, x = Network().eval(), torch.randn(2, 8, 18, 18)
    optimized = optimize(network, x)
    with torch.inference_mode():
        torch.testing.assert_close(optimized(x), network(x), rtol=1e-4, atol=1e-5)
    chains = [step for step, _ in optimized.compiled[0].plan(2).ranges if isinstance(step, ConvolutionChain)]
    assert [[one.place for one in step.steps] for step in chains] == [together]


@kernels
@pytest.mark.filterwarnings("ignore:.*calibration")
def test_chains_of_8_bits_give_the_same_numbers(monkeypatch: pytest.MonkeyPatch, large_count: Any) -> None:
    tiled = 0
    for seed in range(large_count(3, 300)):
        choose = random.Random(seed)
        torch.manual_seed(seed)
        ins, outs = choose.choice((8, 12, 20)), choose.choice((8, 16, 18))  # of 18 bytes, which are no whole floats
        wide = choose.choice((36, 64, 80, 112, 144))
        taps, stride = choose.choice((3, 5)), choose.choice((1, 2))
        network = nn.Sequential(
            nn.Conv2d(3, ins, 3, padding=1), nn.ReLU6(), nn.Conv2d(ins, wide, 1), nn.ReLU6(),
            nn.Conv2d(wide, wide, taps, stride, taps // 2, groups=wide), choose.choice((nn.ReLU6(), nn.SiLU())),
            nn.Conv2d(wide, outs, 1),
        ).eval()  # fmt: skip
        x = torch.randn(choose.randint(1, 3), 3, choose.randint(8, 40), choose.randint(8, 40))
        optimized = optimize(network, x, precision="int8", calibration=x)
        expected = optimized(x)
        monkeypatch.setattr(convolution_chain_tiling, "MIN_TILED_FLOATS", 0)
        monkeypatch.setattr(convolution_chain_tiling, "MAX_TILE_FLOATS", choose.choice((500, 4000)))
        optimized = optimize(network, x, precision="int8", calibration=x)
        torch.set_num_threads(choose.choice((1, 2)))
        assert torch.equal(optimized(x), expected), f"seed {seed}"
        plan = optimized.compiled[0].plan(len(x))
        tiled += any(isinstance(step, ConvolutionChain) for step, _ in plan.ranges)
        monkeypatch.undo()
    assert tiled
