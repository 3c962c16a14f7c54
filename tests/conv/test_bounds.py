"""What kernels read and write: each tensor ends, or begins, beside a page of memory that may not be touched.

A kernel that reads or writes a number too many ends the process here, where elsewhere it would go unseen.
"""

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fences import Fenced, line, place, rows
from svertka.compiler.ir import ACTIVATIONS, COMBINATIONS, UNBOUNDED, FusedConvolution
from svertka.compiler.packing import PackedWeights
from svertka.conv import native_support

pytestmark = pytest.mark.skipif(bool(native_support.why_not()), reason="no kernels here")


def drawn_layer(choose: random.Random) -> tuple[FusedConvolution, tuple[int, ...], tuple[int, ...], tuple[int, int]]:
    """A convolution, the sizes of its input (N, C, H, W) and its weights, and of its result in y and x."""
    ins, outs = (choose.choice((1, 2, 3, 4, 5, 8, 16, 17, 24, 31, 32, 33, 40, 64, 65)) for _ in range(2))
    groups, taps = 1, (choose.choice((1, 1, 2, 3, 3, 3, 4, 7)),) * 2
    if choose.random() < 0.4 and ins > 1:
        groups, group_ins, group_outs = (
            ins,
            *choose.choice(((1, 1), (1, 1), (2, 2), (4, 4), (8, 8), (16, 16), (2, 4), (1, 3))),
        )
        if choose.random() < 0.5:
            most = choose.choice((17, 17, 70))
            group_ins, group_outs = choose.randint(1, most), choose.randint(1, most)
            groups = min(groups, 256 // most)
        ins, outs = groups * group_ins, groups * group_outs
        taps = choose.choice(((3, 3), (3, 3), (5, 5), (7, 7), (2, 2), (9, 9), (1, 1), (3, 5), (1, 11), (11, 1), (4, 6)))
    elif choose.random() < 0.2:
        taps = choose.choice(((1, 3), (3, 1), (2, 5), (7, 1)))
    stride = (choose.choice((1, 1, 1, 2, 3)),) * 2
    dilation = (choose.choice((1, 1, 1, 2)),) * 2
    padding = choose.randint(0, taps[0]), choose.randint(0, taps[1])
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, taps, strict=True)]
    most = 18, choose.choice((18, 18, 18, 80))
    sides = [max(1, r - 2 * p) + choose.randint(0, m) for r, p, m in zip(reach, padding, most, strict=True)]
    size = [(n + 2 * p - r) // s + 1 for n, p, r, s in zip(sides, padding, reach, stride, strict=True)]
    step = FusedConvolution(0, 1, "weight", "bias", stride, padding, dilation, groups)
    return step, (choose.randint(1, 3), ins, *sides), (outs, ins // groups, *taps), (size[0], size[1])


def sliding(
    step: FusedConvolution, axis: int, size: int, out_size: int, taps: int
) -> "native_support.kernels.WindowAxis":
    return native_support.kernels.WindowAxis(
        size, out_size, taps, step.stride[axis], step.padding[axis], step.dilation[axis]
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_convolutions_stay_inside(
    instructions: str, dtype: torch.dtype, large_count: Callable[[int, int], int]
) -> None:
    kernels = native_support.kernels
    for seed in range(large_count(25, 2000)):
        choose = random.Random(seed)
        torch.manual_seed(seed)
        step, shape, of_weight, size = drawn_layer(choose)
        at_end, threads = choose.random() < 0.7, choose.choice((1, 2, 3))
        weight = torch.randn(of_weight).to(dtype)
        packed = PackedWeights.of(step, weight if step.groups == 1 else weight.float(), dense=False)
        low, high = choose.choice((UNBOUNDED, (0.0, math.inf), (0.0, 1.0)))
        x, bias, residual = torch.randn(shape), torch.randn(of_weight[0]), torch.randn(shape[0], of_weight[0], *size)
        tensors = rows(x), packed.numbers, bias, rows(residual), torch.zeros_like(rows(residual))
        source, numbers, added, more, target = (Fenced(one, at_end=at_end) for one in tensors)
        has_bias, has_residual = choose.random() < 0.7, choose.random() < 0.5
        ending = kernels.Epilogue(
            added.numbers if has_bias else None, place(2 if has_residual else -1), of_weight[0], low, high
        )
        program = kernels.Program()
        axes = [sliding(step, axis, shape[2 + axis], size[axis], of_weight[2 + axis]) for axis in (0, 1)]
        if packed.kernel in ("depthwise", "grouped"):
            window = kernels.Window(shape[0], shape[1], of_weight[0], *axes, shape[1], of_weight[0])
            program.add_grouped(window, step.groups, place(0), numbers.numbers, ending, place(1))
        else:
            reads, writes = of_weight[1], of_weight[0] // step.groups
            window = kernels.Window(shape[0], reads, writes, *axes, shape[1], of_weight[0])
            sides = kernels.Convolution(shape[0], reads, writes, *shape[2:], *size, *step.padding)
            sides.in_step, sides.out_step = shape[1], of_weight[0]
            sides.tile = 4 if packed.precision == kernels.Precision.BFLOAT16 else choose.choice((4, 6))
            add, sizes = (program.add_winograd, sides) if packed.kernel == "winograd" else (program.add_direct, window)
            for group, part in enumerate(numbers.numbers.reshape(packed.numbers.shape)):
                own = kernels.Epilogue(
                    added.numbers[group * writes :] if has_bias else None,
                    kernels.Place(2 if has_residual else -1, group * writes), of_weight[0], low, high,
                )  # fmt: skip
                places = kernels.Place(0, group * reads), kernels.Place(1, group * writes)
                add(sizes, places[0], part, packed.precision, own, places[1])
        program.run([source.numbers, target.numbers, more.numbers], 0, len(program), threads)
        exact = F.conv2d(
            x.double(), packed.unpack().double(), None, step.stride, step.padding, step.dilation, step.groups
        )
        exact = exact + bias.double()[:, None, None] * has_bias + residual * has_residual
        found = target.numbers.reshape(shape[0], *size, -1).permute(0, 3, 1, 2)
        narrow = packed.precision == kernels.Precision.BFLOAT16
        error = (0.1 if narrow else 1e-4) * math.prod(of_weight[1:]) ** 0.5
        torch.testing.assert_close(
            found.double(),
            exact.clamp(low, high),
            rtol=0,
            atol=error,
            msg=lambda text, seed=seed: f"seed {seed}: {text}",
        )


def test_pooling_and_sums_stay_inside(instructions: str, large_count: Callable[[int, int], int]) -> None:
    kernels = native_support.kernels
    for seed in range(large_count(25, 2000)):
        choose = random.Random(seed)
        torch.manual_seed(seed)
        batch, channels, taps = choose.randint(1, 3), choose.randint(1, 70), choose.randint(1, 4)
        stride, padding = choose.randint(1, 3), choose.randint(0, taps // 2)
        sides = [max(1, taps - 2 * padding) + choose.randint(0, 12) for _ in range(2)]
        x = torch.randn(batch, channels, *sides)
        kind, at_end, threads = choose.choice(("MAXIMUM", "MEAN", "PADDED_MEAN")), choose.random() < 0.7, 2
        if kind == "MAXIMUM":
            expected = F.max_pool2d(x, taps, stride, padding)
        else:
            expected = F.avg_pool2d(x, taps, stride, padding, count_include_pad=kind == "PADDED_MEAN")
        source, pooled = Fenced(rows(x), at_end=at_end), Fenced(rows(expected), at_end=at_end)
        pooled.numbers.zero_()
        added, other = Fenced(rows(x), at_end=at_end), Fenced(rows(x.flip(0)), at_end=at_end)
        axes = (
            kernels.WindowAxis(size, out_size, taps, stride, padding, 1)
            for size, out_size in zip(sides, expected.shape[2:], strict=True)
        )
        program = kernels.Program()
        window = kernels.Window(batch, channels, channels, *axes, channels, channels)
        program.add_pool(window, kernels.Pooling[kind], place(0), place(1))
        ending = kernels.Epilogue(None, place(-1), 0, 0.0, math.inf)
        program.add_elementwise(line(x.numel()), kernels.Combination.ADD, place(0), place(3), ending, place(2))
        program.run([one.numbers for one in (source, pooled, added, other)], 0, 2, threads)
        torch.testing.assert_close(pooled.numbers, rows(expected).flatten())
        torch.testing.assert_close(added.numbers, rows((x + x.flip(0)).relu()).flatten())


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activation_functions_are_those_of_pytorch(instructions: str, name: str) -> None:
    kernels = native_support.kernels
    special = torch.tensor([math.inf, -math.inf, math.nan, 0.0, 1e-38, -1e-38, 88.0, -88.0, 104.0, -104.0, 3e30, -3e30])
    x = torch.cat([special, torch.linspace(-12, 12, 9973), torch.randn(500) * 1e-3])
    found, slope = torch.zeros_like(x), 0.7
    program = kernels.Program()
    ending = kernels.Epilogue(None, place(-1), 0, -math.inf, math.inf, kernels.Activation[name], slope)
    program.add_elementwise(line(len(x)), kernels.Combination.FIRST, place(0), None, ending, place(1))
    program.run([x, found], 0, 1, 2)
    exact, theirs = ACTIVATIONS[name](x.double(), slope), ACTIVATIONS[name](x, slope)
    finite = exact.isfinite() & (exact.abs() < 1e38)
    torch.testing.assert_close(found[finite].double(), exact[finite], rtol=1e-6, atol=2e-6)
    others = ~finite & (theirs == theirs)
    torch.testing.assert_close(found[others], theirs[others])
    assert found[~finite & x.isnan()].isnan().all()


def test_strided_operations_stay_inside(instructions: str, large_count: Callable[[int, int], int]) -> None:
    kernels = native_support.kernels
    for seed in range(large_count(25, 2000)):
        choose = random.Random(seed)
        torch.manual_seed(seed)
        sizes = [choose.choice((1, 2, 3, choose.randint(1, 20))) for _ in range(4)] + [
            choose.choice((2, 3, choose.randint(1, 70)))
        ]
        name = choose.choice((*COMBINATIONS, "FIRST"))
        order = choose.sample(range(5), 5)
        result = torch.zeros([sizes[axis] for axis in order]).permute([order.index(axis) for axis in range(5)])
        other_order = choose.sample(range(5), 5)
        x = torch.randn([sizes[a] for a in other_order]).permute([other_order.index(a) for a in range(5)])
        repeated = [size if choose.random() < 0.6 else 1 for size in sizes]
        y = torch.randn(repeated).abs() + 0.5
        at_end = choose.random() < 0.7
        before, second, after = (Fenced(one.as_strided((one.numel(),), (1,)), at_end=at_end) for one in (x, y, result))
        strides = [list(x.stride()), list(y.expand(sizes).stride()), list(result.stride())]
        low, high = choose.choice((UNBOUNDED, (0.0, math.inf), (-0.5, 0.5)))
        ending = kernels.Epilogue(None, place(-1), 0, low, high)
        program = kernels.Program()
        program.add_elementwise(
            kernels.Strided(sizes, *strides), kernels.Combination[name], place(0),
            None if name == "FIRST" else choose.choice((place(2), second.numbers)), ending, place(1),
        )  # fmt: skip
        program.run([before.numbers, after.numbers, second.numbers], 0, 1, choose.choice((1, 2, 3)))
        exact = (x if name == "FIRST" else COMBINATIONS[name](x, y.expand(sizes))).clamp(low, high)
        found = after.numbers.as_strided(sizes, result.stride(), after.numbers.storage_offset())
        torch.testing.assert_close(found, exact, msg=lambda text, seed=seed: f"seed {seed}: {text}")


def test_normalization_stays_inside(instructions: str, large_count: Callable[[int, int], int]) -> None:
    kernels = native_support.kernels
    for seed in range(large_count(25, 2000)):
        choose = random.Random(seed)
        torch.manual_seed(seed)
        groups, most = choose.choice(((choose.randint(1, 5), 40), (choose.randint(6, 40), 6)))
        pixels, batch = choose.choice((1, choose.randint(2, 40), choose.randint(250, 530))), choose.randint(1, 4)
        channels = groups * choose.randint(1, most)
        x = torch.randn(batch, pixels, channels) * choose.choice((1.0, 30.0)) + choose.choice((0.0, 100.0))
        tensors = x, torch.zeros_like(x), torch.randn(channels), torch.randn(channels)
        at_end = choose.random() < 0.7
        source, target, weight, bias = (Fenced(one, at_end=at_end) for one in tensors)
        program, ending = kernels.Program(), kernels.Epilogue(None, place(-1), 0, 0.0, math.inf)
        settings = kernels.Normalization(batch, pixels, channels, groups, channels, channels, 1e-5)
        program.add_normalize(settings, place(0), weight.numbers, bias.numbers, ending, place(1))
        program.run([source.numbers, target.numbers], 0, 1, choose.choice((1, 2, 3)))
        grouped = x.double().reshape(batch, pixels, groups, -1)
        variance, mean = torch.var_mean(grouped, (1, 3), correction=0, keepdim=True)
        deviation = (variance + 1e-5).sqrt()
        exact = ((grouped - mean) / deviation).flatten(2) * weight.numbers + bias.numbers
        limit = 1e-4 + 2**-21 * float((mean.abs() / deviation).amax())  # the mean is a float
        found = target.numbers.reshape(x.shape).double()
        torch.testing.assert_close(found, exact.relu(), rtol=0, atol=limit)


def wrong(choose: random.Random, arguments: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """`arguments` of a kernel with one tensor that holds too little, of another dtype, or left out; or no threads."""
    name = choose.choice([key for key, value in arguments.items() if isinstance(value, Tensor)] + ["threads"])
    if name == "threads":
        return name, arguments | {"threads": choose.choice((0, -1, 10**6))}
    tensor = arguments[name]
    spoiled = choose.choice((tensor.flatten()[:-1].clone(), tensor.double(), tensor.to(torch.int32), tensor.to("meta")))
    if name not in ("bias", "residual"):
        spoiled = choose.choice((spoiled, None))
    return name, arguments | {name: spoiled}


def test_a_tensor_that_does_not_hold_what_the_sizes_need_is_refused(large_count: Callable[[int, int], int]) -> None:
    kernels = native_support.kernels
    plain, floats = kernels.Order.PLAIN, kernels.Precision.FLOAT32
    for seed in range(large_count(300, 20_000)):
        choose = random.Random(seed)
        batch, ins, outs, height, width = (choose.randint(1, 20) for _ in range(5))
        shape = kernels.Convolution(batch, ins, outs, height, width, height, width, 1, 1)
        x, result, weights = (torch.randn(size) for size in ((batch, height, width, ins), (batch, height, width, outs),
                                                             (outs, 3, 3, ins)))  # fmt: skip
        axes = (kernels.Axis(size, size, 3, 1, 1, 1, 1) for size in (height, width))
        correlation = kernels.Correlation(batch, ins, outs, *axes)
        bias, packed = torch.randn(outs), torch.randn(kernels.winograd_packed_size(ins, outs))
        more = {"bias": bias, "residual": result, "relu": True, "precision": floats, "output": result, "threads": 1}
        forward = {"shape": shape, "input": x, "weights": weights, "order": plain} | more
        narrow = forward | {"input": x.bfloat16(), "residual": result.bfloat16(), "output": result.bfloat16()}
        of_weights = {"gradient": result, "input": x, "result": weights, "threads": 1}
        pack = {"weights": weights, "in_channels": ins, "out_channels": outs, "packed": packed, "threads": 1}
        by_fourier = {"input": x, "weights": weights, "adjoint": False, "output": result, "threads": 1}
        calls: list[tuple[Callable[..., None], dict[str, Any]]] = [
            (kernels.winograd_forward, choose.choice((forward, narrow))),
            (kernels.winograd_weight_gradient, of_weights | {"shape": shape, "precision": floats}),
            (kernels.fft_forward, by_fourier | {"shape": correlation}),
            (kernels.fft_weight_gradient, of_weights | {"shape": correlation}),
            (kernels.winograd_pack, pack),
        ]
        function, arguments = choose.choice(calls)
        function(**arguments)
        name, spoiled = wrong(choose, arguments)
        with pytest.raises(
            (TypeError, ValueError), match=f"{name}.* (holds|has a dtype|is not on|must be)|incompatible"
        ):
            function(**spoiled)


def test_sizes_that_make_no_sense_are_refused() -> None:
    kernels = native_support.kernels
    x = torch.zeros(4096)
    for seed in range(300):
        choose = random.Random(seed)
        sizes = [1, 4, 4, 5, 5, 5, 5, 1, 1]
        sizes[choose.randrange(7)] = choose.choice((-1, -(2**40), 2**31, 2**62))
        with pytest.raises(ValueError, match=r"must be from|more numbers than there are addresses"):
            kernels.winograd_forward(kernels.Convolution(*sizes), x, x, kernels.Order.PLAIN, None, None, False,
                                     kernels.Precision.FLOAT32, x, 1)  # fmt: skip
        axis = [5, 5, 3, 1, 1, 1, 1]
        axis[choose.choice((0, 1, 2, 4, 5, 6))] = choose.choice((0, -1, 2**40))
        correlation = kernels.Correlation(1, 4, 4, kernels.Axis(*axis), kernels.Axis(5, 5, 3, 1, 1, 1, 1))
        with pytest.raises(ValueError, match="must be from"):
            kernels.fft_forward(correlation, x, x, False, x, 1)
        sliding = [5, 5, 3, 1, 1, 1]
        sliding[choose.choice((0, 1, 2, 3, 5))] = choose.choice((0, -1, 2**40))
        window = kernels.Window(1, 4, 4, kernels.WindowAxis(*sliding), kernels.WindowAxis(5, 5, 3, 1, 1, 1), 4, 4)
        with pytest.raises(ValueError, match="must be from"):
            kernels.Program().add_pool(window, kernels.Pooling.MEAN, place(0), place(1))


def test_sizes_of_tiles_without_kernels_are_refused() -> None:
    kernels = native_support.kernels
    x, floats, bfloat16 = torch.zeros(4096), kernels.Precision.FLOAT32, kernels.Precision.BFLOAT16
    shape = kernels.Convolution(1, 4, 4, 5, 5, 5, 5, 1, 1)
    ending = kernels.Epilogue(None, place(-1), 0, -math.inf, math.inf)
    for tile, numbers, precision in ((5, x, floats), (6, x.bfloat16(), floats), (6, x, bfloat16)):
        shape.tile = tile
        with pytest.raises(ValueError, match=f"tile={tile} must be 4, or 6 in a forward pass with maps"):
            kernels.winograd_forward(shape, numbers, x, kernels.Order.PLAIN, None, None, False, precision, numbers, 1)
    with pytest.raises(ValueError, match="tile=6 must be 4"):
        kernels.winograd_weight_gradient(shape, x, x, floats, x, 1)
    with pytest.raises(ValueError, match="tile=6 must be 4"):
        kernels.Program().add_winograd(shape, place(0), x.bfloat16(), bfloat16, ending, place(1))


def test_a_program_runs_only_in_memories_that_hold_what_its_steps_use() -> None:
    kernels = native_support.kernels
    for seed in range(200):
        choose = random.Random(seed)
        pixels, channels, begin = (choose.randint(1, 30) for _ in range(3))
        ending = kernels.Epilogue(None, place(-1), 0, 0.0, math.inf)
        program, add = kernels.Program(), kernels.Combination.ADD
        program.add_elementwise(line(pixels * channels), add, place(0), place(2), ending, kernels.Place(1, begin))
        needed = [pixels * channels, begin + pixels * channels, pixels * channels]
        memories = [torch.zeros(size) for size in needed]
        program.run(memories, 0, 1, 1)
        number = choose.randrange(3)
        memories[number] = memories[number][: choose.randrange(needed[number])].clone()
        with pytest.raises(ValueError, match=f"memory {number} holds"):
            program.run(memories, 0, 1, 1)
        with pytest.raises(ValueError, match="there are 1 steps"):
            program.run(memories, 0, 2, 1)
        whole, step = kernels.Program(), pixels * channels
        maps = [(kernels.Place(0, 7), step), (place(1), 0)]
        whole.add_parts(3, [program], needed[0], maps)
        outer = [torch.zeros(7 + 2 * step + needed[1]), torch.zeros(needed[2])]
        whole.run(outer, 0, 1, 2)
        with pytest.raises(ValueError, match="memory 0 holds"):
            whole.run([outer[0][:-1].clone(), outer[1]], 0, 1, 1)
        with pytest.raises(ValueError, match="numbers of its own"):
            whole.add_parts(3, [program], needed[0] - 1, maps)
        with pytest.raises(ValueError, match="a memory that it is not given"):
            whole.add_parts(3, [program], needed[0], maps[:1])


def test_bfloat16_weights_of_an_odd_number_of_inputs_need_their_last_pair() -> None:
    kernels = native_support.kernels
    shape = kernels.Convolution(1, 17, kernels.panel_width(), 5, 5, 5, 5, 1, 1)
    ending = kernels.Epilogue(None, place(-1), 0, -math.inf, math.inf)
    for inputs, dtype, precision in (
        (17, torch.float32, kernels.Precision.FLOAT32),
        (18, torch.bfloat16, kernels.Precision.UPCAST),
    ):
        program, weights = kernels.Program(), torch.zeros(inputs, 9, kernels.panel_width(), dtype=dtype)
        program.add_winograd(shape, place(0), weights, precision, ending, place(1))
        with pytest.raises(ValueError, match="weights holds"):
            program.add_winograd(shape, place(0), weights[1:], precision, ending, place(1))


def test_an_empty_batch_is_computed_by_every_kernel() -> None:
    kernels = native_support.kernels
    numbers = torch.zeros(4096)
    axes = kernels.WindowAxis(5, 5, 3, 1, 1, 1), kernels.WindowAxis(5, 5, 3, 1, 1, 1)
    window, shape = kernels.Window(0, 4, 4, *axes, 4, 4), kernels.Convolution(0, 4, 4, 5, 5, 5, 5, 1, 1)
    ending = kernels.Epilogue(None, place(-1), 0, -math.inf, math.inf)
    program, whole = kernels.Program(), kernels.Program()
    program.add_direct(window, place(0), numbers, kernels.Precision.FLOAT32, ending, place(1))
    program.add_grouped(window, 4, place(0), numbers, ending, place(1))
    program.add_grouped(window, 1, place(0), numbers, ending, place(1))
    program.add_winograd(shape, place(0), numbers, kernels.Precision.FLOAT32, ending, place(1))
    program.add_pool(window, kernels.Pooling.MAXIMUM, place(0), place(1))
    program.add_elementwise(line(0), kernels.Combination.FIRST, place(0), None, ending, place(1))
    program.add_normalize(kernels.Normalization(0, 1, 4, 1, 4, 4, 1e-5), place(0), None, None, ending, place(1))
    whole.add_parts(0, [program], 0, [(place(0), 4)])
    for threads in (1, 2, 3):
        program.run([numbers[:0], numbers[:0]], 0, len(program), threads)
        whole.run([numbers[:0]], 0, 1, threads)
