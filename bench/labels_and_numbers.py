"""Benchmark of several labels an image and of a number, on images composed of MNIST's digits.

    python bench/trust.py tasks [--only labels|count|angle] [--seeds 3] [--images 1500] [--json]

- `labels`: which digits are in a canvas with 1 to 4 of them; mAP, higher is better.
- `count`: how many digits there are; mean absolute error, lower is better.
- `angle`: by how many degrees, −90 to 90, a digit 4 is turned; mean absolute error, lower is better.

svertka trains as it does by default, but without mirrored images, since digits have no mirror images. The peer is
written in plain PyTorch the way fastai trains: the same small network, AdamW with the one-cycle policy (learning rate
3e-3, weight decay 0.01, batches of 64) and as many epochs; binary cross-entropy for labels, mean squared error of the
standardized number. Both sides are judged on the same test images, whose digits are not in the training images. Needs
SVERTKA_DATA.
"""

import json
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from sklearn.metrics import average_precision_score, mean_absolute_error
from torch import nn

import svertka
from svertka.data.builtin import open_builtin
from svertka.data.dataset import ArrayImages, Dataset
from svertka.data.in_memory_sources import ARRAYS
from svertka.evaluation.multi_label_metrics import MultiLabelEvaluation
from svertka.evaluation.regression_metrics import RegressionEvaluation
from svertka.tasks import MultiLabel, Regression

TASKS = ("labels", "count", "angle")
SIDE = 32  # pixels of a canvas, twice that of a digit in it
TEST = 1000  # images
EPOCHS = 12


def build_network(outputs: int) -> nn.Module:
    """Return a small convolutional network with fresh weights."""
    layers: list[nn.Module] = []
    for before, after, stride in ((1, 16, 1), (16, 32, 2), (32, 64, 2), (64, 64, 2)):
        layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 16, outputs))


def compose(task: str, images: int, seed: int) -> Dataset:
    """Return canvases with their targets, the last 1,000 of them the test set."""
    mnist = open_builtin("mnist")
    assert isinstance(mnist.images, ArrayImages)
    digits, classes = mnist.images.array[..., 0], mnist.labels
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(digits))
    count = images + TEST
    pools = order[: len(order) // 2], order[len(order) // 2 :]
    canvases = np.zeros((count, SIDE, SIDE, 1), np.uint8)
    targets: list[Any] = []
    for place, canvas in enumerate(canvases):
        pool = pools[place >= images]
        if task == "angle":
            picked, angle = rng.choice(pool[classes[pool] == 4]), float(rng.uniform(-90, 90))
            turned = Image.fromarray(digits[picked]).rotate(angle, Image.Resampling.BILINEAR)
            canvas[2:30, 2:30, 0] = np.asarray(turned)
            targets.append(angle)
            continue
        cells = rng.permutation(4)[: rng.integers(1, 5)]
        picked = rng.choice(pool, len(cells))
        for cell, digit in zip(cells.tolist(), picked.tolist(), strict=True):
            row, column = 16 * (cell // 2), 16 * (cell % 2)
            canvas[row : row + 16, column : column + 16, 0] = np.asarray(
                Image.fromarray(digits[digit]).resize((16, 16))
            )
        targets.append(np.isin(np.arange(10), classes[picked]) if task == "labels" else float(len(cells)))
    parts = np.array(["train"] * (images * 9 // 10) + ["val"] * (images - images * 9 // 10) + ["test"] * TEST)
    if task == "labels":
        names, values = tuple(f"digit {digit}" for digit in range(10)), np.array(targets, np.float32)
        return Dataset(ARRAYS, names, ArrayImages(canvases, task), values, parts, task=MultiLabel())
    numbers = np.array(targets, np.float64)
    return Dataset(ARRAYS, (task,), ArrayImages(canvases, task), numbers, parts, task=Regression())


def by_svertka(dataset: Dataset, seed: int, threads: int) -> tuple[float, npt.NDArray[np.int64]]:
    """Train with `svertka.train` and return mAP or mean absolute error, and the test images that it was measured on."""
    with tempfile.TemporaryDirectory() as folder:
        run = svertka.train(
            dataset,
            model=build_network,
            augment=False,
            epochs=EPOCHS,
            size=SIDE,
            seed=seed,
            threads=threads,
            output=f"{folder}/run",
        )
        found = svertka.evaluate(run, dataset, part="test", threads=threads, trust_builder=True)
    if isinstance(found, MultiLabelEvaluation):
        return found.mean_average_precision, found.indices
    assert isinstance(found, RegressionEvaluation)
    return found.error, found.indices


def by_pytorch(dataset: Dataset, seed: int, test: npt.NDArray[np.int64]) -> float:
    """Train with plain PyTorch and return mAP or mean absolute error on the images `test`."""
    torch.manual_seed(seed)
    network = build_network(len(dataset.names))
    assert isinstance(dataset.images, ArrayImages)
    images = torch.from_numpy(dataset.images.array).permute(0, 3, 1, 2).float() / 255
    learned = torch.from_numpy(np.flatnonzero(dataset.parts != "test"))
    images = (images - images[learned].mean()) / images[learned].std()
    targets = torch.from_numpy(dataset.labels).float().reshape(len(images), -1)
    mean, std = (0.0, 1.0) if dataset.task.kind == "multi-label" else (targets[learned].mean(), targets[learned].std())
    loss_of: nn.Module = nn.BCEWithLogitsLoss() if dataset.task.kind == "multi-label" else nn.MSELoss()
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.01)
    steps = EPOCHS * -(-len(learned) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(EPOCHS):
        for some in torch.split(learned[torch.randperm(len(learned))], 64):
            optimizer.zero_grad()
            loss_of(network(images[some]), (targets[some] - mean) / std).backward()
            optimizer.step()
            schedule.step()
    with torch.inference_mode():
        outputs = network.eval()(images[test])
    if dataset.task.kind == "multi-label":
        return float(average_precision_score(dataset.labels[test], outputs.numpy(), average="macro"))
    return float(mean_absolute_error(dataset.labels[test], (outputs * std + mean).numpy()[:, 0]))


def report(tasks: Sequence[str], seeds: int, images: int, threads: int, *, as_json: bool) -> None:
    """Print the metrics of both sides on each task, the mean over the seeds and each of them."""
    torch.set_num_threads(threads)
    rows = []
    for task in tasks:
        found: dict[str, list[float]] = {"svertka": [], "PyTorch": []}
        seconds: dict[str, list[float]] = {"svertka": [], "PyTorch": []}
        for seed in range(seeds):
            dataset = compose(task, images, seed)
            began = time.process_time()
            value, test = by_svertka(dataset, seed, threads)
            between = time.process_time()
            found["svertka"].append(value)
            found["PyTorch"].append(by_pytorch(dataset, seed, test))
            seconds["svertka"].append(between - began)
            seconds["PyTorch"].append(time.process_time() - between)
        metric = "mAP" if task == "labels" else "mean absolute error"
        rows.append({"task": task, "metric": metric, "found": found, "CPU seconds": seconds})
        if not as_json:
            for side, values in found.items():
                each = ", ".join(f"{value:.4f}" for value in values)
                spent = np.mean(seconds[side])
                print(f"{task}, {metric}, {side}: {np.mean(values):.4f} ({each}), {spent:.0f} s CPU", flush=True)
    if as_json:
        print(json.dumps(rows, indent=2))
