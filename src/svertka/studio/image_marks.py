"""Marks on images of a data set: those that cannot be read, and exact copies of others."""

import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from svertka.data.dataset import hash_content
from svertka.data.image_io import read_bytes, read_header
from svertka.errors import ImageError
from svertka.studio.collection import CollectedImage, Collection

PAUSE_SECONDS = 0.0005  # between two files that are read in the background, for requests that somebody waits for
Kind = Literal["bad", "copy", "doubt"]


@dataclass(frozen=True)
class ImageMark:
    """A mark: its kind, and a sentence that says why."""

    kind: Kind
    reason: str


@dataclass(frozen=True)
class _Content:
    """What a file contains: its stamp, a digest of its bytes, and why it is not an image, or ""."""

    stamp: str
    digest: bytes
    problem: str


class ImageMarks:
    """Marks of the images of a collection; files that nobody added through the studio are read in the background.

    Args:
        collection: The data set.
    """

    def __init__(self, collection: Collection) -> None:
        self._collection = collection
        self._contents: dict[str, _Content] = {}
        self._by_digest: dict[bytes, set[str]] = defaultdict(set)
        self._lock = threading.Lock()
        self._reader: threading.Thread | None = None

    def add(self, image: CollectedImage, data: bytes | bytearray) -> None:
        """Record what an image contains."""
        self._record(image.path, _content(image.stamp, data))

    def add_problem(self, path: str, reason: str) -> None:
        """Record that the pixels of an image cannot be decoded."""
        known = self._contents.get(path)
        if known is not None:
            self._record(path, _Content(known.stamp, known.digest, reason))

    def copies(self, data: bytes | bytearray) -> list[str]:
        """Return the paths of the images whose files equal `data`."""
        return self._copies(hash_content(data))

    def of(self, images: Iterable[CollectedImage]) -> dict[str, ImageMark]:
        """Return the marks of some images by path."""
        found = {}
        for one in images:
            known = self._contents.get(one.path)
            if known is None or known.stamp != one.stamp:
                continue
            if known.problem:
                found[one.path] = ImageMark("bad", f"cannot be read: {known.problem}")
            elif others := [path for path in self._copies(known.digest) if path != one.path]:
                found[one.path] = ImageMark("copy", f"the same file as {others[0]}")
        return found

    @property
    def is_reading(self) -> bool:
        """Whether files are being read, so that there may be more marks soon."""
        return self._reader is not None and self._reader.is_alive()

    def read_unknown(self) -> None:
        """Read the files that are not known yet, in the background."""
        with self._lock:
            if self.is_reading or all(self._digest_of(one) for one in self._all_images()):
                return
            self._reader = threading.Thread(target=self._read_all, daemon=True)
            self._reader.start()

    def _read_all(self) -> None:
        for one in self._all_images():
            if not self._digest_of(one):
                time.sleep(PAUSE_SECONDS)
                try:
                    self.add(one, read_bytes(self._collection.folder / one.path))
                except ImageError as error:
                    self._record(one.path, _Content(one.stamp, hash_content(one.path.encode()), str(error)))

    def _record(self, path: str, content: _Content) -> None:
        known = self._contents.get(path)
        if known is not None:
            self._by_digest[known.digest].discard(path)
        self._contents[path] = content
        self._by_digest[content.digest].add(path)

    def _copies(self, digest: bytes) -> list[str]:
        """Return the paths of the files with `digest` that are still there, unchanged."""
        candidates = sorted(self._by_digest.get(digest, ()))
        return [path for path in candidates if self._collection.stamp(path) == self._contents[path].stamp]

    def _all_images(self) -> list[CollectedImage]:
        return [one for label in self._collection.classes() for one in self._collection.images(label)]

    def _digest_of(self, image: CollectedImage) -> bytes:
        known = self._contents.get(image.path)
        return known.digest if known is not None and known.stamp == image.stamp else b""


def _content(stamp: str, data: bytes | bytearray) -> _Content:
    problem = ""
    try:
        read_header(bytes(data))
    except ImageError as error:
        problem = str(error)
    return _Content(stamp, hash_content(data), problem)
