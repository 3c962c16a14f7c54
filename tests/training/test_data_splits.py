import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from svertka.data.augmentation import ScaleJitter
from svertka.data.builtin import open_builtin
from svertka.data.folder_and_table_sources import open_folder
from svertka.data.preprocessing import Preprocess
from svertka.errors import DataError
from svertka.models.registry import MODELS
from svertka.training.data_splits import (
    DataSplits,
    choose_input_size_and_channels,
    decode_and_split,
    stored_side_for_crops,
)

PREPROCESS = Preprocess(size=8, resize=8, mean=(0.5,) * 3, std=(0.5,) * 3)


def test_parts_are_disjoint_and_whole(digit_folder: Path) -> None:
    parts = decode_and_split(open_folder(digit_folder), PREPROCESS, 8, 0.2, 0.1, threads=1, limit=None)
    together = np.concatenate(list(parts.indices.values()))
    assert sorted(together) == list(range(240))
    assert parts.sizes()["val"] > 20
    assert parts.class_counts("train").sum() == parts.sizes()["train"]


def test_training_may_draw_from_larger_squares_than_are_shown(digit_folder: Path) -> None:
    side = stored_side_for_crops(PREPROCESS, (ScaleJitter(),))
    assert side == 18  # 512/224 of 8
    parts = decode_and_split(open_folder(digit_folder), PREPROCESS, side, 0.1, 0.0, threads=1, limit=None)
    assert parts.train_rows[np.array([0])].shape == (1, 18, 18, 3)
    assert parts.eval_rows[np.array([0])].shape == (1, 8, 8, 3)
    (batch, *_) = parts.eval_batches("val", PREPROCESS, torch.device("cpu"), torch.contiguous_format).epoch(0)
    assert batch.images.shape[1:] == (3, 8, 8)


def test_the_fingerprint_is_of_contents_labels_and_parts(digit_folder: Path, tmp_path: Path) -> None:
    def fingerprint(root: Path, val: float = 0.1) -> str:
        return decode_and_split(open_folder(root), PREPROCESS, 8, val, 0.0, threads=1, limit=None).fingerprint

    copy = tmp_path / "copy"
    shutil.copytree(digit_folder, copy)
    first = fingerprint(copy)
    (copy / "one" / "00.png").rename(copy / "one" / "zz.png")
    assert fingerprint(copy) == first == fingerprint(digit_folder)
    assert fingerprint(copy, val=0.5) != first
    (copy / "one" / "zz.png").rename(copy / "two" / "zz.png")
    assert fingerprint(copy) != first


def test_a_class_whose_pictures_are_all_bad_is_one_sentence(digit_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(digit_folder, copy)
    (copy / "zero").mkdir()
    (copy / "zero" / "0.png").write_bytes(b"no")
    with pytest.raises(DataError, match="no usable training image of zero; add some or remove the class"):
        decode_and_split(open_folder(copy), PREPROCESS, 8, 0.1, 0.0, threads=1, limit=None)


def test_inputs_suit_network_and_pictures(digit_folder: Path) -> None:
    digits, photos = open_builtin("digits"), open_folder(digit_folder)
    assert choose_input_size_and_channels(digits, MODELS["lenet5"], None) == (32, 28, 1)
    assert choose_input_size_and_channels(digits, MODELS["mlp"], None) == (8, 8, 1)
    assert choose_input_size_and_channels(digits, MODELS["resnet20"], 16) == (16, 16, 1)
    assert choose_input_size_and_channels(photos, MODELS["resnet20"], None) == (64, 64, 3)
    assert choose_input_size_and_channels(photos, MODELS["lenet5"], None) == (32, 28, 1)


def test_inputs_suit_the_weights_that_training_starts_from() -> None:
    digits = open_builtin("digits")
    expected = Preprocess(size=224, resize=256, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert choose_input_size_and_channels(digits, MODELS["resnet20"], None, expected) == (224, 256, 3)
    assert choose_input_size_and_channels(digits, MODELS["resnet20"], 112, expected) == (112, 128, 3)


def _weights(labels: np.ndarray, patches: Any = None, *, by_class: bool = True) -> np.ndarray:
    """Those of the training part, all but the last row, which no training image is."""
    parts = SimpleNamespace(
        dataset=SimpleNamespace(labels=labels, names=("a", "b", "background")),
        indices={"train": np.arange(len(labels) - 1)},
        patches=patches,
    )
    weights = DataSplits.row_weights(parts, by_class=by_class)  # type: ignore[arg-type]
    assert weights is not None
    return weights.numpy()[:-1]


def test_class_weights_are_one_on_average() -> None:
    labels = np.repeat([0, 1, 2, 0], [10, 30, 60, 1])
    weights = _weights(labels)
    assert weights.sum() == pytest.approx(100)
    assert weights[0] == pytest.approx(3 * weights[10]) == pytest.approx(6 * weights[40])


@pytest.mark.parametrize("by_class", [True, False])
def test_whole_images_weigh_as_much_as_all_their_patches(by_class: bool) -> None:
    labels = np.repeat([0, 1, 2, 0, 1, 0], [10, 30, 60, 5, 3, 1])
    is_whole = np.arange(len(labels)) >= 100
    weights = _weights(labels, SimpleNamespace(is_whole=is_whole), by_class=by_class)
    assert weights[:100].sum() == pytest.approx(weights[100:].sum()) == pytest.approx(54)
    assert weights[100:] == pytest.approx(54 / 8)  # each the same
    assert weights[0] == pytest.approx((3 if by_class else 1) * weights[10])


def test_a_single_whole_image_does_not_weigh_as_much_as_a_thousand_patches() -> None:
    labels = np.repeat([0, 1, 0, 0], [500, 500, 1, 1])
    weights = _weights(labels, SimpleNamespace(is_whole=np.arange(len(labels)) >= 1000))
    assert weights[-1] == pytest.approx(8)
    assert weights.mean() == pytest.approx(1)
