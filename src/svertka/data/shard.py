"""shard(): write labeled images to shards with an index, in a folder or an object store."""

import hashlib
import tempfile
from dataclasses import dataclass
from functools import partial
from itertools import count
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from svertka.data.band_detection import find_bands
from svertka.data.content_hash import hash_images
from svertka.data.dataset import BAD_SHARE, PARTS, Dataset, Ints
from svertka.data.deduplicated_split import DatasetSplit, split_dataset
from svertka.data.groups_by_filename_regex import assign_groups
from svertka.data.image_io import DecodingOptions
from svertka.data.in_memory_sources import Source
from svertka.data.large_split import MOST, split_large_dataset
from svertka.data.near_duplicates import find_near_duplicates
from svertka.data.shard_index import FILE, ShardIndex, merge_indexes
from svertka.data.shard_storage import ShardLocation, open_location, retry
from svertka.data.shard_writer import WrittenShard, write_shards
from svertka.data.source_opener import open_source
from svertka.device import set_threads, with_preserved_settings
from svertka.errors import DataError, UsageError
from svertka.escaping import join_first
from svertka.files import format_bytes, os_error_to_storage_error
from svertka.progress import progress, say
from svertka.text_width import shorten
from svertka.type_checking import check_types

SHARD_MEGABYTES = 256.0
LARGEST_MEGABYTES = 100_000.0
SEED = 0  # of the order of the images


