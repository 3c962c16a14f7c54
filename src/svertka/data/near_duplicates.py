"""Near-duplicates in a data set: thumbnails of its images, kept on disk, and the groups that look the same."""

from collections.abc import Set
from contextlib import suppress

import numpy as np
import numpy.typing as npt

from svertka import distributed
from svertka.data.content_hash import resolve_subset
from svertka.data.dataset import ArrayImages, Images, Ints, Pixels
from svertka.data.parallel_map import map_chunks
from svertka.data.perceptual_hash import SIDE, find_look_alikes, make_thumbnail
from svertka.data.record_store import ArrayStore
from svertka.errors import ImageError, StorageError
from svertka.files import cache_folder
from svertka.progress import progress

VERSION = 1  # of thumbnails; another finds nothing stored
MOST = 200_000  # images; more take gigabytes and minutes
CHUNK = 256  # thumbnails between two writes to the disk
ROW = SIDE * SIDE + 1  # bytes: a thumbnail, and 1 where the image is smaller than it


def find_near_duplicates(images: Images, digests: list[bytes], indices: Ints, threads: int) -> list[list[int]] | None:
    """Groups of the images at `indices` that look the same, each of two or more, ascending; None: too many to compare.

    `digests`: of the contents of all `images`; of copies only one is compared. Of several processes the first
    compares, and all get its answer.
    """
    first: dict[bytes, int] = {}
    for index in indices.tolist():
        first.setdefault(digests[index], index)
    if len(first) > MOST:
        return None
    found = _compared(images, digests, list(first.values()), threads) if distributed.is_first() else []
    return distributed.broadcast(found)


def find_resembling(
    images: Images, digests: list[bytes], indices: Ints, known: Set[bytes], threads: int
) -> list[int] | None:
    """Which of the images at `indices` look the same as an image whose digest is in `known`; None: not compared.

    Of the known images the thumbnails are needed that an earlier comparison left on this machine. Images in memory,
    which leave none, are not compared.
    """
    source, _ = resolve_subset(images)
    if isinstance(source, ArrayImages) or not 0 < len(known) + len(indices) <= MOST or not len(indices):
        return None
    found = _resembling(images, digests, indices.tolist(), known, threads) if distributed.is_first() else None
    return distributed.broadcast(found)


def _resembling(
    images: Images, digests: list[bytes], indices: list[int], known: Set[bytes], threads: int
) -> list[int] | None:
    store, keys = _store(), sorted(known)
    if store is None:
        return None
    try:
        positions = store.find(keys)
        learnt = store.gather(positions[positions >= 0])
    except StorageError:
        return None
    if not len(learnt):
        return None
    rows = np.concatenate([learnt, _through_store(images, digests, indices, threads)])
    groups = find_look_alikes(rows[:, :-1].reshape(-1, SIDE, SIDE), rows[:, -1].astype(bool))
    count = len(learnt)
    return sorted(indices[place - count] for group in groups if group[0] < count for place in group if place >= count)


def _store() -> ArrayStore | None:
    """Where thumbnails are kept; None where nothing can be."""
    try:
        return ArrayStore(cache_folder("thumbnails") / f"{SIDE}-version-{VERSION}", (ROW,), np.uint8)
    except StorageError:
        return None


def _compared(images: Images, digests: list[bytes], indices: list[int], threads: int) -> list[list[int]]:
    source, where = resolve_subset(images)
    if isinstance(source, ArrayImages):
        rows = _rows_of_array(source.array[where[indices]], threads)
    else:
        rows = _through_store(images, digests, indices, threads)
    if not len(rows):
        return []
    groups = find_look_alikes(rows[:, :-1].reshape(-1, SIDE, SIDE), rows[:, -1].astype(bool))
    return [[indices[place] for place in group] for group in groups]


def _rows_of_array(array: Pixels, threads: int) -> Pixels:
    small = min(array.shape[1:3]) < SIDE
    rows = np.full((len(array), ROW), small, np.uint8)
    with progress("comparing", len(array), "images") as shown:
        for number, some in enumerate(map_chunks(make_thumbnail, list(array), threads, CHUNK)):
            rows[number * CHUNK :][: len(some), :-1] = np.stack(some).reshape(len(some), -1)
            shown.advance(len(some))
    return rows


def _through_store(images: Images, digests: list[bytes], indices: list[int], threads: int) -> Pixels:
    """The rows of files: found again by their contents, or decoded and stored."""
    store = _store()
    rows = np.zeros((len(indices), ROW), np.uint8)
    missing = np.ones(len(indices), bool)
    if store is not None:
        with suppress(StorageError):
            positions = store.find([digests[index] for index in indices])
            rows[positions >= 0] = store.gather(positions[positions >= 0])
            missing = positions < 0

    def made(place: int) -> npt.NDArray[np.uint8]:
        return _row(images, indices[place])

    places = np.flatnonzero(missing).tolist()
    with progress("comparing", len(places), "images") as shown:
        for number, some in enumerate(map_chunks(made, places, threads, CHUNK)):
            here = places[number * CHUNK :][: len(some)]
            rows[here] = some
            if store is not None:
                try:
                    store.append([digests[indices[place]] for place in here], rows[here])
                except StorageError:  # they are made again the next time
                    store = None
            shown.advance(len(some))
    return rows


def _row(images: Images, index: int) -> npt.NDArray[np.uint8]:
    """The thumbnail of one image; of a single colour, which resembles nothing, if it cannot be read any more."""
    row = np.zeros(ROW, np.uint8)
    try:
        pixels = images.read(index, min_side=SIDE)
    except ImageError:
        return row
    row[:-1] = make_thumbnail(pixels).ravel()
    row[-1] = min(pixels.shape[:2]) < SIDE
    return row
