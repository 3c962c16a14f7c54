"""What tests of exporters share."""

from typing import Any

import pytest
import torch
from torch import nn

from svertka.classifier import Classifier, Config
from svertka.data.preprocessing import Preprocess

# Names that an HTML page must not obey.
HOSTILE = ("<script>alert(1)<!--", "a\u202egpj", "\" onerror='x' &amp;", "قطة", "cat")


@pytest.fixture(scope="session")
def averaging() -> Classifier:
    """A small network whose scores are a dense layer of averages over its last feature maps; its names are hostile."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 5, 2, 2),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 5),
    ).eval()
    with torch.no_grad():
        network[-1].weight.mul_(20)  # so that probabilities depend on the image
    preprocess = Preprocess(size=32, resize=36, mean=(0.5, 0.45, 0.4), std=(0.2,) * 3)
    return Classifier(network, Config(model="resnet20", names=HOSTILE, preprocess=preprocess))


@pytest.fixture(scope="session")
def page_model(averaging: Classifier) -> Any:
    """The ONNX model of the page of `averaging`, its weights in 16 bits."""
    pytest.importorskip("onnxruntime")
    from svertka.exporters.classifier_page import convert_for_page

    return convert_for_page(averaging, "int16")
