"""Experiment: deep VGG networks are trained in stages, starting from a shallow one (Simonyan & Zisserman 2014, §3.1).

VGG A (11 layers) and D (16 layers) in their variants for small images, on CIFAR-10 reduced to 16×16 pixels so that it
takes minutes (the last block then has one position), with 160 steps of 64 images and 3 seeds:

    D, He              D as a whole, initialized as by He et al. 2015, N(0, 2 / fan-in)
    A, He              A with the same initialization; it is the first stage here
    D after A          the second stage: the first four convolutions and the dense layers of A, the others N(0, 0.01²)
    A, Gaussian        A from N(0, 0.01²), the paper's first stage
    D, Gaussian        D as a whole from N(0, 0.01²)

All other settings are the same: normalized images, learning rate 0.01, momentum 0.9, weight decay 0.0005, gradients
clipped to 1, bfloat16 products, no augmentation, one thread. About nine minutes.

    SVERTKA_DATA=… python experiments/vgg_stages.py [--seeds 0 1 2]
    python experiments/vgg_stages.py --draw      # the figure and the table, from the stored results
"""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from harness import COLORS, figure, main, print_table
from training_helpers import batches, learn, normalized, pictures

from svertka.data.loader import Batch
from svertka.data.preprocessing import resize_central_square
from svertka.device import set_memory_format
from svertka.models.initialization import init_weights
from svertka.models.vgg import VGG, warm_start_tensors
from svertka.training.lr_schedule import Constant
from svertka.training.recipe import Recipe

WAYS = ("D, He", "A, He", "D after A", "A, Gaussian", "D, Gaussian")
SEEDS = (0, 1, 2)
STEPS, BATCH, SIDE = 160, 64, 16
RECIPE = Recipe(
    batch_size=BATCH,
    epochs=1,
    lr=0.01,
    weight_decay=5e-4,
    schedule=Constant(),
    clip=1,
    bfloat16=True,
)


def gradient(network: VGG, batch: Batch) -> float:
    """Return the norm of the gradient of the first convolution's weights, without dropout."""
    weight = network.get_parameter("features.0.weight")
    (found,) = torch.autograd.grad(F.cross_entropy(network.eval()(batch.images), batch.labels), weight)
    return float(found.norm())


def measure(seed: int) -> list[dict[str, Any]]:
    """Return the results of all variants, with the first stage before the second."""
    images, labels = pictures("cifar10", "train", STEPS * BATCH)
    images = np.stack([resize_central_square(image, SIDE, channels=3) for image in images])
    preprocess = normalized(images)
    probe = next(batches(images, labels, preprocess, batch_size=BATCH).epoch(0))
    trained: dict[str, VGG] = {}
    rows = []
    for way in WAYS:
        torch.manual_seed(seed)
        network = VGG(way[0], classes=10, size=SIDE)
        if not way.endswith("He"):
            init_weights(network, "gaussian")
        if way == "D after A":
            network.load_state_dict(warm_start_tensors(trained["A, He"], network), strict=False)
        set_memory_format(network, torch.channels_last)
        before = gradient(network, probe)
        shuffled = batches(images, labels, preprocess, batch_size=BATCH, seed=seed, memory_format=torch.channels_last)
        looks = learn(network, shuffled, RECIPE)
        trained[way] = network
        rows.append(
            {
                "way": way,
                "seed": seed,
                "steps": [look.step for look in looks],
                "losses": [round(look.loss, 4) for look in looks],
                "gradient_before": before,
                "gradient_after": gradient(network, probe),
            }
        )
        print(rows[-1], flush=True)
    return rows


def draw(rows: list[dict[str, Any]]) -> None:
    """Draw the figure and print the table."""
    table = []
    with figure("vgg_stages", panels=2) as (_, (curves, norms)):
        for place, way in enumerate(WAYS):
            own = [row for row in rows if row["way"] == way]
            dashes = "--" if way.startswith("A") else "-"
            for number, row in enumerate(own):
                label = None if number else way
                curves.plot(row["steps"], row["losses"], color=COLORS[place], linestyle=dashes, lw=1.2, label=label)
                ends = [row["gradient_before"], row["gradient_after"]]
                norms.semilogy([place - 0.15, place + 0.15], ends, "o-", color=COLORS[place], ms=4, lw=1)
            table.append(
                [
                    way,
                    ", ".join(f"{row['losses'][-1]:.3f}" for row in own),
                    *(", ".join(f"{row[key]:.1e}" for row in own) for key in ("gradient_before", "gradient_after")),
                ]
            )
        curves.axhline(math.log(10), color="black", linewidth=0.8, linestyle=":")
        curves.annotate("guessing", (STEPS, math.log(10)), xytext=(0, 3), textcoords="offset points", ha="right")
        curves.set(xlabel=f"step of {BATCH} images", ylabel="training loss, nats")
        curves.legend(loc="lower left")
        norms.set_xticks(range(len(WAYS)), [way.replace(", ", ",\n").replace(" after", "\nafter") for way in WAYS])
        norms.set(
            ylabel="gradient of the first convolution,\nat the start and at the end", xlim=(-0.5, len(WAYS) - 0.5)
        )
        norms.grid(axis="x", visible=False)
    print_table(["", "loss over the last 20 steps", "gradient at the start", "at the end"], table)


if __name__ == "__main__":
    main(__doc__, "vgg_stages", measure, draw, SEEDS)
