"""Benchmark of svertka's commands on twelve networks from timm, torchvision and user code that svertka does not list.

    python bench/commands_on_external_networks.py [NAME…]

Each network is trained for one epoch on 24 images of 64 pixels, once as a whole and once only its head on stored
features, then evaluated, inspected, exported to ONNX and served, with one thread. Weights are random. A cell is the
seconds of CPU time that the command took, or why it failed. Needs svertka[onnx,serve], timm and torchvision.
"""

import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastapi.testclient import TestClient
from PIL import Image
from torch import Tensor, nn

import svertka
from svertka.device import set_threads
from svertka.graph.summary import trace
from svertka.inspection.activations import convolution_names
from svertka.models.external_builder import PACKAGES
from svertka.serving.access_control import LOOPBACK
from svertka.serving.app import App
from svertka.serving.served_model import ServedModel

CLASSES, IMAGES = "abc", 8
SIZE = 64  # pixels; attention networks resize their position embeddings to it


def own_sequential() -> nn.Module:
    """Return a nn.Sequential with ten classes and no layer names."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 5, 4), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, 2), nn.ReLU(), nn.Dropout(0.1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip


class StrangeHead(nn.Module):
    """A network whose class scores are the negative distances from learned points, without a linear layer.

    Args:
        classes: the number of points.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 5, 4), nn.ReLU(), nn.Conv2d(16, 32, 3, 2), nn.SiLU())
        self.points = nn.Parameter(torch.randn(classes, 32) * 0.1)

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores (B, classes)."""
        features = self.body(images).mean((2, 3))
        scores: Tensor = -(features[:, None] - self.points[None]).square().sum(2)
        return scores


NETWORKS: dict[str, str | Callable[[], nn.Module] | type[nn.Module]] = {
    "mobilenetv3": "timm:mobilenetv3_small_100",
    "convnext": "timm:convnext_atto",
    "regnety": "timm:regnety_002",
    "efficientnet": "torchvision:efficientnet_b0",
    "resnet": "torchvision:resnet18",
    "deit": "timm:deit_tiny_patch16_224",
    "swin": "torchvision:swin_t",
    "mobilenetv4": "timm:mobilenetv4_conv_small",
    "shufflenet": "torchvision:shufflenet_v2_x0_5",
    "densenet": "torchvision:densenet121",
    "sequential": own_sequential,
    "strange": StrangeHead,
}


def write_images(folder: Path) -> None:
    """Write images of three classes that differ in brightness."""
    random = np.random.default_rng(0)
    for number, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for image in range(IMAGES):
            pixels = (random.random((72, 72, 3)) * 100 + 50 * number).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{image}.png")


def look(classifier: svertka.Classifier) -> None:
    """Build an atlas of one unit of the first and of the last convolution."""
    layers = trace(classifier.network, classifier.preprocess.input_shape).layers
    names = convolution_names(list(layers))
    svertka.look(classifier, layers=[names[0], names[-1]], units=1, images=4, threads=1)


def serve(classifier: svertka.Classifier, image: Path) -> None:
    """Send an image to a server in this process."""
    served = ServedModel(classifier, torch.device("cpu"))
    with TestClient(App([served], hosts=LOOPBACK, token=None, threads=1).asgi, base_url="http://localhost") as client:
        answer = client.post("/predict", content=image.read_bytes())
        assert answer.status_code == 200, answer.text
    served.explain(np.asarray(Image.open(BytesIO(image.read_bytes()))), None)


def run_network(name: str, folder: Path, photos: Path) -> list[str]:
    """Return the cells of a network's row."""
    given = NETWORKS[name]
    model = given() if given is own_sequential else given
    own = not (isinstance(model, str) and model.partition(":")[0] in PACKAGES)
    first = folder / f"{name}-all"
    weights = None if own else first
    image = next((photos / "a").iterdir())
    options: dict[str, Any] = {"model": model, "epochs": 1, "size": SIZE, "threads": 1, "val": 0.25}
    head = folder / f"{name}-head"
    steps: dict[str, Callable[[], object]] = {
        "train": lambda: svertka.train(photos, output=first, **options),
        "head": lambda: svertka.train(photos, output=head, unfreeze="head", weights=weights, **options),
        "evaluate": lambda: svertka.evaluate(first, photos, threads=1, trust_builder=True),
        "look": lambda: look(svertka.Classifier.load(first, trust_builder=True)),
        "export": lambda: svertka.export(first, folder / f"{name}.onnx", images=[image], trust_builder=True),
        "serve": lambda: serve(svertka.Classifier.load(first, trust_builder=True), image),
    }
    cells = [name]
    for what, step in steps.items():
        began = time.process_time()
        try:
            step()
        except Exception as error:
            cells.append(f"{what}: {type(error).__name__} {error}")
            if what == "train":
                break
        else:
            cells.append(f"{time.process_time() - began:.1f}")
    return cells


def main(names: list[str]) -> None:
    """Run all networks and print the table."""
    warnings.simplefilter("ignore")
    set_threads(1)
    folder = Path(tempfile.mkdtemp())
    try:
        write_images(folder / "photos")
        print(
            "| network | train | head | evaluate | look | export | serve |\n|---|---|---|---|---|---|---|", flush=True
        )
        for name in names or NETWORKS:
            print(f"| {' | '.join(run_network(name, folder, folder / 'photos'))} |", flush=True)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main(sys.argv[1:])
