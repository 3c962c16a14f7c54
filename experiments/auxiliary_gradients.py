"""Experiment: auxiliary classifiers increase the gradient in early layers (Szegedy et al. 2014, §5).

GoogLeNet in its variant for 32×32 pixels on CIFAR-10. The experiment measures the norm of the gradient of every part,
from the image to the classifier, for the main loss and for the main loss plus 0.3 times each auxiliary loss, on the
same 32 images in the same forward pass. It does so at initialization, with this project's initialization (Glorot &
Bengio, as in Caffe's reproduction) and with the normal distribution of standard deviation 0.01 that was common then,
and after 20 steps of 16 images with recipe `googlenet` (learning rate 0.01, no augmentation, bfloat16 products), with
one network trained with the auxiliary losses and one without. 3 seeds, one thread, about three minutes.

    SVERTKA_DATA=… python experiments/auxiliary_gradients.py [--seeds 0 1 2]
    python experiments/auxiliary_gradients.py --draw      # the figure and the table, from the stored results
"""

from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from harness import COLORS, figure, main, print_table
from torch import nn
from training_helpers import batches, learn, normalized, pictures

from svertka.models.initialization import init_weights
from svertka.models.registry import find_model
from svertka.training.builtin_recipes import find_recipe_by_name

SEEDS = (0, 1, 2)
STEPS, BATCH, PROBED = 20, 16, 32
RECIPE = find_recipe_by_name("googlenet").with_changes(epochs=1, batch_size=BATCH, bfloat16=True, schedule="constant")
WEIGHT = RECIPE.auxiliary
MOMENTS = {
    "start": "at the start, Glorot's numbers",
    "start, gaussian": "at the start, N(0, 0.01²)",
    "after": f"after {STEPS} steps",
}
# After the steps, each network is measured with the loss that it was trained with.
LOSSES = (
    ("with", "with", COLORS[1], "main and auxiliary losses"),
    ("main", "without", COLORS[0], "main loss alone"),
)
FIRST = ("conv1", "conv2", "conv3", "inception3a", "inception3b")


def gradients(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> dict[str, dict[str, float]]:
    """Return the gradient norms of each part's weights: "main" loss, and "with" the auxiliary losses."""
    weights: dict[str, list[nn.Parameter]] = {}
    for name, weight in network.named_parameters():
        if weight.dim() > 1 and not name.startswith("aux"):
            weights.setdefault(name.partition(".")[0], []).append(weight)
    every = [one for some in weights.values() for one in some]
    network.train()
    torch.manual_seed(0)  # for dropout
    logits, *others = network(images)
    main_loss = F.cross_entropy(logits, labels)
    loss = main_loss + WEIGHT * sum(F.cross_entropy(some, labels) for some in others)
    norms = {}
    for kind, of in (("main", main_loss), ("with", loss)):
        found = iter(torch.autograd.grad(of, every, retain_graph=True))
        norms[kind] = {
            name: float(torch.stack([next(found).square().sum() for _ in some]).sum().sqrt())
            for name, some in weights.items()
        }
    return norms


def measure(seed: int) -> list[dict[str, Any]]:
    """Measure at initialization and after some steps."""
    images, labels = pictures("cifar10", "train", PROBED + STEPS * BATCH)
    preprocess = normalized(images)
    probe = next(batches(images[:PROBED], labels[:PROBED], preprocess, batch_size=PROBED).epoch(0))
    rows = []

    def note(network: nn.Module, when: str, trained: str | None, loss: float | None = None) -> None:
        norms = gradients(network, probe.images, probe.labels)
        rows.append({"seed": seed, "when": when, "trained": trained, "loss": loss, **norms})
        print(
            seed,
            when,
            trained,
            {name: f"{norms['with'][name] / norms['main'][name]:.3g}" for name in FIRST},
            flush=True,
        )

    def fresh() -> nn.Module:
        torch.manual_seed(seed)
        return find_model("googlenet").build(classes=10, channels=3, size=32)

    network = fresh()
    note(network, "start", None)
    torch.manual_seed(seed)
    init_weights(network, "gaussian")
    note(network, "start, gaussian", None)
    for trained, weight in (("with", WEIGHT), ("without", 0.0)):
        network = fresh()
        learned = batches(images[PROBED:], labels[PROBED:], preprocess, batch_size=BATCH, seed=seed)
        looks = learn(network, learned, RECIPE.with_changes(auxiliary=weight, augmentations=()))
        note(network, "after", trained, looks[-1].loss)
    return rows


def draw(rows: list[dict[str, Any]]) -> None:
    """Draw the figure and print the table."""
    table = []
    with figure("auxiliary_gradients", panels=3, height=3.8) as (drawn, panels):
        drawn.set_size_inches(12, 3.8)
        for axes, (when, title) in zip(panels, MOMENTS.items(), strict=True):
            firsts = {}
            for kind, trained, color, label in LOSSES:
                own = [row for row in rows if row["when"] == when and row["trained"] in (None, trained)]
                for number, row in enumerate(own):
                    axes.semilogy(
                        list(row[kind].values()), "o-", color=color, ms=3, lw=1, label=None if number else label
                    )
                firsts[kind] = [mean(row[kind][part] for part in FIRST) for row in own]
                means = [f"{mean(row[kind][part] for row in own):.2g}" for part in FIRST]
                table.append([title, label, *means, ", ".join(f"{first:.2g}" for first in firsts[kind])])
            ratios = [one / other for one, other in zip(firsts["with"], firsts["main"], strict=True)]
            table[-1].append("")
            table[-2].append(", ".join(f"{ratio:.3g}" for ratio in ratios))
            parts = list(own[0]["main"])
            axes.set_xticks(range(len(parts)), [part.replace("inception", "") for part in parts], rotation=90)
            axes.set(title=title, xlabel="part, from the image")
            axes.title.set_fontsize(9)
        panels[0].set(ylabel="norm of the gradient (a line a seed)")
        panels[0].legend(loc="best", fontsize=8)
    print_table(["when", "loss", *FIRST, "mean of the five, each seed", "times the main loss's"], table)
    for trained in ("with", "without"):
        losses = [row["loss"] for row in rows if row["trained"] == trained]
        print(f"\nmain training loss at the end, trained {trained}: {', '.join(f'{loss:.3f}' for loss in losses)}")


if __name__ == "__main__":
    main(__doc__, "auxiliary_gradients", measure, draw, SEEDS)
