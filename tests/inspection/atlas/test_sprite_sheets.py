"""Tiles and sprite sheets against their source pixels."""

import io

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_image

from svertka.inspection.atlas.sprite_sheets import (
    MAX_CRISP_IMAGE,
    UNITS_PER_SHEET,
    TileSizes,
    align_patch_in_tile,
    assemble_sheet,
    choose_tile_sizes,
    encode_sheet,
    images_per_row,
)

Pixels = npt.NDArray[np.uint8]


def test_small_patches_keep_every_pixel_and_large_ones_are_reduced() -> None:
    assert choose_tile_sizes(3, 224) == TileSizes(window=3, kept=3, shown=48, crisp=True)
    assert choose_tile_sizes(7, 224).shown == 49
    assert choose_tile_sizes(15, 224).shown == 45
    assert choose_tile_sizes(31, 224) == TileSizes(window=31, kept=31, shown=48, crisp=False)
    assert choose_tile_sizes(300, 224) == TileSizes(window=224, kept=48, shown=48, crisp=False)
    assert choose_tile_sizes(300, 224, side=96).kept == 96
    assert choose_tile_sizes(40, 32) == TileSizes(window=32, kept=32, shown=64, crisp=True)


@given(st.data())
def test_clipped_patch_keeps_its_place_in_the_receptive_field(data: st.DataObject) -> None:
    """A receptive field of `window` pixels from `start`: pixels outside the image are transparent."""
    size = 12
    window = data.draw(st.integers(1, size))
    start = [data.draw(st.integers(1 - window, size - 1)) for _ in range(2)]
    picture = np.arange(size * size, dtype=np.uint8).reshape(size, size, 1) + 1
    padded = np.pad(picture, ((size, size), (size, size), (0, 0)))
    expected = padded[start[0] + size : start[0] + size + window, start[1] + size : start[1] + size + window, 0]
    top, left = (max(0, one) for one in start)
    bottom, right = (min(size, one + window) for one in start)
    found = align_patch_in_tile(
        picture[top:bottom, left:right], (top, left, bottom, right), choose_tile_sizes(window, size)
    )
    assert np.array_equal(found[..., 3] == 255, expected > 0)
    assert np.array_equal(found[..., 0], expected)


def test_tiles_are_laid_out_row_by_row() -> None:
    tiles = [np.full((2, 3, 3), k, np.uint8) for k in range(1, 6)]
    assert assemble_sheet(tiles, 2)[::2, ::3, 0].tolist() == [[1, 2], [3, 4], [5, 0]]


def test_crisp_sheet_is_lossless_with_alpha() -> None:
    flower = load_sample_image("flower.jpg")
    tiles = [
        align_patch_in_tile(flower[k : k + 20, :24], (1, 0, 21, 24), choose_tile_sizes(24, 200))
        for k in range(0, 200, 20)
    ]
    read = Image.open(io.BytesIO(encode_sheet(tiles, 5, crisp=True, quality=55)))
    assert read.size == (5 * 24, 2 * 24)
    whole, original = np.asarray(read), assemble_sheet(tiles, 5)
    assert np.array_equal(whole[..., 3], original[..., 3])
    assert np.array_equal(whole[original[..., 3] > 0], original[original[..., 3] > 0])


def test_lossy_sheet_is_small_and_close_to_the_original() -> None:
    flower = load_sample_image("flower.jpg")
    tiles = [
        align_patch_in_tile(flower[k : k + 100, 200:300], (1, 1, 101, 101), choose_tile_sizes(100, 224))
        for k in range(0, 270, 10)
    ]
    content = encode_sheet(tiles, 9, crisp=False, quality=55)
    read = Image.open(io.BytesIO(content))
    assert read.mode == "RGB"  # no tile has a clear place
    assert len(content) < 1000 * len(tiles)
    differences = np.asarray(read).astype(float) - assemble_sheet(tiles, 9)[..., :3]
    assert np.abs(differences).mean() < 8


@pytest.mark.parametrize(("side", "columns"), [(28, 22), (32, 20), (64, 10), (96, 6), (224, 2), (400, 1), (999, 1)])
def test_images_per_row_depend_on_the_image_size(side: int, columns: int) -> None:
    assert images_per_row(side) == columns
    assert UNITS_PER_SHEET > 1
    assert MAX_CRISP_IMAGE == 64
