"""How the time of a network grows with batch, picture size, threads and depth, and what bounds it.

Drawn from what bench/growth.py measured; nothing is measured here.

    python bench/growth.py --output experiments/metrics/growth.jsonl
    python experiments/growth.py
"""

import argparse
from collections.abc import Callable
from typing import Any

from record import COLOURS, figure, print_table, read_metrics

Row = dict[str, Any]
NAMES = {"ours": "svertka", "ncnn": "ncnn", "mnn": "MNN", "openvino": "OpenVINO", "onnxruntime": "ONNX Runtime"}
BATCHES, SIZES, DEPTHS = (1, 2, 4, 8, 16, 32, 64), (96, 128, 160, 224, 320, 384, 512), (18, 34, 50, 101, 152)


def bounds(row: Row, machine: Row) -> tuple[float, float]:
    """Milliseconds of a batch that its multiplications take at least, and its bytes."""
    threads = str(row["threads"])
    return (
        1e3 * row["multiplications_left"] / machine["roof"][threads],
        (row["weights"] + row["maps"]) / machine["bandwidth"][threads],
    )


def draw() -> None:
    """The figure and the tables."""
    machine, *rows = read_metrics("growth")
    print(machine)

    def found(network: str = "resnet18", batch: int = 1, size: int = 224, threads: int = 2) -> Row:
        wanted = {"network": network, "batch": batch, "size": size, "threads": threads}
        return next(row for row in rows if wanted.items() <= row.items())

    axes_of: dict[str, tuple[list[Any], Callable[[Any], Row]]] = {
        "pictures in the batch": (list(BATCHES), lambda batch: found(batch=batch)),
        "side of the picture, pixels": (list(SIZES), lambda size: found(size=size)),
        "threads, batch of 16": ([1, 2], lambda threads: found(batch=16, threads=threads)),
        "layers of the ResNet": (list(DEPTHS), lambda depth: found(f"resnet{depth}")),
    }
    with figure("growth", panels=2, rows=2, height=3.2) as (_, panels):
        for axes, (label, (places, row_at)) in zip(panels.flat, axes_of.items(), strict=True):
            own = [row_at(place) for place in places]
            pictures = [row["batch"] for row in own]
            for side, colour in zip(own[0]["sides"], COLOURS, strict=False):
                times = [row["sides"][side]["ms"] / count for row, count in zip(own, pictures, strict=True)]
                axes.plot(places, times, "o-", ms=4, color=colour, label=NAMES[side])
            for number, (name, style) in enumerate((("multiplications left", "--"), ("bytes", ":"))):
                least = [bounds(row, machine)[number] / count for row, count in zip(own, pictures, strict=True)]
                axes.plot(places, least, style, color="black", linewidth=1, label=f"bound: {name}")
            logarithmic = places[-1] / places[0] > 4
            axes.set(xlabel=label, ylabel="ms a picture", ylim=(0, None))
            if logarithmic:
                axes.set_xscale("log", base=2)
            axes.set_xticks(places, [str(place) for place in places])
            axes.minorticks_off()
            print_table(*table(label, places, own, machine))
        panels.flat[1].legend(loc="upper left", fontsize=8)


def table(label: str, places: list[Any], rows: list[Row], machine: Row) -> tuple[list[str], list[list[Any]]]:
    """Milliseconds of whole batches: the best, and the medians in brackets."""
    sides = list(rows[0]["sides"])
    header = [label, *(NAMES[side] for side in sides), "bound: multiplications", "bound: bytes", "of the higher bound"]
    lines = []
    for place, row in zip(places, rows, strict=True):
        times = [row["sides"][side] for side in sides]
        least = bounds(row, machine)
        lines.append(
            [
                place,
                *(f"{one['ms']:.4g} ({one['ms_median']:.4g})" for one in times),
                *(f"{bound:.3g}" for bound in least),
                f"{row['sides']['ours']['ms'] / max(least):.2f}",
            ]
        )
    return header, lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draw", action="store_true", help="as without: there is nothing to measure")
    parser.parse_args()
    draw()
