"""Labelled images, wherever they come from."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from svertka.data import image_io
from svertka.data.file_accounting import FileAccount
from svertka.data.image_io import DEFAULT, Decoded, Decoding, decode, read_image_size
from svertka.data.pixel_modes import Range

Ints = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]

PARTS = ("train", "val", "test")
BAD_SHARE = 0.1  # of the images; if more cannot be read, nothing is trained


class Images(Protocol):
    """A sequence of images, each with a name for people and a digest of its content."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What to call image `index` in a message: its path, or the source and its number."""
        ...

    def digest(self, index: int) -> bytes:
        """16 bytes that are equal exactly for images of equal content.

        Raises:
            ImageError: it cannot be read from disk.
        """
        ...

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of image `index` as `read` gives it whole, pixels; without decoding it, if that can be.

        Raises:
            ImageError: it cannot be read; the message is the reason.
        """
        ...

    def read(self, index: int, min_side: int | None = None) -> Pixels:
        """Image `index` as (H, W, 3) uint8, RGB; `min_side` as for `image_io.read_image`.

        Raises:
            ImageError: it cannot be read; the message is the reason.
        """
        ...


class ArrayImages:
    """Images of one size, held in memory: `array` is (N, H, W, 1 or 3) uint8."""

    def __init__(self, array: Pixels, label: str) -> None:
        self.array, self.label = array, label

    def __len__(self) -> int:
        return len(self.array)

    def name(self, index: int) -> str:
        """`label` and the number."""
        return f"{self.label} #{index}"

    def digest(self, index: int) -> bytes:
        """BLAKE2b of the pixels."""
        return hashlib.blake2b(self.array[index].data, digest_size=16).digest()

    def size(self, index: int) -> tuple[int, int]:
        """The same for all."""
        height, width = self.array.shape[1:3]
        return height, width

    def read(self, index: int, min_side: int | None = None) -> Pixels:
        """The pixels as RGB; grey ones three times."""
        return np.broadcast_to(self.array[index], (*self.array.shape[1:3], 3))


class FileImages:
    """Images in files; `paths` are relative to `root`."""

    def __init__(self, root: Path, paths: Sequence[str], decoding: Decoding = DEFAULT) -> None:
        self.root, self.paths, self.decoding = root, paths, decoding

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """The path."""
        return str(self.root / self.paths[index])

    def digest(self, index: int) -> bytes:
        """BLAKE2b of the file."""
        return hashlib.blake2b(self.read_bytes(index), digest_size=16).digest()

    def size(self, index: int) -> tuple[int, int]:
        """As the file's header says."""
        return read_image_size(self.read_bytes(index), self.decoding)

    def read(self, index: int, min_side: int | None = None) -> Pixels:
        """The decoded file, whatever format its name claims."""
        return self.decode(index, min_side).pixels

    def decode(self, index: int, min_side: int | None = None) -> Decoded:
        """The same with what it is."""
        return decode(self.read_bytes(index), min_side, self.decoding)

    def read_bytes(self, index: int) -> bytes:
        """The bytes of the file."""
        return image_io.read_bytes(self.root / self.paths[index], self.decoding)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images with labels, class names and the parts that the source itself names.

    `labels`: (N,) int64, index into `names`. `parts`: (N,) of "train", "val", "test", or "" where the source says
    nothing. `source` is what `open_source` takes to open it again. `account`: what of the source is not used, and why.
    `groups`: (N,) of what must stay in one part, such as the patient of an image, or "" for one that stands by itself;
    None where the source says nothing of groups.
    """

    source: str
    names: tuple[str, ...]
    images: Images
    labels: Ints
    parts: npt.NDArray[np.str_]
    account: FileAccount = field(default_factory=FileAccount)
    groups: npt.NDArray[np.str_] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def counts(self) -> Ints:
        """Images of each class, (classes,)."""
        return np.bincount(self.labels, minlength=len(self.names)).astype(np.int64)

    def with_decoding(self, decoding: Decoding) -> "Dataset":
        """The same with files decoded otherwise."""
        return replace(self, images=with_decoding(self.images, decoding))

    def with_intensity_range(self, intensity_range: Range | None) -> "Dataset":
        """The same as a classifier with this range of 16-bit values sees it."""
        return self.with_decoding(decoding_of(self.images).with_intensity_range(intensity_range))

    def take(self, indices: Ints) -> "Dataset":
        """The images at `indices`, in that order."""
        return replace(
            self,
            images=Subset(self.images, indices),
            labels=self.labels[indices],
            parts=self.parts[indices],
            groups=None if self.groups is None else self.groups[indices],
        )


class Subset:
    """Some of `images`."""

    def __init__(self, images: Images, indices: Ints) -> None:
        self.images, self.indices = images, indices

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        """As the whole calls it."""
        return self.images.name(int(self.indices[index]))

    def digest(self, index: int) -> bytes:
        """As in the whole."""
        return self.images.digest(int(self.indices[index]))

    def size(self, index: int) -> tuple[int, int]:
        """As in the whole."""
        return self.images.size(int(self.indices[index]))

    def read(self, index: int, min_side: int | None = None) -> Pixels:
        """As in the whole."""
        return self.images.read(int(self.indices[index]), min_side)


def with_decoding(images: Images, decoding: Decoding) -> Images:
    """`images` with files decoded as `decoding` says; those in memory are what they are."""
    if isinstance(images, Subset):
        return Subset(with_decoding(images.images, decoding), images.indices)
    if isinstance(images, FileImages):
        return FileImages(images.root, images.paths, decoding)
    return images


def decoding_of(images: Images) -> Decoding:
    """How `images` in files are decoded; those in memory are not."""
    while isinstance(images, Subset):
        images = images.images
    return images.decoding if isinstance(images, FileImages) else DEFAULT
