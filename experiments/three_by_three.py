"""Experiment: the cost of three 3×3 convolutions instead of one 7×7 convolution (Simonyan & Zisserman 2014, §2.3).

Both keep the size and the channels, have biases and a ReLU after each convolution, and have a receptive field of 7×7
pixels. Costs are counted by `svertka.graph.summary.trace` and timed with one image in float32 on one thread, for the
forward pass and for forward and backward. The two take turns, in 15 rounds after 2 warm-up rounds, at the channels and
sizes of VGG's blocks 2 to 4. Times are CPU times, which other processes affect least. About a minute.

    python experiments/three_by_three.py
    python experiments/three_by_three.py --draw      # the figure and the table, from the stored results
"""

import time
from statistics import median
from typing import Any

import torch
from harness import COLORS, figure, main, print_table
from torch import nn

from svertka.graph.summary import trace

SHAPES = ((128, 56), (256, 28), (512, 14))  # (channels, side in pixels)
WARM_UP, ROUNDS = 2, 15


def stack(kernel: int, convolutions: int, channels: int) -> nn.Sequential:
    """Return as many convolutions of `kernel`, each with a ReLU."""
    layers: list[nn.Module] = []
    for _ in range(convolutions):
        layers += [nn.Conv2d(channels, channels, kernel, padding=kernel // 2), nn.ReLU()]
    return nn.Sequential(*layers)


def seconds(network: nn.Sequential, images: torch.Tensor) -> tuple[float, float]:
    """Return the seconds of a forward pass, and of a forward and a backward pass."""
    began = time.process_time()
    with torch.inference_mode():
        network(images)
    between = time.process_time()
    network(images).sum().backward()
    return between - began, time.process_time() - between


def costs(channels: int, side: int) -> list[dict[str, Any]]:
    """Return the costs of both at one shape."""
    torch.manual_seed(0)
    networks = {"one 7×7": stack(7, 1, channels), "three 3×3": stack(3, 3, channels)}
    images = torch.randn(1, channels, side, side, requires_grad=True)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in networks}
    for turn in range(WARM_UP + ROUNDS):
        for name in list(networks)[:: 1 if turn % 2 else -1]:
            times[name].append(seconds(networks[name], images))
    rows = []
    for name, network in networks.items():
        counted = trace(network, (1, channels, side, side))
        passes = zip(*times[name][WARM_UP:], strict=True)
        (forward, both) = ({"min": min(some), "median": median(some)} for some in passes)
        rows.append(
            {
                "stack": name,
                "channels": channels,
                "side": side,
                "parameters": counted.parameters,
                "multiply_adds": counted.multiply_adds,
                "receptive_field": counted.layers[-1].fields[0].extent,
                "nonlinearities": len(network) // 2,
                "forward": forward,
                "forward_backward": both,
            }
        )
    return rows


def measure() -> list[dict[str, Any]]:
    """Return the costs at all shapes."""
    return [row for shape in SHAPES for row in costs(*shape)]


def draw(rows: list[dict[str, Any]]) -> None:
    """Draw the figure and print the table."""
    pairs = list(zip(rows[::2], rows[1::2], strict=True))
    quantities = {
        "parameters": lambda row: row["parameters"],
        "multiply-adds": lambda row: row["multiply_adds"],
        "time, forward": lambda row: row["forward"]["median"],
        "time, forward and backward": lambda row: row["forward_backward"]["median"],
    }
    with figure("three_by_three") as (_, axes):
        width = 0.8 / len(quantities)
        for place, (name, value) in enumerate(quantities.items()):
            ratios = [value(three) / value(seven) for seven, three in pairs]
            at = [number + (place - 1.5) * width for number in range(len(pairs))]
            bars = axes.bar(at, ratios, width, label=name, color=COLORS[place])
            axes.bar_label(bars, fmt="%.2f", fontsize=7, padding=1)
        axes.axhline(1, color="black", linewidth=0.8)
        axes.annotate("one 7×7", (-0.4, 1.0), xytext=(0, 2), textcoords="offset points", fontsize=8)
        axes.set_xticks(
            range(len(pairs)), [f"{one['channels']} channels,\n{one['side']}×{one['side']}" for one, _ in pairs]
        )
        axes.set(ylabel="three 3×3 as a share of one 7×7", ylim=(0, 1.4))
        axes.grid(axis="x", visible=False)
        axes.legend(loc="upper center", ncols=2, frameon=False)
    table = []
    for row in rows:
        forward, both = row["forward"], row["forward_backward"]
        table.append(
            [
                f"{row['stack']}, {row['channels']} channels, {row['side']}×{row['side']}",
                f"{row['parameters']:,}",
                f"{row['multiply_adds'] / 1e6:,.0f} M",
                f"{row['receptive_field']}×{row['receptive_field']}",
                row["nonlinearities"],
                *(f"{1000 * one['min']:.1f} / {1000 * one['median']:.1f}" for one in (forward, both)),
            ]
        )
    header = ["", "parameters", "multiply-adds", "sees", "ReLUs", "forward, ms, min / median", "and backward"]
    print_table(header, table)


if __name__ == "__main__":
    main(__doc__, "three_by_three", measure, draw)
