import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from svertka.data.dataset import ArrayImages, Dataset, FileImages
from svertka.errors import ImageError


@pytest.fixture
def three() -> Dataset:
    array = np.arange(3 * 2 * 2, dtype=np.uint8).reshape(3, 2, 2, 1)
    return Dataset(
        "three", ("a", "b"), ArrayImages(array, "three"), np.array([1, 0, 1]), np.array(["train", "val", "test"])
    )


def test_counts(three: Dataset) -> None:
    assert len(three) == 3
    assert three.counts().tolist() == [1, 2]
    assert three.take(np.array([1])).counts().tolist() == [1, 0]


def test_gray_arrays_are_read_as_rgb(three: Dataset) -> None:
    pixels = three.images.read(1)
    assert pixels.shape == (2, 2, 3)
    assert (pixels == np.array([[4, 5], [6, 7]])[..., None]).all()


def test_equal_pixels_have_equal_digests() -> None:
    array = np.zeros((3, 2, 2, 3), np.uint8)
    array[2, 0, 0, 0] = 1
    images = ArrayImages(array, "x")
    assert images.digest(0) == images.digest(1) != images.digest(2)
    assert len(images.digest(0)) == 16


def test_a_part_of_a_part_keeps_names_pixels_and_digests(three: Dataset) -> None:
    some = three.take(np.array([2, 0])).take(np.array([1]))
    assert some.images.name(0) == three.images.name(0) == "three #0"
    assert some.images.digest(0) == three.images.digest(0)
    assert (some.images.read(0) == three.images.read(0)).all()
    assert some.images.size(0) == (2, 2)
    assert len(some.images) == 1
    assert some.labels.tolist() == [1]
    assert some.parts.tolist() == ["train"]


def test_files(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (3, 2), (1, 2, 3)).save(tmp_path / "in" / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    images = FileImages(tmp_path, ["in/a.png", "b.png", "gone.png"])
    assert len(images) == 3
    assert images.name(0) == str(tmp_path / "in" / "a.png")
    assert (images.read(0) == (1, 2, 3)).all()
    assert images.size(0) == images.read(0).shape[:2] == (2, 3)
    assert images.digest(1) == hashlib.blake2b(b"no image", digest_size=16).digest()
    with pytest.raises(ImageError, match="not an image"):
        images.read(1)
    for ask in (images.read, images.size, images.digest):
        with pytest.raises(ImageError, match="no such file"):
            ask(2)


def test_the_content_decides_the_format(tmp_path: Path) -> None:
    Image.new("RGB", (3, 2)).save(tmp_path / "a.jpg", "PNG")
    images = FileImages(tmp_path, ["a.jpg"])
    assert images.read(0).shape == (2, 3, 3)
    assert images.size(0) == (2, 3)
    assert images.decode(0).format == "PNG"
