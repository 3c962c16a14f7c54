"""Kernels that read and write maps of bfloat16, compared with float64, between pages that may not be touched."""

import math
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fences import Fenced, fenced_bfloat16, place, rows
from svertka.compiler.ir import UNBOUNDED, FusedConvolution
from svertka.compiler.packing import PackedWeights
from svertka.conv import native_support

pytestmark = pytest.mark.skipif(bool(native_support.why_not()), reason="no kernels here")

HALF_ULP = (
    2.0**-8
)  # by how much, of itself, a number changes at most that is rounded to bfloat16; twice, so that ties fit
WINOGRAD_ERROR = 0.015  # root mean square, of the results


def fenced_map(tensor: Tensor, *, narrow: bool, at_end: bool) -> tuple[Tensor, int]:
    """A memory that holds a map, (N, C, H, W), and the offset of its first number."""
    if narrow:
        return fenced_bfloat16(rows(tensor), at_end=at_end)
    return Fenced(rows(tensor), at_end=at_end).numbers, 0


def stored_map(memory: Tensor, offset: int, like: Tensor, *, narrow: bool) -> Tensor:
    """The map in a memory, (N, C, H, W) float64."""
    numbers = memory.view(torch.bfloat16) if narrow else memory
    batch, channels, *size = like.shape
    found = numbers[offset : offset + like.numel()].reshape(batch, *size, channels)
    return found.permute(0, 3, 1, 2).double()


