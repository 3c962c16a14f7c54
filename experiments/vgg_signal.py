"""Experiment: how much of the images reaches each layer of VGG A, D and D after A, from weights of N(0, 0.01²).

The networks, the data and the training of A are those of `vgg_stages_from_gaussian.py`. D after A is measured before it
is trained. For 60 images, six of each of ten classes: the standard deviation over the images of the output of each
layer with weights, averaged over the layer's units, and the norm of the gradient of the first convolution's weights.
About two minutes on an idle core.

    python experiments/vgg_signal.py [--seeds 0 1 2]
    python experiments/vgg_signal.py --draw      # the figure and the table, from the stored results
"""

from typing import Any

import torch
import torch.nn.functional as F
from harness import COLORS, figure, main, print_table
from torch import Tensor, nn
from training_helpers import pictures
from vgg_stages_from_gaussian import IMAGES, SEEDS, batches, build, learn

from svertka.models.vgg import VGG, warm_start_tensors


def measure_signal(network: VGG, images: Tensor, labels: Tensor) -> dict[str, Any]:
    """Return the standard deviation of each layer's outputs over the images, and the gradient of the first one."""
    stds: list[float] = []
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    hooks = [
        layer.register_forward_hook(lambda _, inputs, output: stds.append(float(output.detach().std(0).mean())))
        for layer in layers
    ]
    loss = F.cross_entropy(network(images), labels)
    for hook in hooks:
        hook.remove()
    (gradient,) = torch.autograd.grad(loss, [layers[0].weight])
    rounded = [float(f"{one:.3g}") for one in (*stds, float(gradient.norm()))]
    return {"loss": round(loss.item(), 4), "signal": rounded[:-1], "gradient": rounded[-1]}


def measure(seed: int) -> list[dict[str, Any]]:
    """Return what is measured in each network."""
    pixels, given = pictures("cifar10", "train", IMAGES)
    images, labels = torch.from_numpy(pixels).permute(0, 3, 1, 2).float(), torch.from_numpy(given).long()
    images -= images.mean((0, 2, 3), keepdim=True)
    chosen, targets = next(batches(images, labels, seed + 1000))
    rows = []

    def store(way: str, network: VGG) -> None:
        rows.append({"way": way, "seed": seed} | measure_signal(network, chosen, targets))
        print(rows[-1], flush=True)

    torch.manual_seed(seed)
    shallow = build("A")
    store("A, random", shallow)
    learn(shallow, images, labels, seed)
    store("A, trained", shallow)
    torch.manual_seed(seed)
    deep = build("D")
    store("D, random", deep)
    deep.load_state_dict(warm_start_tensors(shallow, deep), strict=False)
    store("D after A", deep)
    return rows


def draw(rows: list[dict[str, Any]]) -> None:
    """Draw the figure and print the table."""
    ways = list(dict.fromkeys(row["way"] for row in rows))
    table = []
    with figure("vgg_signal") as (_, axes):
        for color, way in zip(COLORS, ways, strict=False):
            own = [row for row in rows if row["way"] == way]
            for number, row in enumerate(own):
                label = None if number else way
                axes.semilogy(
                    range(1, len(row["signal"]) + 1), row["signal"], "o-", color=color, ms=3, lw=1, label=label
                )
            columns = ([row["signal"][0] for row in own], [row["signal"][-1] for row in own])
            table.append([way, *(", ".join(f"{one:.0e}" for one in column) for column in columns)])
            table[-1].append(", ".join(f"{row['gradient']:.0e}" for row in own))
        axes.set(xlabel="layer with weights", ylabel="standard deviation over images")
        axes.legend()
    print_table(["network", "first convolution", "logits", "gradient of the first convolution"], table)


if __name__ == "__main__":
    main(__doc__, "vgg_signal", measure, draw, SEEDS)
