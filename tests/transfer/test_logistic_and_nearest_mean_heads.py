"""Computed heads, held against scikit-learn and against the definition."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_info, threadpool_limits
from torch import nn

from svertka.data.loader import BatchLoader
from svertka.transfer import logistic_and_nearest_mean_heads as heads
from svertka.transfer.logistic_and_nearest_mean_heads import (
    SOLVERS,
    collect_feature_batches,
    fit_head,
    fit_logistic_regression,
    fit_nearest_mean,
    predict_out_of_fold,
)


def digits(classes: int, count: int = 400) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    data = load_digits(n_class=classes)
    return data.data[:count].astype(np.float32), data.target[:count].astype(np.int64)


@pytest.mark.parametrize(("classes", "count"), [(2, 300), (5, 400), (5, 40)])
def test_logistic_regression_is_optimal_for_one_strength(classes: int, count: int) -> None:
    """Except for one factor of all scores."""
    features, labels = digits(classes, count)
    weight, bias = fit_logistic_regression(features, labels, classes)
    scores = (features @ weight.T + bias).astype(np.float64)
    scores -= scores.mean(1, keepdims=True)
    centered, deviation = features - features.mean(0), np.maximum(features.std(0), 1e-6)
    differences = []
    for divisor in (np.sqrt(np.square(centered).mean()), np.sqrt(deviation * deviation.mean())):
        for power in range(-3, 2):
            model = LogisticRegression(C=10.0**power, max_iter=1000).fit(centered / divisor, labels)
            theirs = np.log(model.predict_proba(centered / divisor))
            theirs -= theirs.mean(1, keepdims=True)
            theirs *= (theirs * scores).sum() / np.square(theirs).sum()
            differences.append(float(np.abs(softmax(scores, 1) - softmax(theirs, 1)).max()))
    assert min(differences) < 2e-3  # where the optimizer stops, and float32
    assert (scores.argmax(1) == labels).mean() > 0.97


def make_classes(spread: npt.NDArray[Any], signal: npt.NDArray[Any], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return features of two classes whose means differ by 2 `signal` and that vary by `spread`, and the classes."""
    rng, labels = np.random.default_rng(0), np.arange(count) % 2
    values = (2 * labels[:, None] - 1) * signal + spread * rng.standard_normal((count, len(spread)))
    return values.astype(np.float32), labels


def test_features_are_half_standardized_where_this_is_more_likely() -> None:
    """Two large features without information hide ten small ones; or the large ones have all the information."""
    spread, small = np.array([20.0] * 2 + [0.2] * 10), np.arange(12) >= 2
    for signal in (0.1 * small, 20.0 * ~small):
        features, labels = make_classes(spread, signal, 600)
        weight, _ = fit_logistic_regression(features[:60], labels[:60], 2)
        centered, deviation = features[:60] - features[:60].mean(0), features[:60].std(0)
        found = {}
        for name, divisor in (("one", np.sqrt(np.square(centered).mean())), ("half", np.sqrt(deviation))):
            found[name] = max(
                _cosine(
                    LogisticRegression(C=10.0**power).fit(centered / divisor, labels[:60]).coef_[0] / divisor, weight
                )
                for power in range(-3, 2)
            )
        assert max(found, key=found.__getitem__) == ("half" if signal[2] else "one")


def _cosine(first: npt.NDArray[Any], weight: npt.NDArray[Any]) -> float:
    second = weight[1] - weight[0]
    return float(first @ second / np.linalg.norm(first) / np.linalg.norm(second))


