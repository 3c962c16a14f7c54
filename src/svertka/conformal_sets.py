"""Conformal prediction sets: the classes of an image that include the true one with a stated coverage.

An image's set holds every class whose probability is at least 1 − q, where q is a quantile of 1 − p over calibration
images, and p the probability of their true class. If calibration images and new images are drawn alike, and the former
did not choose the network, the sets contain the true class with at least the stated probability, whatever the network.

Source:
    Sadinle, Lei & Wasserman 2019, "Least ambiguous set-valued classifiers with bounded error levels", arXiv 1609.00451;
    Angelopoulos & Bates 2021, "A gentle introduction to conformal prediction", arXiv 2107.07511, §1.
"""

import math

from torch import Tensor

from svertka.errors import UsageError
from svertka.pages.number_format import count_with_noun


def nonconformity_scores(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return 1 − the probability of the true class, (N,) float32, ascending.

    Args:
        probabilities: (N, K), 0 to 1.
        labels: The true classes, (N,) int64.
    """
    own = probabilities.gather(1, labels[:, None])[:, 0]
    return (1 - own).float().sort().values


def count_needed_images(coverage: float) -> int:
    """Return the fewest calibration images that `coverage` can be guaranteed with."""
    return math.ceil(coverage / (1 - coverage) - 1e-9)


def check_coverage(coverage: float) -> float:
    """Return `coverage` as given.

    Raises:
        UsageError: It is not above 0 and below 1.
    """
    if not 0 < coverage < 1:
        raise UsageError(f"sets={coverage:g} must be a coverage above 0 and below 1, such as 0.95")
    return coverage


def conformal_quantile(scores: Tensor, coverage: float) -> float:
    """Return the ⌈(n + 1) · coverage⌉-th smallest of n scores: a new image's score exceeds it rarely enough.

    Args:
        scores: Those of the calibration images, (n,), ascending.
        coverage: The least share of new images whose set contains the true class, 0 to 1.

    Raises:
        UsageError: There are too few calibration images for the coverage.
    """
    rank = math.ceil((len(scores) + 1) * check_coverage(coverage) - 1e-9)
    if rank > len(scores):
        needed, given = (
            count_with_noun(count, "calibration image") for count in (count_needed_images(coverage), len(scores))
        )
        raise UsageError(f"sets={coverage:g} needs at least {needed}, and the run has {given}")
    return float(scores[rank - 1])


def count_in_set(probabilities: Tensor, quantile: float) -> int:
    """Return how many of the most probable classes, of `probabilities` (K,), are in the set; 0 if it is empty."""
    return int((1 - probabilities.float() <= quantile).sum())
