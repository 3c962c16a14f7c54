"""Choice of the images whose labels a classifier would learn most from: uncertain ones that differ from one another."""

import warnings

import numpy as np
import numpy.typing as npt

from svertka.data.dataset import Ints
from svertka.transfer.image_features import scale_to_unit_length
from svertka.transfer.logistic_and_nearest_mean_heads import Floats

CANDIDATES = 5  # uncertain images of which one is chosen
ITERATIONS = 20  # of k-means

Doubles = npt.NDArray[np.float64]


def choose_uncertain_and_diverse(features: Floats, probabilities: Floats, count: int, seed: int = 0) -> Ints:
    """Choose images that are uncertain and differ from one another, by clusters among the most uncertain ones.

    The most uncertain images, 5 for each that is chosen, are divided into `count` clusters by k-means, weighted by
    their uncertainty, and the one nearest to the center of each cluster is chosen. Features are scaled to unit length.

    Args:
        features: Features (N, D) float32.
        probabilities: Class probabilities (N, K).
        count: Number of images to choose; all are if there are fewer.
        seed: Seed of k-means.

    Returns:
        Places of the images, (min(count, N),) int64, the most uncertain first.

    Source: Zhdanov 2019, "Diverse mini-batch active learning", https://arxiv.org/abs/1901.05954, algorithm 1.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    scores = score_uncertainty(probabilities)
    order = np.argsort(-scores, kind="stable").astype(np.int64)
    if len(order) <= count:
        return order
    some = order[: CANDIDATES * count]
    unit = scale_to_unit_length(features[some])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different images than clusters
        means = KMeans(count, n_init=1, max_iter=ITERATIONS, random_state=seed)
        clusters = means.fit_predict(unit, sample_weight=scores[some] + 1e-6)  # 0 for all would be refused
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
