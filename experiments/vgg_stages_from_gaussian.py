"""Experiment: VGG trained in stages from the paper's initial weights, N(0, 0.01²) (Simonyan & Zisserman 2014, §3.1).

A (11 layers), D (16 layers) and D after A: the second stage, which copies the first four convolutions and the dense
layers of the trained A and draws the others from N(0, 0.01²). In contrast to `vgg_stages.py`, the first stage starts
from N(0, 0.01²), too. This takes settings that are closer to the paper's: CIFAR-10's photographs at their 32×32 pixels,
with values up to ±128 around the mean of each channel, and dense layers of 4,096 units. Dropout is off and each batch
has six images of each of ten classes, because the noise of both exceeds the first gradients. SGD with learning rate
0.4, momentum 0.9, weight decay 0.0005, gradients clipped to 0.1, bfloat16 products, one thread, 100 steps of 60 images.
The learning rate was chosen with seed 100 so that A learns. In these trials, the gradient of D after A fell to 1e-4
within 80 steps.

The claims to show, for each seed, where guessing has a loss of 2.303: over the last 20 steps, A and D after A have a
loss below 2.25, and D has one above 2.29. About 12 minutes.

    python experiments/vgg_stages_from_gaussian.py [--seeds 0 1 2]
    python experiments/vgg_stages_from_gaussian.py --draw      # the figure and the table, from the stored results
"""

import math
from collections.abc import Iterator
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from harness import COLORS, figure, main, print_table
from torch import Tensor, nn
from training_helpers import pictures

from svertka.device import set_memory_format
from svertka.layers import Linear
from svertka.models.initialization import init_weights
from svertka.models.vgg import VGG, warm_start_tensors

WAYS = ("A", "D", "D after A")
SEEDS = (0, 1, 2)
CLASSES, SIDE, HIDDEN = 10, 32, 4096
STEPS, OF_EACH_CLASS, IMAGES = 100, 6, 10_000
LR, MOMENTUM, WEIGHT_DECAY, CLIP = 0.4, 0.9, 5e-4, 0.1
LAST = 20  # steps whose loss counts


def build(configuration: str) -> VGG:
    """Return a network with 4,096 hidden units, without dropout, from N(0, 0.01²)."""
    network = VGG(configuration, classes=CLASSES, size=SIDE)
    dense = network.classifier
    inputs = dense[0].in_features
    dense[0], dense[3], dense[6] = Linear(inputs, HIDDEN), Linear(HIDDEN, HIDDEN), Linear(HIDDEN, CLASSES)
    dense[2], dense[5] = nn.Identity(), nn.Identity()
    init_weights(network, "gaussian")
    return network


def batches(images: Tensor, labels: Tensor, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield `STEPS` batches with as many images of each class, drawn without replacement for as long as there are."""
    generator = torch.Generator().manual_seed(seed)
    of_class = [(labels == label).nonzero()[:, 0] for label in range(CLASSES)]
    waiting: list[Tensor] = []
    for _ in range(STEPS):
        if not waiting:
            count = min(map(len, of_class))
            columns = [one[torch.randperm(len(one), generator=generator)[:count]] for one in of_class]
            waiting = [one for one in torch.stack(columns, 1).split(OF_EACH_CLASS) if len(one) == OF_EACH_CLASS]
        chosen = waiting.pop().flatten()
        yield images[chosen].contiguous(memory_format=torch.channels_last), labels[chosen]


def gradient_norm(network: nn.Module) -> float:
    """Return the norm of the gradient of all weights, without biases."""
    return math.sqrt(sum(float(one.grad.square().sum()) for one in network.parameters() if one.ndim > 1))


def learn(network: nn.Module, images: Tensor, labels: Tensor, seed: int) -> tuple[list[float], list[float]]:
    """Train a network in place; return the loss and the norm of the gradient of each step."""
    set_memory_format(network, torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), LR, MOMENTUM, weight_decay=WEIGHT_DECAY)
    losses, norms = [], []
    for some, targets in batches(images, labels, seed):
        with torch.autocast("cpu", torch.bfloat16):
            scores = network(some)
        loss = F.cross_entropy(scores.float(), targets)
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        norms.append(gradient_norm(network))
        nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        optimizer.step()
    return losses, norms


def measure(seed: int) -> list[dict[str, Any]]:
    """Return the results of all networks, with the first stage before the second."""
    pixels, given = pictures("cifar10", "train", IMAGES)
    images, labels = torch.from_numpy(pixels).permute(0, 3, 1, 2).float(), torch.from_numpy(given).long()
    images -= images.mean((0, 2, 3), keepdim=True)
    trained: dict[str, VGG] = {}
    rows = []
    for way in WAYS:
        torch.manual_seed(seed)
        network = trained[way] = build(way[0])
        if way == "D after A":
            network.load_state_dict(warm_start_tensors(trained["A"], network), strict=False)
        losses, norms = learn(network, images, labels, seed)
        rows.append(
            {
                "way": way,
                "seed": seed,
                "losses": [round(one, 4) for one in losses],
                "gradients": [float(f"{one:.3g}") for one in norms],
            }
        )
        print(way, seed, round(mean(losses[-LAST:]), 4), flush=True)
    return rows


def draw(rows: list[dict[str, Any]]) -> None:
    """Draw the figure and print the table."""
    table = []
    with figure("vgg_stages_from_gaussian", panels=2) as (_, (curves, norms)):
        for color, way in zip(COLORS, WAYS, strict=False):
            own = [row for row in rows if row["way"] == way]
            for number, row in enumerate(own):
                label = None if number else way
                steps = range(1, len(row["losses"]) + 1)
                means = [mean(row["losses"][max(0, end - 10) : end]) for end in steps]
                curves.plot(steps, means, color=color, linewidth=1.2, label=label)
                norms.semilogy(steps, row["gradients"], color=color, linewidth=1, label=label)
            last = ", ".join(f"{mean(row['losses'][-LAST:]):.3f}" for row in own)
            table.append([way, last, ", ".join(f"{row['gradients'][0]:.0e}" for row in own)])
        curves.axhline(math.log(CLASSES), color="black", linewidth=0.8, linestyle=":")
        curves.set(xlabel="step", ylabel="training loss, nats, mean of 10 steps")
        curves.legend()
        norms.set(xlabel="step", ylabel="norm of the gradient of all weights")
        norms.legend()
    print_table(["network", f"loss over the last {LAST} steps", "gradient at the start"], table)


if __name__ == "__main__":
    main(__doc__, "vgg_stages_from_gaussian", measure, draw, SEEDS)
