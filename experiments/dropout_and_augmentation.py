"""Experiment: the test error with and without dropout and augmentation.

The network is a small AlexNet: three 3×3 convolutions (16, 32, 32 channels), max pooling after the first two, 256
hidden units, and dropout of 0.5 before both dense layers. It is trained on 2,000 images of Fashion-MNIST and scored
once on all 10,000 test images, after 100 epochs of recipe `plain` with bfloat16 products. Augmentation is AlexNet's at
this
size: shifts of up to 2 pixels, and mirroring. 3 seeds, one thread, about seven minutes.

    SVERTKA_DATA=… python experiments/dropout_and_augmentation.py [--seeds 0 1 2]
    python experiments/dropout_and_augmentation.py --draw      # the figure and the table, from the stored results
"""

from itertools import product
from typing import Any

import torch
from harness import COLORS, figure, main, print_table
from torch import nn
from training_helpers import batches, error, learn, normalized, per_cent, pictures

from svertka.data.augmentation import Flip, PadCrop
from svertka.device import set_memory_format
from svertka.training.builtin_recipes import find_recipe_by_name

SEEDS = (0, 1, 2)
LEARNED, JUDGED = 2_000, 10_000
RECIPE = find_recipe_by_name("plain").with_changes(epochs=100, bfloat16=True)
AUGMENTATIONS = (PadCrop(pixels=2), Flip())
WAYS = tuple(product((True, False), repeat=2))  # (dropout, augmentation)


def build(*, dropout: bool) -> nn.Sequential:
    """Return the network, for inputs (B, 1, 28, 28)."""
    share = 0.5 if dropout else 0.0
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Flatten()),
        *(nn.Dropout(share), nn.Linear(32 * 7 * 7, 256), nn.ReLU()),
        *(nn.Dropout(share), nn.Linear(256, 10)),
    )


def measure(seed: int) -> list[dict[str, Any]]:
    """Return the results of all four variants."""
    images, labels = pictures("fashion-mnist", "train", LEARNED)
    others, other_labels = pictures("fashion-mnist", "test", JUDGED)
    preprocess = normalized(images)
    rows = []
    for dropout, augmentation in WAYS:
        torch.manual_seed(seed)
        network = set_memory_format(build(dropout=dropout), torch.channels_last)
        augmentations = AUGMENTATIONS if augmentation else ()
        learned = batches(
            images,
            labels,
            preprocess,
            batch_size=RECIPE.batch_size,
            seed=seed,
            augmentations=augmentations,
            memory_format=torch.channels_last,
        )
        learn(network, learned, RECIPE)
        row = {
            "dropout": dropout,
            "augmentation": augmentation,
            "seed": seed,
            "train_error": error(network, batches(images, labels, preprocess), 10),
            "test_error": error(network, batches(others, other_labels, preprocess), 10),
        }
        print(row, flush=True)
        rows.append(row)
    return rows


def title(dropout: bool, augmentation: bool) -> str:
    """Return the name of one of WAYS."""
    return {
        (True, True): "with both",
        (False, True): "without dropout",
        (True, False): "without augmentation",
        (False, False): "without both",
    }[dropout, augmentation]


def draw(rows: list[dict[str, Any]]) -> None:
    """Draw the figure and print the table."""
    table = []
    with figure("dropout_and_augmentation") as (_, axes):
        for place, way in enumerate(WAYS):
            own = [row for row in rows if (row["dropout"], row["augmentation"]) == way]
            columns = [[row[key] for row in own] for key in ("train_error", "test_error")]
            for offset, values, color, label in zip(
                (-0.19, 0.19), columns, COLORS, ("images learned from", "test images"), strict=False
            ):
                heights = [100 * value for value in values]
                mean = sum(heights) / len(heights)
                axes.bar(place + offset, mean, 0.38, color=color, label=None if place else label)
                axes.plot([place + offset] * len(heights), heights, "o", color="black", markersize=3)
            table.append([title(*way), *(per_cent(values) for values in columns)])
        axes.set_xticks(range(len(WAYS)), [title(*way).replace(" ", "\n", 1) for way in WAYS])
        axes.set(ylabel="error, % (dots: the seeds)", ylim=(0, 27))
        axes.grid(axis="x", visible=False)
        axes.legend(loc="upper center", ncols=2, frameon=False)
    print_table(["", "error on the images learned from", "test error"], table)


if __name__ == "__main__":
    main(__doc__, "dropout_and_augmentation", measure, draw, SEEDS)
