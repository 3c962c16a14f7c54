"""Benchmark of inference time against batch size, image size, threads and depth, with three peers and two lower bounds.

    pip install onnxruntime ncnn pnnx MNN
    python bench/inference_time_by_size_and_threads.py [--peers onnxruntime ncnn mnn] [--axes batch size threads depth]
        [--rounds 5] [--output FILE]
    python experiments/inference_time_figure.py    # the figure and the tables, from its metrics/inference_time.jsonl

ResNet-18 in batches of 1 to 64, on images of 96 to 512 pixels, with 1 and 2 threads, and ResNet-18 to 152, in float32
with random weights and images. The engines take turns as in bench/networks_vs_engines.py. Each line of JSON has the
configuration, the milliseconds of a whole batch, and the work: 10⁹ multiplications by the definition of a convolution,
those left by Winograd's algorithm (`multiplications_left`), and the megabytes of all weights and of all maps, each
written once and read once by each step that needs it. The bounds are these multiplications over `roof` and these bytes
over `bandwidth`, the highest rates measured on this machine in the same run, with matrix products and with sums of 400
MB.
"""

import argparse
import json
from dataclasses import dataclass
from functools import partial
from math import ceil, prod
from pathlib import Path
from typing import Any

import torch
from torch import nn

from networks_vs_engines import FLOAT32, compare
from svertka.compiler.capture_at_several_batch_sizes import capture_graph
from svertka.compiler.fusion import fuse
from svertka.compiler.ir import BatchDependentSize, FusedConvolution, step_output_numbers
from svertka.compiler.optimize import optimize
from svertka.compiler.packing import is_linear_layer, select_kernel_kind
from svertka.device import cpu_name, set_threads
from svertka.files import write_atomic
from svertka.models.registry import find_model
from turns import seconds

FLOAT = 4  # bytes


@dataclass(frozen=True)
class Point:
    """One configuration."""

    network: str = "resnet18"
    batch: int = 1
    size: int = 224
    threads: int = 2


AXES = {
    "batch": [Point(batch=batch) for batch in (1, 2, 4, 8, 16, 32, 64)],
    "size": [Point(size=size) for size in (96, 128, 160, 224, 320, 384, 512)],
    "threads": [Point(batch=batch, threads=threads) for batch in (1, 16) for threads in (1, 2)],
    "depth": [Point(f"resnet{depth}") for depth in (18, 34, 50, 101, 152)],
}


def work(network: nn.Module, shape: tuple[int, ...]) -> dict[str, float]:
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
                kernels = ceil(weight[2] / 3) ** 2  # F(4,3) takes 6×6 products for 4×4 results
                every = batch * prod(ceil(side / 4) for side in window) * 36 * weight[0] * weight[1] * kernels
            left += every
    maps = sum(prod(sides(value)) for step in steps.steps for value in (*step.inputs, *step_output_numbers(step)))
    weights = sum(tensor.numel() for tensor in steps.tensors.values())
    return {
        "multiplications": defined / 1e9,
        "multiplications_left": left / 1e9,
        "weights": FLOAT * weights / 1e6,
        "maps": FLOAT * maps / 1e6,
    }


def roof() -> float:
    """Return the highest measured rate, 10⁹ multiply-adds per second, of matrix products of several sizes."""
    best = 0.0
    with torch.inference_mode():
        for side in (256, 512, 1024, 2048):
            a, b = torch.randn(side, side), torch.randn(side, side)
            best = max(best, side**3 / min(seconds(partial(torch.mm, a, b)) for _ in range(20)))
        for channels, size in ((128, 56), (256, 56), (256, 28), (512, 28)):
            images = torch.randn(1, channels, size, size).contiguous(memory_format=torch.channels_last)
            pointwise = optimize(nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False)), images)
            fastest = min(seconds(partial(pointwise, images)) for _ in range(40))
            best = max(best, (channels * size) ** 2 / fastest)
    return best / 1e9


def bandwidth() -> float:
    """Return the highest measured bandwidth of several sums, 10⁹ bytes per second."""
    numbers = torch.ones(100_000_000)
    return FLOAT * len(numbers) / min(seconds(numbers.sum) for _ in range(10)) / 1e9


def measured(point: Point, rounds: int, peers: list[str]) -> dict[str, Any]:
    """Return `point`, its work, and `ms` and `ms_median` of the batch for each engine."""
    set_threads(point.threads)
    makers = {side: FLOAT32[side] for side in ("ours", *peers)}
    found = compare(point.network, point.batch, rounds, makers, point.size)
    sides = {side: {"ms": one["ms"], "ms_median": one["ms_median"]} for side, one in found.items()}
    network = find_model(point.network).build().eval()
    return vars(point) | work(network, (point.batch, 3, point.size, point.size)) | {"sides": sides}


def main() -> None:
    """Measure, print, and optionally write the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", nargs="+", choices=list(FLOAT32)[1:], default=["onnxruntime", "ncnn", "mnn"])
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="file for the lines of JSON")
    options = parser.parse_args()
    machine: dict[str, Any] = {"processor": cpu_name(), "roof": {}, "bandwidth": {}}
    for threads in (1, 2):
        set_threads(threads)
        machine["roof"][threads], machine["bandwidth"][threads] = roof(), bandwidth()
    lines = [json.dumps(machine)]
    print(lines[0], flush=True)
    for point in dict.fromkeys(point for axis in options.axes for point in AXES[axis]):
        lines.append(json.dumps(measured(point, options.rounds, options.peers)))
        print(lines[-1], flush=True)
    if options.output:
        write_atomic(options.output, "".join(line + "\n" for line in lines).encode())


if __name__ == "__main__":
    main()
