"""Benchmark of finding the nine strongest patches of every unit of SqueezeNet 1.1, against the usual scripts.

    python bench/top_patches.py [--images 1400] [--threads 2] [--rounds 5] [--no-usual] [--json]

It covers all 26 convolutions over photographs of `imagenet-samples` and `cats-dogs`, which are decoded and normalized
before the measurement. The sides take turns. Ratios to `plain` are the median over the rounds and the ratio of the best
times (use the latter on a busy machine). Memory is the peak growth of the process beyond images and network.

- `plain`: the network alone, in channels-last batches of 32.
- `ours`: `inspection.top_patches` with the same batches.
- `hooks`: the same batches with a hook on each of the 26 layers, which stores the maxima and positions of every image;
  they are sorted afterwards.
- `usual`: the usual script: a hook on one layer, one image at a time, with all maps stored and sorted afterwards. One
  of the 26 layers (`features.3.expand3x3`) is timed on a tenth of the images; the time is extrapolated to all layers
  and images, the memory to all images and this one layer.

Needs SVERTKA_DATA, and Linux for the peak of memory.
"""

import argparse
import ctypes
import json
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shared_data import data_folder
from svertka.classifier import Classifier
from svertka.device import cpu_name, describe_device, set_memory_format
from svertka.inspection import top_patches

BATCH, COUNT = 32, 9
USUAL = "features.3.expand3x3"
SHARE = 10  # the usual script runs on one in so many images


def photographs(classifier: Classifier, count: int) -> list[Tensor]:
    """Return the first `count` photographs as network input, in channels-last batches."""
    data = data_folder()
    paths = [path for folder in ("imagenet-samples", "cats-dogs") for path in sorted((data / folder).rglob("*.*"))]
    paths = [path for path in paths if path.suffix.lower() in (".jpeg", ".jpg")][:count]
    with ThreadPoolExecutor() as pool:
        images = torch.stack(list(pool.map(classifier.preprocess, paths)))
    return [some.contiguous(memory_format=torch.channels_last) for some in torch.split(images, BATCH)]


def plain(network: nn.Module, batches: list[Tensor]) -> None:
    """Run the network alone."""
    with torch.inference_mode():
        for batch in batches:
            network(batch)


def hooks(network: nn.Module, batches: list[Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Run with a hook on every rectified convolution; sort the stored values afterwards."""
    kept: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(_: nn.Module, __: Any, output: Tensor) -> None:
            values, places = output.flatten(2).max(dim=2)
            kept.setdefault(name, []).append((values, places))

        return hook

    handles = [
        module.register_forward_hook(keep(name))
        for name, module in network.named_modules()
        if isinstance(module, nn.ReLU)
    ]
    with torch.inference_mode():
        for batch in batches:
            network(batch)
    for handle in handles:
        handle.remove()
    return {
        name: strongest(torch.cat([v for v, _ in some]), torch.cat([p for _, p in some])) for name, some in kept.items()
    }


def usual(network: nn.Module, images: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Run with a hook on one layer, one image at a time; sort the stored maps afterwards."""
    kept: list[Tensor] = []
    handle = network.get_submodule(USUAL + "_relu").register_forward_hook(lambda _, __, output: kept.append(output))
    with torch.inference_mode():
        for image in images:
            network(image)
    handle.remove()
    return strongest(*torch.cat(kept).flatten(2).max(dim=2))


def strongest(values: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Return the images and positions of the nine largest `values` (images, units) of each unit."""
    order = values.topk(COUNT, dim=0).indices
    return order, places.gather(0, order)


@contextmanager
def measured(into: dict[str, list[float]]) -> Iterator[None]:
    """Record the seconds of the body and the peak growth of the process in bytes."""
    ctypes.CDLL(None).malloc_trim(0)  # returns freed memory to the system
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before, began = memory("VmRSS"), time.perf_counter()
    yield
    into["seconds"].append(time.perf_counter() - began)
    into["bytes"].append(memory("VmHWM") - before)


def memory(name: str) -> int:
    """Return a memory counter of this process, in bytes, by Linux's name for it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Return seconds, bytes and ratios."""
    weights = data_folder() / "weights" / "squeezenet1_1-imagenet.safetensors"
    classifier = Classifier.load(f"squeezenet1_1:{weights}")
    network = set_memory_format(classifier.network, torch.channels_last)
    batches = photographs(classifier, options.images)
    ways: dict[str, Callable[[], object]] = {
        "plain": lambda: plain(network, batches),
        "ours": lambda: top_patches(network, batches, count=COUNT),
        "hooks": lambda: hooks(network, batches),
    }
    found: dict[str, dict[str, list[float]]] = {name: {"seconds": [], "bytes": []} for name in [*ways, "usual"]}
    plain(network, batches[:4])
    for number in range(options.rounds):
        for name, run in list(ways.items())[:: -1 if number % 2 else 1]:
            with measured(found[name]):
                run()
    images = sum(len(batch) for batch in batches)
    result: dict[str, Any] = {
        "images": images,
        "device": describe_device(torch.device("cpu")),
        "processor": cpu_name(),
    }
    if options.usual:
        some = [image[None] for batch in batches for image in batch][::SHARE]
        with measured(found["usual"]):
            usual(network, some)
        found["usual"]["seconds"] = [26 * images / len(some) * seconds for seconds in found["usual"]["seconds"]]
        found["usual"]["bytes"] = [images / len(some) * bytes_ for bytes_ in found["usual"]["bytes"]]
    for name, numbers in found.items():
        if numbers["seconds"]:
            turns = zip(numbers["seconds"], found["plain"]["seconds"], strict=name != "usual")
            result[name] = {
                "seconds": statistics.median(numbers["seconds"]),
                "bytes": max(numbers["bytes"]),
                "ratio": statistics.median(seconds / plainly for seconds, plainly in turns),
                "best": min(numbers["seconds"]) / min(found["plain"]["seconds"]),
            }
    return result


def main() -> None:
    """Compare, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1400)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-usual", dest="usual", action="store_false", help="skip the usual script, which is slow")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result = compare(options)
    if options.json:
        print(json.dumps(result, indent=2))
        return
    print(f"{result['images']} images, {result['processor']}, {result['device']}")
    print(f"{'':<8}{'seconds':>10}{'of plain':>10}{'of best':>10}{'memory':>10}")
    for name in ("plain", "ours", "hooks", "usual"):
        if name in result:
            row = result[name]
            ratios = f"{row['ratio']:>10.2f}{row['best']:>10.2f}"
            print(f"{name:<8}{row['seconds']:>10.2f}{ratios}{row['bytes'] / 2**20:>6,.0f} MiB")


if __name__ == "__main__":
    main()
