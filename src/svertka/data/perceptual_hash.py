"""Which images look the same though their files differ: resized, recompressed, lightened, trimmed copies."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from PIL import Image

from svertka.data.dataset import Ints, Pixels

SIDE = 32  # pixels of the thumbnails that are compared
WINDOW = 4096  # hashes of one bucket that are compared with each; only a set of nearly equal images has more
LINKS = 8  # near ones that are noted for each hash in each band: frames of a film are all near each other
CHUNK = 4096  # thumbnails turned into floats at once
Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class SimilarityThreshold:
    """How near two images must be: bits in which their hashes differ, correlation of their thumbnails."""

    distance: int
    correlation: float


# Chosen by eye: of the 538 pairs inside these bounds in CIFAR-10, 48 were looked at, and each showed one image twice.
# Of 200 photographs all were found again when halved or saved at quality 10, 199 when a fifth lighter, and about 160
# when trimmed by 2 % a side.
LARGE = SimilarityThreshold(distance=6, correlation=0.9)
# Two ones written by two hands correlate up to 0.994 in MNIST; its images saved at quality 90 do above 0.999.
SMALL = SimilarityThreshold(distance=4, correlation=0.995)


def make_thumbnail(pixels: Pixels) -> Pixels:
    """An image (H, W, 1 or 3) uint8 as grey (SIDE, SIDE) uint8, squeezed to a square."""
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).convert("L")
    reduced = min(image.size) >= SIDE
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX if reduced else Image.Resampling.BILINEAR))


def find_look_alikes(thumbnails: Pixels, small: npt.NDArray[np.bool_]) -> list[list[int]]:
    """Groups of indices whose images look the same, each of two or more and ascending.

    `thumbnails`: (N, SIDE, SIDE) uint8. `small`: (N,), whether the image itself was smaller than a thumbnail: those
    are compared among themselves and by the stricter bounds, because little detail makes strangers look alike.
    """
    pairs = []
    for indices, bounds in ((np.flatnonzero(~small), LARGE), (np.flatnonzero(small), SMALL)):
        some = thumbnails[indices]
        near = _near(compute_perceptual_hashes(some), bounds.distance)
        for rows in _chunks(len(near)):
            alike = _correlations(some, near[rows]) > bounds.correlation
            pairs.append(indices[near[rows][alike]])
    return _groups(np.concatenate(pairs)) if pairs else []


def compute_perceptual_hashes(thumbnails: Pixels) -> Hashes:
    """A 63-bit hash of each thumbnail (N, SIDE, SIDE) uint8, (N,) uint64: alike images differ in few bits.

    Bit k says whether the k-th of the 63 lowest frequencies of the cosine transform is above their median.

    Source: Zauner 2010, "Implementation and benchmarking of perceptual image hash functions", §3.2.1; the constant
    term, which is brightness, is left out.
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


def _near(hashes: Hashes, distance: int) -> Ints:
    """Pairs of indices (P, 2) whose hashes differ in at most `distance` bits, each once.

    Of `distance` + 1 bands of bits two such hashes share one, so that only hashes in the same bucket of some band are
    compared. Where more than LINKS hashes are near one, only so many pairs are given: a film's frames still
    hang together, and Fashion-MNIST, where a crowd of strangers is near, loses one group of 70.
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


def _correlations(thumbnails: Pixels, pairs: Ints) -> npt.NDArray[np.float32]:
    """The correlation of the two thumbnails of each pair, (P,); 0 where one is of a single colour."""
    left, right = (thumbnails[pairs[:, side]].reshape(len(pairs), -1).astype(np.float32) for side in (0, 1))
    left -= left.mean(axis=1, keepdims=True)
    right -= right.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    products: npt.NDArray[np.float32] = np.einsum("np,np->n", left, right)
    return np.where(norms > 0, products / np.maximum(norms, 1e-6), np.float32(0))


def _chunks(count: int) -> Iterator[slice]:
    for start in range(0, count, CHUNK):
        yield slice(start, start + CHUNK)


def _groups(pairs: Ints) -> list[list[int]]:
    """What hangs together by `pairs` (P, 2)."""
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
