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
from svertka.data.preprocessing import Preprocess

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


@pytest.fixture(scope="session")
def scenes(digit_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """24 pictures of 64×48 pixels in each of one/ and two/, with a digit of 16×16 somewhere; and a CSV of where."""
    root = tmp_path_factory.mktemp("scenes")
    rows, draws = ["path,label,xmin,ymin,xmax,ymax"], np.random.default_rng(0)
    for name in ("one", "two"):
        (root / "photos" / name).mkdir(parents=True)
        for number, path in enumerate(sorted((digit_folder / name).iterdir())[:24]):
            left, top = int(draws.integers(0, 49)), int(draws.integers(0, 33))
            canvas = Image.new("L", (64, 48), 60)
            with Image.open(path) as digit:
                canvas.paste(digit.resize((16, 16)), (left, top))
            canvas.save(root / "photos" / name / f"{name}-{number}.png")
            rows.append(f"{name}-{number}.png,{name},{left},{top},{left + 16},{top + 16}")
    (root / "boxes.csv").write_text("\n".join(rows) + "\n")
    return root / "photos", root / "boxes.csv"
