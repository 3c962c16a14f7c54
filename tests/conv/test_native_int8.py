"""8-bit kernels compared with integer arithmetic in float64, their tensors between pages that may not be touched."""

import math
import random
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fences import Fenced, fenced_bfloat16, place, rows
from svertka.compiler.int8_packing import PackedInt8Weights
from svertka.compiler.int8_requantization import (
    dequantization_scale_and_shift,
    make_quantized_elementwise,
    make_requantization,
)
from svertka.compiler.ir import UNBOUNDED, Elementwise, FusedConvolution, Quantization
from svertka.compiler.quantization import quantize_weights
from svertka.compiler.step_checks import BYTE_COMBINATIONS
from svertka.conv import native_support

pytestmark = pytest.mark.skipif(bool(native_support.why_not()), reason="no kernels here")


@pytest.fixture(params=["avx512vnni", "avx512", "avxvnni", "avx2", "baseline"])
def instructions(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param not in native_support.instruction_sets():
        pytest.skip(f"this CPU has no {request.param}")
    native_support.select_instruction_set(request.param)
    yield request.param
    native_support.select_instruction_set(native_support.instruction_sets()[0])


def drawn_quantization(choose: random.Random) -> Quantization:
    low, high = choose.choice(((0, 5), (-3, 4), (-6, 0.5), (0, 0.3), (-20, 30)))
    return Quantization.covering(low, high)


def fenced_floats(tensor: Tensor, *, at_end: bool) -> Tensor:
    return Fenced(tensor.flatten(), at_end=at_end).numbers


def fenced_bytes(tensor: Tensor, *, at_end: bool) -> tuple[Tensor, int]:
    """A memory of floats with bytes at its end or beginning, and the offset of the first in bytes."""
    more = -tensor.numel() % 4
    before, after = (more, 0) if at_end else (0, more)
    padded = F.pad(tensor.flatten().to(torch.uint8), (before, after))
    return Fenced(padded.view(torch.float32), at_end=at_end).numbers, before


def drawn_convolution(choose: random.Random) -> tuple[FusedConvolution, list[int], list[int], list[int]]:
    """A convolution, and the sizes of its input, of its weights, and of its result in y and x."""
    ins, outs = (
        choose.choice((1, 2, 3, 4, 5, 8, 16, 17, 24, 31, 32, 33, 40, 63, 64, 65, 112, 128, 140)) for _ in range(2)
    )
    groups, taps = 1, [choose.choice((1, 1, 2, 3, 3, 4, 7))] * 2
    if choose.random() < 0.35:
        groups = outs = ins
        taps = list(choose.choice(((3, 3), (3, 3), (5, 5), (7, 7), (2, 2), (1, 1), (3, 5), (1, 9), (4, 6))))
    elif choose.random() < 0.2:
        groups = choose.choice((2, 3))
        ins, outs = groups * choose.choice((16, 17, 64)), groups * choose.choice((1, 16, 40))
    elif choose.random() < 0.2:
        taps = list(choose.choice(((1, 3), (3, 1), (2, 5), (7, 1))))
    stride, dilation = (choose.choice((1, 1, 1, 2, 3)),) * 2, (choose.choice((1, 1, 1, 2)),) * 2
    padding = choose.randint(0, taps[0]), choose.randint(0, taps[1])
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, taps, strict=True)]
    more = choose.choice((0, 14, 14, 33))  # 0: the kernel covers the image
    sides = [max(1, r - 2 * p) + choose.randint(0, more) for r, p in zip(reach, padding, strict=True)]
    size = [(n + 2 * p - r) // s + 1 for n, p, r, s in zip(sides, padding, reach, stride, strict=True)]
    residual = choose.choice((None, None, 2))
    step = FusedConvolution(
        0, 1, "weight", "bias", stride, padding, dilation, groups,
        choose.choice((UNBOUNDED, (0.0, math.inf), (0.0, 1.0))), residual,
        activation=choose.choice(("NONE",) * 5 + ("SILU", "HARD_SWISH", "SIGMOID")),
        multiply=residual is not None and choose.random() < 0.3, residual_last=choose.random() < 0.3,
        weight_scale="scale",
    )  # fmt: skip
    return step, [choose.randint(1, 3), ins, *sides], [outs, ins // groups, *taps], size


def drawn_winograd_convolution(choose: random.Random) -> tuple[FusedConvolution, list[int], list[int], list[int]]:
    """A convolution for Winograd kernels, and the same sizes."""
    ins = choose.choice((4, 8, 12, 16, 28, 32, 36, 60, 64, 68, 128, 132, 260))
    outs = choose.choice((1, 3, 8, 15, 16, 17, 31, 32, 33, 48, 64, 65, 130))
    padding = choose.randint(0, 3), choose.randint(0, 3)
    sides = [max(1, 3 - 2 * pad) + choose.choice((0, 1, 2, 3, 4, 5, 6, 7, 11, 12, 25)) for pad in padding]
    size = [side + 2 * pad - 2 for side, pad in zip(sides, padding, strict=True)]
    residual = choose.choice((None, None, 2))
    step = FusedConvolution(
        0, 1, "weight", "bias", (1, 1), padding, (1, 1), 1, choose.choice((UNBOUNDED, (0.0, math.inf))), residual,
        activation=choose.choice(("NONE", "NONE", "NONE", "SILU")), weight_scale="scale",
        multiply=residual is not None and choose.random() < 0.3, residual_last=choose.random() < 0.3,
    )  # fmt: skip
    return step, [choose.choice((1, 1, 2, 3, 5)), ins, *sides], [outs, ins, 3, 3], size


@pytest.mark.parametrize("winograd", [False, True], ids=["direct", "winograd"])
def test_convolutions_are_those_of_integers(
    instructions: str, large_count: Callable[[int, int], int], *, winograd: bool
) -> None:
    kernels, different, all_results = native_support.kernels, 0, 0
    for seed in range(large_count(25, 2000)):
        choose = random.Random(seed)
        torch.manual_seed(seed)
        step, shape, of_weight, size = (drawn_winograd_convolution if winograd else drawn_convolution)(choose)
        before, of_residual = drawn_quantization(choose), drawn_quantization(choose)
        after = None if choose.random() < 0.2 else drawn_quantization(choose)
        x = torch.randint(0, 256, shape)
        weight, scale = quantize_weights(torch.randn(of_weight) * 0.01)
        bias = torch.randn(of_weight[0]) if choose.random() < 0.7 else None
        residual = torch.randint(0, 256, (shape[0], of_weight[0], *size))
        packed, at_end = PackedInt8Weights.of(step, weight), choose.random() < 0.7
        assert torch.equal(packed.unpack(), weight)
        (source, first), (more, second) = (fenced_bytes(rows(one), at_end=at_end) for one in (x, residual))
        if after is None:
            target, third = Fenced(torch.zeros(residual.numel()), at_end=at_end).numbers, 0
        else:
            target, third = fenced_bytes(torch.zeros(residual.numel()), at_end=at_end)
        numbers = Fenced(packed.numbers, at_end=at_end).numbers.view(packed.numbers.shape)
        depthwise = packed.kernel == "int8-depthwise"
        assert packed.winograd >= winograd
        kernel = kernels.Int8Kernel["DEPTHWISE" if depthwise else "WINOGRAD" if winograd else "DIRECT"]
        groups = 1 if depthwise else step.groups
        reads, writes = shape[1] // groups, of_weight[0] // groups
        axes = [
            kernels.WindowAxis(
                shape[2 + a], size[a], of_weight[2 + a], step.stride[a], step.padding[a], step.dilation[a]
            )
            for a in (0, 1)
        ]
        window, program = kernels.Window(shape[0], reads, writes, *axes, shape[1], of_weight[0]), kernels.Program()
        quantizations = [before, None if step.residual is None else of_residual, after]
        for group in range(groups):
            added = kernels.Place(-1 if step.residual is None else 2, second + group * writes), of_weight[0]
            program.add_int8_convolution(
                window, kernel, kernels.Place(0, first + group * reads), before.zero_point,
                numbers if depthwise else numbers[group],
                make_requantization(step, packed, group, [scale, bias], quantizations, added),
                kernels.Place(1, third + group * writes),
            )  # fmt: skip
        program.run([source, target, more], 0, len(program), choose.choice((1, 2, 3)))
        factors = weight.double() * scale.double()[:, None, None, None]
        given = [(x - before.zero_point) * before.scale, (residual - of_residual.zero_point) * of_residual.scale]
        inputs = [one.double() for one in given[: len(step.inputs)]]
        exact = step.run(inputs, (size[0], size[1]), factors, None if bias is None else bias.double())
        if after is None:
            found = target.reshape(shape[0], *size, -1).permute(0, 3, 1, 2).double()
            largest = max(1.0, float(exact.abs().max()))
            torch.testing.assert_close(found, exact, rtol=1e-5, atol=3e-6 * largest, msg=lambda m, s=seed: f"{s}: {m}")
            continue
        stored = target.view(torch.uint8)[third : third + residual.numel()]
        found = stored.reshape(shape[0], *size, -1).permute(0, 3, 1, 2).double()
        off, ties = (found - after.quantize(exact)).abs(), ((exact / after.scale) % 1 - 0.5).abs() < 1e-3
        assert off.max() <= 1, f"seed {seed}: off by {int(off.max())}"
        different, all_results = different + int((off > 0)[~ties].sum()), all_results + off.numel()
    assert different < 1e-4 * all_results  # only ties are rounded otherwise


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_sums_of_winograd_fit_in_32_bits(instructions: str, sign: int) -> None:
    """With the images whose transformed numbers are the largest, and as many inputs as the rule allows."""
    step = FusedConvolution(0, 1, "weight", None, (1, 1), (0, 0), (1, 1), 1, weight_scale="scale")
    weight = torch.full((1, 128, 3, 3), 127 * sign, dtype=torch.int8)
    weight[:, :, 1] *= -1  # a kernel with large differences between lines
    counts = [count for count in range(4, 129, 4) if PackedInt8Weights.of(step, weight[:, :count]).winograd]
    assert 4 <= max(counts) < 128
    kernels, before = native_support.kernels, Quantization.covering(0, 255)
    weight = weight[:, : max(counts)]
    packed, scale = PackedInt8Weights.of(step, weight), torch.ones(1)
    after = make_requantization(step, packed, 0, [scale, None], [before, None, None], (place(-1), 0))
    axis, one = kernels.WindowAxis(6, 4, 3, 1, 0, 1), torch.tensor(kernels.INT8_WINOGRAD_MATRICES[0]).sign()
    window = kernels.Window(1, max(counts), 1, axis, axis, max(counts), 1)
    program = kernels.Program()
    program.add_int8_convolution(window, kernels.Int8Kernel.WINOGRAD, place(0), 0, packed.numbers[0], after, place(1))
    for row in one:
        for column in one:
            pixels = torch.where(torch.outer(row, column) * sign > 0, 255, 0)
            x, target = pixels[..., None].expand(6, 6, max(counts)).to(torch.uint8).contiguous(), torch.zeros(16)
            program.run([x.flatten().view(torch.float32), target], 0, 1, 1)
            exact = F.conv2d(x.permute(2, 0, 1)[None].double(), weight.double())
            torch.testing.assert_close(target.double(), exact.flatten(), rtol=0, atol=2.0**31 * 1e-6)


def test_winograd_is_refused_where_sums_may_overflow() -> None:
    step = FusedConvolution(0, 1, "weight", None, (1, 1), (0, 0), (1, 1), 1, weight_scale="scale")
    assert not PackedInt8Weights.of(step, torch.full((1, 512, 3, 3), 127, dtype=torch.int8)).winograd
    typical, _ = quantize_weights(torch.randn(64, 512, 3, 3))
    assert PackedInt8Weights.of(step, typical).winograd
    assert not PackedInt8Weights.of(step, typical, strict=True).winograd


def test_winograd_is_chosen_where_it_takes_less_work() -> None:
    def is_faster(side: int, channels: int, batch: int = 1) -> bool:
        axis = native_support.kernels.WindowAxis(side, side, 3, 1, 1, 1)
        window = native_support.kernels.Window(batch, channels, channels, axis, axis, channels, channels)
        return native_support.kernels.int8_winograd_is_faster(window)

    assert is_faster(112, 128)
    assert is_faster(28, 512)
    assert is_faster(7, 512, batch=16)  # the transformed weights serve more tiles
    assert not is_faster(14, 512, batch=16)  # but are read from memory for every block of them
    assert not is_faster(7, 512)
    assert not is_faster(2, 64)


def test_pools_are_those_of_integers(instructions: str, large_count: Callable[[int, int], int]) -> None:
    kernels = native_support.kernels
    for seed in range(large_count(25, 2000)):
        choose = random.Random(seed)
        torch.manual_seed(seed)
        batch, channels, taps = choose.randint(1, 3), choose.randint(1, 150), choose.randint(1, 4)
        stride, padding = choose.randint(1, 3), choose.randint(0, taps // 2)
        sides = [max(1, taps - 2 * padding) + choose.randint(0, 12) for _ in range(2)]
        x = torch.randint(0, 256, (batch, channels, *sides))
        kind, at_end = choose.choice(("MAXIMUM", "MEAN", "PADDED_MEAN")), choose.random() < 0.7
        before, after = drawn_quantization(choose), drawn_quantization(choose)
        real = (x.double() - before.zero_point) * before.scale
        if kind == "MAXIMUM":
            expected = F.max_pool2d(x.double(), taps, stride, padding)
        else:
            mean = F.avg_pool2d(real, taps, stride, padding, count_include_pad=kind == "PADDED_MEAN")
            expected = after.quantize(mean)
        (source, first), (target, second) = (
            fenced_bytes(rows(one), at_end=at_end) for one in (x, torch.zeros_like(expected))
        )
        axes = (
            kernels.WindowAxis(side, out_side, taps, stride, padding, 1)
            for side, out_side in zip(sides, expected.shape[2:], strict=True)
        )
        window, program = kernels.Window(batch, channels, channels, *axes, channels, channels), kernels.Program()
        mean = before.scale / after.scale, float(after.zero_point)
        places = kernels.Place(0, first), kernels.Place(1, second)
        program.add_int8_pool(window, kernels.Pooling[kind], before.zero_point, mean, *places)
        program.run([source, target], 0, 1, choose.choice((1, 2, 3)))
        found = target.view(torch.uint8)[second : second + expected.numel()].double()
        off = (found - rows(expected).flatten()).abs()
        assert off.max() <= (0 if kind == "MAXIMUM" else 1), f"seed {seed}"


def test_elementwise_operations_are_those_of_real_numbers(
    instructions: str, large_count: Callable[[int, int], int]
) -> None:
    """On 8-bit numbers and floats in any combination, with strides and broadcasting."""
    kernels = native_support.kernels
    for seed in range(large_count(25, 2000)):
        choose = random.Random(seed)
        torch.manual_seed(seed)
        sizes = [choose.choice((1, 2, choose.randint(1, 9))) for _ in range(4)] + [
            choose.choice((2, choose.randint(1, 70)))
        ]
        order = choose.sample(range(5), 5)
        name = choose.choice(sorted(BYTE_COMBINATIONS - {"DIVIDE"}))
        repeated = [size if choose.random() < 0.6 else 1 for size in sizes]
        at_end, memories, operands, reals, strides = choose.random() < 0.7, [], [], [], []
        for shape in (sizes, repeated):
            storage, quantization = choose.choice(("FLOAT32", "BFLOAT16", "BYTE", "BYTE")), drawn_quantization(choose)
            dense = torch.randint(0, 256, [shape[axis] for axis in order])
            numbers = dense.permute([order.index(axis) for axis in range(5)])
            if storage == "BYTE":
                memory, offset = fenced_bytes(dense, at_end=at_end)
                reals.append((numbers.double() - quantization.zero_point) * quantization.scale)
            else:
                dense = (dense - 100) / 64  # exact in bfloat16
                narrow = storage == "BFLOAT16"
                memory, offset = (
                    fenced_bfloat16(dense, at_end=at_end) if narrow else (fenced_floats(dense, at_end=at_end), 0)
                )
                reals.append((numbers.double() - 100) / 64)
            strides.append(list(numbers.expand(sizes).stride()))
            memories.append(memory)
            affine = dequantization_scale_and_shift(quantization)
            operands.append((kernels.Place(len(operands), offset), kernels.Storage[storage], affine))
        stored = choose.choice(("FLOAT32", "BFLOAT16", "BYTE", "BYTE"))
        after = drawn_quantization(choose) if stored == "BYTE" else None
        result = torch.zeros(sizes)
        if stored == "FLOAT32":
            target, offset = fenced_floats(result, at_end=at_end), 0
        else:
            target, offset = (fenced_bytes if stored == "BYTE" else fenced_bfloat16)(result, at_end=at_end)
        bounds = choose.choice((UNBOUNDED, (0.0, math.inf), (-0.5, 0.5)))
        step = Elementwise(0, 2, None if name == "FIRST" else 1, name, choose.choice(("NONE", "SILU")), bounds=bounds)
        program, second = kernels.Program(), (None, *operands[1][1:]) if name == "FIRST" else operands[1]
        program.add_int8_elementwise(
            kernels.Strided(sizes, *strides, list(result.stride())), make_quantized_elementwise(step, after, stored),
            *operands[0], *second,
            kernels.Place(2, offset),
        )  # fmt: skip
        program.run([*memories, target], 0, 1, choose.choice((1, 2, 3)))
        exact = step.run(reals[0], None if name == "FIRST" else reals[1]).expand(sizes).flatten()
        if after is None:
            found = target if stored == "FLOAT32" else target.view(torch.bfloat16)[offset : offset + result.numel()]
            tolerance = 1e-5 if stored == "FLOAT32" else 2**-8
            torch.testing.assert_close(
                found.double(), exact, rtol=tolerance, atol=1e-4, msg=lambda m, s=seed: f"{s}: {m}"
            )
        else:
            found = target.view(torch.uint8)[offset : offset + result.numel()].double()
            assert (found - after.quantize(exact)).abs().max() <= 1, f"seed {seed}"


def test_a_tensor_that_does_not_fit_is_refused() -> None:
    kernels, step = native_support.kernels, FusedConvolution(0, 1, "", None, (1, 1), (0, 0), (1, 1), 1, weight_scale="")
    weight, scale = quantize_weights(torch.randn(8, 16, 1, 1))
    packed, byte = PackedInt8Weights.of(step, weight), Quantization.covering(0, 1)
    after = make_requantization(step, packed, 0, [scale, None], [byte, None, byte], (place(-1), 0))
    axis = kernels.WindowAxis(4, 4, 1, 1, 0, 1)
    window = kernels.Window(1, 16, 8, axis, axis, 16, 8)

    def add(weights: Tensor, zero: int = 0) -> "native_support.kernels.Program":
        program = kernels.Program()
        program.add_int8_convolution(window, kernels.Int8Kernel.DIRECT, place(0), zero, weights, after, place(1))
        return program

    with pytest.raises(ValueError, match="weights holds"):
        add(packed.numbers.flatten()[:-1].clone())
    with pytest.raises(TypeError, match="weights must be int"):
        add(packed.numbers.float())
    with pytest.raises(ValueError, match="zero=256 must be from 0 to 255"):
        add(packed.numbers, 256)
    with pytest.raises(ValueError, match="memory 0 holds 63 numbers; these sizes need 64"):
        add(packed.numbers).run([torch.zeros(63), torch.zeros(32)], 0, 1, 1)
