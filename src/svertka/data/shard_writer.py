"""Tar files in the WebDataset format, written from labeled images."""

import io
import re
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np
from PIL import Image

from svertka.data.content_hash import unwrap_subset
from svertka.data.dataset import Dataset, EncodedImages, FileImages, Ints, get_decoding, hash_content
from svertka.data.image_io import SUFFIXES, read_image_size
from svertka.data.multiband_file import is_npy
from svertka.data.parallel_map import map_chunks
from svertka.data.shard_index import ShardEntry, ShardIndex
from svertka.errors import DataError, ImageError
from svertka.files import os_error_to_storage_error

KEPT = {"JPEG": "jpg", "PNG": "png", "WebP": "webp"}  # copied, as files of bands are; others become PNG
CHUNK = 64  # images that are read and checked ahead
CHECKED_SIDE = 8  # pixels; decoding at this size reads all of a file
KEY_CHARACTERS = 80
UNSAFE = re.compile(r"[^\w-]+", re.ASCII)  # in keys, which end at the first dot


@dataclass(frozen=True)
class EncodedSample:
    """An image as it is written.

    Attributes:
        key: Its name in the shard, without a suffix.
        suffix: Suffix of its format, without a dot.
        content: The encoded image.
        label: Its class.
        size: Height and width, pixels.
    """

    key: str
    suffix: str
    content: bytes
    label: int
    size: tuple[int, int]


class SampleEncoder:
    """Reader of images for shards, which checks that they can be decoded.

    Args:
        dataset: The images.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.source, self.where = unwrap_subset(dataset.images)

    def encode(self, index: int) -> EncodedSample | str:
        """Return an image as it is written, or the name of an unreadable one with the reason.

        Raises:
            DataError: The image has 16 bits per value.
        """
        try:
            content, suffix = self._content(index)
            size = read_image_size(content, get_decoding(self.dataset.images))
        except ImageError as error:
            return f"{self.dataset.images.name(index)}: {error}"
        return EncodedSample(self._key(index), suffix, content, int(self.dataset.labels[index]), size)

    def _content(self, index: int) -> tuple[bytes, str]:
        """Return the encoded image and its suffix."""
        if isinstance(self.source, EncodedImages):
            place = int(self.where[index])
            image = self.source.decode(place, CHECKED_SIDE)
            if self.source.decoding.bands is not None:
                return (content := self.source.read_bytes(place)), "npy" if is_npy(content) else "tif"
            if image.deep:
                raise DataError(
                    f"{self.dataset.images.name(index)} has 16 bits per value, and shards hold 8; train on the folder "
                    "itself, or convert such images first"
                )
            if image.format in KEPT:
                return self.source.read_bytes(place), KEPT[image.format]
        file = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(self.dataset.images.read(index))).save(file, "PNG")
        return file.getvalue(), "png"

    def _key(self, index: int) -> str:
        """Return the key of an image: its number, and its path as far as a key can hold it."""
        name = self.dataset.images.name(index)
        if isinstance(self.source, FileImages):
            name = self.source.paths[int(self.where[index])]
        path = PurePath(name)
        stem = path.with_suffix("") if path.suffix.lower() in SUFFIXES else path
        return f"{index:09d}-{UNSAFE.sub('-', str(stem)).strip('_-')[-KEY_CHARACTERS:]}"


@dataclass(frozen=True)
class WrittenShard:
    """A shard that has been written to a temporary file.

    Attributes:
        path: The file, which is removed when the next shard is taken.
        index: Its samples.
        taken: Number of images that it took, unreadable ones included.
        unreadable: Names of these, with the reasons.
    """

    path: Path
    index: ShardIndex
    taken: int
    unreadable: tuple[str, ...]


def write_shards(
    dataset: Dataset, indices: Ints, part: str, names: Iterator[str], *, shard_bytes: int, threads: int
) -> Iterator[WrittenShard]:
    """Write images to shards in temporary files, and yield them one after the other.

    The same images give the same bytes.

    Args:
        dataset: The images.
        indices: Those that are written, in order, (n,) int64.
        part: Their part.
        names: Names of the shards.
        shard_bytes: Size from which on a shard ends, bytes.
        threads: Threads that read and check images.

    Raises:
        DataError: An image has 16 bits per value.
        StorageError: The temporary folder is full.
    """
    encoder = SampleEncoder(dataset)
    encoded = (one for some in map_chunks(encoder.encode, indices.tolist(), threads, CHUNK) for one in some)
    waiting = next(encoded, None)
    while waiting is not None:
        samples: list[tuple[int, int, int, tuple[int, int], bytes]] = []
        unreadable, taken = [], 0
        with tempfile.TemporaryDirectory(prefix="svertka-") as folder:
            path = Path(folder) / "shard.tar"
            with os_error_to_storage_error(path), tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
                while waiting is not None and archive.offset < shard_bytes:
                    taken += 1
                    if isinstance(waiting, str):
                        unreadable.append(waiting)
                    else:
                        one, start = waiting, archive.offset + tarfile.BLOCKSIZE
                        _add(archive, f"{one.key}.{one.suffix}", one.content)
                        _add(archive, f"{one.key}.cls", str(one.label).encode())
                        samples.append((start, len(one.content), one.label, one.size, hash_content(one.content)))
                    waiting = next(encoded, None)
            entry = ShardEntry(next(names), path.stat().st_size, len(samples), part)
            starts, lengths, labels = (
                np.array([sample[column] for sample in samples], np.int64) for column in range(3)
            )
            sizes = np.array([sample[3] for sample in samples], np.int64).reshape(-1, 2)
            digests = np.frombuffer(b"".join(sample[4] for sample in samples), np.uint8).reshape(-1, 16)
            index = ShardIndex(dataset.names, (entry,), starts, lengths, labels, sizes, digests)
            yield WrittenShard(path, index, taken, tuple(unreadable))


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file to a shard; its header does not depend on the time or the user."""
    header = tarfile.TarInfo(name)
    header.size = len(content)
    archive.addfile(header, io.BytesIO(content))
