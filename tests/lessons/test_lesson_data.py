"""Notebooks find their data, or use the next best and say where the data belong."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from svertka import lessons
from svertka.errors import FetchError, UsageError
from svertka.lessons import lesson_data
from svertka.lessons.faulty_trainings import Training


@pytest.fixture
def without_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without MNIST and without a connection."""
    found = lesson_data.open_builtin

    def open_offline(name: str) -> object:
        if name == "mnist":
            raise FetchError("put train-images-idx3-ubyte.gz into ~/.cache/svertka/data/mnist")
        return found(name)

    monkeypatch.setattr(lesson_data, "open_builtin", open_offline)
    monkeypatch.setenv("SVERTKA_DATA", str(tmp_path))
    return tmp_path


def test_without_data_the_next_best_is_used_and_said(without_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digits = lessons.load_digit_images(train=20, test=10, side=14)
    assert digits.name == "digits"
    assert digits.train_images.shape == (20, 1, 14, 14)
    assert 0 <= digits.train_images.min() < digits.train_images.max() <= 1
    assert "put train-images-idx3-ubyte.gz into" in capsys.readouterr().out
    images, labels = digits.as_source("test")
    assert images.dtype == np.uint8
    assert len(images) == len(labels) == 10

    assert [photograph.shape for photograph in lessons.load_photographs()] == [(427, 640, 3)] * 2
    assert f"put some into {without_data / 'imagenet-samples'}" in capsys.readouterr().out
    assert len(lessons.load_photographs(count=1)) == 1

    images, labels = lessons.find_cats_and_dogs(per_class=4)
    assert labels.tolist() == [3] * 4 + [8] * 4
    assert f"{without_data / 'cats-dogs'}/cat" in capsys.readouterr().out


def test_an_empty_variable_is_as_none(
    without_data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(without_data)
    monkeypatch.setenv("SVERTKA_DATA", "")
    lessons.load_photographs(count=1)
    assert "put some into data/imagenet-samples." in capsys.readouterr().out


def test_counts_below_one_are_refused(without_data: Path) -> None:
    for load, name in (
        (lambda: lessons.load_photographs(count=0), "count"),
        (lambda: lessons.load_odd_scans(count=0), "count"),
        (lambda: lessons.find_cats_and_dogs(per_class=-1), "per_class"),
        (lambda: lessons.load_digit_images(test=0), "test"),
        (lambda: lessons.load_digit_images(side=0), "side"),
    ):
        with pytest.raises(UsageError, match=f"{name}=-?[01] must be at least 1"):
            load()


def test_data_of_the_reader_are_used(without_data: Path) -> None:
    for name in ("cats-dogs/cat/a.jpg", "cats-dogs/dog/b.jpg", "imagenet-samples/c.jpg"):
        (without_data / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30)).save(without_data / name)
    pairs = lessons.find_cats_and_dogs(per_class=4)
    assert [(path.name, label) for path, label in pairs] == [("a.jpg", "cat"), ("b.jpg", "dog")]
    assert [photograph.shape for photograph in lessons.load_photographs()] == [(30, 40, 3)]


def test_the_odd_scans_are_dark_on_white_and_mirrored(without_data: Path) -> None:
    scans, labels = lessons.load_odd_scans(count=5)
    images, known = lesson_data.load_digits()
    assert labels.tolist() == known[-5:].tolist()
    assert [scan.tolist() for scan in scans] == [(255 - image).T.tolist() for image in images[-5:]]


def test_each_unit_of_the_shape_network_finds_its_shape() -> None:
    network, images = lessons.load_shape_network()
    answers = network(images).amax((2, 3)).argmax(1)
    # Images show the shapes in turn, every fourth the same.
    assert torch.equal(answers, answers[:4].repeat(16))
    assert sorted(answers[:4].tolist()) == [0, 1, 2, 3]


@pytest.mark.large
def test_the_five_trainings_look_as_they_should() -> None:
    trainings = lessons.run_five_trainings()

    def ends(training: Training) -> tuple[float, float]:
        return training.train_losses[-1], training.val_losses[-1]

    assert ends(trainings["C"]) < (0.05, 0.5)
    assert ends(trainings["D"])[0] < 0.2
    assert ends(trainings["D"])[1] > 0.5
    assert ends(trainings["B"]) == pytest.approx((2.3, 2.3), abs=0.05)
    assert ends(trainings["A"])[0] < 2
    assert ends(trainings["A"])[1] > 2.5
    assert min(trainings["E"].val_losses) > 2
