import re
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from svertka.compiler.calibration_batches import CalibrationBatches
from svertka.compiler.optimize import optimize
from svertka.errors import UsageError

SHAPE = 3, 4, 4


def batches(calibration: Any, batch_size: int | None = None) -> list[int]:
    images = CalibrationBatches(calibration, SHAPE, batch_size)
    return [len(batch) for batch in images]


def test_a_tensor_an_iterable_and_a_loader_of_pairs_are_read_alike() -> None:
    x = torch.randn(104, *SHAPE)
    for given in (x, x.split(30), iter(x.split(7)), [(part, torch.zeros(len(part))) for part in x.split(9)]):
        images = CalibrationBatches(given, SHAPE, None)
        assert torch.equal(torch.cat(list(images)), x)
        assert torch.equal(images.kept, x[:32])


def test_batches_have_the_only_size_that_a_network_can_run() -> None:
    assert batches(torch.randn(104, *SHAPE), 5) == [5] * 20
    assert batches(torch.randn(104, *SHAPE)) == [16] * 6 + [8]


def test_few_images_are_warned_about_where_optimize_is_called() -> None:
    network = nn.Conv2d(3, 4, 1)
    with pytest.warns(UserWarning, match="^calibration= has 99.images; with fewer than 100 the ranges") as caught:
        optimize(network, SHAPE, precision="int8", calibration=torch.randn(99, *SHAPE))
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="calibration= has 1.image; .*; give at least 100 typical"):
        optimize(network, SHAPE, precision="int8", calibration=torch.randn(1, *SHAPE))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimize(network, SHAPE, precision="int8", calibration=torch.randn(100, *SHAPE))


@pytest.mark.parametrize(
    ("calibration", "sentence"),
    [
        (torch.empty(0, *SHAPE), "calibration= has no images; give some hundred typical images"),
        ([], "calibration= has no images"),
        (torch.zeros(2, *SHAPE), "calibration= has 2 equal images, so the ranges of values are unknown; give typical"),
        ([torch.ones(1, *SHAPE).cumsum(3)] * 120, "calibration= has 120 equal images"),
        (torch.full((1, *SHAPE), -1.8), "calibration= has one image of equal values, so the ranges"),
        (7, "calibration= is of type int; give images"),
        ("folder", "calibration= is of type str; give images"),
        (torch.randn(2, 3, 5, 4), "calibration= has images of 3×5×4 and the example's are 3×4×4; resize them"),
        (torch.randn(2, 1, 4, 4), "calibration= has images of 1×4×4 and the example's are 3×4×4; convert them"),
        (
            [torch.randn(2, *SHAPE), torch.full((1, *SHAPE), torch.nan)],
            "calibration= has images with values that are not",
        ),
        ([["a"]], "calibration= has batches of type str; give tensors, (N, C, H, W) float32"),
        (
            [np.zeros((2, *SHAPE))],
            "calibration= has batches of type ndarray; give tensors, (N, C, H, W) float32; use t",
        ),
        (np.zeros((2, *SHAPE)), "batches of them; use torch.from_numpy(images).float()"),
        (
            TensorDataset(torch.zeros(2, *SHAPE)),
            "batches of them; use torch.utils.data.DataLoader(dataset, batch_size=",
        ),
        (
            torch.randint(0, 9, (2, *SHAPE)),
            "in calibration=, images are (2, 3, 4, 4) int64 on cpu; an optimized network",
        ),
        (torch.zeros(2, *SHAPE, dtype=torch.uint8), "on the CPU; use x.float() / 255, and normalize it as the network"),
    ],
)
def test_what_are_no_images_is_refused(calibration: Any, sentence: str) -> None:
    with pytest.raises(UsageError, match=re.escape(sentence)):
        batches(calibration)
