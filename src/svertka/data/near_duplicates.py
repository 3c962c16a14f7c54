"""Near-duplicates in a data set, found by thumbnails that are kept on disk."""

from collections.abc import Set
from contextlib import suppress

import numpy as np
import numpy.typing as npt

from svertka import distributed
from svertka.data.content_hash import unwrap_subset
from svertka.data.dataset import ArrayImages, Images, Ints, Pixels
from svertka.data.disk_cache import ArrayStore
from svertka.data.parallel_map import map_chunks
from svertka.data.perceptual_hash import SIDE, group_look_alikes, make_thumbnail
from svertka.errors import ImageError, StorageError
from svertka.files import cache_folder
from svertka.progress import progress

VERSION = 1  # of thumbnails; part of the folder's name
MOST = 200_000  # images that are compared; more would take gigabytes and minutes
CHUNK = 256  # thumbnails per write to the disk
ROW = SIDE * SIDE + 1  # bytes: a thumbnail, and whether the image is smaller than it


def find_near_duplicates(images: Images, digests: list[bytes], indices: Ints, threads: int) -> list[list[int]] | None:
    """Find groups of images that look the same.

    In a distributed job the first process compares, and all processes return its answer.

    Args:
        images: The images.
        digests: Content digest of each image; of exact copies only one is compared.
        indices: Indices of the images to compare, (n,) int64.
        threads: Number of threads.

    Returns:
        Groups of two or more indices, ascending; None if there are more than MOST images.
    """
    return distributed.broadcast(
        compare_in_this_process(images, digests, indices, threads) if distributed.is_first() else None
    )


def compare_in_this_process(
    images: Images, digests: list[bytes], indices: Ints, threads: int
) -> list[list[int]] | None:
    """Return what `find_near_duplicates` does, without the other processes of a distributed job."""
    first: dict[bytes, int] = {}
    for index in indices.tolist():
        first.setdefault(digests[index], index)
    if len(first) > MOST:
        return None
    return _compare(images, digests, list(first.values()), threads)


def find_resembling_known_images(
    images: Images, digests: list[bytes], indices: Ints, known: Set[bytes], threads: int
) -> list[int] | None:
    """Find images that look the same as images of known contents.

    Only known images whose thumbnails an earlier comparison left on this machine are compared. Images in memory leave
    none.

    Args:
        images: The images.
        digests: Content digest of each image.
        indices: Indices of the images to compare, (n,) int64.
        known: Content digests of the known images.
        threads: Number of threads.

    Returns:
        Indices of the images that resemble a known one; None if nothing could be compared.
    """
    source, _ = unwrap_subset(images)
    if isinstance(source, ArrayImages) or not 0 < len(known) + len(indices) <= MOST or not len(indices):
        return None
    found = _resembling(images, digests, indices.tolist(), known, threads) if distributed.is_first() else None
    return distributed.broadcast(found)


def _resembling(
    images: Images, digests: list[bytes], indices: list[int], known: Set[bytes], threads: int
) -> list[int] | None:
    store, keys = _open_store(), sorted(known)
    if store is None:
        return None
    try:
        positions = store.find(keys)
        learned = store.gather(positions[positions >= 0])
    except StorageError:
        return None
    if not len(learned):
        return None
    rows = np.concatenate([learned, _thumbnails_of_files(images, digests, indices, threads)])
    groups = group_look_alikes(rows[:, :-1].reshape(-1, SIDE, SIDE), rows[:, -1].astype(bool))
    count = len(learned)
    return sorted(indices[place - count] for group in groups if group[0] < count for place in group if place >= count)


def _open_store() -> ArrayStore | None:
    """Return the store of thumbnails; None if the cache folder cannot be used."""
    try:
        return ArrayStore(cache_folder("thumbnails") / f"{SIDE}-version-{VERSION}", (ROW,), np.uint8)
    except StorageError:
        return None


def _compare(images: Images, digests: list[bytes], indices: list[int], threads: int) -> list[list[int]]:
    source, where = unwrap_subset(images)
    if isinstance(source, ArrayImages):
        rows = _thumbnails_of_array(source.array[where[indices]], threads)
    else:
        rows = _thumbnails_of_files(images, digests, indices, threads)
    if not len(rows):
        return []
    groups = group_look_alikes(rows[:, :-1].reshape(-1, SIDE, SIDE), rows[:, -1].astype(bool))
    return [[indices[place] for place in group] for group in groups]


def _thumbnails_of_array(array: Pixels, threads: int) -> Pixels:
    small = min(array.shape[1:3]) < SIDE
    rows = np.full((len(array), ROW), small, np.uint8)
    with progress("comparing", len(array), "images") as shown:
        for number, some in enumerate(map_chunks(make_thumbnail, list(array), threads, CHUNK)):
            rows[number * CHUNK :][: len(some), :-1] = np.stack(some).reshape(len(some), -1)
            shown.advance(len(some))
    return rows


def _thumbnails_of_files(images: Images, digests: list[bytes], indices: list[int], threads: int) -> Pixels:
    """Return the rows of files, from the store or decoded and stored."""
    store = _open_store()
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
                except StorageError:  # the thumbnails are made again next time
                    store = None
            shown.advance(len(some))
    return rows


def _row(images: Images, index: int) -> npt.NDArray[np.uint8]:
    """Return the thumbnail of one image; one of a single color, which resembles nothing, if the image is unreadable."""
    row = np.zeros(ROW, np.uint8)
    try:
        pixels = images.read(index, min_side=SIDE)
    except ImageError:
        return row
    row[:-1] = make_thumbnail(pixels).ravel()
    row[-1] = min(pixels.shape[:2]) < SIDE
    return row