def test_probabilities_are_about_as_high_as_the_accuracy(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a penalty that is far too strong, too, whose probabilities are near 1 / 2."""
    features, labels = make_classes(np.ones(20), np.full(20, 0.25), 4000)
    monkeypatch.setattr(heads, "HEAD_STRENGTHS", (1e-4, 1e-5, 1e-6))
    weight, bias = fit_logistic_regression(features[:400], labels[:400], 2)
    found = softmax(features[400:] @ weight.T + bias, 1)
    accuracy = (found.argmax(1) == labels[400:]).mean()
    assert 0.8 < accuracy < 0.95
    assert found.max(1).mean() == pytest.approx(accuracy, abs=0.04)


@pytest.mark.parametrize("wrong", [0, 3])
def test_the_factor_of_the_scores_is_the_most_likely_with_its_prior(wrong: int) -> None:
    """Without a wrong prediction, it stays finite."""
    margin, places = 1.5, (np.arange(20) < wrong).astype(np.int64)
    share = 1 / (1 + np.exp(-margin))
    loss, factor = heads._scaled_log_loss(places, np.tile(np.array([share, 1 - share], np.float32), (20, 1)))
    factors = np.exp(np.linspace(-4, 4, 4001))
    right = np.logaddexp(0, -margin * factors) * (20 - wrong) + np.logaddexp(0, margin * factors) * wrong
    losses = (right + np.log(factors) ** 2 / 2) / 20
    assert factor == pytest.approx(factors[losses.argmin()], rel=0.01)
    assert loss == pytest.approx(losses.min(), abs=1e-5)


def test_one_image_per_class_is_enough() -> None:
    features, labels = digits(4)
    first = np.array([np.flatnonzero(labels == one)[0] for one in range(4)])
    for way in SOLVERS.values():
        weight, bias = way(features[first], labels[first], 4)
        assert np.isfinite(weight).all()
        assert ((features[first] @ weight.T + bias).argmax(1) == labels[first]).all()
        assert ((features @ weight.T + bias).argmax(1) == labels).mean() > 0.6


def test_the_nearest_mean_has_the_highest_score() -> None:
    features, labels = digits(10, 1000)
    weight, bias = fit_nearest_mean(features, labels, 10)
    means = np.stack([features[labels == one].mean(0) for one in range(10)]).astype(np.float64)
    nearest = np.square(features[:, None] - means).sum(2).argmin(1)
    assert ((features @ weight.T + bias).argmax(1) == nearest).all()


def test_fit_head_changes_the_head_in_place(digit_batches: Callable[..., BatchLoader]) -> None:
    batches, head = digit_batches(500), nn.Linear(64, 10)
    fit_head(head, lambda *given: fit_logistic_regression(*given, 10), batches)
    features, labels = collect_feature_batches(batches)
    assert len(features) == 500
    right = head(torch.from_numpy(features)).argmax(1).numpy() == labels
    assert right.mean() > 0.97


@pytest.mark.parametrize("noise", [0.0, 12.0])
def test_estimated_iterations_match_those_taken(monkeypatch: pytest.MonkeyPatch, noise: float) -> None:
    taken: list[int] = []
    one_fit = heads._fit_logistic

    def counting(*arguments: Any) -> Any:
        model = one_fit(*arguments)
        taken.append(int(model.n_iter_.max()))
        return model

    monkeypatch.setattr(heads, "_fit_logistic", counting)
    features, labels = digits(10, 600)
    fit_logistic_regression(
        features + np.random.default_rng(0).normal(0, noise, features.shape).astype(np.float32), labels, 10
    )
    expected = heads.MEAN_ITERATIONS * heads.HEAD_FOLDS * (len(heads.HEAD_STRENGTHS) + 1)
    assert expected / 6 < sum(taken) < 1.5 * expected
    assert heads.estimate_fit_seconds("logistic", 60, 64, 10) > 0


def test_probabilities_out_of_fold_are_those_of_a_model_without_the_group() -> None:
    """Every image has a copy with another label: a model that saw the copy would predict that label."""
    from sklearn.model_selection import StratifiedKFold

    features, labels = digits(3, 150)
    groups = np.arange(150)
    features[100:150], groups[100:150] = features[:50], groups[:50]
    labels[100:150] = (labels[:50] + 1) % 3
    found = predict_out_of_fold(features, labels, groups, 3)
    assert found.sum(1) == pytest.approx(np.ones(150), abs=1e-5)
    standard = (features - features.mean(0)) / np.maximum(features.std(0), 1e-6)
    theirs = {power: np.zeros((150, 3)) for power in range(-4, 3)}
    majority = np.minimum(labels[:100], np.append(labels[100:150], labels[50:100]))  # of a tie, the first class
    for inside, outside in StratifiedKFold(5, shuffle=True, random_state=0).split(majority, majority):
        learned, judged = np.isin(groups, inside), np.isin(groups, outside)
        for power, probabilities in theirs.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # weak penalties do not converge
                model = LogisticRegression(C=10.0**power, max_iter=300).fit(standard[learned], labels[learned])
            probabilities[judged] = model.predict_proba(standard[judged])
    losses = {power: -np.log(one[np.arange(150), labels]).mean() for power, one in theirs.items()}
    assert found == pytest.approx(theirs[min(losses, key=losses.__getitem__)], abs=2e-3)


def test_a_fit_uses_one_thread_for_small_products(monkeypatch: pytest.MonkeyPatch) -> None:
    # The libraries of NumPy and of SciPy; each had as many threads as CPUs, which waited for one another.
    seen: list[list[int]] = []
    fit = heads._fit_logistic

    def watched(*given: Any) -> Any:
        seen.append([one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"])
        return fit(*given)

    monkeypatch.setattr(heads, "_fit_logistic", watched)
    with threadpool_limits(2, user_api="blas"):
        before = [one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"]
        fit_logistic_regression(*digits(3, 60), 3)
        after = [one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"]
    assert before == after == [2, 2]
    assert seen
    assert all(threads == [1, 1] for threads in seen)
