"""Near-duplicates of real photographs: found again when saved anew, remembered, and gone with the files."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from svertka.data import near_duplicates as module
from svertka.data.content_hash import hash_images
from svertka.data.dataset import ArrayImages, Dataset, FileImages
from svertka.data.near_duplicates import find_near_duplicates


def scene(seed: int, side: int = 96) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), np.uint8)
    return Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FileImages:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for seed in range(6):
        scene(seed).save(tmp_path / f"{seed}.png")
    scene(2).save(tmp_path / "6.jpg", quality=40)
    scene(4).resize((64, 64)).save(tmp_path / "7.png")
    (tmp_path / "8.png").write_bytes((tmp_path / "1.png").read_bytes())  # a copy is no near-duplicate
    return FileImages(tmp_path, [f"{n}.png" for n in range(6)] + ["6.jpg", "7.png", "8.png"])


def test_images_saved_anew_are_found(files: FileImages) -> None:
    contents, _ = hash_images(files, 1)
    assert find_near_duplicates(files, contents, np.arange(9), 1) == [[2, 6], [4, 7]]
    assert find_near_duplicates(files, contents, np.array([6, 3, 2, 7]), 1) == [[6, 2]]


def test_what_was_decoded_is_remembered(files: FileImages, monkeypatch: pytest.MonkeyPatch) -> None:
    contents, _ = hash_images(files, 1)
    first = find_near_duplicates(files, contents, np.arange(9), 1)
    monkeypatch.setattr(FileImages, "read", None)
    assert find_near_duplicates(files, contents, np.arange(9), 1) == first


def test_a_cache_that_cannot_be_written_is_done_without(
    files: FileImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents, _ = hash_images(files, 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "0.png"))
    assert find_near_duplicates(files, contents, np.arange(9), 1) == [[2, 6], [4, 7]]


def test_a_file_that_is_gone_resembles_nothing(files: FileImages, tmp_path: Path) -> None:
    contents, _ = hash_images(files, 1)
    (tmp_path / "6.jpg").unlink()
    assert find_near_duplicates(files, contents, np.arange(9), 1) == [[4, 7]]


def test_arrays_are_compared_too() -> None:
    array = np.stack([np.asarray(scene(seed, 40)) for seed in (0, 1, 2, 1)])
    array[3, 5, 5] += 3
    images = ArrayImages(array, "x")
    dataset = Dataset("x", ("a",), images, np.zeros(4, np.int64), np.full(4, "", "<U5")).take(np.array([3, 1, 0]))
    contents, _ = hash_images(dataset.images, 1)
    assert find_near_duplicates(dataset.images, contents, np.arange(3), 1) == [[0, 1]]


def test_too_many_are_not_compared(files: FileImages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 7)
    contents, _ = hash_images(files, 1)
    assert find_near_duplicates(files, contents, np.arange(9), 1) is None
    assert find_near_duplicates(files, contents, np.arange(0), 1) == []
