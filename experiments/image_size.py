"""Experiment: filters do not depend on the size of the image. One trained network is applied to images of many sizes.

The same weights are applied to the 63 photographs of imagenet-samples (one per class, out of 1000 classes) at each
size. The central square is resized to 256/227 (SqueezeNet) or 256/224 (EfficientNet-Lite0) times the size and cropped.
SqueezeNet 1.1 and EfficientNet-Lite0 end in an average over all positions, so no layer depends on the size. Times are
CPU times of single images in float32 on one thread, the minimum and the median over the photographs. One minute.

    SVERTKA_DATA=… python experiments/image_size.py
    python experiments/image_size.py --draw      # the figure and the table, from the stored results
"""

import time
from statistics import median
from typing import Any

import torch
from harness import COLORS, figure, main, print_table

from svertka.classifier import Classifier
from svertka.data import imagenet
from svertka.data.builtin import data_folder

SIZES = (64, 96, 128, 160, 224, 288, 352, 448)
NETWORKS = {
    "squeezenet1_1": "squeezenet1_1:{data}/weights/squeezenet1_1-imagenet.safetensors",
    "efficientnet_lite0": "efficientnet_lite0:bundled",
}


@torch.inference_mode()
def achieved(name: str) -> list[dict[str, Any]]:
    """Return the results of network `name` at each size."""
    data = data_folder()
    classifier = Classifier.load(NETWORKS[name].format(data=data))
    own = classifier.preprocess
    photographs = sorted((data / "imagenet-samples").glob("*.JPEG"))
    numbers = {one.wordnet: number for number, one in enumerate(imagenet.CLASSES)}
    labels = [numbers[path.name.partition("_")[0]] for path in photographs]
    rows = []
    for size in SIZES:
        preprocess = own.model_copy(update={"size": size, "resize": round(size * own.resize / own.size)})
        places, seconds = [], []
        for path, label in zip(photographs, labels, strict=True):
            images = preprocess(path)[None]
            began = time.process_time()
            logits = classifier.network(images)[0]
            seconds.append(time.process_time() - began)
            places.append(int((logits > logits[label]).sum()))
        rows.append(
            {
                "network": name,
                "size": size,
                "photographs": len(places),
                "top1": sum(place < 1 for place in places) / len(places),
                "top5": sum(place < 5 for place in places) / len(places),
                "seconds": {"min": min(seconds), "median": median(seconds)},
            }
        )
    return rows


def measure() -> list[dict[str, Any]]:
    """Return the results of all networks."""
    return [row for name in NETWORKS for row in achieved(name)]


def draw(rows: list[dict[str, Any]]) -> None:
    """Draw the figure and print the table."""
    with figure("image_size", panels=2) as (_, (right, times)):
        for network, color in zip(NETWORKS, COLORS, strict=False):
            own = [row for row in rows if row["network"] == network]
            sizes = [row["size"] for row in own]
            right.plot(sizes, [100 * row["top5"] for row in own], "o--", ms=4, color=color, label=f"{network}, top-5")
            right.plot(sizes, [100 * row["top1"] for row in own], "o-", ms=4, color=color, label=f"{network}, top-1")
            milliseconds = [1000 * row["seconds"]["median"] for row in own]
            times.plot(sizes, milliseconds, "o-", ms=4, color=color, label=network)
        for axes in (right, times):
            axes.axvline(224, color="black", linewidth=0.8, linestyle=":")
            axes.set(xlabel="side of the image, pixels (dotted: as in training)", xticks=SIZES)
        right.set(ylabel="of 63 photographs recognized, %", ylim=(0, 102))
        right.legend(loc="lower right")
        times.set(ylabel="median processor time an image, ms", ylim=(0, None))
        times.legend(loc="upper left")
    table = [
        [
            row["network"],
            row["size"],
            *(f"{round(row[key] * row['photographs'])} ({row[key]:.1%})" for key in ("top1", "top5")),
            f"{1000 * row['seconds']['min']:.1f} / {1000 * row['seconds']['median']:.1f}",
        ]
        for row in rows
    ]
    print_table(["network", "size", "right, of 63", "among five", "ms an image, min / median"], table)


if __name__ == "__main__":
    main(__doc__, "image_size", measure, draw)