def drawn_convolution(choose: random.Random) -> tuple[FusedConvolution, list[int], list[int], list[int]]:
    """A convolution, and the sizes of its input, of its weights, and of its result in y and x."""
    ins, outs = (choose.choice((2, 4, 6, 8, 16, 18, 24, 32, 34, 48, 64, 66, 96, 130)) for _ in range(2))
    outs += choose.choice((0, 0, 0, 1))
    groups, taps = 1, [choose.choice((1, 1, 1, 2, 3, 3, 3, 5, 7))] * 2
    kind = choose.random()
    if kind < 0.3:
        groups = outs = ins
        taps = list(choose.choice(((3, 3), (3, 3), (5, 5), (7, 7), (2, 2), (1, 1), (3, 5), (1, 9))))
    elif kind < 0.4:
        groups, each = choose.choice(((2, 66), (2, 24), (3, 4), (4, 8), (2, 34)))
        ins = outs = groups * each
        taps = [3, 3]
    elif kind < 0.5:
        taps = list(choose.choice(((1, 3), (3, 1), (2, 5), (7, 1))))
    stride, dilation = (choose.choice((1, 1, 1, 2, 3)),) * 2, (choose.choice((1, 1, 1, 2)),) * 2
    padding = choose.choice((0, choose.randint(0, taps[0]))), choose.choice((0, choose.randint(0, taps[1])))
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, taps, strict=True)]
    sides = [max(1, r - 2 * p) + choose.randint(0, 16) for r, p in zip(reach, padding, strict=True)]
    size = [(n + 2 * p - r) // s + 1 for n, p, r, s in zip(sides, padding, reach, stride, strict=True)]
    residual = choose.choice((None, None, 2))
    step = FusedConvolution(
        0, 1, "weight", "bias", stride, padding, dilation, groups,
        choose.choice((UNBOUNDED, (0.0, math.inf), (0.0, 1.0))), residual,
        activation=choose.choice(("NONE",) * 4 + ("SILU", "HARD_SWISH")),
        multiply=residual is not None and choose.random() < 0.2, residual_last=choose.random() < 0.3,
    )  # fmt: skip
    return step, [choose.randint(1, 3), ins, *sides], [outs, ins // groups, *taps], size


def add_convolution(
    program: "native_support.kernels.Program",
    step: FusedConvolution,
    packed: PackedWeights,
    shapes: tuple[list[int], list[int], list[int]],
    tensors: tuple[Tensor, Tensor],
    offsets: tuple[int, int, int],
    narrow: "native_support.kernels.NarrowMaps",
    *,
    both: bool,
) -> None:
    """Add the kernel, or one for each group, from memory 0 to memory 1, with the residual in memory 2."""
    kernels, (shape, of_weight, size), (numbers, bias) = native_support.kernels, shapes, tensors
    axes = [
        kernels.WindowAxis(shape[2 + a], size[a], of_weight[2 + a], step.stride[a], step.padding[a], step.dilation[a])
        for a in (0, 1)
    ]
    alone = packed.kernel in ("depthwise", "grouped")
    groups = 1 if alone else step.groups
    reads, writes = shape[1] // groups, of_weight[0] // groups
    for group, part in enumerate([numbers] if alone else numbers):
        residual = kernels.Place(-1 if step.residual is None else 2, offsets[2] + group * writes)
        ending = kernels.Epilogue(
            bias[group * writes :], residual, of_weight[0], *step.bounds, kernels.Activation[step.activation],
            step.slope, step.multiply, step.residual_last,
        )  # fmt: skip
        source, target = kernels.Place(0, offsets[0] + group * reads), kernels.Place(1, offsets[1] + group * writes)
        window = kernels.Window(shape[0], reads, writes, *axes, shape[1], of_weight[0])
        if alone:
            program.add_grouped(window, step.groups, source, part, ending, target, both)
        elif packed.kernel == "direct":
            program.add_direct(window, source, part, packed.precision, ending, target, narrow=narrow)
        else:
            sides = kernels.Convolution(shape[0], reads, writes, *shape[2:], *size, *step.padding)
            sides.in_step, sides.out_step = shape[1], of_weight[0]
            program.add_winograd(sides, source, part, packed.precision, ending, target, narrow)


@pytest.mark.parametrize("maps", [(True, True), (True, False), (False, True)])
def test_convolutions_are_those_of_rounded_numbers(
    instructions: str, monkeypatch: pytest.MonkeyPatch, maps: tuple[bool, bool], large_count: Callable[[int, int], int]
) -> None:
    kernels = native_support.kernels
    monkeypatch.setattr(native_support, "multiplies_bfloat16", lambda: True)  # other kernels emulate it
    for seed in range(large_count(25, 1500)):
        choose = random.Random(seed)
        torch.manual_seed(seed)
        step, shape, of_weight, size = drawn_convolution(choose)
        x = torch.randn(shape).bfloat16().float()
        weight, bias = torch.randn(of_weight).bfloat16(), torch.randn(of_weight[0])
        packed = PackedWeights.of(step, weight, dense=False)
        if packed.kernel == "winograd" and of_weight[2] > 3:  # four kernels, whose sums are added in floats
            packed = PackedWeights.of(step, weight, dense=True)
        reads, writes = maps
        if packed.kernel in ("depthwise", "grouped"):
            writes = reads
        like = torch.zeros(shape[0], of_weight[0], *size)
        residual = torch.randn_like(like).bfloat16().float()
        at_end = choose.random() < 0.7
        (source, first), (target, second), (more, third) = (
            fenced_map(one, narrow=narrow, at_end=at_end)
            for one, narrow in ((x, reads), (like, writes), (residual, writes))
        )
        numbers = Fenced(packed.numbers, at_end=at_end).numbers.view(packed.numbers.shape)
        program = kernels.Program()
        add_convolution(
            program, step, packed, (shape, of_weight, size), (numbers, bias), (first, second, third),
            kernels.NarrowMaps(reads, writes), both=reads,
        )  # fmt: skip
        program.run([source, target, more], 0, len(program), choose.choice((1, 2, 3)))
        found = stored_map(target, second, like, narrow=writes)
        inputs = [x.double(), residual.double()][: len(step.inputs)]
        exact = step.run(inputs, (size[0], size[1]), weight.double(), bias.double())
        if packed.kernel == "winograd":
            plain = replace(step, residual=None, activation="NONE", bounds=UNBOUNDED)
            sums = plain.run(inputs[:1], (size[0], size[1]), weight.double(), None)
            scale = float(sums.square().mean().sqrt()) * (float(residual.abs().max()) if step.multiply else 1)
            error = float((found - exact).square().mean().sqrt())
            rounding = HALF_ULP * float(exact.square().mean().sqrt())
            assert error <= 1.5 * WINOGRAD_ERROR * scale + rounding, f"seed {seed}"
            continue
        tolerance = HALF_ULP if writes else 1e-6
        terms = math.prod(of_weight[1:]) ** 0.5
        torch.testing.assert_close(
            found, exact, rtol=tolerance, atol=2e-5 * terms, msg=lambda text, seed=seed: f"seed {seed}: {text}"
        )


def test_pools_are_those_of_rounded_numbers(instructions: str, large_count: Callable[[int, int], int]) -> None:
    kernels = native_support.kernels
    for seed in range(large_count(40, 2000)):
        choose = random.Random(seed)
        torch.manual_seed(seed)
        batch, channels, taps = choose.randint(1, 3), choose.randint(1, 140), choose.randint(1, 4)
        stride, padding = choose.randint(1, 3), choose.randint(0, taps // 2)
        sides = [max(1, taps - 2 * padding) + choose.randint(0, 12) for _ in range(2)]
        x = torch.randn(batch, channels, *sides).bfloat16()
        kind, at_end = choose.choice(("MAXIMUM", "MEAN", "PADDED_MEAN")), choose.random() < 0.7
        if kind == "MAXIMUM":
            exact = F.max_pool2d(x.double(), taps, stride, padding)
        else:
            exact = F.avg_pool2d(x.double(), taps, stride, padding, count_include_pad=kind == "PADDED_MEAN")
        (source, first), (target, second) = (
            fenced_map(one, narrow=True, at_end=at_end) for one in (x, torch.zeros_like(exact))
        )
        axes = (
            kernels.WindowAxis(size, out_size, taps, stride, padding, 1)
            for size, out_size in zip(sides, exact.shape[2:], strict=True)
        )
        program, window = kernels.Program(), kernels.Window(batch, channels, channels, *axes, channels, channels)
        program.add_pool(window, kernels.Pooling[kind], kernels.Place(0, first), kernels.Place(1, second), True)
        program.run([source, target], 0, 1, choose.choice((1, 2, 3)))
        tolerance = 0 if kind == "MAXIMUM" else HALF_ULP
        found = stored_map(target, second, exact, narrow=True)
        torch.testing.assert_close(
            found, exact, rtol=tolerance, atol=1e-6, msg=lambda text, seed=seed: f"seed {seed}: {text}"
        )


def test_maps_that_kernels_cannot_read_are_refused() -> None:
    kernels = native_support.kernels
    axis = kernels.WindowAxis(4, 4, 1, 1, 0, 1)
    ending = kernels.Epilogue(None, place(-1), 0, *UNBOUNDED)
    weights = torch.zeros(64 * 66).bfloat16()

    def add(channels: int, step: int, precision: str, gate: int = -1) -> None:
        kernels.Program().add_direct(
            kernels.Window(1, channels, 8, axis, axis, step, 8), place(0), weights, kernels.Precision[precision],
            ending, place(1), place(gate), channels, kernels.NarrowMaps(True, False),
        )  # fmt: skip

    add(8, 10, "BFLOAT16")
    for channels, step in ((7, 8), (8, 9)):
        with pytest.raises(ValueError, match="an even number of channels and an even in_step"):
            add(channels, step, "BFLOAT16")
    with pytest.raises(ValueError, match="need products of bfloat16"):
        add(8, 8, "UPCAST")
    with pytest.raises(ValueError, match="a gate needs an input of floats"):
        add(8, 8, "BFLOAT16", gate=2)
