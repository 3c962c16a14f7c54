"""Figure: inference time against batch size, image size, threads and depth, and its lower bounds.

Nothing is measured here: the results are those of bench/inference_time_by_size_and_threads.py.

    python bench/inference_time_by_size_and_threads.py --output experiments/metrics/inference_time.jsonl
    python experiments/inference_time_figure.py
"""

import argparse
from collections.abc import Sequence
from typing import Any

from harness import COLORS, figure, print_table, read_metrics

Row = dict[str, Any]
NAMES = {"ours": "svertka", "ncnn": "ncnn", "mnn": "MNN", "openvino": "OpenVINO", "onnxruntime": "ONNX Runtime"}
# The settings that are the same along an axis unless it sets them, and the label and settings of each axis.
USUAL: Row = {"network": "resnet18", "batch": 1, "size": 224, "threads": 2}
AXES: dict[str, tuple[str, Row]] = {
    "batch": ("images in the batch", {}),
    "size": ("side of the image, pixels", {}),
    "threads": ("threads, batch of 16", {"batch": 16}),
    "network": ("layers of the ResNet", {}),
}


def bounds(row: Row, machine: Row) -> tuple[float, float]:
    """Return the least milliseconds of a batch by its multiplications, and by its bytes."""
    threads = str(row["threads"])
    return (
        1e3 * row["multiplications_left"] / machine["roof"][threads],
        (row["weights"] + row["maps"]) / machine["bandwidth"][threads],
    )


def position(value: int | str) -> int:
    """Return the position of a row on its axis; for a network, its number of layers."""
    return int(str(value).removeprefix("resnet"))


def draw() -> None:
    """Draw the figure and print the tables."""
    machine, *rows = read_metrics("inference_time")
    print(machine)

    with figure("inference_time", panels=2, rows=2, height=3.2) as (_, panels):
        for axes, (axis, (label, others)) in zip(panels.flat, AXES.items(), strict=True):
            same = {key: value for key, value in (USUAL | others).items() if key != axis}
            along = {position(row[axis]): row for row in rows if same.items() <= row.items()}
            places, own = zip(*sorted(along.items()), strict=True)
            pictures = [row["batch"] for row in own]
            for side, color in zip(own[0]["sides"], COLORS, strict=False):
                times = [row["sides"][side]["ms"] / count for row, count in zip(own, pictures, strict=True)]
                axes.plot(places, times, "o-", ms=4, color=color, label=NAMES[side])
            for number, (name, style) in enumerate((("multiplications left", "--"), ("bytes", ":"))):
                least = [bounds(row, machine)[number] / count for row, count in zip(own, pictures, strict=True)]
                axes.plot(places, least, style, color="black", linewidth=1, label=f"bound: {name}")
            logarithmic = places[-1] / places[0] > 4
            axes.set(xlabel=label, ylabel="ms an image", ylim=(0, None))
            if logarithmic:
                axes.set_xscale("log", base=2)
            axes.set_xticks(places, [str(place) for place in places])
            axes.minorticks_off()
            print_table(*table(label, places, own, machine))
        panels.flat[1].legend(loc="upper left", fontsize=8)


def table(label: str, places: Sequence[int], rows: Sequence[Row], machine: Row) -> tuple[list[str], list[list[Any]]]:
    """Print milliseconds of whole batches: the best, and the median in brackets."""
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
    parser.add_argument("--draw", action="store_true", help="no effect: nothing is measured")
    parser.parse_args()
    draw()
