"""Benchmark of inference time against batch size, image size, threads and depth, with three peers and two lower bounds.

    pip install onnxruntime ncnn pnnx MNN
    python bench/inference_time_by_size_and_threads.py [--peers onnxruntime ncnn mnn] [--axes batch size threads depth]
        [--rounds 5] [--output FILE]
    python experiments/inference_time_figure.py    # the figure and the tables, from its metrics/inference_time.jsonl

ResNet-18 in batches of 1 to 64, on images of 96 to 512 pixels, with 1 and 2 threads, and ResNet-18 to 152, in float32
with random weights and images. The engines take turns as in bench/networks_vs_engines.py. Each line of JSON has the
configuration, the milliseconds of a whole batch, and the work of bench/bounds.py: 10⁹ multiplications by the definition
of a convolution, those left by Winograd's algorithm (`multiplications_left`), and the megabytes of all weights and of
all maps. The first line has the highest rates of multiplications and bytes that were measured in the same run.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bounds import bandwidth, roof, work
from networks_vs_engines import FLOAT32, compare
from svertka.device import cpu_name, set_threads
from svertka.files import write_atomic
from svertka.models.registry import find_model


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
        machine["roof"][threads], machine["bandwidth"][threads] = roof(threads), bandwidth(threads)
    lines = [json.dumps(machine)]
    print(lines[0], flush=True)
    for point in dict.fromkeys(point for axis in options.axes for point in AXES[axis]):
        lines.append(json.dumps(measured(point, options.rounds, options.peers)))
        print(lines[-1], flush=True)
    if options.output:
        write_atomic(options.output, "".join(line + "\n" for line in lines).encode())


if __name__ == "__main__":
    main()
