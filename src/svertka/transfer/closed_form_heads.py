"""Heads that are computed from features rather than learnt step by step."""

import time
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from svertka import distributed
from svertka.data.dataset import Ints
from svertka.data.loader import Batches
from svertka.progress import Progress, progress

Floats = npt.NDArray[np.float32]
STRENGTHS = tuple(10.0**power for power in range(-4, 3))  # of which cross-validation chooses
FOLDS = 5
MAX_ITERATIONS = 300  # at most, each with one product forwards and one back;
MEAN_ITERATIONS = 50  # on average, rather more than less: strong penalties take 10 and weak ones 100
TIMED_IMAGES = 2000  # pictures


def gather_features(batches: Batches) -> tuple[Floats, Ints]:
    """Everything that `batches` give in their first epoch: features (N, D) float32, and labels (N,).

    Of several processes each gets all of it, in the order that one process alone would.
    """
    some = [batch for batch in batches.epoch(0) if len(batch.labels)]
    features = torch.cat([batch.images.flatten(1) for batch in some]).float().cpu().numpy()
    labels = torch.cat([batch.labels for batch in some]).cpu().numpy()
    indices = np.concatenate([batch.indices for batch in some])
    shares = distributed.gathered((features, labels, indices))
    features, labels, indices = (np.concatenate(share) for share in zip(*shares, strict=True))
    place = {index: number for number, index in enumerate(batches.order(0).tolist())}
    order = np.argsort([place[index] for index in indices.tolist()], kind="stable")
    return features[order], labels[order]


def logistic_regression(features: Floats, labels: Ints, classes: int) -> tuple[Floats, Floats]:
    """The weights (classes, D) and biases (classes,) of multinomial logistic regression: the exact optimum.

    The strength of its quadratic penalty, on features of mean 0 and deviation 1, is that of `STRENGTHS` with the best
    likelihood in cross-validation; the middle one where a class has one picture only.
    """
    mean = features.mean(0)
    deviation = np.maximum(features.std(0), 1e-6)
    standard = (features - mean) / deviation
    folds = min(FOLDS, int(np.bincount(labels, minlength=classes).min()))
    strength = STRENGTHS[len(STRENGTHS) // 2]
    with progress("computing the head", folds * len(STRENGTHS) + 1) as shown:
        if folds >= 2:
            strength = _best_strength(standard, labels, folds, shown)
        model = _fit_logistic(standard, labels, strength)
    weight, bias = model.coef_, model.intercept_
    if classes == 2:  # one row, of the log-odds of the second
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    weight = weight / deviation
    return weight.astype(np.float32), (bias - weight @ mean).astype(np.float32)


def _best_strength(features: Floats, labels: Ints, folds: int, shown: Progress) -> float:
    """The one of STRENGTHS with the lowest log loss in cross-validation, from the strongest penalty on.

    The loss falls and then rises as the penalty weakens, and the weakest take longest: where two in a row are worse
    than the best, no weaker one is tried.
    """
    from sklearn.metrics import log_loss
    from sklearn.model_selection import StratifiedKFold

    splits = list(StratifiedKFold(folds, shuffle=True, random_state=0).split(features, labels))
    losses: list[float] = []
    for strength in STRENGTHS:
        found = []
        for inside, outside in splits:
            model = _fit_logistic(features[inside], labels[inside], strength)
            found.append(log_loss(labels[outside], model.predict_proba(features[outside]), labels=model.classes_))
            shown.advance()
        losses.append(float(np.mean(found)))
        if len(losses) - 1 - int(np.argmin(losses)) >= 2:
            break
    return STRENGTHS[int(np.argmin(losses))]


def _fit_logistic(features: Floats, labels: Ints, strength: float) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        # Weak penalties over separable classes need more steps than they are worth; cross-validation sees that.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=strength, max_iter=MAX_ITERATIONS).fit(features, labels)


def estimate_seconds(way: str, pictures: int, features: int, classes: int) -> float:
    """How long the head takes to compute from so many `features` of each picture, timed by one product and one fit."""
    if way == "nearest-mean":
        return 0.0
    some = min(pictures, TIMED_IMAGES)
    rows, weights = np.ones((some, features), np.float32), np.ones((features, classes), np.float32)
    rows @ weights
    began = time.perf_counter()
    rows @ weights
    product = (time.perf_counter() - began) * pictures / some
    return (2 * product + _fixed_seconds()) * MEAN_ITERATIONS * FOLDS * len(STRENGTHS)


def _fixed_seconds() -> float:
    """What an iteration takes however few the features are."""
    rows, labels = np.eye(2, dtype=np.float32).repeat(FOLDS, 0), np.arange(2).repeat(FOLDS)
    _fit_logistic(rows, labels, 1.0)  # the first imports scikit-learn
    began = time.perf_counter()
    model = _fit_logistic(rows, labels, 1e3)
    return (time.perf_counter() - began) / max(int(model.n_iter_.max()), 1)


def nearest_mean(features: Floats, labels: Ints, classes: int) -> tuple[Floats, Floats]:
    """Weights (classes, D) and biases (classes,) such that the class of the nearest mean has the highest score.

    Scores are log-densities, up to a constant, of normal distributions around the means with the variance that the
    pictures have around theirs, the same in all directions: linear discriminant analysis for very few pictures.
    """
    means = np.stack([features[labels == one].mean(0) for one in range(classes)])
    spread = float(np.square(features - means[labels]).sum(1).mean())
    if spread < 1e-12:  # one picture of each class: as far as they are from one another
        spread = max(float(np.square(means - means.mean(0)).sum(1).mean()), 1e-12)
    return (means / spread).astype(np.float32), (-np.square(means).sum(1) / (2 * spread)).astype(np.float32)


SOLVERS = {"logistic": logistic_regression, "nearest-mean": nearest_mean}


def fit_head(head: nn.Linear, way: str, batches: Batches, classes: int) -> None:
    """Compute `head`, over the features that `batches` give, by one of `WAYS`, in place."""
    everything = gather_features(batches)
    weight, bias = distributed.told_by_first(lambda: SOLVERS[way](*everything, classes))
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight))
        head.bias.copy_(torch.from_numpy(bias))