@dataclass(frozen=True)
class ShardedDataset:
    """Shards that `shard` has written.

    Attributes:
        location: The folder or URL.
        shards: Number of shards.
        bytes: Their size, bytes.
        parts: Number of images in each part.
        classes: Class names.
        unreadable: Path and reason of each image that was left out.
        notes: Sentences on how the images were read and split.
    """

    location: str
    shards: int
    bytes: int
    parts: dict[str, int]
    classes: tuple[str, ...]
    unreadable: tuple[str, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values.

        Returns:
            The attributes by name.
        """
        return {
            "location": self.location,
            "shards": self.shards,
            "bytes": self.bytes,
            "parts": self.parts,
            "classes": list(self.classes),
            "unreadable": list(self.unreadable),
            "notes": list(self.notes),
        }

    def sentences(self) -> list[str]:
        """Return what was written, as sentences.

        Returns:
            The location with its size, the notes, and the images that could not be read.
        """
        counts = ", ".join(f"{part} {count:,}" for part, count in self.parts.items() if count)
        size = f"{self.shards:,} shards, {format_bytes(self.bytes)}, {len(self.classes):,} classes"
        written = f"{self.location}: {size}; {counts}"
        left_out = f"left out: {len(self.unreadable):,} images that cannot be read: {join_first(self.unreadable)}"
        return [written, *self.notes, *([left_out] if self.unreadable else [])]


@check_types
@with_preserved_settings
def shard(
    source: Source,
    to: str | PathLike[str],
    *,
    val: float = 0.1,
    test: float = 0.0,
    shard_size: float = SHARD_MEGABYTES,
    columns: str | None = None,
    group: str | None = None,
    max_pixels: int | None = None,
    threads: int | None = None,
) -> ShardedDataset:
    """Write labeled images to shards: tar files in the WebDataset format, with an index.

    The images are split as `train` would split them, and each part has shards of its own, such as train-000000.tar.
    The order within a part is random. JPEG, PNG and WebP files are copied byte by byte, other images become PNG. The
    same images give the same bytes. An interrupted call continues with the first shard that is missing.

    Args:
        source: Labeled images, as for `train`.
        to: A folder, or a URL such as s3://bucket/path.
        val: Share of the images for validation, if the source has no such part, 0 to 1.
        test: Share of the images for testing, 0 to 1, likewise.
        shard_size: Size of a shard, MB (10⁶ bytes).
        columns: As for `train`.
        group: As for `train`.
        max_pixels: Largest image that is read, pixels. None: `data.image_io.PIXEL_LIMIT`.
        threads: CPU threads, at least 1. None: all cores.

    Returns:
        What was written.

    Raises:
        UsageError: An option is impossible, or `to` holds other files.
        DataError: The source cannot be read, has 16-bit images or other labels than one class an image, or `to` cannot
            be written.
        StorageError: The disk is full.
    """
    if not 0 < shard_size <= LARGEST_MEGABYTES:
        raise UsageError(
            f"shard_size={shorten(str(shard_size))} must be more than 0 and at most {LARGEST_MEGABYTES:,.0f} MB"
        )
    location = open_location(to, is_folder=True)
    num_threads = set_threads(threads)
    dataset = open_source(source, to_train=False, columns=columns).with_decoding(DecodingOptions.up_to(max_pixels))
    if not dataset.task.is_single_label:
        raise DataError(
            f"{dataset.source} has {dataset.task.phrase}, and shards hold one class for each image; train on "
            f"{dataset.source} itself"
        )
    if group is not None:
        dataset = assign_groups(dataset, group)
    dataset = dataset.with_intensity_range(find_bands(dataset))
    digests, bad = hash_images(dataset.images, num_threads)
    good = np.array([index for index in range(len(dataset)) if index not in bad], np.int64)
    unreadable = [f"{dataset.images.name(index)}: {reason}" for index, reason in bad.items()]
    if len(bad) > BAD_SHARE * len(dataset):
        raise DataError(
            f"{len(bad):,} of {len(dataset):,} images in {dataset.source} cannot be read, more than a tenth: "
            f"{join_first(unreadable)}"
        )
    split = _split(dataset, digests, good, val, test, num_threads)
    account = split.add_to(dataset.account)
    key = _identify(dataset, digests, split, shard_size)
    writer = _Writer(location, key)
    complete = writer.complete()
    if complete is None:
        index, left_out = _write(writer, dataset, split, int(shard_size * 10**6), num_threads)
        unreadable += left_out
        writer.finish(index, unreadable)
    else:
        index, unreadable = complete
        say(f"{location.source} is complete already")
    return ShardedDataset(
        location.source,
        len(index.shards),
        sum(one.bytes for one in index.shards),
        {part: int((index.parts == part).sum()) for part in PARTS},
        index.names,
        tuple(unreadable),
        tuple(account.sentences()),
    )


def _write(
    writer: "_Writer", dataset: Dataset, split: DatasetSplit, shard_bytes: int, threads: int
) -> tuple[ShardIndex, list[str]]:
    """Write the shards that are missing; return the index of all and the images that they left out."""
    indexes: list[ShardIndex] = []
    unreadable: list[str] = []
    with progress("sharding", sum(map(len, split.indices.values())), "images") as shown:
        for number, part in enumerate(PARTS):
            done = writer.finished(part)
            for index, taken, left_out in done:
                indexes.append(index)
                unreadable += left_out
                shown.advance(taken)
            order = np.random.default_rng((SEED, number)).permutation(split.indices[part])
            names = (_shard_name(part, place) for place in count(len(done)))
            for written in write_shards(
                dataset,
                order[sum(taken for _, taken, _ in done) :],
                part,
                names,
                shard_bytes=shard_bytes,
                threads=threads,
            ):
                writer.put(written)
                indexes.append(written.index)
                unreadable += written.unreadable
                shown.advance(written.taken)
    if not any(map(len, indexes)):
        raise DataError(f"{dataset.source}: no image can be read; see svertka check")
    return merge_indexes(indexes, dataset.names), unreadable


def _split(dataset: Dataset, digests: list[bytes], good: Ints, val: float, test: float, threads: int) -> DatasetSplit:
    """Split the readable images as training does."""
    if len(good) > MOST:
        return split_large_dataset(dataset, digests, good, val, test)
    alike = find_near_duplicates(dataset.images, digests, good, threads) or []
    return split_dataset(dataset, digests, good, val, test, alike=alike)


def _identify(dataset: Dataset, digests: list[bytes], split: DatasetSplit, shard_size: float) -> str:
    """Return a digest of everything that decides what the shards contain."""
    found = hashlib.blake2b(repr((dataset.names, shard_size)).encode(errors="surrogatepass"), digest_size=16)
    for part in PARTS:
        indices = split.indices[part]
        found.update(part.encode())
        found.update(b"".join(digests[index] for index in indices.tolist()))
        found.update(dataset.labels[indices].tobytes())
    return found.hexdigest()


def _shard_name(part: str, number: int) -> str:
    return f"{part}-{number:06d}.tar"


class _Writer:
    """Folder of shards that are being written; as long as they are not all written, each has an index of its own.

    Args:
        location: The folder.
        key: Identifies the images and options; shards of others are not continued.

    Raises:
        UsageError: The folder holds other files.
    """

    def __init__(self, location: ShardLocation, key: str) -> None:
        self.location, self.key = location, key
        self.names = {name for name in location.list_names() if not name.startswith(".")}
        known = [name for name in sorted(self.names) if name == FILE or _is_fragment(name)]
        if self.names and (not known or self._read(known[0])[1].get("key") != key):
            raise UsageError(f"{location.source} holds other files; choose another --to, or empty it")

    def complete(self) -> tuple[ShardIndex, list[str]] | None:
        """Return the index of all shards and the images left out, if all are written; else None."""
        if FILE not in self.names:
            return None
        index, header = self._read(FILE)
        return index, list(map(str, header["unreadable"]))

    def finished(self, part: str) -> list[tuple[ShardIndex, int, list[str]]]:
        """Return the index of each shard of `part` up to the first missing one, and what it took and left out."""
        found: list[tuple[ShardIndex, int, list[str]]] = []
        while {shard := _shard_name(part, len(found)), _fragment_name(shard)} <= self.names:
            index, header = self._read(_fragment_name(shard))
            found.append((index, int(header["taken"]), list(map(str, header["unreadable"]))))
        return found

    def put(self, written: WrittenShard) -> None:
        """Copy a shard to its place after its index, without which the folder would look like one of others' shards."""
        name = written.index.shards[0].name
        self._put_index(_fragment_name(name), written.index, {"taken": written.taken, "unreadable": written.unreadable})
        self.location.put(name, written.path)

    def finish(self, index: ShardIndex, unreadable: list[str]) -> None:
        """Write the index of all shards and remove those of single ones."""
        self._put_index(FILE, index, {"unreadable": unreadable})
        for shard in index.shards:
            name = _fragment_name(shard.name)
            remove = partial(self.location.system.rm_file, self.location.path(name))
            retry(remove, self.location.describe(name), self.location.system, verb="removed")

    def _read(self, name: str) -> tuple[ShardIndex, dict[str, Any]]:
        content = self.location.read(name)
        with tempfile.TemporaryDirectory(prefix="svertka-") as folder:
            copy = Path(folder) / name
            with os_error_to_storage_error(copy):
                copy.write_bytes(content)
            return ShardIndex.read(copy, self.location.describe(name))

    def _put_index(self, name: str, index: ShardIndex, extra: dict[str, object]) -> None:
        with tempfile.TemporaryDirectory(prefix="svertka-") as folder:
            index.write(Path(folder) / name, {"key": self.key} | extra)
            self.location.put(name, Path(folder) / name)


def _fragment_name(shard: str) -> str:
    return f"{shard.removesuffix('.tar')}.safetensors"


def _is_fragment(name: str) -> bool:
    return name.endswith(".safetensors") and name != FILE
