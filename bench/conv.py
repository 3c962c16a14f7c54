"""Benchmark of single convolutions against PyTorch, channels-last, for the forward pass and both gradients.

    python bench/conv.py [--batch 16] [--threads 2] [--rounds 7] [--only vgg resnet five strides large]
        [--cpu-time] [--json]

Both sides take turns. Speeds are PyTorch's time divided by svertka's: above 1, svertka is faster. The time includes the
transformation of the weights, except in column "forward, packed". The algorithm is chosen before the measurement, as in
any program; `svertka tune` shows the choice. Freed memory is kept for the next result, as by svertka's command line:
otherwise the system clears each page of it, which takes 70 ms of both sides for 8 images of 64@224. Non-finite results
end the benchmark with exit code 1.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from svertka.conv import aten, autotune, native_support, native_winograd
from svertka.conv.autotune import PASSES, Pass
from svertka.conv_shape import ConvShape
from svertka.device import cpu_name, set_threads
from svertka.malloc import keep_freed_memory
from turns import finite, in_turns, ratios

# (input channels, output channels, side of the maps, side of the kernel, stride)
LAYERS = {
    "vgg": [
        (64, 64, 224, 3, 1),
        (128, 128, 112, 3, 1),
        (256, 256, 56, 3, 1),
        (512, 512, 28, 3, 1),
        (512, 512, 14, 3, 1),
    ],
    "resnet": [(64, 64, 56, 3, 1), (128, 128, 28, 3, 1), (256, 256, 14, 3, 1), (512, 512, 7, 3, 1)],
    # AlexNet's second layer, GoogLeNet's first 5×5, Inception-v3's 5×5, and one with many channels
    "five": [(64, 192, 27, 5, 1), (16, 32, 28, 5, 1), (48, 64, 35, 5, 1), (128, 128, 14, 5, 1)],
    # AlexNet's first layer, ResNet's first two strided ones, and 5×5
    "strides": [(3, 64, 224, 11, 4), (3, 64, 224, 7, 2), (64, 128, 56, 3, 2), (64, 128, 56, 5, 2)],
    "large": [(64, 64, 56, 11, 1), (64, 64, 56, 15, 1), (64, 64, 56, 31, 1)],
}
LARGE_BATCH = 8


def compare(
    one_pass: Pass, shape: ConvShape, rounds: int, clock: Callable[[], float], *, packed: bool = False
) -> dict[str, Any]:
    """Return the best seconds of both sides and the ratios; `packed` is svertka's time with packed weights."""
    first, second = autotune.make_random_tensors(one_pass, shape, torch.channels_last)
    chosen = native_winograd if packed else autotune.select_algorithm("auto", one_pass, shape, first)
    ways: dict[str, Callable[[], Tensor]] = {
        "ours": partial(native_winograd.forward_with_epilogue, first, native_winograd.pack_weight(second), shape)
        if packed
        else partial(getattr(chosen, one_pass), first, second, shape),
        "pytorch": partial(getattr(aten, one_pass), first, second, shape),
    }
    with torch.inference_mode():
        for name, way in ways.items():
            finite(f"{one_pass} of {shape} by {name}", way())
        seconds = in_turns(ways, rounds, clock)
    best = {name: min(times) for name, times in seconds.items()}
    return {
        "pass": f"{one_pass}, packed" if packed else one_pass,
        "algorithm": next(name for name, known in autotune.ALGORITHMS.items() if known is chosen),
        "ms": 1e3 * best["ours"],
        "pytorch_ms": 1e3 * best["pytorch"],
        "gflops": 2e-9 * shape.multiply_adds / best["ours"],
    } | ratios(seconds["pytorch"], seconds["ours"])


def named(channels: int, out_channels: int, side: int, kernel: int, stride: int) -> str:
    """Return the name of a row."""
    made = "" if out_channels == channels else f"→{out_channels}"
    steps = "" if stride == 1 else f"/{stride}"
    return f"{channels}{made}@{side}, {kernel}×{kernel}{steps}"


def main() -> None:
    """Compare, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16, help=f"batch size; {LARGE_BATCH} for large kernels")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="+", choices=list(LAYERS), default=list(LAYERS))
    parser.add_argument("--cpu-time", action="store_true", help="of the process, in which other programs do not count")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    threads = set_threads(options.threads)
    keep_freed_memory()
    clock = time.process_time if options.cpu_time else time.perf_counter
    rows = []
    for group in options.only:
        batch = LARGE_BATCH if group == "large" else options.batch
        for channels, out_channels, side, kernel, stride in LAYERS[group]:
            sizes = (batch, channels, side, side), (out_channels, channels, kernel, kernel)
            shape = ConvShape.of(*sizes, stride=stride, padding=kernel // 2)
            comparisons = [partial(compare, one_pass, shape, options.rounds, clock) for one_pass in PASSES]
            if (kernel, stride) == (3, 1) and not native_support.why_not():
                comparisons.append(partial(compare, "forward", shape, options.rounds, clock, packed=True))
            for comparison in comparisons:
                rows.append({"layer": named(channels, out_channels, side, kernel, stride)} | comparison())
                if not options.json:
                    print("{layer:20} {pass:16} {algorithm:15} {ms:9.2f} ms {gflops:6.0f} GFLOP/s  "
                          "PyTorch {pytorch_ms:9.2f} ms  {ratio_of_best:6.2f}× (median {ratio_median:.2f}, "
                          "least {ratio_least:.2f})".format(**rows[-1]), flush=True)  # fmt: skip
    small = [row for row in rows if row["layer"].endswith("3×3")]
    means = {
        name: statistics.geometric_mean(row["ratio_of_best"] for row in small if row["pass"] == name)
        for name in dict.fromkeys(row["pass"] for row in small)
    }
    if options.json:
        print(json.dumps({"processor": cpu_name(), "threads": threads, "rows": rows, "3×3, geometric means": means}))
        return
    for one_pass, ratio in means.items():
        print(f"{one_pass}: 3×3 layers, geometric mean {ratio:.2f}×")


if __name__ == "__main__":
    main()
