"""Training shared by several experiments: a subset of a built-in data set in batches, and a loop for any network."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from svertka.data.augmentation import Augmentation
from svertka.data.dataset import ArrayImages, Ints, Pixels
from svertka.data.loader import BatchLoader
from svertka.data.pixel_statistics import measure_statistics
from svertka.data.preprocessing import Preprocess
from svertka.data.source_opener import open_source
from svertka.evaluation.evaluate import evaluate_network
from svertka.training.recipe import Recipe
from svertka.training.training_loop import Callback, StepMetrics, TrainingProgress, fit, make_optimizer


def pictures(source: str, part: str, count: int) -> tuple[Pixels, Ints]:
    """Return the first `count` images of a part of a data set, (N, H, W, C) uint8, and their labels."""
    dataset = open_source(source)
    assert isinstance(dataset.images, ArrayImages)
    chosen = np.flatnonzero(dataset.parts == part)[:count]
    return dataset.images.array[chosen], dataset.labels[chosen]


def normalized(images: Pixels) -> Preprocess:
    """Return images normalized with the mean and standard deviation of each channel of `images`."""
    side, statistics = images.shape[1], measure_statistics(images, np.arange(len(images)))
    return Preprocess(size=side, resize=side, mean=statistics.mean, std=statistics.std)


def batches(
    images: Pixels,
    labels: Ints,
    preprocess: Preprocess,
    *,
    batch_size: int = 500,
    seed: int | None = None,
    augmentations: Sequence[Augmentation] = (),
    memory_format: torch.memory_format = torch.contiguous_format,
) -> BatchLoader:
    """Return all images in batches, shuffled if there is a `seed`."""
    return BatchLoader(
        images,
        labels,
        np.arange(len(images)),
        preprocess,
        batch_size=batch_size,
        seed=seed or 0,
        shuffle=seed is not None,
        augmentations=augmentations,
        memory_format=memory_format,
    )


class Looks(Callback):
    """A callback that stores all metrics."""

    def __init__(self) -> None:
        self.seen: list[StepMetrics] = []

    def on_metrics(self, metrics: StepMetrics) -> None:
        """Store the metrics."""
        self.seen.append(metrics)


def learn(network: nn.Module, learned: BatchLoader, recipe: Recipe) -> list[StepMetrics]:
    """Train `network` in place; return its metrics every 20 steps."""
    looks = Looks()
    fit(network, make_optimizer(network, recipe), learned, recipe, TrainingProgress(), looks)
    return looks.seen


def error(network: nn.Module, judged: BatchLoader, classes: int) -> float:
    """Return the error of `network` on `judged`, 0 to 1."""
    return evaluate_network(network, judged, tuple(map(str, range(classes)))).top1_error


def per_cent(values: Sequence[float], digits: int = 1) -> str:
    """Return the mean of fractions and each of them as text, "12.3 % (12.1, 12.5)"."""
    each = ", ".join(f"{100 * value:.{digits}f}" for value in values)
    return f"{100 * sum(values) / len(values):.{digits}f} % ({each})"
