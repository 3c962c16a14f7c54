"""Benchmark of the causal effect of units: removing each of SqueezeNet 1.1's 3,944 units, one at a time.

    python bench/ablation.py [--images 100] [--threads 2] [--total 1400] [--sample 2000] [--json]

The network with ImageNet weights classifies photographs of `cats-dogs`, evenly spaced among all. The class of each is
the one that the network predicts, so that every change of a prediction counts. The time of `ablate_units`, as wall time
and as CPU time of all threads, includes compiling, which happens once per layer; the projection to `--total` images
counts it once. With fewer images, fewer estimates are checked, fewer removals suffice for compiling, and less time is
left for certain estimates, in proportion to the number of images. The exit code is 1 if, without estimates, the most
important units of two layers change other numbers of predictions of 8 photographs than whole forward passes in which a
hook zeroes the unit. Needs SVERTKA_DATA.
"""

import argparse
import json
import resource
import sys
import time

import numpy as np
import torch
from torch import Tensor, nn

from shared_data import data_folder
from svertka.classifier import Classifier
from svertka.inspection import unit_ablation
from svertka.inspection.compiled_replay import CompiledReplay
from svertka.inspection.unit_ablation import ablate_units

CLASSES = 1000
CHECKED_LAYERS = ["features.4.expand1x1", "features.9.squeeze"]
CHECKED_IMAGES, CHECKED_UNITS = 8, 4  # units of each layer, zeroed by a hook


class Stopwatch:
    """Wall time and CPU time since its creation, less what was spent compiling."""

    def __init__(self) -> None:
        self._began = time.perf_counter(), time.process_time()
        self.compiling = np.zeros(2)
        compile_replay = CompiledReplay.__init__

        def measure(replay: CompiledReplay, suffix: torch.fx.GraphModule, maps: Tensor, batch_size: int) -> None:
            began = np.array([time.perf_counter(), time.process_time()])
            compile_replay(replay, suffix, maps, batch_size)
            self.compiling += [time.perf_counter(), time.process_time()] - began

        CompiledReplay.__init__ = measure  # type: ignore[method-assign, assignment]

    def read(self) -> np.ndarray:
        """Return the seconds of wall time and of CPU time, with what was spent compiling."""
        return np.array([time.perf_counter(), time.process_time()]) - self._began


def count_changes(network: nn.Module, layer: str, unit: int, images: Tensor, labels: Tensor) -> int:
    """Return how many predictions change if a unit is zeroed by a hook after the activation function of a layer."""

    def change(module: nn.Module, inputs: tuple[Tensor, ...], maps: Tensor) -> Tensor:
        maps = maps.clone()
        maps[:, unit] = 0
        return maps

    with network.get_submodule(f"{layer}_relu").register_forward_hook(change), torch.inference_mode():
        return int((torch.cat([network(some).argmax(1) for some in torch.split(images, 8)]) != labels).sum())


def differences(network: nn.Module, images: Tensor, labels: Tensor) -> list[str]:
    """Return the units whose effect, without estimates, is not that which a hook finds."""
    bounds, compiled_from = (unit_ablation.UNCHANGED_BELOW, unit_ablation.CHANGED_ABOVE), unit_ablation.COMPILED_FROM
    unit_ablation.UNCHANGED_BELOW, unit_ablation.CHANGED_ABOVE = -float("inf"), float("inf")
    unit_ablation.COMPILED_FROM = 1
    found = ablate_units(network, lambda: [(images, labels)], CLASSES, CHECKED_LAYERS)
    (unit_ablation.UNCHANGED_BELOW, unit_ablation.CHANGED_ABOVE), unit_ablation.COMPILED_FROM = bounds, compiled_from
    wrong = []
    for effects in found.layers:
        lost = effects.lost[0].sum(1)
        for unit in np.argsort(-lost)[:CHECKED_UNITS].tolist():
            expected = count_changes(network, effects.layer, unit, images, labels)
            if lost[unit] != expected:
                wrong.append(f"{effects.layer}, unit {unit}: {lost[unit]} changes, {expected} by a hook")
    return wrong


def main() -> int:
    """Measure, and print the times or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100, help="photographs to measure")
    parser.add_argument("--total", type=int, default=1400, help="photographs to project the time to")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--sample", type=int, help="estimates that are checked (default: SAMPLE, in proportion)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = data_folder()
    classifier = Classifier.load(f"squeezenet1_1:{data / 'weights' / 'squeezenet1_1-imagenet.safetensors'}")
    paths = sorted((data / "cats-dogs").glob("*/*.jpg"))
    chosen = np.linspace(0, len(paths) - 1, min(options.images, len(paths))).round().astype(int)
    images = torch.stack([classifier.preprocess(paths[index]) for index in chosen])
    part = len(images) / options.total
    unit_ablation.SAMPLE = options.sample if options.sample is not None else round(unit_ablation.SAMPLE * part)
    unit_ablation.COMPILED_FROM = round(unit_ablation.COMPILED_FROM * part)
    unit_ablation.SECONDS *= part
    network = classifier.network.eval()
    with torch.no_grad():
        labels = torch.cat([network(some).argmax(1) for some in torch.split(images, 8)])
    watch = Stopwatch()
    batches = list(zip(torch.split(images, 32), torch.split(labels, 32), strict=True))
    found = ablate_units(network, lambda: batches, CLASSES)
    seconds = watch.read()
    each = (seconds - watch.compiling) / len(images)
    projected = each * options.total + watch.compiling
    wrong = differences(network, images[:CHECKED_IMAGES], labels[:CHECKED_IMAGES])
    result = {
        "images": len(images),
        "threads": options.threads,
        "units": sum(one.lost.shape[1] for one in found.layers),
        "removals": found.pairs,
        "changes": sum(int(one.lost.sum()) for one in found.layers),
        "computed": found.computed,
        "estimated": found.estimated,
        "unchanged": vars(found.unchanged),
        "changed": vars(found.changed),
        "wall": {"total": seconds[0], "compiling": watch.compiling[0], "image": each[0], "projected": projected[0]},
        "cpu": {"total": seconds[1], "compiling": watch.compiling[1], "image": each[1], "projected": projected[1]},
        "gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        "wrong": wrong,
    }
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        print(f"torch {torch.__version__}, {options.threads} threads, {len(images)} photographs")
        print(f"{found.computed / len(images):.0f} of {found.pairs / len(images):.0f} removals an image are computed")
        print(f"{found.estimated / len(images):.0f} others are estimated to change a prediction")
        print(f"{result['changes'] / len(images):.0f} removals an image change a prediction")
        for text, check in (("changes none", found.unchanged), ("changes one", found.changed)):
            print(f"an estimate that a removal {text} is wrong in {check.wrong} of {check.sampled} cases")
        for name, index in (("wall time", 0), ("CPU time", 1)):
            print(
                f"{name}: {seconds[index]:.0f} s, of which compiling {watch.compiling[index]:.0f} s; {each[index]:.2f} "
                f"s an image; {projected[index] / 60:.1f} min for {options.total} images"
            )
        print(f"peak memory: {result['gigabytes']:.1f} GB")
        print("\n".join(wrong))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
