"""Digests of images: of their content, remembered for files that have not changed, or of name and size of very many."""

import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from svertka.data.dataset import FileImages, Images, Ints, Subset, hash_content
from svertka.data.parallel_map import map_chunks
from svertka.data.sharded_images import ShardImages
from svertka.errors import ImageError, StorageError
from svertka.files import cache_folder, read_json, write_json
from svertka.garbage_collection import without_garbage_collection
from svertka.progress import progress

VERSION = 1
SETTLED = 2 * 10**9  # nanoseconds; a file changed more recently may change again without a new time stamp
MEMORY_BYTES = 2**28  # limit of the file that remembers one folder, about 2 million images
CHUNK = 256  # images
AT_ONCE = 16  # images that a thread reads before it hands over their hashes
NAMED_ABOVE = 200_000  # files that are told apart by name and size, because reading all of them would take hours
STATUS_CHUNK = 4096  # files whose sizes a thread asks for at a time

FileStamp = tuple[int, ...]  # size, mtime, ctime, inode


@without_garbage_collection()
def hash_images(
    images: Images, threads: int, inspect: Callable[[int, bytes], object] | None = None
) -> tuple[list[bytes], dict[int, str]]:
    """Hash the contents of images.

    Args:
        images: The images.
        threads: Number of threads.
        inspect: Called by these threads with the index and the content of each image in a file that can be read, so
            that files are read once. None: contents that are known are not read.

    Returns:
        The digest of each image, 16 bytes, b"" for an unreadable one; and for each unreadable image its index and the
        reason.
    """
    files, where = unwrap_subset(images)
    if isinstance(files, ShardImages):
        return files.digests(where), {}
    if not isinstance(files, FileImages):
        return [files.digest(index) for index in where.tolist()], {}
    memory, places = _Memory(files), where.tolist()
    bad: dict[int, str] = {}

    def digest(index: int) -> bytes:
        try:
            if inspect is None:
                return memory.digest(places[index])
            content, found = memory.read(places[index])
            inspect(index, content)
            return found
        except ImageError as error:
            bad[index] = str(error)
            return b""

    found: list[bytes] = []
    with progress("reading", len(images), "images") as shown:
        for some in map_chunks(digest, range(len(images)), threads, CHUNK, AT_ONCE):
            found += some
            shown.advance(len(some))
    memory.save()
    return found, bad


def is_identified_by_name(images: Images) -> bool:
    """Return whether images are so many files that training tells them apart by name and size, not by content."""
    files, where = unwrap_subset(images)
    return isinstance(files, FileImages) and len(where) > NAMED_ABOVE


def hash_names(images: Images, threads: int) -> tuple[list[bytes], dict[int, str]]:
    """Hash the folder's name, the name and the size of each file, and the content of those that have all three alike.

    Args:
        images: The images.
        threads: Number of threads.

    Returns:
        As `hash_images`.
    """
    found, bad = hash_single_names(images, threads)
    counts = Counter(found)
    alike = [index for index, digest in enumerate(found) if digest and counts[digest] > 1]
    if alike:
        contents, unreadable = hash_images(Subset(images, np.array(alike, np.int64)), threads)
        for place, index in enumerate(alike):
            found[index] = contents[place]
        bad |= {alike[place]: reason for place, reason in unreadable.items()}
    return found, bad


def hash_single_names(images: Images, threads: int) -> tuple[list[bytes], dict[int, str]]:
    """Hash the folder's name, the name and the size of each file, as `hash_names` without regard to the others.

    Images that are not in files are hashed as `hash_images` does.
    """
    files, where = unwrap_subset(images)
    if not isinstance(files, FileImages):
        return hash_images(images, threads)
    bad: dict[int, str] = {}
    root, paths = os.path.realpath(files.root), files.paths

    def digest(start: int) -> list[bytes]:
        some = []
        for index, place in enumerate(where[start : start + STATUS_CHUNK].tolist(), start):
            path = os.path.join(root, paths[place])  # noqa: PTH118 - pathlib takes ten times as long
            try:
                size = os.stat(path).st_size  # noqa: PTH116
            except OSError as error:
                bad[index] = (error.strerror or str(error)).lower()
                some.append(b"")
                continue
            # Without "..", which would be the name of many folders.
            folder, name = os.path.split(os.path.normpath(path) if ".." in path else path)
            text = f"{os.path.basename(folder)}/{name} {size}"  # noqa: PTH119
            some.append(hashlib.blake2b(os.fsencode(text), digest_size=16, person=b"svertka name").digest())
        return some

    found: list[bytes] = []
    with ThreadPoolExecutor(threads) as pool, progress("reading sizes", len(where), "files") as shown:
        for some in pool.map(digest, range(0, len(where), STATUS_CHUNK)):
            found += some
            shown.advance(len(some))
    return found, bad


