import re
import warnings
from typing import Any

import pytest
import torch

from svertka.compiler.calibration_images import CalibrationImages
from svertka.errors import UsageError

SHAPE = 3, 4, 4


def batches(calibration: Any, batch_size: int | None = None) -> list[int]:
    images = CalibrationImages(calibration, SHAPE, batch_size)
    return [len(batch) for batch in images]


def test_a_tensor_an_iterable_and_a_loader_of_pairs_are_read_alike() -> None:
    x = torch.randn(104, *SHAPE)
    for given in (x, x.split(30), iter(x.split(7)), [(part, torch.zeros(len(part))) for part in x.split(9)]):
        images = CalibrationImages(given, SHAPE, None)
        assert torch.equal(torch.cat(list(images)), x)
        assert torch.equal(images.kept, x[:32])


def test_batches_have_the_only_size_that_a_network_can_run() -> None:
    assert batches(torch.randn(104, *SHAPE), 5) == [5] * 20
    assert batches(torch.randn(104, *SHAPE)) == [16] * 6 + [8]


def test_few_images_are_warned_about() -> None:
    with pytest.warns(UserWarning, match="^calibration= has 99 images; with fewer than 100 the ranges"):
        batches(torch.randn(99, *SHAPE))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batches(torch.randn(100, *SHAPE))


@pytest.mark.parametrize(
    ("calibration", "sentence"),
    [
        (torch.empty(0, *SHAPE), "calibration= has no images; give some hundred typical images"),
        ([], "calibration= has no images"),
        (7, "calibration= is of type int; give images"),
        ("folder", "calibration= is of type str; give images"),
        (torch.randn(2, 3, 5, 4), "calibration= has images of 3×5×4 and the example's are 3×4×4; resize them"),
        (
            [torch.randn(2, *SHAPE), torch.full((1, *SHAPE), torch.nan)],
            "calibration= has images with numbers that are not",
        ),
        ([["a"]], "images are of type str; an optimized network takes a torch.Tensor"),
        (torch.randint(0, 9, (2, *SHAPE)), "an optimized network takes (N, C, H, W) float32"),
    ],
)
def test_what_are_no_images_is_refused(calibration: Any, sentence: str) -> None:
    with pytest.raises(UsageError, match=re.escape(sentence)):
        batches(calibration)
