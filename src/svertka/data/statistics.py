"""What pictures look like on average, channel by channel."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from svertka.data.dataset import Ints, Pixels

PIXELS = 1 << 27  # Pixels that are looked at: all of MNIST or CIFAR, 2,700 pictures of 224×224.
CHUNK = 1 << 20  # Pixels in memory at once, as float64.


class Rows(Protocol):
    """Squares of one size: `rows[indices]` is (B, S, S, C) uint8."""

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Ints, /) -> Pixels: ...


@dataclass(frozen=True)
class Statistics:
    """Mean, standard deviation and covariance of the channels over all pixels, in units of full scale (0 to 1).

    `std` is one grey level at least, so that pictures of one colour can be divided by it.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]


def measure(rows: Rows, indices: Ints) -> Statistics:
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
