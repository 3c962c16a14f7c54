"""A classifier that knows bright from dark, and a picture with something bright in it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import nn

from svertka.classifier import Classifier, Config
from svertka.data.preprocess import Preprocess

Maker = Callable[..., Classifier]


@pytest.fixture
def bright_or_dark() -> Maker:
    """Makes a perceptron on 16×16 pixels that says "bright" of what is more than half white."""
    return _perceptron


def _perceptron(names: tuple[str, ...] = ("bright", "dark")) -> Classifier:
    config = Config(model="mlp", names=names, preprocess=Preprocess(size=16, resize=16, mean=(0.5,), std=(0.5,)))
    network = config.build().eval()
    first, last = (layer for layer in network.modules() if isinstance(layer, nn.Linear))
    with torch.no_grad():
        for layer in (first, last):
            layer.weight.zero_()
            assert layer.bias is not None
            layer.bias.zero_()
        first.weight[0], first.weight[1] = 1 / 256, -1 / 256  # the mean, −1 to 1, or what is below 0 of it
        last.weight[0, :2], last.weight[1, :2] = torch.tensor([8.0, -8]), torch.tensor([-8.0, 8])
    return Classifier(network, config)


@pytest.fixture
def lamp(tmp_path: Path) -> Path:
    """A dark picture of 160×120 pixels, bright from (70, 30) to (110, 60), as a PNG file."""
    pixels: npt.NDArray[np.uint8] = np.full((120, 160, 3), 20, np.uint8)
    pixels[30:60, 70:110] = 250
    path = tmp_path / "lamp.png"
    Image.fromarray(pixels).save(path)
    return path
