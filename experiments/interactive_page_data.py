"""Write the data of the interactive pages of the documentation, docs/reference/interactive/*_data.js.

    python experiments/interactive_page_data.py receptive-fields
    SVERTKA_DATA=… python experiments/interactive_page_data.py lenet runs/mnist-lenet5

`receptive-fields` traces four networks of svertka: for each layer, the size of its feature maps and the grid of its
receptive fields. `lenet` stores the weights of a LeNet-5 that `svertka train mnist` has trained, as 16-bit floats, and
test images; it also measures the test error with the rounded weights, which the page quotes. Both take seconds.
"""

import argparse
import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor

from svertka.classifier import Classifier
from svertka.data.builtin import open_builtin
from svertka.graph.summary import INPUT, Layer, Trace
from svertka.models.lenet import C3_CONNECTIONS
from svertka.models.registry import find_model, trace_model
from svertka.run import Run

PAGES = Path(__file__).parents[1] / "docs" / "reference" / "interactive"
NETWORKS = {"alexnet": "AlexNet", "vgg16": "VGG-16", "googlenet": "GoogLeNet", "resnet18": "ResNet-18"}
PHOTOGRAPH_SIDE = 227  # pixels; the largest input of the networks
WRONG = 3  # misclassified test images that the page offers


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("receptive-fields", help="layers of AlexNet, VGG-16, GoogLeNet and ResNet-18")
    commands.add_parser("lenet", help="weights of a LeNet-5").add_argument("run", help="run folder")
    options = parser.parse_args()
    if options.command == "receptive-fields":
        networks = {name: network_layers(name, title) for name, title in NETWORKS.items()}
        write("receptive_field_data", "RECEPTIVE_FIELD_DATA", {"networks": networks, "photograph": photograph()})
    else:
        write("lenet_data", "LENET_DATA", lenet(Run(options.run).classifier()))


def write(name: str, variable: str, value: dict[str, Any]) -> None:
    """Write a classic script that assigns `value`: browsers refuse other ways to load data from file://."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    source = "// Written by experiments/interactive_page_data.py.\n"
    (PAGES / f"{name}.js").write_text(f"{source}const {variable} = {text};\n", encoding="utf-8")
    print(f"{name}.js: {(PAGES / f'{name}.js').stat().st_size / 1000:.0f} kB")


def network_layers(name: str, title: str) -> dict[str, Any]:
    """Return the layers of a network that change the receptive field, or join several, as JSON values.

    Each has the side of its maps, the grid (start, jump, extent) of its receptive fields, and the places of its inputs
    in the list; −1 is the image. The first layer that sees the whole image ends the list, with the grid None.
    """
    model = find_model(name)
    traced = trace_model(model)
    places, rows = {INPUT: -1}, []
    for layer in traced.layers:
        inputs = list(dict.fromkeys(places[one] for one in layer.inputs))
        sources = [rows[place] for place in inputs if place >= 0]
        grid = layer.fields[0].grid
        if grid and len(inputs) == 1 and inputs != [-1] and sources[0]["grid"] == list(grid):
            places[layer.name] = inputs[0]  # elementwise
            continue
        places[layer.name] = len(rows)
        shown = layer
        if layer.kind == "Flatten":  # the dense layer behind it is what papers name
            shown = next(other for other in traced.layers if other.kind == "Linear")
        rows.append(
            {
                "name": layer_label(traced, shown, name),
                "kind": shown.kind,
                "channels": shown.shape[1],
                "side": layer.shape[2] if grid else 1,
                "grid": grid and list(grid),
                "inputs": inputs,
            }
        )
        if not grid:
            break
    return {"title": title, "size": model.input_shape[1], "layers": rows}


def layer_label(traced: Trace, layer: Layer, network: str) -> str:
    """Return a name as in the papers: VGG's conv1_1 to fc6, GoogLeNet's inception modules, and ResNet's shortcuts."""
    if network == "googlenet":
        module, _, branch = layer.name.removesuffix(".conv").removeprefix("inception").partition(".")
        kernels = {"branch2.1": "3×3", "branch3.1": "5×5", "branch4.0": "pool", "cat": "joined"}
        return f"{module} {kernels[branch]}" if branch else module
    if network != "vgg16":
        block, _, last = layer.name.replace(".downsample.0", ".shortcut").rpartition(".")
        return f"{block} {last}" if block else last
    if layer.kind == "Linear":
        return "fc6"
    before = traced.layers[: traced.layers.index(layer) + 1]
    pools = sum(one.kind == "MaxPool2d" for one in before)
    if layer.kind == "MaxPool2d":
        return f"pool{pools}"
    since = [number for number, one in enumerate(before) if one.kind == "MaxPool2d"][-1:] or [-1]
    return f"conv{pools + 1}_{sum(one.kind == 'Conv2d' for one in before[since[0] + 1 :])}"


def photograph() -> str:
    """Return a photograph by danielbuechele (CC BY 2.0) as a data URL, cropped to a square."""
    image = Image.fromarray(load_sample_image("china.jpg"))
    left = image.width - image.height - 40  # the pavilion
    square = image.crop((left, 0, left + image.height, image.height)).resize((PHOTOGRAPH_SIDE, PHOTOGRAPH_SIDE))
    stored = io.BytesIO()
    square.save(stored, "jpeg", quality=80, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(stored.getvalue()).decode()}"


def lenet(classifier: Classifier) -> dict[str, Any]:
    """Return the weights, the normalization, test images and the test error of a LeNet-5 as JSON values."""
    network = classifier.network.eval()
    tensors = {name: tensor.detach().half() for name, tensor in network.named_parameters()}
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(tensors[name])
    dataset = open_builtin("mnist")
    parts = np.asarray(dataset.parts)
    images, labels = dataset.images.array[parts == "test"], dataset.labels[parts == "test"]
    predicted = np.concatenate([predict(classifier, batch) for batch in np.array_split(images, 20)])
    wrong = np.flatnonzero(predicted != labels)
    shown = [int(np.flatnonzero(labels == digit)[0]) for digit in range(10)] + wrong[:WRONG].tolist()
    preprocess = classifier.config.preprocess
    return {
        "mean": preprocess.mean[0],
        "std": preprocess.std[0],
        "weights": {name: {"shape": list(one.shape), "data": encode(one)} for name, one in tensors.items()},
        "connections": C3_CONNECTIONS,
        "codes": ["".join("+" if bit > 0 else "-" for bit in row) for row in network.get_buffer("output.codes")],
        "digits": [{"number": n, "label": int(labels[n]), "pixels": encode(images[n])} for n in shown],
        "wrong": len(wrong),
        "images": len(images),
    }


def predict(classifier: Classifier, images: np.ndarray) -> np.ndarray:
    """Return the classes of (N, 28, 28, 1) uint8 images."""
    preprocess = classifier.config.preprocess
    margin = (preprocess.size - images.shape[1]) // 2
    padded = np.pad(images, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    pixels = torch.from_numpy(padded).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        return classifier.network((pixels - preprocess.mean[0]) / preprocess.std[0]).argmax(1).numpy()


def encode(values: Tensor | np.ndarray) -> str:
    """Return the bytes of an array in base64."""
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()


if __name__ == "__main__":
    main()
