"""Neighbors against a plain search, and outliers against Rosner's own example."""

import numpy as np
import pytest

from svertka.curation.feature_outliers import EXPECTED, count_upper_outliers, find_neighbors, find_outliers

# Rosner 1983, table 2: vitamin E of 54 people; its result is three outliers.
VITAMIN_E = """
-0.25 0.68 0.94 1.15 1.20 1.26 1.26 1.34 1.38 1.43 1.49 1.49 1.55 1.56 1.58 1.65 1.69 1.70 1.76 1.77 1.81 1.91
1.94 1.96 1.99 2.06 2.09 2.10 2.14 2.15 2.23 2.24 2.26 2.35 2.37 2.40 2.47 2.54 2.62 2.64 2.90 2.92 2.92 2.93
3.21 3.26 3.30 3.59 3.68 4.30 4.64 5.34 5.42 6.01
"""


def test_neighbors_are_the_nearest_by_cosine() -> None:
    features = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    found = find_neighbors(features, np.arange(40), 5)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    for place in range(40):
        distances = 1 - unit @ unit[place]
        distances[place] = np.inf
        assert found.places[place].tolist() == np.argsort(distances)[:5].tolist()
        assert found.distances[place] == pytest.approx(np.sort(distances)[:5], abs=1e-5)


def test_copies_are_not_neighbors_and_count_once() -> None:
    features = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
    features[[3, 7, 9]] = features[0]
    copies = np.arange(12)
    copies[[3, 7, 9]] = 0
    found = find_neighbors(features, copies, 4)
    for place in range(12):
        near = found.places[place].tolist()
        assert place not in near
        assert len(set(copies[near])) == 4
        assert copies[place] not in copies[near]


@pytest.mark.parametrize("images", [0, 1, 2, 5])
def test_few_images_have_few_neighbors_and_no_outlier(images: int) -> None:
    features = np.random.default_rng(0).normal(size=(images, 3)).astype(np.float32)
    found = find_neighbors(features, np.arange(images))
    assert found.places.shape == (images, max(images - 1, 0))
    assert len(find_outliers(found.distances)[0]) == 0


def test_the_example_of_rosner() -> None:
    values = np.sort(np.array(VITAMIN_E.split(), float))[::-1]
    assert count_upper_outliers(values, 10, 0.05) == 3


@pytest.mark.parametrize("expected", [0.05, EXPECTED])
def test_a_set_without_outliers_has_as_many_as_stated(expected: float) -> None:
    rng = np.random.default_rng(0)
    found = [count_upper_outliers(np.sort(rng.normal(size=200))[::-1], 20, expected) > 0 for _ in range(1000)]
    share = 1 - np.exp(-expected)  # of a Poisson distribution
    assert abs(np.mean(found) - share) < 3 * np.sqrt(share * (1 - share) / 1000)


def test_planted_outliers_are_found_furthest_first_and_others_are_not() -> None:
    rng = np.random.default_rng(0)
    features = np.concatenate([rng.normal(size=(300, 32)) * 0.3 + 1, rng.normal(size=(3, 32)) * 3]).astype(np.float32)
    places, ratios = find_outliers(find_neighbors(features, np.arange(303)).distances)
    assert sorted(places.tolist()) == [300, 301, 302]
    assert places.tolist() == sorted(places.tolist(), key=lambda place: -ratios[place])


def test_images_that_are_all_alike_have_no_outlier() -> None:
    assert len(find_outliers(np.full((50, 10), 0.25, np.float32))[0]) == 0
    assert len(find_outliers(np.zeros((50, 10), np.float32))[0]) == 0