def unwrap_subset(images: Images) -> tuple[Images, Ints]:
    """Return the images that a subset was taken from, and the index of each of its images there, (N,) int64.

    A subset of a subset is followed to its end.
    """
    where = np.arange(len(images), dtype=np.int64)
    while isinstance(images, Subset):
        where = images.indices[where]
        images = images.images
    return images, where


def make_feature_key(content: bytes, pixels: bytes, variant: int) -> bytes:
    """Return the key under which features of an image are stored, 16 bytes.

    Args:
        content: Digest of the image.
        pixels: Digest of everything that decides which pixels the network sees of it.
        variant: Number of the augmented variant; 0 without augmentation.
    """
    return hashlib.blake2b(content + pixels + variant.to_bytes(4, "little"), digest_size=16).digest()


def hash_in_source(digests: Sequence[bytes], source: str) -> list[bytes]:
    """Return digests of names and sizes with the source that they are from, so that other sources have others."""
    return [hash_content(digest + source.encode(errors="surrogatepass")) for digest in digests]


def sort_halves(first: npt.NDArray[np.uint64], *others: npt.NDArray[Any]) -> Ints:
    """Return the order of rows by `first`, and where that is equal by `others`; halves of digests are rarely equal.

    Args:
        first, others: Columns, (n,); the first decides first.
    """
    order: Ints = np.argsort(first).astype(np.int64, copy=False)
    ordered = first[order]
    if (ordered[1:] == ordered[:-1]).any():  # it takes four times as long
        order = np.lexsort((*reversed(others), first))
    return order


class _Memory:
    """Digests of the files under one root, kept from one start to the next."""

    def __init__(self, images: FileImages) -> None:
        self.images = images
        self.known: dict[str, tuple[FileStamp, str]] = {}
        self.fresh: dict[str, tuple[FileStamp, str]] = {}
        self.place: Path | None = None
        root = hashlib.blake2b(os.fsencode(images.root.absolute()), digest_size=16).hexdigest()
        with suppress(StorageError):
            self.place = cache_folder("digests") / f"{root}.json"
            self.known = _load(self.place)

    def digest(self, index: int) -> bytes:
        """Return the digest of an image, hashing it only if its file has changed."""
        with suppress(OSError):  # reading it raises with the reason
            status = os.stat(self.images.path(index))  # noqa: PTH116 - pathlib takes ten times as long
            if (known := self._find(self.images.paths[index], _stamp(status))) is not None:
                return known
        return self.read(index)[1]

    def read(self, index: int) -> tuple[bytes, bytes]:
        """Return the content of a file and its digest; raises ImageError."""
        content, status = self.images.read_bytes_and_status(index)
        path, stamp = self.images.paths[index], _stamp(status)
        if (known := self._find(path, stamp)) is not None:
            return content, known
        digest = hash_content(content)
        if status.st_ctime_ns < time.time_ns() - SETTLED:
            self.fresh[path] = (stamp, digest.hex())
        return content, digest

    def _find(self, path: str, stamp: FileStamp) -> bytes | None:
        """Return the digest of a file that has not changed since it was hashed, else None."""
        known = self.known.get(path)
        return bytes.fromhex(known[1]) if known is not None and known[0] == stamp else None

    def save(self) -> None:
        """Write the new digests, if the cache folder can be written."""
        if self.place is not None and self.fresh:
            with suppress(StorageError):
                write_json(self.place, {"version": VERSION, "files": self.known | self.fresh}, indent=None)


def _stamp(status: os.stat_result) -> FileStamp:
    """Return what changes with the content of a file: ctime does so and, unlike mtime, cannot be set back."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _load(place: Path) -> dict[str, tuple[FileStamp, str]]:
    """Return the remembered digests; none if the file is absent, damaged or of another version."""
    try:
        value = read_json(place, MEMORY_BYTES)
        if value["version"] != VERSION:
            return {}
        return {
            str(path): (tuple(map(int, facts)), _checked_hex(digest))
            for path, (facts, digest) in value["files"].items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _checked_hex(digest: str) -> str:
    """Return `digest` if it is 16 bytes in hexadecimal; else raise ValueError."""
    if len(bytes.fromhex(digest)) != 16:
        raise ValueError(digest)
    return digest
