"""The moments are held against answers that are really dealt out anew."""

import numpy as np
import pytest

from svertka.evaluation.chance_level import chance_accuracy_mean_and_std, is_at_chance


def confusion(labels: np.ndarray, answers: np.ndarray, classes: int) -> np.ndarray:
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (labels, answers), 1)
    return counts


@pytest.mark.parametrize(("classes", "count"), [(2, 9), (3, 40), (10, 60)])
def test_chance_accuracy_matches_shuffled_predictions(classes: int, count: int) -> None:
    random = np.random.default_rng(classes)
    labels = random.integers(0, classes, count)
    answers = np.minimum(random.integers(0, classes + 2, count), classes - 1)
    shares = [float((random.permutation(answers) == labels).mean()) for _ in range(20_000)]
    mean, deviation = chance_accuracy_mean_and_std(confusion(labels, answers, classes))
    assert mean == pytest.approx(np.mean(shares), abs=5 * deviation / np.sqrt(20_000))
    assert deviation == pytest.approx(np.std(shares), rel=0.03)


def test_only_a_random_classifier_is_at_chance() -> None:
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 25)
    assert is_at_chance(confusion(labels, np.zeros(100, int), 4))  # always the same class
    assert is_at_chance(confusion(np.repeat([0, 1], [95, 5]), np.zeros(100, int), 2))  # right in 95 of 100
    assert not is_at_chance(confusion(labels, labels, 4))
    half = np.where(random.random(100) < 0.5, labels, random.integers(0, 4, 100))
    assert not is_at_chance(confusion(labels, half, 4))
    guesses = [is_at_chance(confusion(labels, random.integers(0, 4, 100), 4)) for _ in range(400)]
    assert 0.9 < np.mean(guesses) < 0.99


def test_chance_is_undefined_for_one_class_or_no_images() -> None:
    assert is_at_chance(confusion(np.zeros(5, int), np.zeros(5, int), 2)) is None
    assert is_at_chance(np.zeros((3, 3), np.int64)) is None


def test_chance_is_undefined_for_too_few_images() -> None:
    assert is_at_chance(confusion(np.arange(2), np.arange(2), 2)) is None  # right twice, as one guess in two is
    assert is_at_chance(confusion(np.arange(2), 1 - np.arange(2), 2)) is None
    assert is_at_chance(confusion(np.arange(8) % 2, np.arange(8) % 2, 2)) is False
