"""Heads fitted to all features at once: logistic regression by convex optimization, nearest-mean from class means."""

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from svertka import distributed
from svertka.data.dataset import Ints
from svertka.data.loader import BatchLoader
from svertka.evaluation.cross_validation import stratified_group_folds
from svertka.progress import Progress, progress
from svertka.tasks import Targets

Floats = npt.NDArray[np.float32]
STRENGTHS = tuple(10.0**power for power in range(-4, 3))  # inverse L2 penalties
FOLDS = 5
HEAD_STRENGTHS = STRENGTHS[1:6]  # for a head, whose features are scaled, not standardized one by one
HEAD_FOLDS = 3  # more choose no better penalty, and take longer in each fold of a cross-validated training
MAX_ITERATIONS = 300  # each with one product forward and one backward
MEAN_ITERATIONS = 50  # a generous average: strong penalties take 10, weak ones 100
TIMED_IMAGES = 2000
MIN_PROBABILITY = 1e-30  # whose logarithm is taken for smaller ones


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Use one thread for products of NumPy and SciPy.

    A fit makes hundreds of small products, for which threads wait longer than they compute: with two threads, fits took
    2 to 6 times as long.
    """
    with _blas_libraries().limit(limits=1, user_api="blas"):
        yield


@cache
def _blas_libraries() -> Any:
    import scipy.linalg  # noqa: F401 - before its library is looked for
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def collect_feature_batches(batches: BatchLoader) -> tuple[Floats, Ints]:
    """Return all features and labels of the first epoch: (N, D) float32 and (N,).

    Every process gets all of them, in the order of a single process.
    """
    some = [batch for batch in batches.epoch(0) if len(batch.labels)]
    features = torch.cat([batch.images.flatten(1) for batch in some]).float().cpu().numpy()
    labels = torch.cat([batch.labels for batch in some]).cpu().numpy()
    indices = np.concatenate([batch.indices for batch in some])
    shares = distributed.all_gather((features, labels, indices))
    features, labels, indices = (np.concatenate(share) for share in zip(*shares, strict=True))
    place = {index: number for number, index in enumerate(batches.order(0).tolist())}
    order = np.argsort([place[index] for index in indices.tolist()], kind="stable")
    return features[order], labels[order]


@one_blas_thread()
def fit_logistic_regression(features: Floats, labels: Ints, classes: int) -> tuple[Floats, Floats]:
    """Return the optimum of multinomial logistic regression: weights (classes, D) and biases (classes,).

    Features are centered and divided by one number, so that their mean variance is 1. The L2 penalty with the best
    likelihood in 3-fold cross-validation is used, after one factor for all scores is fitted to the out-of-fold
    predictions: a strong penalty gives small scores, and may still rank the classes best. With this penalty, features
    are also tried half standardized, each divided by the square root of its standard deviation, and the more likely of
    both is used. The scores of the head are multiplied by the factor. If a class has a single image, the middle penalty
    and the first scaling are used without a factor. Features that are standardized one by one give less accurate heads
    on few images (docs/benchmarks.md).

    Args:
        features: Features (N, D) float32.
        labels: Classes (N,) int64.
        classes: Number of classes.

    Source: Berta et al. 2025, "Rethinking early stopping: refine, then calibrate", for the likelihood after scaling.
    """
    mean = features.mean(0)
    divisor = np.full_like(mean, max(float(np.sqrt(np.square(features - mean).mean())), 1e-6))
    points, axes = _rotate_into_span((features - mean) / divisor)
    folds = min(HEAD_FOLDS, int(np.bincount(labels, minlength=classes).min()))
    strength, factor = HEAD_STRENGTHS[len(HEAD_STRENGTHS) // 2], 1.0
    with progress("computing the head", folds * (len(HEAD_STRENGTHS) + 1) + 1) as shown:
        if folds >= 2:
            splits = stratified_group_folds(labels, np.arange(len(labels)), classes, folds)
            found = _cross_validate(points, labels, splits, shown, HEAD_STRENGTHS, _scaled_log_loss)
            strength, factor = found.strength, found.factor
            deviation = np.maximum(features.std(0), 1e-6)
            half = np.sqrt(deviation * deviation.mean())  # the mean variance is 1 again
            half_points, half_axes = _rotate_into_span((features - mean) / half)
            other = _cross_validate(half_points, labels, splits, shown, [strength], _scaled_log_loss)
            if other.loss < found.loss:
                divisor, points, axes, factor = half, half_points, half_axes, other.factor
        model = _fit_logistic(points, labels, strength)
    weight, bias = factor * model.coef_, factor * model.intercept_
    if classes == 2:  # scikit-learn returns the log-odds of the second class only
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    weight = (weight if axes is None else weight @ axes) / divisor
    return weight.astype(np.float32), (bias - weight @ mean).astype(np.float32)


def _rotate_into_span(features: Floats) -> tuple[npt.NDArray[Any], npt.NDArray[Any] | None]:
    """Return coordinates of fewer features than dimensions in their span, which no L2-penalized fit leaves.

    Args:
        features: Features (N, D).

    Returns:
        Coordinates (N, R) float64 and the axes (R, D) that they belong to; or the features and None, if N ≥ D or all
        are 0.
    """
    if len(features) >= features.shape[1] or not features.any():
        return features, None
    exact = features.astype(np.float64)
    squares, vectors = np.linalg.eigh(exact @ exact.T)
    kept = squares > 1e-10 * squares.max()
    lengths = np.sqrt(squares[kept])
    return vectors[:, kept] * lengths, (vectors[:, kept] / lengths).T @ exact


@one_blas_thread()
def predict_out_of_fold(features: Floats, labels: Ints, groups: Ints, classes: int) -> Floats:
    """Return the class probabilities of each image by logistic regression on the images of other folds.

    The L2 penalty is that of the best out-of-fold likelihood.

    Args:
        features: Features (N, D) float32.
        labels: Classes (N,) int64.
        groups: Number of each image's group, (N,) int64; a group stays in one fold. At least FOLDS groups have most
            of their images in each class.
        classes: Number of classes.

    Returns:
        Probabilities (N, classes) float32; 0 for a class that no training image of the fold has.
    """
    splits = stratified_group_folds(labels, groups, classes, FOLDS)
    with progress("predicting out of fold", len(splits) * len(STRENGTHS)) as shown:
        best = _cross_validate(standardize_features(features)[0], labels, splits, shown)
    found = np.zeros((len(labels), classes), np.float32)
    found[:, best.present] = best.probabilities
    return found


def standardize_features(features: Floats) -> tuple[Floats, Floats, Floats]:
    """Return `features` with mean 0 and variance 1, and their means and standard deviations (D,)."""
    mean = features.mean(0)
    deviation = np.maximum(features.std(0), 1e-6)
    return (features - mean) / deviation, mean, deviation


class _CrossValidated(NamedTuple):
    """The best regularization strength of a cross-validation.

    Attributes:
        strength: The strength.
        loss: Its loss.
        factor: The factor of the scores with this loss.
        present: The classes that occur, (K,).
        probabilities: Their out-of-fold probabilities (N, K), without the factor.
    """

    strength: float
    loss: float
    factor: float
    present: Ints
    probabilities: Floats


def _cross_validate(
    features: npt.NDArray[Any],
    labels: Ints,
    splits: Sequence[tuple[Ints, Ints]],
    shown: Progress,
    strengths: Sequence[float] = STRENGTHS,
    rate: Callable[[Ints, Floats], tuple[float, float]] | None = None,
) -> _CrossValidated:
    """Return the regularization strength with the lowest log loss in cross-validation.

    Strengths are tried from the strongest penalty on. The loss falls and then rises as the penalty weakens, and weak
    penalties take longest: the search ends after two values in a row that are worse than the best.

    Args:
        features: Features (N, D).
        labels: Classes (N,).
        splits: Places of the training images and of the others of each fold.
        shown: Advanced by each fit.
        strengths: The strengths.
        rate: Returns the loss and the factor of the scores for places of the classes (N,) and probabilities (N, K);
            by default the log loss, and 1.
    """
    rate = rate or _log_loss
    present, places = np.unique(labels, return_inverse=True)
    best: _CrossValidated | None = None
    models: list[Any] = [None] * len(splits)
    worse = 0
    for strength in strengths:
        found = np.zeros((len(labels), len(present)), np.float32)
        for number, (inside, outside) in enumerate(splits):
            models[number] = model = _fit_logistic(features[inside], labels[inside], strength, models[number])
            columns = np.searchsorted(present, model.classes_)
            found[outside[:, None], columns] = model.predict_proba(features[outside])
            shown.advance()
        loss, factor = rate(places, found)
        worse += 1
        if best is None or loss < best.loss:
            best, worse = _CrossValidated(strength, loss, factor, present, found), 0
        if worse == 2:
            break
    assert best is not None
    return best


def _log_loss(places: Ints, probabilities: Floats) -> tuple[float, float]:
    """Return the mean log loss, and 1."""
    right = probabilities[np.arange(len(places)), places]
    return -float(np.log(np.maximum(right, MIN_PROBABILITY)).mean()), 1.0


def _scaled_log_loss(places: Ints, probabilities: Floats) -> tuple[float, float]:
    """Return the mean log loss after all scores are multiplied by the factor that fits best, and this factor.

    The logarithm of the factor has a standard normal prior: without any wrong prediction, likelihood alone makes it
    infinite.

    Args:
        places: Place of each image's class, (N,).
        probabilities: Probabilities (N, K).
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    scores = np.log(np.maximum(probabilities.astype(np.float64), MIN_PROBABILITY))
    rows = np.arange(len(places))

    def loss(log_factor: float) -> float:
        likelihoods = log_softmax(scores * np.exp(log_factor), axis=1)[rows, places]
        return float(log_factor**2 / (2 * len(places)) - likelihoods.mean())

    found = minimize_scalar(loss, bounds=(-5, 5), method="bounded")
    return float(found.fun), float(np.exp(found.x))


