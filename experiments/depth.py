"""Experiment: adding layers to a plain network and to a residual network (He et al. 2015, figures 1 and 6).

Plain and residual networks of 20 and 56 layers on CIFAR-10, 3 seeds each. The experiment records the training error
over the steps, the validation and test error at the end, and the norm of the gradient of each layer. Settings are those
of the paper's §4.2 (45,000 images, 5,000 for validation, batches of 128, learning rate 0.1 divided by ten at 1/2 and
3/4, shifts and mirroring), shortened from 64,000 steps to two epochs, with bfloat16 products. About 65 minutes on one
core.

    python experiments/depth.py [--seeds 0 1 2]
    python experiments/depth.py --draw      # the figure and the table, from the stored results
"""

from statistics import mean
from typing import Any

from harness import COLORS, figure, main, print_table, trained

NETWORKS = ("plain20", "plain56", "resnet20", "resnet56")
SEEDS = (0, 1, 2)
SETTINGS: dict[str, Any] = {"recipe": "resnet-cifar", "epochs": 2, "bfloat16": True, "threads": 1}


def learn(network: str, seed: int) -> list[dict[str, Any]]:
    """Return the steps, epochs and result of one training, each with its network and seed."""
    run = trained(f"depth-{network}-{seed}", "cifar10", model=network, seed=seed, **SETTINGS)
    return [
        {"network": network, "seed": seed, **line}
        for line in run.history()
        if line["kind"] in ("step", "epoch", "result")
    ]


def measure(seed: int) -> list[dict[str, Any]]:
    """Return the results of all networks."""
    return [line for network in NETWORKS for line in learn(network, seed)]


def draw(lines: list[dict[str, Any]]) -> None:
    """Draw the figure and print the table."""
    seeds = sorted({line["seed"] for line in lines})
    with figure("depth", panels=2) as (_, (curves, gradients)):
        for network in NETWORKS:
            color, dashes = COLORS["56" in network], "--" if network.startswith("plain") else "-"
            for seed in seeds:
                own = [line for line in lines if (line["network"], line["seed"]) == (network, seed)]
                steps = [line for line in own if line["kind"] == "step"]
                label = network if seed == seeds[0] else None
                curves.plot(
                    [line["step"] for line in steps],
                    smoothed([100 * line["error"] for line in steps]),
                    color=color,
                    linestyle=dashes,
                    linewidth=1,
                    label=label,
                )
                first = next((line for line in own if line["kind"] == "epoch"), None)
                if first:
                    sizes = [ratio for name, ratio in first["gradients"].items() if "conv" in name]
                    gradients.semilogy(sizes, color=color, linestyle=dashes, linewidth=1, label=label)
        curves.set(xlabel="step", ylabel="training error, %")
        curves.legend()
        gradients.set(xlabel="convolution, from the image", ylabel="gradient / weight, RMS, after one pass")
    rows = []
    for network in NETWORKS:
        results = [line for line in lines if line["kind"] == "result" and line["network"] == network]
        last = {line["seed"]: line for line in lines if line["kind"] == "epoch" and line["network"] == network}
        columns = (
            [line["train_error"] for line in last.values()],
            [line["val_error"] for line in results],
            [line["test_error"] for line in results],
        )
        if results:
            rows.append([network, *(f"{mean(c):.1%} ({', '.join(f'{100 * v:.1f}' for v in c)})" for c in columns)])
    print_table(["network", "training error, last pass", "val error", "test error"], rows)


def smoothed(values: list[float], width: int = 5) -> list[float]:
    """Return means over `width` neighbors."""
    return [mean(values[max(0, i - width // 2) : i + width // 2 + 1]) for i in range(len(values))]


if __name__ == "__main__":
    main(__doc__, "depth", measure, draw, SEEDS)
