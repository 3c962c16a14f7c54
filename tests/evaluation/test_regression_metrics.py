import math

import numpy as np
import pytest
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from svertka.evaluation.regression_metrics import RegressionEvaluation


def evaluation(images: int, noise: float, seed: int = 0) -> RegressionEvaluation:
    rng = np.random.default_rng(seed)
    targets = rng.normal(40, 12, images)
    return RegressionEvaluation("age", np.arange(images), targets + rng.normal(0, noise, images), targets, 0.1)


def test_metrics_are_those_of_scikit_learn() -> None:
    found = evaluation(200, 5)
    assert math.isclose(found.error, mean_absolute_error(found.targets, found.predicted))
    assert math.isclose(found.rmse, root_mean_squared_error(found.targets, found.predicted))
    assert math.isclose(found.r2, r2_score(found.targets, found.predicted))
    for value, (low, high) in (
        (found.error, found.error_interval),
        (found.rmse, found.rmse_interval),
        (found.r2, found.r2_interval),
    ):
        assert low < value < high
    assert found.warnings == ()
    assert "mean absolute error of age " in found.sentence
    worst = np.abs(found.predicted - found.targets)[found.worst]
    assert worst[0] == np.abs(found.predicted - found.targets).max()


def test_a_difference_has_the_sign_of_every_other_number() -> None:
    assert [evaluation(4, 1.0).format_metric_difference(value) for value in (-0.25, 3.0)] == ["-0.25", "+3"]


def test_intervals_cover_the_error_of_many_images() -> None:
    intervals = [evaluation(150, 5, seed).error_interval for seed in range(25)]
    assert np.mean([low <= 5 * math.sqrt(2 / math.pi) <= high for low, high in intervals]) >= 0.85


def test_a_network_no_better_than_the_mean_is_named() -> None:
    targets = np.random.default_rng(0).normal(size=100)
    found = RegressionEvaluation("age", np.arange(100), np.full(100, targets.mean()), targets, 0.1)
    assert found.at_chance
    assert "not significantly better than the mean of age" in found.warnings[0]


@pytest.mark.parametrize("images", [0, 1])
def test_too_few_images_have_no_interval(images: int) -> None:
    found = evaluation(images, 5)
    assert found.to_dict()["mean_absolute_error_interval"] is None
    assert math.isnan(found.r2)
    assert found.at_chance is None


def test_equal_numbers_have_no_share_of_variance() -> None:
    found = RegressionEvaluation("age", np.arange(3), np.array([1.0, 2, 3]), np.full(3, 1e6), 0.1)
    assert math.isnan(found.r2)


@pytest.mark.parametrize("number", [0.1, 1 / 3, 1e-300, 1.6e9])
def test_equal_numbers_have_none_whatever_the_number(number: float) -> None:
    found = RegressionEvaluation("age", np.arange(7), np.arange(7.0), np.full(7, number), 0.1)
    assert math.isnan(found.r2)


def test_numbers_far_from_zero_keep_their_share_of_variance() -> None:
    near = evaluation(200, 5)
    moved = RegressionEvaluation("time", near.indices, near.predicted + 1.6e9, near.targets + 1.6e9, 0.1)
    assert moved.r2 == pytest.approx(r2_score(moved.targets, moved.predicted))
    assert moved.r2_interval == pytest.approx(near.r2_interval, abs=1e-6)
