import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from svertka.data.dataset import ArrayPictures, Dataset, FilePictures
from svertka.errors import PictureError


@pytest.fixture
def three() -> Dataset:
    array = np.arange(3 * 2 * 2, dtype=np.uint8).reshape(3, 2, 2, 1)
    return Dataset(
        "three", ("a", "b"), ArrayPictures(array, "three"), np.array([1, 0, 1]), np.array(["train", "val", "test"])
    )


def test_counts(three: Dataset) -> None:
    assert len(three) == 3
    assert three.counts().tolist() == [1, 2]
    assert three.take(np.array([1])).counts().tolist() == [1, 0]


def test_grey_arrays_are_read_as_rgb(three: Dataset) -> None:
    pixels = three.pictures.read(1)
    assert pixels.shape == (2, 2, 3)
    assert (pixels == np.array([[4, 5], [6, 7]])[..., None]).all()


def test_equal_pixels_have_equal_digests() -> None:
    array = np.zeros((3, 2, 2, 3), np.uint8)
    array[2, 0, 0, 0] = 1
    pictures = ArrayPictures(array, "x")
    assert pictures.digest(0) == pictures.digest(1) != pictures.digest(2)
    assert len(pictures.digest(0)) == 16


def test_a_part_of_a_part_keeps_names_pixels_and_digests(three: Dataset) -> None:
    some = three.take(np.array([2, 0])).take(np.array([1]))
    assert some.pictures.name(0) == three.pictures.name(0) == "three #0"
    assert some.pictures.digest(0) == three.pictures.digest(0)
    assert (some.pictures.read(0) == three.pictures.read(0)).all()
    assert some.pictures.size(0) == (2, 2)
    assert len(some.pictures) == 1
    assert some.labels.tolist() == [1]
    assert some.parts.tolist() == ["train"]


def test_files(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (3, 2), (1, 2, 3)).save(tmp_path / "in" / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    pictures = FilePictures(tmp_path, ["in/a.png", "b.png", "gone.png"])
    assert len(pictures) == 3
    assert pictures.name(0) == str(tmp_path / "in" / "a.png")
    assert (pictures.read(0) == (1, 2, 3)).all()
    assert pictures.size(0) == pictures.read(0).shape[:2] == (2, 3)
    assert pictures.digest(1) == hashlib.blake2b(b"no picture", digest_size=16).digest()
    with pytest.raises(PictureError, match="not a picture"):
        pictures.read(1)
    for ask in (pictures.read, pictures.size, pictures.digest):
        with pytest.raises(PictureError, match="no such file"):
            ask(2)


def test_a_file_of_another_format_than_its_name_says_is_read(tmp_path: Path) -> None:
    Image.new("RGB", (3, 2)).save(tmp_path / "a.jpg", "PNG")
    pictures = FilePictures(tmp_path, ["a.jpg"])
    assert pictures.read(0).shape == (2, 3, 3)
    assert pictures.size(0) == (2, 3)
    assert pictures.decoded(0).format == "PNG"
