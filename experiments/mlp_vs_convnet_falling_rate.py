"""Experiment: the perceptron and the convnet on photographs of 100×100×3 with a falling learning rate.

In `mlp_vs_convnet_overfitting.py`, the learning rate is constant, and the test error of the convnet jumps between
epochs by up to 19 points. Here the rate falls as half a period of a cosine to zero. All other settings, the images and
the seeds are the same, and so are the epochs: 20 of the perceptron and 12 of the convnet. The claim to show: the
convnet's test error at the end is lower than the perceptron's at the end, for each seed. About 15 minutes.

    SVERTKA_DATA=… python experiments/mlp_vs_convnet_falling_rate.py [--seeds 0 1 2]
    python experiments/mlp_vs_convnet_falling_rate.py --draw      # the figure and the table, from the stored results
"""

from itertools import pairwise
from statistics import mean
from typing import Any

from harness import COLORS, figure, main, print_table, read_metrics
from mlp_vs_convnet_overfitting import PASSES, SEEDS, learn
from training_helpers import per_cent

LAST = 4  # epochs over which jumps are averaged


def measure(seed: int) -> list[dict[str, Any]]:
    """Return the results of both networks."""
    return [line for network in PASSES for line in learn(network, seed, schedule="cosine")]


def test_errors(lines: list[dict[str, Any]], network: str, seed: int) -> list[float]:
    """Return the test error of a training after each epoch."""
    return [line["val_error"] for line in lines if (line["network"], line["seed"]) == (network, seed)]


def draw(lines: list[dict[str, Any]]) -> None:
    """Draw the figure and print the table."""
    rows = []
    with figure("mlp_vs_convnet_falling_rate", panels=2) as (_, panels):
        for axes, network in zip(panels, PASSES, strict=True):
            for rates, color, rate in (
                (read_metrics("mlp_vs_convnet"), COLORS[1], "constant"),
                (lines, COLORS[0], "falling"),
            ):
                seeds = sorted({line["seed"] for line in lines})
                curves = [test_errors(rates, network, seed) for seed in seeds]
                for number, curve in enumerate(curves):
                    axes.plot(
                        range(1, len(curve) + 1), [100 * one for one in curve], color=color, linewidth=1,
                        label=None if number else f"{rate} rate",
                    )  # fmt: skip
                jumps = [mean(abs(b - a) for a, b in pairwise(curve[-LAST - 1 :])) for curve in curves]
                rows.append([network, rate, per_cent([curve[-1] for curve in curves]), per_cent(jumps)])
            axes.set(title=network, xlabel="epoch", ylabel="test error, %", ylim=(0, 62))
            axes.set_xticks(range(1, PASSES[network] + 1, 1 + PASSES[network] // 10))
            axes.legend(loc="lower left")
    print_table(["network", "learning rate", "test error at the end", f"change an epoch, last {LAST}"], rows)


if __name__ == "__main__":
    main(__doc__, "mlp_vs_convnet_falling_rate", measure, draw, SEEDS)