def _fit_logistic(features: npt.NDArray[Any], labels: Ints, strength: float, start: Any = None) -> Any:
    """Return the fitted model; `start`, if it is not None, is fitted further, from its weights for another strength."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=MAX_ITERATIONS, warm_start=True) if start is None else start
    with warnings.catch_warnings():
        # Weak penalties on separable classes do not converge; cross-validation rejects them.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.set_params(C=strength).fit(features, labels)


@one_blas_thread()
def estimate_fit_seconds(solver: str, images: int, features: int, classes: int) -> float:
    """Estimate the seconds that a head takes to compute, from one timed product and one timed fit."""
    if solver == "nearest-mean":
        return 0.0
    some, features = min(images, TIMED_IMAGES), min(images, features)
    rows, weights = np.ones((some, features), np.float32), np.ones((features, classes), np.float32)
    rows @ weights
    began = time.perf_counter()
    rows @ weights
    product = (time.perf_counter() - began) * images / some
    return (2 * product + _fixed_seconds()) * MEAN_ITERATIONS * HEAD_FOLDS * (len(HEAD_STRENGTHS) + 1)


def _fixed_seconds() -> float:
    """Return the seconds of an iteration with very few features."""
    rows, labels = np.eye(2, dtype=np.float32).repeat(FOLDS, 0), np.arange(2).repeat(FOLDS)
    _fit_logistic(rows, labels, 1.0)  # the first imports scikit-learn
    began = time.perf_counter()
    model = _fit_logistic(rows, labels, 1e3)
    return (time.perf_counter() - began) / max(int(model.n_iter_.max()), 1)


def fit_nearest_mean(features: Floats, labels: Ints, classes: int) -> tuple[Floats, Floats]:
    """Return weights (classes, D) and biases (classes,) of a nearest-class-mean classifier.

    Scores are log densities, up to a constant, of normal distributions around the class means with one variance in all
    directions: linear discriminant analysis for very few images.

    Args:
        features: Features (N, D) float32.
        labels: Classes (N,) int64.
        classes: Number of classes.
    """
    means = np.stack([features[labels == one].mean(0) for one in range(classes)])
    spread = float(np.square(features - means[labels]).sum(1).mean())
    if spread < 1e-12:  # one image per class: use the spread of the means
        spread = max(float(np.square(means - means.mean(0)).sum(1).mean()), 1e-12)
    return (means / spread).astype(np.float32), (-np.square(means).sum(1) / (2 * spread)).astype(np.float32)


SOLVERS = {"logistic": fit_logistic_regression, "nearest-mean": fit_nearest_mean}


def fit_head(head: nn.Linear, solve: Callable[[Floats, Targets], tuple[Floats, Floats]], batches: BatchLoader) -> None:
    """Compute the weights of `head` from the features in `batches`, in place.

    Args:
        head: The head.
        solve: Returns weights (K, D) and biases (K,) for features (N, D) and their targets.
        batches: The features.
    """
    everything = collect_feature_batches(batches)
    weight, bias = distributed.call_on_first(lambda: solve(*everything))
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight))
        head.bias.copy_(torch.from_numpy(bias))
