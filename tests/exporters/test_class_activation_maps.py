from typing import Any

import numpy as np
import pytest
import torch

from svertka.classifier import Classifier
from svertka.inspection import grad_cam

pytest.importorskip("onnxruntime")
from svertka.exporters.onnx import open_session


def test_maps_are_those_of_grad_cam(averaging: Classifier, page_model: Any) -> None:
    session = open_session(page_model)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    probabilities, classes, maps = session.run(["probabilities", "classes", "maps"], {"images": images.numpy()})
    assert maps.shape == (2, 5, 8, 8)
    for row in range(2):
        np.testing.assert_array_equal(classes[row], np.argsort(-probabilities[row], kind="stable"))
        for column, label in enumerate(classes[row]):
            wanted = grad_cam(averaging.network, images[row], int(label))[0].numpy()
            np.testing.assert_allclose(maps[row, column].clip(0) / 64, wanted, rtol=1e-3, atol=1e-3 * wanted.max())
