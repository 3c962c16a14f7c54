from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from svertka.classifier import Classifier
from svertka.data.unlabeled_images import open_unlabeled
from svertka.transfer import freeze
from svertka.transfer.image_features import compute_features, scale_to_unit_length


def test_stored_features_are_read_without_a_compilation(
    made: Callable[..., Classifier], digit_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled_for = []

    def record(network: nn.Module, _shape: tuple[int, ...], images: int) -> nn.Module:
        compiled_for.append(images)
        return network

    monkeypatch.setattr(freeze, "optimize_if_worthwhile", record)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    classifier, dataset = made("resnet20", 8, 8), open_unlabeled(digit_folder)
    found = [
        compute_features(classifier, classifier.preprocess, dataset, np.arange(count), threads=1)
        for count in (30, 30, 40)
    ]
    assert compiled_for == [30, 0, 10]
    np.testing.assert_array_equal(found[0].values, found[1].values)
    np.testing.assert_array_equal(found[0].values, found[2].values[:30])


def test_features_of_zero_stay_zero() -> None:
    scaled = scale_to_unit_length(np.array([[3, 4], [0, 0]], np.float32))
    assert scaled.tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0, 0]]
