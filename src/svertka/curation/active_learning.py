"""Choice of the images whose labels a classifier would learn most from: uncertain ones that differ from one another."""

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from svertka.data.dataset import Ints
from svertka.tasks import Regression, Targets
from svertka.transfer.image_features import scale_to_unit_length
from svertka.transfer.logistic_and_nearest_mean_heads import Floats
from svertka.transfer.multi_label_and_regression_heads import fit_ridge_regression

CANDIDATES = 5  # uncertain images of which one is chosen
MEMBERS = 10  # of a committee
ITERATIONS = 20  # of k-means

Doubles = npt.NDArray[np.float64]


def choose_uncertain_and_diverse(
    features: Floats, scores: npt.NDArray[np.floating[Any]], count: int, seed: int = 0
) -> Ints:
    """Choose images that are uncertain and differ from one another, by clusters among the most uncertain ones.

    The most uncertain images, 5 for each that is chosen, are divided into `count` clusters by k-means, weighted by
    their uncertainty, and the one nearest to the center of each cluster is chosen. Features are scaled to unit length.

    Args:
        features: Features (N, D) float32.
        scores: How uncertain each image is, (N,), at least 0.
        count: Number of images to choose; all are if there are fewer.
        seed: Seed of k-means.

    Returns:
        Places of the images, (min(count, N),) int64, the most uncertain first.

    Source: Zhdanov 2019, "Diverse mini-batch active learning", https://arxiv.org/abs/1901.05954, algorithm 1.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    order = np.argsort(-scores, kind="stable").astype(np.int64)
    if len(order) <= count:
        return order
    some = order[: CANDIDATES * count]
    unit = scale_to_unit_length(features[some])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different images than clusters
        means = KMeans(count, n_init=1, max_iter=ITERATIONS, random_state=seed)
        weights = scores[some] / max(float(scores[some].max()), 1e-300) + 1e-6  # 0 for all would be refused
        clusters = means.fit_predict(unit, sample_weight=weights)
    nearness = unit @ means.cluster_centers_.T
    chosen = [
        inside[nearness[inside, cluster].argmax()]
        for cluster in range(count)
        if len(inside := np.flatnonzero(clusters == cluster))
    ]
    rest = np.setdiff1d(np.arange(len(some)), chosen)[: count - len(chosen)]  # in place of empty clusters
    found: Ints = some[np.sort(np.concatenate([np.array(chosen, np.int64), rest]))]
    return found


def score_uncertainty(probabilities: Floats) -> Doubles:
    """Return 1 minus the difference of the two highest class probabilities, (N,), 0 to 1.

    Args:
        probabilities: Class probabilities (N, K), K at least 2.
    """
    highest = np.partition(probabilities.astype(np.float64), -2, axis=1)[:, -2:]
    return np.asarray(1 - (highest[:, 1] - highest[:, 0]), np.float64)


def score_label_uncertainty(probabilities: Floats) -> Doubles:
    """Return how uncertain each label of each image is, (N, K), 0 to 1: 1 minus twice the distance of p from ½.

    Args:
        probabilities: Probability of each of K labels, (N, K).
    """
    return np.asarray(1 - np.abs(2 * probabilities.astype(np.float64) - 1), np.float64)


def measure_committee_spread(features: Floats, known: Floats, targets: Targets, task: Regression) -> Doubles:
    """Return the standard deviation of the numbers that a committee predicts of each image, (N,), in their unit.

    Each member is a ridge regression on the features of a bootstrap sample of the labeled images.

    Args:
        features: Features of the images, (N, D) float32.
        known: Features of the labeled images, (M, D) float32, M at least 2.
        targets: Their numbers, (M,) float64.
        task: The mean and standard deviation of the numbers.

    Source: RayChaudhuri & Hamey 1995, "Minimisation of data collection by active learning", for the committee; Abe &
    Mamitsuka 1998, "Query learning strategies using boosting and bagging", for its bootstrap samples.
    """
    rng = np.random.default_rng(0)
    members = []
    for _ in range(MEMBERS):
        sample = rng.integers(0, len(known), len(known))
        weight, bias = fit_ridge_regression(known[sample], targets[sample], task)
        members.append(features @ weight[0] + bias[0])
    return np.asarray(np.std(members, axis=0) * task.std, np.float64)
