"""Benchmark of projections to pixels against captum's NeuronDeconvolution, on SqueezeNet 1.1 with ImageNet weights.

    python bench/projections_vs_captum.py [--units 16] [--rounds 3] [--threads 2] [--cpu-time] [--json]

For some units of every convolution, drawn with a fixed seed, the nine patches of `imagenet-samples` that activate each
most are projected, as for one sheet of an atlas. Three ways take turns at every layer: captum with one patch per call,
as it is usually used; captum with a batch of patches of different units, which needs a function that selects them; and
svertka. The best round of each counts. The last lines are sums over as many units of every layer, and over all units of
all layers, most of which are in the last ones. All use the same network. First, svertka is compared with captum, in
float64 (without compiled code) and in float32, as it is timed; the exit code is 1 if they differ by more than 1e-5 of
the largest value. With `--cpu-time`, the CPU time of the process is measured. Needs SVERTKA_DATA.
"""

import argparse
import copy
import json
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from captum.attr import NeuronDeconvolution
from torch import Tensor, nn

from shared_data import data_folder
from svertka.classifier import Classifier
from svertka.inspection.deconvolution.deconvnet import Deconvnet
from svertka.inspection.maximally_activating_patches import LayerPatches, top_patches

SINGLE, BATCH = 8, 8  # patches for captum in a round; it is fastest with batches of 8
TOLERANCE = 1e-5
CHECKED = 3  # patches per layer


class Patches:
    """Some units of one layer with all their patches."""

    def __init__(self, network: nn.Module, images: Tensor, found: LayerPatches, units: int) -> None:
        chosen = np.random.default_rng(1).permutation(len(found.values))[:units]
        which, rank = np.nonzero(found.images[chosen] >= 0)
        self.layer, self.of_layer = found.layer, len(found.values)
        self.images, self.units = images, chosen[which]
        self.pictures, self.places = found.images[chosen][which, rank], found.positions[chosen][which, rank]
        self._captum = NeuronDeconvolution(network, network.get_submodule(found.observed_layer))

    def single(self, number: int) -> Tensor:
        """Return the projection of one patch by captum, (1, C, H, W)."""
        where = (int(self.units[number]), *self.places[number].tolist())
        result: Tensor = self._captum.attribute(self.images[self.pictures[number], None].clone(), where)
        return result

    def batch(self, numbers: range) -> Tensor:
        """Return the projections of several patches by captum."""
        where = (np.arange(len(numbers)), self.units[numbers], *self.places[numbers].T)
        result: Tensor = self._captum.attribute(self.images[self.pictures[numbers]], lambda maps: maps[where])
        return result

    def ways(self, ours: Deconvnet) -> dict[str, tuple[Callable[[], object], int]]:
        """Return each way by name, and its number of patches."""
        count = len(self.units)
        some = np.random.default_rng(2).permutation(count)[:SINGLE].tolist()
        return {
            "captum": (lambda: [self.single(number) for number in some], len(some)),
            "captum, batched": (lambda: self.batch(range(min(BATCH, count))), min(BATCH, count)),
            "svertka": (lambda: ours.project(self.images, self.layer, self.units, self.places, self.pictures), count),
        }

    def difference(self, ours: Deconvnet, count: int | None) -> float:
        """Return the largest difference between captum and svertka, relative to captum's largest value.

        svertka projects `count` patches (None: all), of which the first ones are compared.
        """
        some = slice(count)
        found = ours.project(self.images, self.layer, self.units[some], self.places[some], self.pictures[some])
        worst = 0.0
        for number, (pixels, top, left) in enumerate(found[:CHECKED]):
            theirs = self.single(number)[0]
            largest = theirs.abs().max()
            theirs[:, top : top + pixels.shape[1], left : left + pixels.shape[2]] -= pixels
            worst = max(worst, float(theirs.abs().max() / largest))
        return worst


def seconds(work: Callable[[], object], clock: Callable[[], float]) -> float:
    """Return the duration of a call."""
    began = clock()
    work()
    return clock() - began


def measure(
    network: nn.Module, images: Tensor, units: int, rounds: int, clock: Callable[[], float]
) -> list[dict[str, Any]]:
    """Return a row for each layer with the milliseconds per patch of each way."""
    exact = copy.deepcopy(network).double()
    ours, ours_exact = (Deconvnet(one, tuple(images.shape)) for one in (network, exact))
    rows = []
    for found in top_patches(network, images).values():
        patches = Patches(network, images, found, units)
        difference = Patches(exact, images.double(), found, units).difference(ours_exact, CHECKED)
        difference_float32 = patches.difference(ours, None)
        ways = patches.ways(ours)
        times: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(rounds + 1):
            for name, (work, count) in ways.items():
                took = seconds(work, clock) / count
                if turn:  # the first turn is a warm-up
                    times[name].append(took * 1e3)
        best = {name: min(some) for name, some in times.items()}
        rows.append(
            {
                "layer": found.layer,
                "units": patches.of_layer,
                "difference": difference,
                "difference in float32": difference_float32,
                "milliseconds": best,
            }
        )
    return rows


def _cells(numbers: dict[str, float], digits: int = 2) -> str:
    return "".join(f"{number:>17.{digits}f}" for number in numbers.values())


def main() -> int:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=16, help="units of each layer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cpu-time", action="store_true", help="measure CPU time, on a busy machine")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", module="captum")
    data = data_folder()
    classifier = Classifier.load(f"squeezenet1_1:{data / 'weights' / 'squeezenet1_1-imagenet.safetensors'}")
    images = torch.stack([classifier.preprocess(path) for path in sorted((data / "imagenet-samples").iterdir())])
    clock = time.process_time if options.cpu_time else time.perf_counter
    rows = measure(classifier.network, images, options.units, options.rounds, clock)
    names = list(rows[0]["milliseconds"])
    weights = {"every layer": [1] * len(rows), "all units": [row["units"] for row in rows]}
    means = {
        what: {
            name: sum(count * row["milliseconds"][name] for count, row in zip(counts, rows, strict=True)) / sum(counts)
            for name in names
        }
        for what, counts in weights.items()
    }
    ratios = {what: {name: mean[name] / mean["svertka"] for name in names} for what, mean in means.items()}
    if options.json:
        print(json.dumps({"threads": options.threads, "layers": rows, "means": means, "ratios": ratios}, indent=2))
    else:
        print(f"milliseconds a patch; torch {torch.__version__}, {options.threads} threads")
        print(f"{'layer':<24}{'units':>6}{'difference':>12}{'float32':>10}" + "".join(f"{name:>17}" for name in names))
        for row in rows:
            print(
                f"{row['layer']:<24}{row['units']:>6}{row['difference']:>12.1e}{row['difference in float32']:>10.1e}"
                + _cells(row["milliseconds"])
            )
        for what, mean in means.items():
            print(f"{what:<52}{_cells(mean)}\n{'times ours':<52}{_cells(ratios[what], digits=1)}")
    return int(not all(max(row["difference"], row["difference in float32"]) <= TOLERANCE for row in rows))


if __name__ == "__main__":
    sys.exit(main())
