"""Experiment: max pooling makes a network invariant to small shifts, which helps some tasks and not others.

Four networks have three 3×3 convolutions (16, 32, 64 channels) and a dense layer. They differ in how the first two
halve the size:

    max          2×2 max pooling
    stride       the convolution has stride 2
    blur         2×2 max pooling without stride, then the filter (1 2 1)/4 in both directions with stride 2 (Zhang 2019,
                 "Making convolutional networks shift-invariant again")
    max overall  like max, with a global maximum after the last convolution, where the others keep 8×8 positions

Fashion-MNIST is padded to 32×32; 5,000 training images, 2,000 test images, 4 epochs, recipe `plain` without
augmentation, 3 seeds, one thread. There are two tasks:

    what    the ten classes: the test error, and how often the prediction changes if a test image moves by one pixel in
            one of eight directions
    where   every image is moved by −2, 0 or 2 pixels in each direction, at random, and the network predicts which of
            the nine shifts it was; guessing is wrong in 88.9 % of the cases

About three minutes.

    SVERTKA_DATA=… python experiments/pooling_and_shifts.py [--seeds 0 1 2]
    python experiments/pooling_and_shifts.py --draw      # the figure and the table, from the stored results
"""

from collections import OrderedDict
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from harness import COLORS, figure, main, print_table
from torch import nn
from training_helpers import batches, error, learn, normalized, per_cent, pictures

from svertka.data.dataset import Ints, Pixels
from svertka.device import set_memory_format
from svertka.training.builtin_recipes import find_recipe_by_name

NETWORKS = ("max", "stride", "blur", "max overall")
SEEDS = (0, 1, 2)
LEARNED, JUDGED, FRAME = 5_000, 2_000, 2
RECIPE = find_recipe_by_name("plain").with_changes(epochs=4)
MOVES = tuple(product((-2, 0, 2), repeat=2))
NEIGHBORS = tuple(move for move in product((-1, 0, 1), repeat=2) if move != (0, 0))


class Blur(nn.Module):
    """The filter (1 2 1)/4 in both directions with stride 2: (B, C, H, W) to (B, C, ⌈H/2⌉, ⌈W/2⌉)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        row = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("weight", (row[:, None] * row).expand(channels, 1, 3, 3).contiguous())

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the blurred maps."""
        return F.conv2d(inputs, self.weight, stride=2, padding=1, groups=inputs.shape[1])


def build(network: str, classes: int) -> nn.Module:
    """Return one of NETWORKS, for inputs (B, 1, 32, 32)."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = 1
    for number, width in enumerate((16, 32, 64), start=1):
        halves = number < 3
        stride = 2 if halves and network == "stride" else 1
        layers[f"conv{number}"] = nn.Conv2d(channels, width, 3, stride, padding=1)
        layers[f"relu{number}"] = nn.ReLU()
        if halves and network.startswith("max"):
            layers[f"pool{number}"] = nn.MaxPool2d(2)
        if halves and network == "blur":
            layers[f"pool{number}"] = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.MaxPool2d(2, stride=1), Blur(width))
        channels = width
    side = 1 if network == "max overall" else 8
    layers["pool3"] = nn.AdaptiveMaxPool2d(side)  # no effect for 8
    layers["flatten"] = nn.Flatten()
    layers["dense"] = nn.Linear(channels * side**2, classes)
    return nn.Sequential(layers)


def framed(images: Pixels) -> Pixels:
    """Return images with a black frame."""
    return np.pad(images, ((0, 0), (FRAME, FRAME), (FRAME, FRAME), (0, 0)))


def moved(images: Pixels, down: int, across: int) -> Pixels:
    """Return images moved by a shift; the frame is wide enough that nothing is lost."""
    return np.roll(images, (down, across), axis=(1, 2))


def moved_at_random(images: Pixels, seed: int) -> tuple[Pixels, Ints]:
    """Return images moved by one of MOVES each, and its index."""
    chosen = np.random.default_rng(seed).integers(len(MOVES), size=len(images))
    results = np.empty_like(images)
    for number, move in enumerate(MOVES):
        results[chosen == number] = moved(images[chosen == number], *move)
    return results, chosen


@torch.inference_mode()
def answers(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return the class that `network` predicts for each image."""
    return torch.cat([network(some).argmax(1) for some in images.split(500)])


def measure(seed: int) -> list[dict[str, Any]]:
    """Return the results of both tasks with every network."""
    learned, labels = pictures("fashion-mnist", "train", LEARNED)
    judged, judged_labels = pictures("fashion-mnist", "test", JUDGED)
    learned, judged = framed(learned), framed(judged)
    tasks = {
        "what": (learned, labels, judged, judged_labels),
        "where": (*moved_at_random(learned, seed), *moved_at_random(judged, 1_000 + seed)),
    }
    rows = []
    for network in NETWORKS:
        row: dict[str, Any] = {"network": network, "seed": seed}
        for task, (images, numbers, others, other_numbers) in tasks.items():
            classes = int(numbers.max()) + 1
            preprocess = normalized(images)
            torch.manual_seed(seed)
            trained = set_memory_format(build(network, classes), torch.channels_last)
            batch_size, layout = RECIPE.batch_size, torch.channels_last
            shuffled = batches(images, numbers, preprocess, batch_size=batch_size, seed=seed, memory_format=layout)
            learn(trained, shuffled, RECIPE)
            row[f"{task}_error"] = error(trained, batches(others, other_numbers, preprocess), classes)
            if task == "what":
                still, *beside = (
                    answers(trained, preprocess.normalize(torch.from_numpy(moved(others, *move)).permute(0, 3, 1, 2)))
                    for move in ((0, 0), *NEIGHBORS)
                )
                row["changed"] = float(torch.stack([one != still for one in beside]).double().mean())
        print(row, flush=True)
        rows.append(row)
    return rows


def draw(rows: list[dict[str, Any]]) -> None:
    """Draw the figure and print the table."""
    columns = {
        "changed": "answers changed by one pixel, %",
        "what_error": "what is it? test error, %",
        "where_error": "where is it? test error, %",
    }
    table = []
    with figure("pooling_and_shifts", panels=3, height=3) as (drawn, panels):
        drawn.set_size_inches(9.2, 3)
        for axes, (key, title) in zip(panels, columns.items(), strict=True):
            for place, network in enumerate(NETWORKS):
                values = [100 * row[key] for row in rows if row["network"] == network]
                axes.bar(place, sum(values) / len(values), 0.65, color=COLORS[place])
                axes.plot([place] * len(values), values, "o", color="black", markersize=3)
            axes.set_xticks(range(len(NETWORKS)), [network.replace(" ", "\n") for network in NETWORKS])
            axes.set(title=title, ylim=(0, None))
            axes.title.set_fontsize(9)
            axes.grid(axis="x", visible=False)
    for network in NETWORKS:
        own = [row for row in rows if row["network"] == network]
        table.append([network, *(per_cent([row[key] for row in own]) for key in columns)])
    print_table(["network", "answers changed by one pixel", "what: test error", "where: test error"], table)


if __name__ == "__main__":
    main(__doc__, "pooling_and_shifts", measure, draw, SEEDS)
