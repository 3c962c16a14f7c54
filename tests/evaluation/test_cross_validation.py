"""Folds in whole groups, and an interval that holds the true error."""

import math

import numpy as np
import pytest
from pydantic import ValidationError

from svertka.confidence_intervals import Z, wilson_interval
from svertka.evaluation import cross_validation
from svertka.evaluation.cross_validation import (
    CrossValidation,
    corrected_interval,
    count_folds,
    cross_validate,
    find_class_too_small,
    stratified_group_folds,
)


def test_folds_hold_each_image_once_whole_groups_and_every_class() -> None:
    rng = np.random.default_rng(0)
    groups = np.sort(rng.integers(0, 60, 150))
    labels = groups % 3
    folds = stratified_group_folds(labels, groups, 3, 10)
    assert sorted(np.concatenate([inside for _, inside in folds]).tolist()) == list(range(150))
    for outside, inside in folds:
        assert sorted([*outside.tolist(), *inside.tolist()]) == list(range(150))
        assert not set(groups[outside].tolist()) & set(groups[inside].tolist())
        units = [len(np.unique(groups[inside][labels[inside] == label])) for label in range(3)]
        assert max(units) - min(units) <= 1
    others = stratified_group_folds(labels, groups, 3, 10, seed=1)
    assert not all(np.array_equal(one[1], other[1]) for one, other in zip(folds, others, strict=True))


def test_few_images_make_fewer_folds_and_a_class_of_one_group_makes_none() -> None:
    labels = np.repeat([0, 1], [30, 4])
    apart = np.arange(34)
    assert count_folds(labels, apart, 2) == 10
    assert count_folds(labels, apart // 6, 2) == 5
    assert find_class_too_small(labels, apart, 2) is None
    assert find_class_too_small(labels, apart // 6, 2) == 1
    assert find_class_too_small(labels, apart, 3) == 2
    assert all(set(labels[outside].tolist()) == {0, 1} for outside, _ in stratified_group_folds(labels, apart, 2, 10))


def test_the_interval_is_that_of_the_corrected_variance() -> None:
    images, folds, repeats = 100_000, 10, 3
    held_out, trained_on, splits = images / folds, images * (folds - 1) / folds, folds * repeats
    deviation = math.sqrt(0.2 * 0.8 / held_out * (1 / splits + held_out / trained_on))  # Nadeau & Bengio, eq. 16
    low, high = corrected_interval(0.2 * images, np.arange(images), folds, repeats)
    assert (high - low) / 2 == pytest.approx(Z * deviation, rel=1e-3)
    assert (high + low) / 2 == pytest.approx(0.2, rel=1e-3)


def test_images_that_belong_together_count_as_one() -> None:
    apart, pairs = np.arange(50), np.arange(100) // 2
    assert corrected_interval(10, pairs, 10, 3) == pytest.approx(corrected_interval(5, apart, 10, 3))
    assert corrected_interval(0, apart, 10, 3)[0] == 0
    assert corrected_interval(0, apart, 10, 3)[1] > wilson_interval(0, 50)[1]


def test_the_interval_holds_the_true_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two normal distributions, whose error by the nearest mean of 20 images a class is known exactly."""
    monkeypatch.setattr(cross_validation, "REPEATS", 3)  # as for users
    covered = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        labels = np.repeat([0, 1], 20)
        points = rng.normal(size=(40, 5)) + np.where(labels[:, None] == 1, 1.0, -1.0) * np.array([0.8, 0, 0, 0, 0])

        def predict(outside: np.ndarray, inside: np.ndarray, points=points, labels=labels) -> np.ndarray:
            means = [points[outside][labels[outside] == label].mean(0) for label in (0, 1)]
            away = [np.square(points[inside] - mean).sum(1) for mean in means]
            return np.argmin(away, axis=0)

        found = cross_validate(predict, labels, np.arange(40), 2, "train")
        zero, one = (points[labels == label].mean(0) for label in (0, 1))
        normal, middle = one - zero, (one + zero) / 2
        centers = (np.array([side * 0.8, 0, 0, 0, 0]) for side in (-1, 1))
        margins = [(center - middle) @ normal / np.linalg.norm(normal) for center in centers]
        true = sum(0.5 * math.erfc(margin / math.sqrt(2)) for margin in (-margins[0], margins[1])) / 2
        covered.append(found.interval[0] <= true <= found.interval[1])
        assert (found.images, found.folds, found.repeats) == (40, 10, 3)
    assert np.mean(covered) >= 0.9


def test_the_result_in_words_and_as_json() -> None:
    found = CrossValidation(
        error=0.019, interval=(0.008, 0.043), images=171, parts="train and val", folds=10, repeats=3
    )
    assert found.sentence == (
        "cross-validated error 1.9%, 95 % interval 0.8% to 4.3%, on 171 images of train and val (10 folds, 3 times)"
    )
    assert CrossValidation.model_validate(found.model_dump(mode="json")) == found
    with pytest.raises(ValidationError):
        CrossValidation.model_validate(found.model_dump() | {"error": math.nan})
