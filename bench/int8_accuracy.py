"""Accuracy of networks in int8 and in a mixture of precisions, against the float network.

    python bench/int8_accuracy.py [--only efficientnet_lite0] [--photographs 1200] [--threads 2] [--json]

Each network is calibrated on 100 photographs of `cats-dogs`, drawn with a fixed seed. `samples` is `imagenet-samples`:
top-1 of the float network and of the other, and the share of photographs that keep their class. `photographs` are the
others of `cats-dogs`, up to the given number: the share that keeps its class. They have no ImageNet labels, so "auto"
bounds the loss, 0.5 points, with the classes of the float network as labels on half of them, and is measured on the
other half, as the others are. "file" is the QDQ file of `svertka export --precision int8`, run by ONNX Runtime.

Needs SVERTKA_DATA.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor

import svertka
from shared_data import data_folder
from svertka.classifier import Classifier
from svertka.confidence_intervals import wilson_interval
from svertka.exporters.int8_onnx import convert_to_int8_onnx

NETWORKS = {
    "efficientnet_lite0": "efficientnet_lite0:bundled",
    "squeezenet1_1": "squeezenet1_1:{data}/weights/squeezenet1_1-imagenet.safetensors",
}
NUM_CALIBRATION = 100
BATCH_SIZE = 16
MAX_LOSS = 0.005

Run = Callable[[Tensor], Tensor]


def measure(name: str, data: Path, count: int) -> list[dict[str, Any]]:
    """Return a row for each way to compute the network `name`."""
    classifier = Classifier.load(NETWORKS[name].format(data=data))
    network = classifier.network.eval()
    wnids = [line.split("\t")[0] for line in (data / "imagenet-classes.tsv").read_text().splitlines()]
    paths = sorted((data / "imagenet-samples").glob("*.JPEG"))
    samples = torch.stack([classifier.preprocess(path) for path in paths])
    labels = torch.tensor([wnids.index(path.name.split("_")[0]) for path in paths])
    others = sorted((data / "cats-dogs").rglob("*.jpg"))
    order = torch.randperm(len(others), generator=torch.Generator().manual_seed(0))[: NUM_CALIBRATION + count]
    images = torch.stack([classifier.preprocess(others[number]) for number in order])
    calibration, photographs = images[:NUM_CALIBRATION], images[NUM_CALIBRATION:]
    before, own = (classify(network, some) for some in (samples, photographs))
    validation = photographs[::2], own[::2]
    model, _ = convert_to_int8_onnx(classifier, calibration, checked=calibration)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    sides: list[Run] = [
        svertka.optimize(network, samples[:1], precision="int8", calibration=calibration),
        svertka.optimize(
            network, samples[:1], precision="auto", calibration=calibration, validation=validation, max_loss=MAX_LOSS
        ),
        lambda some: torch.from_numpy(session.run(None, {"images": some.numpy()})[0]),
    ]
    rows = []
    for run in sides:
        after, found = classify(run, samples), classify(run, photographs[1::2])
        same = int((found == own[1::2]).sum())
        rows.append(
            {
                "network": name,
                "precision": getattr(run, "precision", "int8 in ONNX Runtime"),
                "samples": len(labels),
                "top1_before": float((before == labels).double().mean()),
                "top1_after": float((after == labels).double().mean()),
                "samples_same_class": float((after == before).double().mean()),
                "photographs": len(found),
                "photographs_same_class": same / len(found),
                "interval": list(wilson_interval(same, len(found))),
            }
        )
    return rows


@torch.inference_mode()
def classify(run: Run, images: Tensor) -> Tensor:
    """Return the class of each image, (N) int64."""
    return torch.cat([run(some).argmax(1) for some in torch.split(images, BATCH_SIZE)])


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--photographs", type=int, default=1200, help="at least 1,106 for the bound of auto")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = data_folder()
    rows = [row for name in options.only for row in measure(name, data, options.photographs)]
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{'network':20} {'precision':40} top-1 float → now   same class: samples, photographs (95 % interval)")
    for row in rows:
        low, high = row["interval"]
        print(
            f"{row['network']:20} {row['precision']:40} {row['top1_before']:.2%} → {row['top1_after']:.2%}   "
            f"{row['samples_same_class']:.2%}, {row['photographs_same_class']:.2%} ({low:.2%} to {high:.2%})"
        )


if __name__ == "__main__":
    main()
