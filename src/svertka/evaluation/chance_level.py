"""Whether a classifier tells classes apart at all: its right answers against those that chance alone would give."""

import math

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]

SURE = 1.645  # standard deviations above chance; chance alone exceeds them once in twenty times


def chance_accuracy(confusion: Counts) -> tuple[float, float]:
    """Mean and standard deviation of the share of right answers if the same answers were given in random order.

    `confusion`: (K, K), row true, column predicted. A classifier that always names one class has a deviation of 0.

    Source: the permutation moments behind Cohen 1960, "A coefficient of agreement for nominal scales".
    """
    count = int(confusion.sum())
    if count < 2:
        return math.nan, math.nan
    pairs = confusion.sum(1).astype(float) * confusion.sum(0)
    rest = (count - confusion.sum(1).astype(float)) * (count - confusion.sum(0))
    mean = pairs.sum() / count
    # The variance of each hypergeometric count, and the covariances of all pairs of them.
    variance = (pairs @ rest + pairs.sum() ** 2 - pairs @ pairs) / (count**2 * (count - 1))
    return float(mean / count), math.sqrt(variance) / count


def is_at_chance(confusion: Counts) -> bool | None:
    """Whether the right answers are no more than chance gives, with a confidence of 95 %; None where none could be.

    That is so of one class alone, and of so few pictures that they would not tell a perfect classifier from a guess.
    """
    labels = confusion.sum(1)
    if (labels > 0).sum() < 2:
        return None
    mean, deviation = chance_accuracy(np.diag(labels))
    if mean + SURE * deviation >= 1:
        return None
    mean, deviation = chance_accuracy(confusion)
    share = float(confusion.trace() / confusion.sum())
    return share <= mean + SURE * deviation
