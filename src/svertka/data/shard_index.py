"""Index of sharded data: class names, shards, and position, class, size and digest of every sample."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from svertka.data.dataset import PARTS, Ints
from svertka.errors import DataError, RunError
from svertka.tensor_files import read_tensors_and_header, write_tensors

FILE = "index.safetensors"
FORMAT = 1
COLUMNS = {  # dtype and values per sample
    "offsets": (torch.int64, ()),
    "lengths": (torch.int32, ()),
    "labels": (torch.int32, ()),
    "sizes": (torch.int32, (2,)),
    "digests": (torch.uint8, (16,)),
}


@dataclass(frozen=True)
class ShardEntry:
    """One shard.

    Attributes:
        name: Its file's name.
        bytes: Its size, bytes.
        count: Number of its samples.
        part: "train", "val", "test", or "" if its samples may be split.
    """

    name: str
    bytes: int
    count: int
    part: str


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """Index of N samples in S shards; samples are in the order of the shards and of their positions.

    Attributes:
        names: Class names.
        shards: The shards.
        offsets: Where each encoded image begins in its shard, (N,) int64, bytes.
        lengths: Its size, (N,) int64, bytes.
        labels: Its class, (N,) int64.
        sizes: Height and width of each image, (N, 2) int64, pixels.
        digests: BLAKE2b of each encoded image, (N, 16) uint8.
        notes: Sentences about the samples.
    """

    names: tuple[str, ...]
    shards: tuple[ShardEntry, ...]
    offsets: Ints
    lengths: Ints
    labels: Ints
    sizes: Ints
    digests: npt.NDArray[np.uint8]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.offsets)

    @cached_property
    def shard_of(self) -> Ints:
        """The shard of each sample, (N,) int64."""
        return np.repeat(np.arange(len(self.shards)), [shard.count for shard in self.shards]).astype(np.int64)

    @cached_property
    def parts(self) -> npt.NDArray[np.str_]:
        """The part of each sample, (N,)."""
        return np.repeat(np.array([shard.part for shard in self.shards], "<U5"), [shard.count for shard in self.shards])

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the shards' names and contents."""
        digest = hashlib.blake2b(repr(self.shards).encode(errors="surrogatepass"), digest_size=16)
        digest.update(self.digests.tobytes())
        return digest.hexdigest()

    def write(self, path: Path, extra: dict[str, object] | None = None) -> None:
        """Write the index.

        Args:
            path: The file.
            extra: More JSON values for its header.

        Raises:
            StorageError: The disk is full or the folder cannot be written.
        """
        columns = (self.offsets, self.lengths, self.labels, self.sizes, self.digests)
        tensors = {
            name: torch.from_numpy(np.array(column)).to(kind)
            for (name, (kind, _)), column in zip(COLUMNS.items(), columns, strict=True)
        }
        shards = [[shard.name, shard.bytes, shard.count, shard.part] for shard in self.shards]
        header = {"format": FORMAT, "names": self.names, "shards": shards, "notes": self.notes} | (extra or {})
        write_tensors(path, tensors, header)

    @classmethod
    def read(cls, path: Path, what: str) -> "tuple[ShardIndex, dict[str, Any]]":
        """Read an index.

        Args:
            path: The file.
            what: What messages call it.

        Returns:
            The index and its header.

        Raises:
            DataError: The file is damaged, or was written by a newer version.
        """
        try:
            tensors, header = read_tensors_and_header(path)
            if header["format"] > FORMAT:
                raise DataError(f"{what} was written by a newer svertka; update this one")
            entries = tuple(
                ShardEntry(str(name), int(size), int(count), str(part)) for name, size, count, part in header["shards"]
            )
            names, notes = tuple(map(str, header["names"])), tuple(map(str, header["notes"]))
            columns = [tensors[name] for name in COLUMNS]
        except (RunError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"{what} is damaged; write the shards again with svertka shard") from error
        count = sum(entry.count for entry in entries)
        for tensor, (kind, shape) in zip(columns, COLUMNS.values(), strict=True):
            if tensor.dtype != kind or tensor.shape != (count, *shape):
                raise DataError(f"{what} is damaged; write the shards again with svertka shard")
        offsets, lengths, labels, sizes = (tensor.numpy().astype(np.int64, copy=False) for tensor in columns[:4])
        index = cls(names, entries, offsets, lengths, labels, sizes, columns[4].numpy(), notes)
        index.check(what)
        return index, header

    def check(self, what: str) -> None:
        """Raise DataError if a sample lies outside its shard or has no class."""
        if any(entry.count < 0 or entry.part not in ("", *PARTS) for entry in self.shards):
            raise DataError(f"{what} is damaged; write the shards again with svertka shard")
        ends = np.array([entry.bytes for entry in self.shards], np.int64)[self.shard_of]
        if len(self) and (
            self.offsets.min() < 0
            or self.lengths.min() < 1
            or (self.offsets + self.lengths > ends).any()
            or self.labels.min() < 0
            or self.labels.max() >= len(self.names)
        ):
            raise DataError(f"{what} does not fit its shards or class names; write the shards again with svertka shard")


def merge_indexes(indexes: Sequence[ShardIndex], names: tuple[str, ...], notes: tuple[str, ...] = ()) -> ShardIndex:
    """Return the index of the samples of several indexes, whose labels are indices into `names`."""
    offsets, lengths, labels, sizes = (
        np.concatenate([getattr(one, column) for one in indexes]) for column in list(COLUMNS)[:4]
    )
    shards = tuple(shard for one in indexes for shard in one.shards)
    digests = np.concatenate([one.digests for one in indexes])
    return ShardIndex(names, shards, offsets, lengths, labels, sizes, digests, notes)
