"""Experiment: parameters and overfitting of a multilayer perceptron and a convnet on photographs of 100×100×3.

`cats-dogs` has 1,399 photographs, of which 30 % are held out (the split depends on the images, not on the seed). `mlp`
(300 hidden units) and `resnet20` are trained with recipe `plain` without augmentation: batches of 32, a constant
learning rate of 0.02 after a warm-up epoch, gradients clipped to 1, bfloat16 products. 3 seeds, one thread. The
perceptron is trained for 20 epochs and the convnet for 12, because its epochs take forty times as long; the learning
rate is constant, so the curves can be compared epoch by epoch. Training errors are those during training; the held-out
images choose nothing. The claim to show: the convnet's test error after 12 epochs is lower than the perceptron's after
20, for each seed. About 15 minutes. The second table needs no training.

    SVERTKA_DATA=… python experiments/mlp_vs_convnet_overfitting.py [--seeds 0 1 2]
    python experiments/mlp_vs_convnet_overfitting.py --draw      # the figure and the tables, from the stored results
"""

from typing import Any

import torch
from harness import COLORS, figure, main, print_table, trained
from training_helpers import per_cent

from svertka.data.builtin import data_folder
from svertka.models.registry import MODELS, trace_model

PASSES = {"mlp": 20, "resnet20": 12}
SHOWN = (4, 12, 20)  # epochs in the table
SIZE = 100
SEEDS = (0, 1, 2)
SETTINGS: dict[str, Any] = {
    "recipe": "plain",
    "batch_size": 32,
    "clip": 1,
    "bfloat16": True,
    "val": 0.3,
    "size": SIZE,
    "threads": 1,
}
PUBLISHED = ("alexnet", "zfnet", "vgg16", "vgg19", "googlenet", "resnet50", "resnet152")


def learn(network: str, seed: int, schedule: str = "constant") -> list[dict[str, Any]]:
    """Return the errors after each epoch."""
    source = data_folder() / "cats-dogs"
    settings = SETTINGS | {"model": network, "seed": seed, "epochs": PASSES[network], "schedule": schedule}
    run = trained(f"mlp-vs-convnet-{schedule}-{network}-{seed}", source, **settings)
    return [
        {"network": network, "seed": seed} | {key: line[key] for key in ("epoch", "train_error", "val_error")}
        for line in run.history()
        if line["kind"] == "epoch"
    ]


def count(network: str) -> int:
    """Return the number of parameters for two classes of photographs."""
    with torch.device("meta"):
        return sum(one.numel() for one in MODELS[network].build(classes=2, channels=3, size=SIZE).parameters())


def measure(seed: int) -> list[dict[str, Any]]:
    """Return the results of both networks."""
    return [line for network in PASSES for line in learn(network, seed)]


def draw(lines: list[dict[str, Any]]) -> None:
    """Draw the figure and print the tables."""
    rows = []
    with figure("mlp_vs_convnet", panels=2) as (_, panels):
        for axes, network in zip(panels, PASSES, strict=True):
            own = [line for line in lines if line["network"] == network]
            seeds = sorted({line["seed"] for line in own})
            for key, color, label in (
                ("train_error", COLORS[0], "training set"),
                ("val_error", COLORS[1], "test set"),
            ):
                for seed in seeds:
                    curve = [line for line in own if line["seed"] == seed]
                    axes.plot(
                        [line["epoch"] for line in curve],
                        [100 * line[key] for line in curve],
                        color=color,
                        linewidth=1,
                        label=label if seed == seeds[0] else None,
                    )
            axes.set(title=f"{network}: {count(network):,} parameters", xlabel="epoch", ylabel="error, %", ylim=(0, 62))
            axes.set_xticks(range(1, PASSES[network] + 1, 1 + PASSES[network] // 10))
            axes.legend(loc="upper right")
            for passed in sorted({line["epoch"] for line in own} & {*SHOWN}):
                at = [line for line in own if line["epoch"] == passed]
                learned, held = ([line[key] for line in at] for key in ("train_error", "val_error"))
                gaps = [one - other for one, other in zip(held, learned, strict=True)]
                rows.append([network, f"{count(network):,}", passed, *map(per_cent, (learned, held, gaps))])
    print_table(["network", "parameters", "epochs", "training error", "test error", "gap"], rows)
    print()
    first = None
    rows = []
    for name in PUBLISHED:
        layers = trace_model(MODELS[name]).layers
        whole = sum(layer.parameters for layer in layers)
        dense = sum(layer.parameters for layer in layers if layer.kind == "Linear")
        first = first or whole
        rows.append(
            [name, f"{whole:,}", f"{dense:,} ({dense / whole:.0%})", f"{whole - dense:,}", f"{first / whole:.2f}"]
        )
    print_table(["network", "parameters", "in dense layers", "elsewhere", "AlexNet has so many times as many"], rows)


if __name__ == "__main__":
    main(__doc__, "mlp_vs_convnet", measure, draw, SEEDS)
