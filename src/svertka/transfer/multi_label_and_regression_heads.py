"""Heads fitted to all features at once: a logistic regression for each label, ridge regression of a number."""

import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from svertka.data.dataset import Ints
from svertka.evaluation.cross_validation import count_folds, stratified_group_folds
from svertka.progress import progress
from svertka.tasks import MultiLabel, Regression, Targets
from svertka.transfer.logistic_and_nearest_mean_heads import (
    FOLDS,
    MAX_ITERATIONS,
    STRENGTHS,
    Floats,
    one_blas_thread,
    standardize_features,
)

RIDGES = tuple(10.0**power for power in range(-2, 6))  # L2 penalties


@one_blas_thread()
def fit_logistic_regressions(features: Floats, targets: Targets, labels: int) -> tuple[Floats, Floats]:
    """Return weights (labels, D) and biases (labels,) of a binary logistic regression for each label.

    Features are standardized. All labels share the L2 penalty with the best likelihood on a held-out fifth of the
    images, averaged over the labels. A label that all images or none have gets zero weights, and the log-odds of its
    share as its bias.

    Args:
        features: Features (N, D) float32.
        targets: 0 or 1, (N, labels) float32.
        labels: Number of labels.
    """
    standard, mean, deviation = standardize_features(features)
    has = targets > 0.5
    held_out = np.arange(len(features)) % FOLDS == 0
    losses: list[float] = []
    with progress("computing the head", labels * (len(STRENGTHS) + 1)) as shown:
        for strength in STRENGTHS:
            loss = 0.0
            for k in range(labels):
                weight, bias = _fit_label(standard[~held_out], has[~held_out, k], strength)
                scores = standard[held_out] @ weight + bias
                loss += float(np.logaddexp(0.0, np.where(has[held_out, k], -scores, scores)).mean())
                shown.advance()
            losses.append(loss)
            if len(losses) - 1 - int(np.argmin(losses)) >= 2:
                break
        fitted = []
        for k in range(labels):
            fitted.append(_fit_label(standard, has[:, k], STRENGTHS[int(np.argmin(losses))]))
            shown.advance()
    weights = np.stack([weight for weight, _ in fitted]) / deviation
    biases = np.array([bias for _, bias in fitted]) - weights @ mean
    return weights.astype(np.float32), biases.astype(np.float32)


def _fit_label(features: Floats, has: npt.NDArray[np.bool_], strength: float) -> tuple[Floats, float]:
    """Return weights (D,) and bias of a logistic regression of one label, given whether each image has it."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    count = int(has.sum())
    if count in (0, len(has)):
        return np.zeros(features.shape[1], np.float32), float(np.log((count + 0.5) / (len(has) - count + 0.5)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of weak penalties, which the held-out images reject
        model = LogisticRegression(C=strength, max_iter=MAX_ITERATIONS).fit(features, has)
    return model.coef_[0].astype(np.float32), float(model.intercept_[0])


def fit_ridge_regression(features: Floats, targets: Targets, task: Regression) -> tuple[Floats, Floats]:
    """Return weights (1, D) and bias (1,) of a ridge regression of the standardized numbers.

    Features are standardized. The penalty is that with the least squared error in leave-one-out cross-validation.

    Args:
        features: Features (N, D) float32.
        targets: Numbers (N,) float64.
        task: The mean and standard deviation of the numbers.
    """
    from sklearn.linear_model import RidgeCV

    standard, mean, deviation = standardize_features(features)
    model = RidgeCV(RIDGES).fit(standard.astype(np.float64), (targets - task.mean) / task.std)
    weight = (model.coef_ / deviation)[None]
    return weight.astype(np.float32), (np.array([model.intercept_]) - weight @ mean).astype(np.float32)


def divide_into_folds(targets: Targets, groups: Ints, task: MultiLabel | Regression) -> list[tuple[Ints, Ints]]:
    """Return the places of the images outside and inside of each of at most FOLDS folds; [] if there are no two.

    Args:
        targets: Targets of the task, (N, …).
        groups: Number of each image's group, (N,) int64; a group stays in one fold.
        task: The task.
    """
    if not len(targets):
        return []
    strata = task.strata(targets)
    classes = int(strata.max()) + 1
    folds = min(FOLDS, count_folds(strata, groups, classes))
    return stratified_group_folds(strata, groups, classes, folds) if folds >= 2 else []


@one_blas_thread()
def predict_labels_out_of_fold(features: Floats, targets: Targets, splits: Sequence[tuple[Ints, Ints]]) -> Floats:
    """Return the probabilities of each image's labels by logistic regressions on the images of other folds.

    All labels share the L2 penalty with the best out-of-fold likelihood.

    Args:
        features: Features (N, D) float32.
        targets: 0 or 1, (N, K) float32.
        splits: Places outside and inside of each fold.

    Returns:
        Probabilities (N, K) float32.
    """
    standard, has = standardize_features(features)[0], targets > 0.5
    losses: list[float] = []
    best = np.zeros(has.shape, np.float32)
    with progress("predicting out of fold", len(splits) * len(STRENGTHS)) as shown:
        for strength in STRENGTHS:
            scores = np.zeros(has.shape)
            for outside, inside in splits:
                for k in range(has.shape[1]):
                    weight, bias = _fit_label(standard[outside], has[outside, k], strength)
                    scores[inside, k] = standard[inside] @ weight + bias
                shown.advance()
            losses.append(float(np.logaddexp(0.0, np.where(has, -scores, scores)).mean()))
            if losses[-1] == min(losses):
                best = (1 / (1 + np.exp(-scores))).astype(np.float32)
            if len(losses) - 1 - int(np.argmin(losses)) >= 2:
                break
    return best


def predict_numbers_out_of_fold(features: Floats, targets: Targets, splits: Sequence[tuple[Ints, Ints]]) -> Targets:
    """Return the number of each image by ridge regression on the images of other folds, (N,) float64.

    Args:
        features: Features (N, D) float32.
        targets: Numbers (N,) float64.
        splits: Places outside and inside of each fold.
    """
    found = np.zeros(len(targets))
    with progress("predicting out of fold", len(splits)) as shown:
        for outside, inside in splits:
            task = Regression().fit(targets[outside])
            weight, bias = fit_ridge_regression(features[outside], targets[outside], task)
            found[inside] = (features[inside].astype(np.float64) @ weight[0] + bias[0]) * task.std + task.mean
            shown.advance()
    return found
