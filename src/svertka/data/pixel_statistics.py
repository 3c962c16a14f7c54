"""What images look like on average, channel by channel."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from svertka.data.dataset import Ints, Pixels
from svertka.data.pixel_modes import FULL, Range

PIXELS = 1 << 27  # Pixels that are looked at: all of MNIST or CIFAR, 2,700 images of 224×224.
CHUNK = 1 << 20  # Pixels in memory at once, as float64.


class Rows(Protocol):
    """Squares of one size: `rows[indices]` is (B, S, S, C) uint8."""

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Ints, /) -> Pixels: ...


@dataclass(frozen=True)
class Statistics:
    """Mean, standard deviation and covariance of the channels over all pixels, in units of full scale (0 to 1).

    `std` is one grey level at least, so that images of one colour can be divided by it.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]


def measure_statistics(rows: Rows, indices: Ints) -> Statistics:
    """The statistics of the squares at `indices`; of a fixed random choice of them where they are very many."""
    sample = rows[indices[:1]]
    pixels = sample.shape[1] * sample.shape[2]
    limit = max(PIXELS // pixels, 1)
    if len(indices) > limit:
        indices = np.sort(np.random.default_rng(0).choice(indices, limit, replace=False))
    step = max(CHUNK // pixels, 1)
    channels = sample.shape[3]
    total, products = np.zeros(channels), np.zeros((channels, channels))
    for start in range(0, len(indices), step):
        # Whole numbers below 2⁵³ add up exactly in float64, so that the chunks do not show in the result.
        values = rows[indices[start : start + step]].reshape(-1, channels).astype(np.float64)
        total += values.sum(axis=0)
        products += values.T @ values
    count = len(indices) * pixels
    mean = total / count
    covariance = (products / count - np.outer(mean, mean)) / 255**2
    std = np.sqrt(np.maximum(covariance.diagonal(), 1 / 255**2))
    return Statistics(
        mean=tuple((mean / 255).tolist()),
        std=tuple(std.tolist()),
        covariance=tuple(tuple(row) for row in covariance.tolist()),
    )


def choose_intensity_range(ranges: Sequence[Range]) -> Range | None:
    """The 16-bit values that become black and white where images use those in `ranges`, each lowest and highest.

    As many bits as they need: 0 to 1023 of a sensor of 10 bits, and never fewer than 8, so that a dark image stays
    dark. Where all lie close together far from 0, it is their own range. None: all 16 bits, or `ranges` are empty. One
    image in a hundred may lie beyond.
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
    """What to say of 16-bit images that use other values than those that a network was trained with; None: the same.

    `ranges`: the values of each image, as for `intensity_range`; `trained_with`: which are black and white to it.
    """
    low, high = choose_intensity_range(ranges) or FULL
    black, white = trained_with or FULL
    if not ranges or (low, high) == (black, white):
        return None
    return (
        f"use values of {low:,} to {high:,}, while to the network {black:,} is black and {white:,} is white: they look "
        "darker or brighter than what it was trained on"
    )
