"""Benchmark of training throughput against the usual loop: Dataset and DataLoader, per-image transforms, 2 workers.

    python bench/train.py [mnist] [photos] [--rounds 3] [--json]

Both sides have the same network, batch size, optimizer and threads, and take turns; svertka uses its own convolutions.
`mnist` is the LeNet of tutorials with batches of 64, one epoch of 60,000 images. `photos` is `cats-dogs` at 64 pixels
through the first stage of resnet20 with batches of 64; only the first epoch decodes images. Needs SVERTKA_DATA.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from shared_data import data_folder
from svertka.conv.accelerate import accelerate
from svertka.data.builtin import open_builtin
from svertka.data.dataset import ArrayImages, Dataset
from svertka.data.folder_and_table_sources import open_folder
from svertka.data.image_disk_cache import prepare_images
from svertka.data.loader import BatchLoader
from svertka.data.preprocessing import Preprocess
from svertka.device import set_memory_format
from svertka.models.resnet import CIFARResNet
from svertka.training.lr_schedule import Constant
from svertka.training.recipe import Recipe
from svertka.training.time_estimate import time_training_steps
from svertka.training.training_loop import Callback, TrainingProgress, fit, make_optimizer

BATCH, WORKERS = 64, 2
Net = Callable[[], nn.Module]


def lenet() -> nn.Module:
    """Return what tutorials call LeNet: ReLU, max pooling, 28×28."""
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )


def first_stage() -> nn.Module:
    """Return resnet20 up to its first stage, with a linear layer on top."""
    begin = list(CIFARResNet(3).children())[:4]  # to the end of layer1
    return nn.Sequential(*begin, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2))


class Images(TorchDataset[tuple[torch.Tensor, int]]):
    """A map-style data set with the usual per-image transforms."""

    def __init__(self, dataset: Dataset, preprocess: Preprocess) -> None:
        self.labels, self.preprocess = dataset.labels, preprocess
        pictures = dataset.images
        self.array = pictures.array if isinstance(pictures, ArrayImages) else None
        self.paths = None if self.array is not None else [pictures.name(i) for i in range(len(pictures))]
        shape = (preprocess.channels, 1, 1)
        self.mean, self.std = (torch.tensor(values).view(shape) for values in (preprocess.mean, preprocess.std))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        size = self.preprocess.size
        if self.array is not None:
            image = Image.fromarray(self.array[index, ..., 0])
        else:
            assert self.paths is not None
            with Image.open(self.paths[index]) as file:
                image = file.convert("RGB")
            scale = size / min(image.size)
            image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
            left, top = (image.width - size) // 2, (image.height - size) // 2
            image = image.crop((left, top, left + size, top + size))
        pixels = torch.from_numpy(np.array(image)).view(size, size, -1).permute(2, 0, 1).contiguous()
        return (pixels.float().div(255) - self.mean) / self.std, int(self.labels[index])


def theirs(network: nn.Module, images: Images) -> Iterator[float]:
    """Return the images per second of each epoch of the usual loop."""
    loader = DataLoader(images, BATCH, shuffle=True, num_workers=WORKERS, persistent_workers=True)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    criterion = nn.CrossEntropyLoss()
    while True:
        began = time.perf_counter()
        network.train()
        for inputs, labels in loader:
            optimizer.zero_grad()
            loss = criterion(network(inputs), labels)
            loss.backward()
            optimizer.step()
        yield len(images) / (time.perf_counter() - began)


def ours(network: nn.Module, dataset: Dataset, preprocess: Preprocess) -> Iterator[float]:
    """Return the images per second of each epoch of svertka; the first one includes decoding.

    As in a training, it uses svertka's convolutions, the fastest memory format, and no prefetching thread on the CPU.
    """
    began = time.perf_counter()
    threads = torch.get_num_threads()
    rows = prepare_images(dataset, preprocess.resize, preprocess.channels, threads=threads).rows
    everything = np.arange(len(dataset))
    options: dict[str, Any] = {"batch_size": BATCH, "shuffle": True}
    batches = BatchLoader(rows, dataset.labels, everything, preprocess, **options)
    network = accelerate(network)
    timing = time_training_steps(network, next(batches.epoch(0)), Recipe(), type(network).__name__)
    layout = getattr(torch, timing.memory_format)
    network = set_memory_format(network, layout)
    batches = BatchLoader(rows, dataset.labels, everything, preprocess, memory_format=layout, **options)
    state, epoch = TrainingProgress(), 0
    optimizer = make_optimizer(network, Recipe(lr=0.01))
    while True:
        epoch += 1
        recipe = Recipe(lr=0.01, schedule=Constant(), epochs=epoch)
        fit(network, optimizer, batches, recipe, state, Callback())
        yield len(dataset) / (time.perf_counter() - began)
        began = time.perf_counter()


def compare(dataset: Dataset, preprocess: Preprocess, net: Net, rounds: int) -> dict[str, Any]:
    """Compare both sides in turns, for first and later epochs, in images per second."""
    speeds: dict[str, list[float]] = {
        "dataloader first": [],
        "dataloader later": [],
        "ours first": [],
        "ours later": [],
    }
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as cache:  # so that the first epoch decodes
            os.environ["XDG_CACHE_HOME"] = cache
            peer, mine = (
                theirs(net(), Images(dataset, preprocess)),
                ours(net(), dataset, preprocess),
            )
            for name in ("first", "later"):
                speeds[f"dataloader {name}"].append(next(peer))
                speeds[f"ours {name}"].append(next(mine))
            peer.close()  # type: ignore[attr-defined]
            mine.close()  # type: ignore[attr-defined]
    ratios = {
        name: [a / b for a, b in zip(speeds[f"ours {name}"], speeds[f"dataloader {name}"], strict=True)]
        for name in ("first", "later")
    }
    return {
        "images_per_second": {name: {"median": statistics.median(v), "best": max(v)} for name, v in speeds.items()},
        "ratio": {name: {"median": statistics.median(v), "min": min(v)} for name, v in ratios.items()},
    }


def main() -> None:
    """Run the benchmarks and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["mnist", "photos"], help="benchmarks: mnist, photos")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results: dict[str, Any] = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    if "mnist" in options.what:
        mnist = open_builtin("mnist")
        train = np.flatnonzero(mnist.parts == "train")
        assert isinstance(mnist.images, ArrayImages)
        pictures = ArrayImages(mnist.images.array[train], "mnist")
        mnist = Dataset(mnist.source, mnist.names, pictures, mnist.labels[train], mnist.parts[train])
        preprocess = Preprocess(size=28, resize=28, mean=(0.1307,), std=(0.3081,))
        results["mnist"] = compare(mnist, preprocess, lenet, options.rounds)
    if "photos" in options.what:
        photos = open_folder(data_folder() / "cats-dogs")
        preprocess = Preprocess(size=64, resize=64, mean=(0.48, 0.45, 0.41), std=(0.25, 0.25, 0.25))
        results["photos"] = compare(photos, preprocess, first_stage, options.rounds)
    if options.json:
        print(json.dumps(results, indent=2))
        return
    for name in ("mnist", "photos"):
        for side, speed in results.get(name, {}).get("images_per_second", {}).items():
            print(f"{name:<7} {side:<17} {speed['median']:>9,.0f} images/s median {speed['best']:>9,.0f} best")
        for epoch, ratio in results.get(name, {}).get("ratio", {}).items():
            print(f"{name:<7} ratio {epoch:<11} {ratio['median']:>9.2f} median {ratio['min']:>9.2f} least")


if __name__ == "__main__":
    main()
