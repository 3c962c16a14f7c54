"""Nearest neighbors of images in feature space, and the images that are far from all others."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from svertka.data.dataset import Ints
from svertka.transfer.image_features import scale_to_unit_length
from svertka.transfer.logistic_and_nearest_mean_heads import Floats

NEIGHBORS = 10  # whose mean distance decides: more than a handful of foreign images that resemble each other
FEWEST = 20  # images from which a distance can be called unusual
MAX_SHARE = 0.1  # of the images that can be outliers
EXPECTED = 0.5  # outliers to be expected in a set that has none: with fewer, most foreign images are missed

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Neighbors:
    """The nearest other images of each image, the nearest first.

    Attributes:
        places: Their places, (N, k) int64.
        distances: Cosine distances, (N, k), 0 to 2.
    """

    places: Ints
    distances: Floats


def find_neighbors(features: Floats, copies: Ints, count: int = NEIGHBORS) -> Neighbors:
    """Find the nearest neighbors of each image by the cosine of the features; of copies, only the first is one.

    Args:
        features: Features (N, D) float32.
        copies: Number of each image's group of copies, (N,) int64.
        count: Neighbors of each image; fewer if there are not so many.
    """
    from sklearn.neighbors import NearestNeighbors

    unit = scale_to_unit_length(features)
    _, first = np.unique(copies, return_index=True)
    first = np.sort(first)
    count = min(count, len(first) - 1)
    if count < 1:
        nothing = np.empty((len(features), 0))
        return Neighbors(nothing.astype(np.int64), nothing.astype(np.float32))
    index = NearestNeighbors(n_neighbors=count + 1, algorithm="brute").fit(unit[first])
    lengths, found = index.kneighbors(unit)
    places = first[found]
    # Each image finds the first of its own group, at whatever place; without it, the last one is not needed.
    own = copies[places] == copies[:, None]
    own[~own.any(1), -1] = True
    shape = len(features), count
    return Neighbors(places[~own].reshape(shape), (np.square(lengths[~own]) / 2).reshape(shape).astype(np.float32))


def find_outliers(distances: Floats) -> tuple[Ints, Doubles]:
    """Find images that are further from their neighbors than the distances of the set itself explain.

    The logarithms of the mean distances are taken as normally distributed, except for the outliers, which are found by
    the one-sided generalized extreme Studentized deviate test. In a set without outliers, 0.5 are to be expected.

    Args:
        distances: Distances of each image to its neighbors, (N, k).

    Returns:
        Places of the outliers, (n,), the furthest first; and the mean distance of each image divided by the median of
        all, (N,).

    Source: Rosner 1983, "Percentage points for a generalized ESD many-outlier procedure".
    """
    if not distances.size:
        return np.empty(0, np.int64), np.ones(len(distances))
    mean = np.maximum(distances.mean(1, dtype=np.float64), 1e-9)
    ratio = mean / np.median(mean)
    if len(mean) < FEWEST:
        return np.empty(0, np.int64), ratio
    order = np.argsort(-ratio, kind="stable").astype(np.int64)
    return order[: count_upper_outliers(np.log(ratio[order]), int(MAX_SHARE * len(mean)))], ratio


def count_upper_outliers(falling: Doubles, most: int, expected: float = EXPECTED) -> int:
    """Return how many of the first values are outliers by the one-sided generalized ESD test.

    Args:
        falling: Values in falling order, (N,).
        most: Largest number of outliers.
        expected: Number to be expected among normally distributed values; if it is small, the significance of the test.
    """
    from scipy.special import stdtrit

    count = len(falling)
    most = min(most, count - 2)
    if most < 1:
        return 0
    left = count - np.arange(most)  # values after the removal of the larger ones
    means = np.cumsum(falling[::-1])[::-1][:most] / left
    squares = np.cumsum(np.square(falling[::-1]))[::-1][:most]
    spreads = np.sqrt(np.maximum(squares - left * np.square(means), 0) / (left - 1))
    t = stdtrit(left - 2, 1 - expected / left)
    critical = (left - 1) * t / np.sqrt((left - 2 + np.square(t)) * left)
    is_beyond = falling[:most] - means > critical * np.maximum(spreads, 1e-9)
    return int(np.flatnonzero(is_beyond).max(initial=-1)) + 1
