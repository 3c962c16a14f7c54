"""A digest of every image's content; that of a file that has not changed is remembered, not computed again."""

import hashlib
import os
import time
from contextlib import suppress
from pathlib import Path

import numpy as np

from svertka.data.dataset import FileImages, Images, Ints, Subset
from svertka.data.parallel_map import map_chunks
from svertka.errors import ImageError, StorageError
from svertka.files import cache_folder, read_json, write_json
from svertka.progress import progress

VERSION = 1
SETTLED = 2 * 10**9  # nanoseconds: a file changed later than this before may change again and keep its times
MEMORY_BYTES = 2**28  # of what is remembered about one folder, some 2 million files
CHUNK = 256  # images

FileStamp = tuple[int, ...]  # size, times of content and of inode, number of inode


def hash_images(images: Images, threads: int) -> tuple[list[bytes], dict[int, str]]:
    """The digest of each image, b"" where it cannot be read; and by index, why it cannot."""
    files, where = resolve_subset(images)
    if not isinstance(files, FileImages):
        return [images.digest(index) for index in range(len(images))], {}
    memory = _Memory(files)
    bad: dict[int, str] = {}

    def digest(index: int) -> bytes:
        try:
            return memory.digest(int(where[index]))
        except ImageError as error:
            bad[index] = str(error)
            return b""

    found: list[bytes] = []
    with progress("reading", len(images), "images") as shown:
        for some in map_chunks(digest, range(len(images)), threads, CHUNK):
            found += some
            shown.advance(len(some))
    memory.save()
    return found, bad


def resolve_subset(images: Images) -> tuple[Images, Ints]:
    """The images of which these are a subset (of a subset …), and where each of these stands among them, (N,)."""
    where = np.arange(len(images), dtype=np.int64)
    while isinstance(images, Subset):
        where = images.indices[where]
        images = images.images
    return images, where


class _Memory:
    """The digests of the files under one root, from one start to the next."""

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
        path = self.images.paths[index]
        try:
            status = (self.images.root / path).stat()
        except OSError:
            return self.images.digest(index)  # which says what is wrong
        # The inode's time moves with every change, and unlike the content's cannot be set back.
        facts = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        if path in self.known and self.known[path][0] == facts:
            return bytes.fromhex(self.known[path][1])
        digest = self.images.digest(index)
        if status.st_ctime_ns < time.time_ns() - SETTLED:
            self.fresh[path] = (facts, digest.hex())
        return digest

    def save(self) -> None:
        if self.place is not None and self.fresh:
            with suppress(StorageError):
                write_json(self.place, {"version": VERSION, "files": self.known | self.fresh})


def _load(place: Path) -> dict[str, tuple[FileStamp, str]]:
    """What was remembered; nothing if the file is absent, damaged, or of another version."""
    try:
        value = read_json(place, MEMORY_BYTES)
        if value["version"] != VERSION:
            return {}
        return {str(path): (tuple(map(int, facts)), _hex(digest)) for path, (facts, digest) in value["files"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _hex(digest: str) -> str:
    if len(bytes.fromhex(digest)) != 16:
        raise ValueError(digest)
    return digest
