"""Labeled images from files or memory, with class names and the parts that their source names."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from svertka.data import image_io
from svertka.data.band_ranges import BandRanges
from svertka.data.file_accounting import FileAccount
from svertka.data.image_io import DEFAULT, DecodedImage, DecodingOptions, decode_image, read_image_size
from svertka.data.rgb_conversion import Range
from svertka.tasks import SINGLE_LABEL, AnyTask, Targets

Ints = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]

PARTS = ("train", "val", "test")
BAD_SHARE = 0.1  # of the images; training refuses a data set of which more cannot be read


class Images(Protocol):
    """Sequence of images, each with a name and a digest of its content."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Return what messages call an image: its path, or its source and number."""
        ...

    def digest(self, index: int) -> bytes:
        """Return 16 bytes that are equal for equal contents only.

        Raises:
            ImageError: The file cannot be read.
        """
        ...

    def size(self, index: int) -> tuple[int, int]:
        """Return the height and width in pixels of the image in full, from its header where possible.

        Raises:
            ImageError: The image cannot be read; the message is the reason.
        """
        ...

    def read(self, index: int, min_side: int | None = None) -> Pixels:
        """Return an image as (H, W, 3) uint8, RGB.

        Args:
            index: Index of the image.
            min_side: As for `image_io.decode_to_pixels`.

        Raises:
            ImageError: The image cannot be read; the message is the reason.
        """
        ...


class ArrayImages:
    """Images of one size in memory.

    Args:
        array: (N, H, W, 1 or 3) uint8.
        label: What messages call the source.
    """

    def __init__(self, array: Pixels, label: str) -> None:
        self.array, self.label = array, label

    def __len__(self) -> int:
        return len(self.array)

    def name(self, index: int) -> str:
        """Return the label and the number."""
        return f"{self.label} #{index}"

    def digest(self, index: int) -> bytes:
        """Return the BLAKE2b hash of the pixels."""
        return hashlib.blake2b(self.array[index].data, digest_size=16).digest()

    def size(self, index: int) -> tuple[int, int]:
        """Return the height and width, which all images share."""
        height, width = self.array.shape[1:3]
        return height, width

    def read(self, index: int, min_side: int | None = None) -> Pixels:
        """Return the pixels as RGB; a gray channel is repeated."""
        return np.broadcast_to(self.array[index], (*self.array.shape[1:3], 3))


class EncodedImages(ABC):
    """Images in encoded form, such as JPEG files, which are decoded when they are read.

    Attributes:
        decoding: How they are decoded.
    """

    decoding: DecodingOptions

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, index: int) -> str:
        """Return what messages call an image."""

    @abstractmethod
    def read_bytes(self, index: int) -> bytes:
        """Return the encoded image."""

    @abstractmethod
    def with_decoding(self, decoding: DecodingOptions) -> "EncodedImages":
        """Return the same images, decoded as `decoding` says."""

    def digest(self, index: int) -> bytes:
        """Return the BLAKE2b hash of the encoded image."""
        return hash_content(self.read_bytes(index))

    def size(self, index: int) -> tuple[int, int]:
        """Return the height and width that the header states."""
        return read_image_size(self.read_bytes(index), self.decoding)

    def read(self, index: int, min_side: int | None = None) -> Pixels:
        """Return the decoded image; its format is that of the content, whatever its suffix."""
        return self.decode(index, min_side).pixels

    def decode(self, index: int, min_side: int | None = None) -> DecodedImage:
        """Return the decoded image with its format and bit depth."""
        return decode_image(self.read_bytes(index), min_side, self.decoding)


