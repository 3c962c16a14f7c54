import numpy as np
import pytest
import torch

from svertka.data.preprocessing import Preprocess
from svertka.errors import UsageError
from svertka.evaluation.crop_protocols import (
    CropProtocol,
    get_crop_protocol,
    make_1_or_10_crops,
    make_144_crops,
    ten_crops,
    three_squares,
)

PREPROCESS = Preprocess(size=224, resize=256, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.1))


def test_ten_crops_match_alexnet() -> None:
    """Each pixel says where it comes from: row, column."""
    rows, columns = torch.meshgrid(torch.arange(9.0), torch.arange(12.0), indexing="ij")
    crops = ten_crops(torch.stack([rows, columns])[None], 5)
    assert crops.shape == (1, 10, 2, 5, 5)
    corners = [(0, 0), (0, 7), (4, 0), (4, 7), (2, 3)]
    for number, (top, left) in enumerate(corners):
        for y in range(5):
            for x in range(5):
                assert crops[0, number, :, y, x].tolist() == [top + y, left + x]
                assert crops[0, number + 5, :, y, x].tolist() == [top + y, left + 4 - x]


@pytest.mark.parametrize("shape", [(40, 70), (70, 40), (40, 40), (40, 41)])
def test_three_squares_are_the_ends_and_the_middle(shape: tuple[int, int]) -> None:
    picture = np.stack(np.meshgrid(np.arange(shape[0]), np.arange(shape[1]), indexing="ij"), 2).astype(np.uint8)
    squares = three_squares(picture)
    assert [square.shape for square in squares] == [(40, 40, 2)] * 3
    spare = (shape[0] - 40, shape[1] - 40)
    assert [tuple(square[0, 0]) for square in squares] == [(0, 0), (spare[0] // 2, spare[1] // 2), spare]


def test_144_crops_include_mirror_images() -> None:
    generator = np.random.default_rng(0)
    how = get_crop_protocol("144", None, PREPROCESS)
    assert how.scales == (256, 288, 320, 352)
    pictures = [generator.integers(256, size=(scale, scale + 30, 3), dtype=np.uint8) for scale in how.scales]
    shown = make_144_crops(PREPROCESS, pictures)
    assert shown.shape == (144, 3, 224, 224)
    assert how.num_views == 144
    hashes = sorted(float((one * torch.arange(224)).sum()) for one in shown)
    mirrored = sorted(float((one.flip(-1) * torch.arange(224)).sum()) for one in shown)
    assert hashes == pytest.approx(mirrored)
    assert len(set(hashes)) == 144


def test_single_crop_matches_predict() -> None:
    squares = torch.from_numpy(np.random.default_rng(1).integers(256, size=(2, 3, 256, 256), dtype=np.uint8))
    one = make_1_or_10_crops(CropProtocol("1", (256,)), PREPROCESS, [squares])
    ten = make_1_or_10_crops(CropProtocol("10", (256,)), PREPROCESS, [squares])
    assert torch.equal(one[:, 0], PREPROCESS.normalize(squares))
    assert torch.equal(ten[:, 4], one[:, 0])


@pytest.mark.parametrize(
    ("crops", "size", "resize", "scales"),
    [
        ("1", 224, 256, (256,)),
        ("10", 224, 256, (256,)),
        (10, 299, 342, (342,)),
        ("144", 224, 256, (256, 288, 320, 352)),
        ("144", 32, 36, (37, 41, 46, 50)),
        ("dense", 224, 256, (256, 384, 512)),
        ("1", 32, 28, (28,)),
    ],
)
def test_default_scales_are_proportional_to_those_of_the_papers(
    crops: str | int, size: int, resize: int, scales: tuple[int, ...]
) -> None:
    found = get_crop_protocol(crops, None, Preprocess(size=size, resize=resize, mean=(0.5,), std=(0.5,)))
    assert (found.crops, found.scales) == (str(crops), scales)


@pytest.mark.parametrize(
    ("crops", "scales", "said"),
    [
        ("12", None, "crops=12 is not known; use 1, 10, 144 or dense"),
        ("10", [200], "scales=200 is smaller than the network's input; use at least 224 pixels"),
        ("144", [256, 223], "scales=223 is smaller than the network's input; use at least 224 pixels"),
        ("10", [], "scales are empty; give the lengths"),
        ("10", [5000], "scales=5000 is too large; use at most 4096"),
        ("1", [256, 256], "scales=256,256 names a scale twice"),
    ],
)
def test_invalid_protocols_are_refused(crops: str, scales: list[int] | None, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        get_crop_protocol(crops, scales, PREPROCESS)


def test_padded_images_have_no_crops() -> None:
    padded = Preprocess(size=32, resize=28, mean=(0.5,), std=(0.5,))
    with pytest.raises(UsageError, match="this run pads 28 pixels to 32; use crops=1, or give scales of at least 32"):
        get_crop_protocol("10", None, padded)
    assert get_crop_protocol("10", [40], padded).scales == (40,)
