"""Networks of every family with weights that make something of a picture, and pictures of every kind."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from svertka.classifier import Classifier, Config
from svertka.data.preprocess import Preprocess


@pytest.fixture(scope="session")
def made() -> Callable[..., Classifier]:
    """`made(model, size, resize, channels=3, names=…)`: a classifier with weights as they were drawn."""

    def make(
        model: str, size: int, resize: int, channels: int = 3, names: Sequence[str] = ("a", "b", "c")
    ) -> Classifier:
        torch.manual_seed(0)
        preprocess = Preprocess(size=size, resize=resize, mean=(0.5, 0.45, 0.4)[:channels], std=(0.2,) * channels)
        config = Config(model=model, names=tuple(names), preprocess=preprocess)
        network = config.build().eval()
        with torch.no_grad():
            for module in network.modules():
                if isinstance(module, torch.nn.BatchNorm2d):  # so that it is not the identity
                    assert module.running_mean is not None
                    assert module.running_var is not None
                    module.running_mean.normal_(0, 0.1)
                    module.running_var.uniform_(0.5, 1.5)
        return Classifier(network, config)

    return make


@pytest.fixture(scope="session")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A real photograph in the ways in which pictures are kept: turned, grey, CMYK, 16 bits, with alpha, …"""
    photograph = Image.fromarray(load_sample_image("china.jpg")).resize((160, 107))
    turned = Image.Exif()
    turned[0x0112] = 6
    alpha = photograph.copy()
    alpha.putalpha(Image.linear_gradient("L").resize(photograph.size))
    deep = Image.fromarray(np.asarray(photograph.convert("L")).astype(np.uint16) * 257)
    root = tmp_path_factory.mktemp("kinds")
    files = {
        "plain.jpg": (photograph, {"quality": 95}),
        "turned.jpg": (photograph, {"exif": turned}),
        "grey.png": (photograph.convert("L"), {}),
        "cmyk.jpg": (photograph.convert("CMYK"), {}),
        "deep.png": (deep, {}),
        "alpha.png": (alpha, {}),
        "palette.gif": (photograph.convert("P"), {}),
        "one_bit.tif": (photograph.convert("1"), {}),
        "lossy.webp": (photograph, {}),
        "plain.bmp": (photograph, {}),
    }
    for name, (image, settings) in files.items():
        image.save(root / name, **settings)
    return {name: root / name for name in files}


@pytest.fixture(scope="session")
def jpeg() -> bytes:
    """A real photograph, 640×427."""
    buffer = io.BytesIO()
    Image.fromarray(load_sample_image("china.jpg")).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
