"""Data of the notebooks: digits, photographs and a pretrained network that are on this machine, or the next best."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from svertka.classifier import Classifier
from svertka.data.builtin import open_builtin
from svertka.data.dataset import ArrayImages, Dataset
from svertka.data.prediction_inputs import load_pixels
from svertka.errors import SvertkaError, UsageError

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]
SQUEEZENET = "squeezenet1_1-imagenet.safetensors"


@dataclass(frozen=True, eq=False)
class DigitImages:
    """Handwritten digits.

    Attributes:
        name: "mnist" or "digits".
        train_images: (N, 1, S, S) float32, 0 (background) to 1.
        train_labels: (N,) int64.
        test_images: (M, 1, S, S) float32.
        test_labels: (M,) int64.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    def as_source(self, part: str) -> tuple[Bytes, Ints]:
        """Return the images of a part, "train" or "test", as `svertka.train` takes it: bytes (N, S, S), labels."""
        images, labels = (getattr(self, f"{part}_{what}") for what in ("images", "labels"))
        return (images[:, 0] * 255).round().byte().numpy(), labels.numpy()


def load_digit_images(train: int = 2000, test: int = 1000, side: int = 28) -> DigitImages:
    """Return MNIST, or scikit-learn's digits where it is not found, which is said.

    Args:
        train: Number of training images; fewer if the data set has fewer.
        test: Number of test images; fewer if the data set has fewer.
        side: Height and width to which images are resized, pixels.
    """
    _check_counts(train=train, test=test, side=side)
    dataset, error = _open_digits()
    if error is not None:
        print(f"MNIST is not here, so these are scikit-learn's digits, 8×8 pixels. To use MNIST: {error}")
    array = _array_of(dataset)
    chosen = [np.flatnonzero(dataset.parts == part)[:count] for part, count in (("train", train), ("test", test))]
    parts: list[Tensor] = []
    for rows in chosen:
        pixels = _to_tensor(array[rows])
        if pixels.shape[2] != side:
            pixels = F.interpolate(pixels, (side, side), mode="bilinear", antialias=True, align_corners=False)
        parts += [pixels, torch.from_numpy(dataset.labels[rows])]
    return DigitImages(dataset.source, *parts)


def load_digits(part: str = "test") -> tuple[Bytes, Ints]:
    """Return the images of a part of MNIST, or of scikit-learn's digits, (N, H, W), and their labels."""
    dataset, _ = _open_digits()
    rows = np.flatnonzero(dataset.parts == part)
    return _array_of(dataset)[rows, :, :, 0], dataset.labels[rows]


def load_small_digits() -> tuple[Tensor, Tensor]:
    """Return scikit-learn's 1,797 digits, (N, 1, 8, 8) float32 in 0 to 1, and their labels."""
    dataset = open_builtin("digits")
    return _to_tensor(_array_of(dataset)), torch.from_numpy(dataset.labels)


def load_odd_scans(count: int = 500) -> tuple[Bytes, Ints]:
    """Return the last `count` test digits as a colleague scanned them, (N, H, W), and their labels."""
    _check_counts(count=count)
    images, labels = load_digits()
    return scan_badly(images[-count:]), labels[-count:]


def scan_badly(images: Bytes) -> Bytes:
    """Return images (N, H, W) as the colleague's scanner stores them: mirrored at the diagonal, ink dark on white."""
    return 255 - images.transpose(0, 2, 1)


def load_photographs(count: int = 24) -> list[Bytes]:
    """Return up to `count` photographs, (H, W, 3): those in $SVERTKA_DATA/imagenet-samples, else scikit-learn's two."""
    _check_counts(count=count)
    folder = _data_folder() / "imagenet-samples"
    found = sorted(path for path in folder.glob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if found:
        chosen = np.linspace(0, len(found) - 1, min(count, len(found))).astype(int)
        return [load_pixels(found[place]) for place in chosen]
    from sklearn.datasets import load_sample_images

    print(f"To see more than two photographs, put some into {folder}.")
    return list(load_sample_images().images[:count])


def find_cats_and_dogs(per_class: int) -> Any:
    """Return photographs in two classes: $SVERTKA_DATA/cats-dogs, else the digits 3 and 8, which is said.

    Returns:
        A source, as for `svertka.train`: pairs of path and label, or arrays.
    """
    _check_counts(per_class=per_class)
    folder = _data_folder() / "cats-dogs"
    pairs = [(path, name) for name in ("cat", "dog") for path in sorted((folder / name).glob("*.jp*g"))[:per_class]]
    if pairs:
        return pairs
    print(f"There are no photographs in {folder}/cat and {folder}/dog, so these are the digits 3 and 8.")
    dataset = open_builtin("digits")
    rows = np.concatenate([np.flatnonzero(dataset.labels == digit)[:per_class] for digit in (3, 8)])
    return _array_of(dataset)[rows, :, :, 0], dataset.labels[rows]


def load_photo_network() -> Classifier:
    """Return a network for photographs: SqueezeNet 1.1 from $SVERTKA_DATA/weights, else the bundled EfficientNet-Lite0.

    SqueezeNet has only ReLU and max-pooling, for which deconvolution was invented.
    """
    file = _data_folder() / "weights" / SQUEEZENET
    if file.exists():
        return Classifier.load(f"squeezenet1_1:{file}")
    print(f"SqueezeNet's weights are not in {file}, so this is EfficientNet-Lite0.")
    return Classifier.load("efficientnet_lite0:bundled")


def _open_digits() -> tuple[Dataset, SvertkaError | None]:
    """Return MNIST; or scikit-learn's digits, and why."""
    try:
        return open_builtin("mnist"), None
    except SvertkaError as error:
        return open_builtin("digits"), error


def _data_folder() -> Path:
    return Path(os.environ.get("SVERTKA_DATA") or "data")


def _array_of(dataset: Dataset) -> Bytes:
    """Return the images of a built-in data set, (N, H, W, C)."""
    assert isinstance(dataset.images, ArrayImages)
    return dataset.images.array


def _to_tensor(pixels: Bytes) -> Tensor:
    """Return images (N, H, W, C) as (N, C, H, W) float32 in 0 to 1."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255


def _check_counts(**counts: int) -> None:
    """Raise UsageError if a number of images or pixels is below 1."""
    for name, count in counts.items():
        if count < 1:
            raise UsageError(f"{name}={count} must be at least 1")