class FileImages(EncodedImages):
    """Images in files.

    Args:
        root: Folder that `paths` are relative to.
        paths: Path of each image.
        decoding: How the files are decoded.
    """

    def __init__(self, root: Path, paths: Sequence[str], decoding: DecodingOptions = DEFAULT) -> None:
        self.root, self.paths, self.decoding = root, paths, decoding
        self._root = str(root)

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """Return the path."""
        return str(self.root / self.paths[index])

    def read_bytes(self, index: int) -> bytes:
        """Return the bytes of the file."""
        return self.read_bytes_and_status(index)[0]

    def read_bytes_and_status(self, index: int) -> tuple[bytes, os.stat_result]:
        """Return the bytes of the file and its status before they were read; raises ImageError."""
        return image_io.read_bytes_and_status(self.path(index), self.decoding)

    def path(self, index: int) -> str:
        """Return the path of the file."""
        return os.path.join(self._root, self.paths[index])  # noqa: PTH118 - pathlib takes ten times as long

    def with_decoding(self, decoding: DecodingOptions) -> "FileImages":
        """Return the same files, decoded as `decoding` says."""
        return FileImages(self.root, self.paths, decoding)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labeled images.

    Attributes:
        source: What `open_source` takes to open the data set again.
        names: Names of the classes or labels; of a number, the name of its column.
        images: The images.
        labels: Target of each image in its row: its class, (N,) int64, an index into `names`; for several labels 0 or 1
            for each of `names`, (N, K) float32; or a number, (N,) float64.
        parts: Part of each image as the source names it, (N,): "train", "val", "test", or "".
        account: Files of the source that are not used, and why.
        groups: Group of each image, such as the patient, (N,); images of one group stay in one part. "" for an image
            without a group; None if the source has no groups.
        task: What a network predicts of these images.
    """

    source: str
    names: tuple[str, ...]
    images: Images
    labels: Targets
    parts: npt.NDArray[np.str_]
    account: FileAccount = field(default_factory=FileAccount)
    groups: npt.NDArray[np.str_] | None = None
    task: AnyTask = SINGLE_LABEL

    def __len__(self) -> int:
        return len(self.labels)

    def counts(self) -> Ints:
        """Return the number of images of each class or with each label, (K,)."""
        return self.task.counts(self.labels, len(self.names))

    def label_text(self, index: int) -> str:
        """Return the target of an image in words: its class, its labels joined by |, or its number."""
        return self.task.text(self.labels[index], self.names)

    def with_decoding(self, decoding: DecodingOptions) -> "Dataset":
        """Return the data set with its files decoded as `decoding` says."""
        return replace(self, images=with_decoding(self.images, decoding))

    def with_intensity_range(self, intensity_range: Range | BandRanges | None) -> "Dataset":
        """Return the data set as a classifier with this range of 16-bit values, or of the values of bands, sees it."""
        return self.with_decoding(get_decoding(self.images).with_intensity_range(intensity_range))

    def take(self, indices: Ints) -> "Dataset":
        """Return the data set of the images at `indices`, in that order."""
        return replace(
            self,
            images=Subset(self.images, indices),
            labels=self.labels[indices],
            parts=self.parts[indices],
            groups=None if self.groups is None else self.groups[indices],
        )


class Subset:
    """Images at `indices` of other images."""

    def __init__(self, images: Images, indices: Ints) -> None:
        self.images, self.indices = images, indices

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        """Return the name in the full sequence."""
        return self.images.name(int(self.indices[index]))

    def digest(self, index: int) -> bytes:
        """Return the digest of the content."""
        return self.images.digest(int(self.indices[index]))

    def size(self, index: int) -> tuple[int, int]:
        """Return the height and width in pixels."""
        return self.images.size(int(self.indices[index]))

    def read(self, index: int, min_side: int | None = None) -> Pixels:
        """Return the image as (H, W, 3) uint8, RGB."""
        return self.images.read(int(self.indices[index]), min_side)


@dataclass(frozen=True)
class IndexedImage:
    """One of several encoded images, which is read when it is needed.

    Attributes:
        images: The images.
        index: Its index.
    """

    images: EncodedImages
    index: int

    def read(self, min_side: int | None, decoding: DecodingOptions) -> Pixels:
        """Return the image as (H, W, 3) uint8, RGB, decoded as `decoding` says; raises ImageError."""
        return self.images.with_decoding(decoding).read(self.index, min_side)


def with_decoding(images: Images, decoding: DecodingOptions) -> Images:
    """Return `images` with files decoded as `decoding` says; images in memory stay as they are."""
    if isinstance(images, Subset):
        return Subset(with_decoding(images.images, decoding), images.indices)
    return images.with_decoding(decoding) if isinstance(images, EncodedImages) else images


def get_decoding(images: Images) -> DecodingOptions:
    """Return how files among `images` are decoded; the default for images in memory."""
    while isinstance(images, Subset):
        images = images.images
    return images.decoding if isinstance(images, EncodedImages) else DEFAULT


def hash_content(content: bytes | bytearray) -> bytes:
    """Return the digest of an encoded image, 16 bytes of BLAKE2b."""
    return hashlib.blake2b(content, digest_size=16).digest()
