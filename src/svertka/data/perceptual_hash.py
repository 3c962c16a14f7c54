"""Perceptual hashing: find images that look the same although their files differ.

Resized, recompressed, brightened and trimmed copies are found.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from PIL import Image

from svertka.data.dataset import Ints, Pixels
from svertka.data.rgb_conversion import to_gray

SIDE = 32  # of the thumbnails, pixels
WINDOW = 4096  # neighbors in a bucket that each hash is compared with; only nearly equal images have more
LINKS = 8  # pairs per hash and band at most; the frames of a film are all near each other
CHUNK = 4096  # thumbnails converted to float at once
Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class SimilarityThreshold:
    """Bounds within which two images look the same.

    Attributes:
        distance: Largest number of bits in which their hashes differ.
        correlation: Smallest correlation of their thumbnails.
    """

    distance: int
    correlation: float


# Chosen by eye: 48 of the 538 pairs within these bounds in CIFAR-10 were inspected, and each showed one image twice.
# Of 200 photographs, all were found when halved or saved at quality 10, 199 when 20 % brighter, and about 160 when
# trimmed by 2 % per side.
LARGE = SimilarityThreshold(distance=6, correlation=0.9)
# Different images of a 1 in MNIST correlate up to 0.994, MNIST images and their JPEGs of quality 90 above 0.999.
SMALL = SimilarityThreshold(distance=4, correlation=0.995)


def make_thumbnail(pixels: Pixels) -> Pixels:
    """Squeeze an image (H, W, C) uint8 to a grayscale square, (SIDE, SIDE) uint8; of bands, their mean."""
    image = to_gray(pixels)
    reduced = min(image.size) >= SIDE
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX if reduced else Image.Resampling.BILINEAR))


def group_look_alikes(thumbnails: Pixels, small: npt.NDArray[np.bool_]) -> list[list[int]]:
    """Group images that look the same.

    Args:
        thumbnails: (N, SIDE, SIDE) uint8.
        small: Whether each image was smaller than its thumbnail, (N,). Small images are compared only with each other
            and with stricter bounds, because with little detail different images look alike.

    Returns:
        Groups of two or more indices, ascending.
    """
    pairs = []
    for indices, bounds in ((np.flatnonzero(~small), LARGE), (np.flatnonzero(small), SMALL)):
        some = thumbnails[indices]
        near = _find_near(compute_perceptual_hashes(some), bounds.distance)
        for rows in _chunks(len(near)):
            alike = _correlate(some, near[rows]) > bounds.correlation
            pairs.append(indices[near[rows][alike]])
    return _connect(np.concatenate(pairs)) if pairs else []


def compute_perceptual_hashes(thumbnails: Pixels) -> Hashes:
    """Compute a 63-bit hash of each thumbnail; similar images differ in few bits.

    Bit k says whether the k-th of the 63 lowest frequencies of the cosine transform is above their median.

    Args:
        thumbnails: (N, SIDE, SIDE) uint8.

    Returns:
        (N,) uint64.

    Source: Zauner 2010, "Implementation and benchmarking of perceptual image hash functions", §3.2.1, without the
    constant term, which is brightness.
    """
    frequency, pixel = np.arange(8)[:, None], np.arange(SIDE)[None]
    cosines = np.cos(np.pi * frequency * (2 * pixel + 1) / (2 * SIDE)).astype(np.float32)
    hashes = [np.empty(0, np.uint64)]
    for rows in _chunks(len(thumbnails)):
        spectrum = (cosines @ thumbnails[rows].astype(np.float32) @ cosines.T).reshape(-1, 64)
        bits = spectrum > np.median(spectrum[:, 1:], axis=1, keepdims=True)
        bits[:, 0] = False
        hashes.append(np.packbits(bits, axis=1).view(np.uint64)[:, 0])
    return np.concatenate(hashes)


def _find_near(hashes: Hashes, distance: int) -> Ints:
    """Return the pairs of hashes that differ in at most `distance` bits, (P, 2) indices.

    Of `distance` + 1 bands of bits, two such hashes share one, so that only hashes in the same bucket of a band are
    compared. Beyond LINKS pairs per hash and band the rest are dropped: the frames of a film still form one group, and
    Fashion-MNIST, where many different images are near each other, loses one group of 70.
    """
    found = [np.empty((0, 2), np.int64)]
    edges = [64 * band // (distance + 1) for band in range(distance + 2)]
    for low, high in pairwise(edges):
        keys = (hashes >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
        order = np.lexsort((hashes, keys))
        keys, ordered = keys[order], hashes[order]
        first = np.arange(len(order) - 1)
        links = np.zeros(len(order), np.uint8)
        for step in range(1, WINDOW):
            first = first[: np.searchsorted(first, len(order) - step)]
            first = first[(keys[first] == keys[first + step]) & (links[first] < LINKS)]
            if not len(first):
                break
            close = first[np.bitwise_count(ordered[first] ^ ordered[first + step]) <= distance]
            links[close] += 1
            found.append(np.stack([order[close], order[close + step]], axis=1))
    return np.unique(np.sort(np.concatenate(found), axis=1), axis=0)


def _correlate(thumbnails: Pixels, pairs: Ints) -> npt.NDArray[np.float32]:
    """Return the correlation of the two thumbnails of each pair, (P,); 0 if one is of a single color."""
    left, right = (thumbnails[pairs[:, side]].reshape(len(pairs), -1).astype(np.float32) for side in (0, 1))
    left -= left.mean(axis=1, keepdims=True)
    right -= right.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    products: npt.NDArray[np.float32] = np.einsum("np,np->n", left, right)
    return np.where(norms > 0, products / np.maximum(norms, 1e-6), np.float32(0))


def _chunks(count: int) -> Iterator[slice]:
    """Yield slices of CHUNK items."""
    for start in range(0, count, CHUNK):
        yield slice(start, start + CHUNK)


def _connect(pairs: Ints) -> list[list[int]]:
    """Return the connected components of `pairs` (P, 2), sorted."""
    groups: dict[int, list[int]] = {}
    for left, right in pairs.tolist():
        mine, other = groups.setdefault(left, [left]), groups.setdefault(right, [right])
        if mine is not other:
            if len(mine) < len(other):
                mine, other = other, mine
            mine.extend(other)
            for index in other:
                groups[index] = mine
    return sorted({id(group): sorted(group) for group in groups.values()}.values())
