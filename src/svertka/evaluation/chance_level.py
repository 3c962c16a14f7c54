"""Accuracy against the accuracy of random guessing."""

import math

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]

SURE = 1.645  # standard deviations; one-sided 95 %


def chance_accuracy_mean_and_std(confusion: Counts) -> tuple[float, float]:
    """Return mean and standard deviation of the accuracy if the same predictions were assigned in random order.

    A classifier that always predicts one class has a deviation of 0.

    Args:
        confusion: Confusion matrix (K, K) int64: rows are true classes, columns predicted ones.

    Returns:
        Mean and standard deviation, 0 to 1; NaN below 2 images.

    Source:
        Permutation moments behind Cohen 1960, A coefficient of agreement for nominal scales.
    """
    count = int(confusion.sum())
    if count < 2:
        return math.nan, math.nan
    pairs = confusion.sum(1).astype(float) * confusion.sum(0)
    rest = (count - confusion.sum(1).astype(float)) * (count - confusion.sum(0))
    mean = pairs.sum() / count
    # Variances of the hypergeometric counts, and covariances of all pairs.
    variance = (pairs @ rest + pairs.sum() ** 2 - pairs @ pairs) / (count**2 * (count - 1))
    return float(mean / count), math.sqrt(variance) / count


def is_at_chance(confusion: Counts) -> bool | None:
    """Return whether the accuracy is not significantly better than chance, at 95 % confidence.

    Args:
        confusion: Confusion matrix (K, K) int64.

    Returns:
        None for a single class, or for so few images that even a perfect classifier would not be significant.
    """
    labels = confusion.sum(1)
    if (labels > 0).sum() < 2:
        return None
    mean, deviation = chance_accuracy_mean_and_std(np.diag(labels))
    if mean + SURE * deviation >= 1:
        return None
    mean, deviation = chance_accuracy_mean_and_std(confusion)
    share = float(confusion.trace() / confusion.sum())
    return share <= mean + SURE * deviation
