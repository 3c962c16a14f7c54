"""Benchmark of the 1×1 convolutions of networks: the share of the highest measured rate of products that each reaches.

    python bench/pointwise_share_of_roof.py [--only resnet50] [--precision fp32 bf16 int8] [--batch 16] [--threads 1]
        [--rounds 8] [--json]

Each convolution, with ReLU, is between two small ones, so that its maps have the dtype that they have inside a network.
With one thread, the clock is CPU time.
"""

import argparse
import json
import time
import warnings
from functools import partial

import torch
from torch import nn

from bounds import roof
from svertka import optimize
from svertka.compiler.capture_at_several_batch_sizes import capture_graph
from svertka.compiler.fusion import fuse
from svertka.compiler.ir import FusedConvolution
from svertka.compiler.packing import is_linear_layer
from svertka.device import cpu_name, set_threads
from svertka.models.registry import find_model
from turns import seconds

NEIGHBOR_CHANNELS = 8  # read and returned by the convolutions before and after it
Shape = tuple[int, int, int, int]  # input channels, output channels, side of the input, stride


def pointwise_shapes(name: str) -> list[Shape]:
    """Return the shapes of the 1×1 convolutions of a network, without repetitions, in the order in which they run."""
    model = find_model(name)
    steps = fuse(capture_graph(model.build().eval(), (2, *model.input_shape)))
    found: dict[Shape, None] = {}
    for step in steps.steps:
        if not isinstance(step, FusedConvolution) or is_linear_layer(steps, step) or step.groups > 1:
            continue
        outs, ins, *taps = steps.tensors[step.weight].shape
        if taps == [1, 1]:
            side = steps.shapes[step.x][2]
            assert isinstance(side, int)
            found[ins, outs, side, step.stride[0]] = None
    return list(found)


def share_of_roof(shape: Shape, precision: str, batch: int, threads: int, rounds: int) -> dict[str, float]:
    """Return `ms`, `gmacs`, 10⁹ multiply-adds per second, and `share` of the highest measured rate."""
    ins, outs, side, stride = shape
    torch.manual_seed(0)
    sizes = ((NEIGHBOR_CHANNELS, ins, 1), (ins, outs, stride), (outs, NEIGHBOR_CHANNELS, 1))
    parts = (part for one in sizes for part in (nn.Conv2d(*one[:2], 1, one[2]), nn.ReLU()))
    images = torch.randn(batch, NEIGHBOR_CHANNELS, side, side).contiguous(memory_format=torch.channels_last)
    calibration = images if precision == "int8" else None
    optimized = optimize(nn.Sequential(*parts).eval(), images, precision=precision, calibration=calibration)
    plan = optimized.compiled[0].plan(batch)
    memories = [plan._arena(), images.permute(0, 2, 3, 1), None]
    plan.program.run(memories, 0, len(plan.program), threads)
    middle = [place for step, place in plan.ranges if isinstance(step, FusedConvolution)][1]
    convolve = partial(plan.program.run, memories, middle.start, middle.stop, threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    fastest = min(seconds(convolve, clock) for _ in range(rounds))
    rate = batch * (-(-side // stride)) ** 2 * ins * outs / fastest / 1e9
    return {"ms": 1e3 * fastest, "gmacs": rate, "share": rate / roof(threads, precision)}


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=["resnet50", "googlenet_bn", "squeezenet1_1"])
    parser.add_argument("--precision", nargs="+", choices=["fp32", "bf16", "int8"], default=["fp32", "bf16", "int8"])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    threads = set_threads(options.threads)
    warnings.filterwarnings("ignore")  # that there are few images to calibrate on
    for name in options.only:
        for shape in pointwise_shapes(name):
            for precision in options.precision:
                with torch.inference_mode():
                    found = share_of_roof(shape, precision, options.batch, threads, options.rounds)
                ins, outs, side, stride = shape
                if options.json:
                    row = {"processor": cpu_name(), "network": name, "shape": shape, "precision": precision}
                    print(json.dumps(row | found), flush=True)
                    continue
                layer = f"{ins}→{outs}@{side}" + (f"/{stride}" if stride > 1 else "")
                print(
                    f"{name:14} {layer:16} {precision:5} {found['ms']:8.2f} ms {found['gmacs']:7.1f} GMAC/s "
                    f"{found['share']:.0%} of the roof",
                    flush=True,
                )


if __name__ == "__main__":
    main()
