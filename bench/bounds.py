"""Lower bounds of the time of a network on a CPU, from its multiplications and its memory traffic.

The bounds are the multiplications over the highest rate of a matrix product or a 1×1 convolution, and the bytes of all
weights and of all maps, each written once and read once by each step that needs it, over the highest rate of a sum of
400 MB. Both rates are measured on the machine at hand. Multiplications are those left by Winograd's algorithm, F(4,3)
or F(6,3), where svertka uses it. In int8, its products need 16 bits, of which a CPU computes half as many at once: a
3×3 convolution counts as the cheaper of both ways. Transforms of Winograd's algorithm do not count.
"""

import warnings
from functools import cache, partial
from math import ceil, prod

import torch
from torch import nn

from svertka.compiler.capture_at_several_batch_sizes import capture_graph
from svertka.compiler.fusion import fuse
from svertka.compiler.ir import BatchDependentSize, FusedConvolution, step_output_numbers
from svertka.compiler.optimize import optimize
from svertka.compiler.packing import is_linear_layer, select_kernel_kind, select_winograd_tile
from svertka.conv import native_support
from turns import seconds

BYTES = {"fp32": 4, "bf16": 2, "int8": 1}  # of a value


def work(network: nn.Module, shape: tuple[int, ...], precision: str = "fp32") -> dict[str, float]:
    """Return the work of an optimized network for images of `shape`: 10⁹ multiplications, MB of weights and of maps."""
    steps = fuse(capture_graph(network, shape))

    def sides(value: int) -> list[int]:
        return [side.of(shape[0]) if isinstance(side, BatchDependentSize) else side for side in steps.shapes[value]]

    defined, left = 0, 0
    for step in steps.steps:
        if isinstance(step, FusedConvolution):
            weight = steps.tensors[step.weight].shape
            batch, _, *window = (*sides(step.result), 1, 1)[:4]
            every = batch * prod(window) * prod(weight)
            defined += every
            if not is_linear_layer(steps, step) and select_kernel_kind(step, tuple(weight)) == "winograd":
                kernels = ceil(weight[2] / 3) ** 2
                floats = native_support.kernels.Precision["FLOAT32" if precision == "fp32" else "BFLOAT16"]
                tile = select_winograd_tile(min(window), floats)  # F(4,3) takes 6×6 products for 4×4 results
                products = (tile + 2) ** 2 * weight[0] * weight[1] * kernels
                tiles = batch * prod(ceil(side / tile) for side in window) * products
                every = min(every, 2 * tiles) if precision == "int8" else tiles
            left += every
    maps = sum(prod(sides(value)) for step in steps.steps for value in (*step.inputs, *step_output_numbers(step)))
    weights = sum(tensor.numel() for tensor in steps.tensors.values())
    return {
        "multiplications": defined / 1e9,
        "multiplications_left": left / 1e9,
        "weights": BYTES[precision] * weights / 1e6,
        "maps": BYTES[precision] * maps / 1e6,
    }


@cache
def roof(threads: int, precision: str = "fp32") -> float:
    """Return the highest measured rate, 10⁹ multiply-adds per second, of products of several sizes.

    `threads`: how many PyTorch is set to.
    """
    best = 0.0
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}[precision]
    multiply = torch._int_mm if precision == "int8" else torch.mm
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there are few images to calibrate on
        for side in (256, 512, 1024, 2048):
            a, b = (torch.randn(side, side).mul(30).to(dtype) for _ in range(2))
            best = max(best, side**3 / min(seconds(partial(multiply, a, b)) for _ in range(20)))
        for channels, size in ((128, 56), (256, 56), (256, 28), (512, 28)):
            images = torch.randn(1, channels, size, size).contiguous(memory_format=torch.channels_last)
            layers = nn.Sequential(*(nn.Conv2d(channels, channels, 1, bias=False) for _ in range(3)))
            calibration = images if precision == "int8" else None
            ways = [optimize(layers[:count], images, precision=precision, calibration=calibration) for count in (1, 3)]
            fastest = [min(seconds(partial(way, images)) for _ in range(40)) for way in ways]
            best = max(best, (channels * size) ** 2 / fastest[0], 3 * (channels * size) ** 2 / fastest[1])
    return best / 1e9


@cache
def bandwidth(threads: int) -> float:
    """Return the highest measured bandwidth of several sums, 10⁹ bytes per second, with so many threads set."""
    numbers = torch.ones(100_000_000)
    return BYTES["fp32"] * len(numbers) / min(seconds(numbers.sum) for _ in range(10)) / 1e9


def milliseconds_at_least(network: nn.Module, shape: tuple[int, ...], precision: str, threads: int) -> float:
    """Return the larger of both bounds for a batch of `shape`."""
    needed = work(network, shape, precision)
    arithmetic = needed["multiplications_left"] / roof(threads, precision)
    memory = (needed["weights"] + needed["maps"]) / 1e3 / bandwidth(threads)
    return 1e3 * max(arithmetic, memory)
