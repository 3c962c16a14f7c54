"""Experiment: auxiliary classifiers help GoogLeNet learn (Szegedy et al. 2014, §5), in its first 300 steps.

GoogLeNet in its variant for small images is trained on CIFAR-10 reduced to 16×16 pixels, with the auxiliary losses
(times 0.3) and without them, from the same initial weights and on the same batches: 300 steps of 16 images with recipe
`googlenet` (learning rate 0.01, no augmentation, bfloat16 products). 3 seeds, one thread, about 10 minutes.

The claim to show: with the auxiliary losses, the main training loss of the last 20 steps and the error on 2,000 test
images are lower than without them, for each seed. The test images choose nothing.

    SVERTKA_DATA=… python experiments/auxiliary_learning.py [--seeds 0 1 2]
    python experiments/auxiliary_learning.py --draw      # the figure and the table, from the stored results
"""

import math
from typing import Any

import numpy as np
import torch
from harness import COLORS, figure, main, print_table
from training_helpers import batches, error, learn, normalized, per_cent, pictures

from svertka.data.preprocessing import resize_central_square
from svertka.models.registry import find_model
from svertka.training.builtin_recipes import find_recipe_by_name

SEEDS = (0, 1, 2)
STEPS, BATCH, SIDE, TESTED = 300, 16, 16, 2000
RECIPE = find_recipe_by_name("googlenet").with_changes(
    epochs=1, batch_size=BATCH, bfloat16=True, schedule="constant", augmentations=()
)
WEIGHTS = {"with auxiliary losses": RECIPE.auxiliary, "without": 0.0}


def measure(seed: int) -> list[dict[str, Any]]:
    """Return the results of both trainings."""
    parts = {}
    for part, count in (("train", STEPS * BATCH), ("test", TESTED)):
        images, labels = pictures("cifar10", part, count)
        parts[part] = np.stack([resize_central_square(image, SIDE, channels=3) for image in images]), labels
    preprocess = normalized(parts["train"][0])
    rows = []
    for trained, weight in WEIGHTS.items():
        torch.manual_seed(seed)
        network = find_model("googlenet").build(classes=10, channels=3, size=SIDE)
        learned = batches(*parts["train"], preprocess, batch_size=BATCH, seed=seed)
        looks = learn(network, learned, RECIPE.with_changes(auxiliary=weight))
        rows.append(
            {
                "trained": trained,
                "seed": seed,
                "steps": [look.step for look in looks],
                "losses": [round(look.loss, 4) for look in looks],
                "test_error": error(network, batches(*parts["test"], preprocess), 10),
            }
        )
        print(rows[-1], flush=True)
    return rows


def draw(rows: list[dict[str, Any]]) -> None:
    """Draw the figure and print the table."""
    table = []
    with figure("auxiliary_learning") as (_, axes):
        for color, trained in zip(COLORS, WEIGHTS, strict=False):
            own = [row for row in rows if row["trained"] == trained]
            for number, row in enumerate(own):
                label = None if number else trained
                axes.plot(row["steps"], row["losses"], color=color, linewidth=1.2, label=label)
            losses = ", ".join(f"{row['losses'][-1]:.3f}" for row in own)
            table.append([trained, losses, per_cent([row["test_error"] for row in own])])
        axes.axhline(math.log(10), color="black", linewidth=0.8, linestyle=":")
        axes.set(xlabel=f"step of {BATCH} images", ylabel="main training loss, nats")
        axes.legend(loc="lower left")
    print_table(["training", "main loss of the last 20 steps", "test error"], table)


if __name__ == "__main__":
    main(__doc__, "auxiliary_learning", measure, draw, SEEDS)
