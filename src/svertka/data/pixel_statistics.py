"""Mean, standard deviation and covariance of the channels, and ranges of 16-bit values."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from svertka.data.dataset import Ints, Pixels
from svertka.data.rgb_conversion import FULL, Range
from svertka.data.unreadable_rows import read_readable_rows

PIXELS = 1 << 27  # pixels measured at most: all of MNIST or CIFAR, 2,700 images of 224×224
FIRST = 8  # images that are read to learn their size; one of them must be readable
CHUNK = 1 << 20  # pixels in memory at once, as float64


class SquareImages(Protocol):
    """Images of one size: `rows[indices]` is (B, S, S, C) uint8."""

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Ints, /) -> Pixels: ...


@dataclass(frozen=True)
class Statistics:
    """Mean, standard deviation and covariance of the channels over all pixels, in units of full scale (0 to 1).

    `std` is at least one gray level, so that images of one color can be divided by it.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]


def measure_statistics(rows: SquareImages, indices: Ints) -> Statistics:
    """Measure the statistics of images; of very many images, those of a fixed random sample.

    Images that cannot be read are left out.

    Args:
        rows: The images.
        indices: Indices of the images to measure, (n,) int64.
    """
    sample, _ = read_readable_rows(rows, indices[:FIRST])
    pixels = sample.shape[1] * sample.shape[2]
    limit = max(PIXELS // pixels, 1)
    if len(indices) > limit:
        indices = np.sort(np.random.default_rng(0).choice(indices, limit, replace=False))
    step = max(CHUNK // pixels, 1)
    channels = sample.shape[3]
    total, products = np.zeros(channels), np.zeros((channels, channels))
    count = 0
    for start in range(0, len(indices), step):
        # Integers below 2⁵³ add up exactly in float64, so the result does not depend on the chunks.
        found, _ = read_readable_rows(rows, indices[start : start + step])
        values = found.reshape(-1, channels).astype(np.float64)
        count += len(values)
        total += values.sum(axis=0)
        products += values.T @ values
    mean = total / count
    covariance = (products / count - np.outer(mean, mean)) / 255**2
    std = np.sqrt(np.maximum(covariance.diagonal(), 1 / 255**2))
    return Statistics(
        mean=tuple((mean / 255).tolist()),
        std=tuple(std.tolist()),
        covariance=tuple(tuple(row) for row in covariance.tolist()),
    )


def choose_intensity_range(ranges: Sequence[Range]) -> Range | None:
    """Choose the 16-bit values that become black and white.

    The range has as many bits as the images need, as 0 to 1023 for a sensor of 10 bits, and at least 8, so that a dark
    image stays dark. If all values lie close together and far from 0, the range is their own. One image in a hundred
    may exceed it.

    Args:
        ranges: Lowest and highest value of each image.

    Returns:
        The range; None for all 16 bits, or if `ranges` is empty.
    """
    if not ranges:
        return None
    lows, highs = np.array(ranges).T
    low = int(np.quantile(lows, 0.01, method="lower"))
    high = int(np.quantile(highs, 0.99, method="higher"))
    top = 2 ** max(high.bit_length(), 8) - 1
    if low > high // 2 and high - low < top // 4 and high > low:
        return low, high
    return None if (0, top) == FULL else (0, top)


def describe_intensity_mismatch(ranges: Sequence[Range], trained_with: Range | None) -> str | None:
    """Return a sentence if 16-bit images use other values than those that a network was trained on, else None.

    Args:
        ranges: Lowest and highest value of each image.
        trained_with: Values that are black and white to the network. None: all 16 bits.
    """
    low, high = choose_intensity_range(ranges) or FULL
    black, white = trained_with or FULL
    if not ranges or (low, high) == (black, white):
        return None
    return (
        f"use values of {low:,} to {high:,}, while to the network {black:,} is black and {white:,} is white: they look "
        "darker or brighter than what it was trained on"
    )
