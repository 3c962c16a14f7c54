"""The effect of each augmentation, of mixed images and of averaged weights on small training sets.

    python bench/augmentation_effect_on_error.py [cifar10] [cats-dogs] [--seeds 2] [--threads 1]

Each setting is added alone to the same recipe, all with the same images, steps and seeds. `error` is the top-1 error on
held-out images, the mean over the seeds; ± is its standard error, of the images and, with several, of the seeds.

- `cifar10`: resnet20 from fresh weights, 1,000 images, 12 epochs of the recipe resnet-cifar at batch 64 and learning
  rate 0.05; 2,000 test images.
- `cats-dogs`: the last stage of the bundled EfficientNet-Lite0, 50 images of each class, 6 epochs of the recipe
  fine-tuning; 400 other images.

Real data: SVERTKA_DATA.
"""

import argparse
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import svertka
from shared_data import data_folder
from svertka.data.dataset import ArrayImages
from svertka.data.source_opener import open_source

SETTINGS: dict[str, dict[str, Any]] = {
    "recipe alone": {},
    "EMA 0.999": {"ema": 0.999},
    "MixUp 0.2": {"mixup": 0.2},
    "CutMix 1": {"cutmix": 1.0},
    "TrivialAugment": {"auto_augment": "trivial"},
    "RandAugment": {"auto_augment": "rand"},
    "random erasing 0.25": {"random_erasing": 0.25},
    "label smoothing 0.1": {"label_smoothing": 0.1},
    "all but RandAugment": {
        "ema": 0.999,
        "mixup": 0.2,
        "cutmix": 1.0,
        "auto_augment": "trivial",
        "random_erasing": 0.25,
        "label_smoothing": 0.1,
    },
}

Split = tuple[Any, Any, dict[str, Any]]  # images to learn from, held-out images, options


def cifar10(seed: int) -> Split:
    """Return 1,000 random training images and the first 2,000 test images."""
    dataset = open_source("cifar10")
    assert isinstance(dataset.images, ArrayImages)
    images, labels = dataset.images.array, dataset.labels
    train, test = (np.flatnonzero(np.asarray(dataset.parts) == part) for part in ("train", "test"))
    chosen = np.random.default_rng(seed).choice(train, 1000, replace=False)
    options = {"model": "resnet20", "recipe": "resnet-cifar", "epochs": 12, "batch_size": 64, "lr": 0.05}
    return (images[chosen], labels[chosen]), (images[test[:2000]], labels[test[:2000]]), options


def cats_dogs(seed: int) -> Split:
    """Return 50 random photographs of each class, and 200 others."""
    root = data_folder() / "cats-dogs"
    chosen: list[tuple[str, str]] = []
    held_out: list[tuple[str, str]] = []
    for name in ("cat", "dog"):
        files = sorted(str(path) for path in (root / name).iterdir())
        order = np.random.default_rng(seed).permutation(files).tolist()
        chosen += [(path, name) for path in order[:50]]
        held_out += [(path, name) for path in order[50:250]]
    backbone = {"model": "efficientnet_lite0", "weights": "bundled"}
    return chosen, held_out, backbone | {"recipe": "fine-tuning", "unfreeze": "last", "epochs": 6}


TASKS: dict[str, Callable[[int], Split]] = {"cifar10": cifar10, "cats-dogs": cats_dogs}


def main() -> None:
    """Print a row for each task and setting, as soon as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    print("| task | setting | error | val errors of the epochs kept |\n|---|---|---|---|", flush=True)
    for task in options.tasks:
        for setting, changes in SETTINGS.items():
            errors, val_errors, images = [], [], 0
            for seed in range(options.seeds):
                learned, held_out, common = TASKS[task](seed)
                with tempfile.TemporaryDirectory() as folder:
                    run = svertka.train(
                        learned, output=Path(folder, "run"), seed=seed, threads=options.threads, **(common | changes)
                    )
                    judged = svertka.evaluate(run.folder, held_out, threads=options.threads, part="all")
                    val_errors.append(run.result()["val_error"])
                errors.append(judged.error)
                images += judged.images
            mean = sum(errors) / len(errors)
            variance = mean * (1 - mean) / images
            if options.seeds > 1:
                variance += float(np.var(errors, ddof=1)) / len(errors)
            spread = math.sqrt(variance)
            kept = ", ".join(f"{error:.1%}" for error in val_errors)
            print(f"| {task} | {setting} | {mean:.1%} ± {spread:.1%} | {kept} |", flush=True)


if __name__ == "__main__":
    main()
