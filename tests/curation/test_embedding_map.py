"""The map of images: its range, its neighborhoods, and the counts that have none."""

import numpy as np
import pytest

from svertka.curation.embedding_map import FEWEST, MOST, place_on_map


def test_clusters_stay_together_in_the_unit_square() -> None:
    rng = np.random.default_rng(0)
    features = (np.repeat(np.eye(3, 20), 15, 0) + 0.05 * rng.normal(size=(45, 20))).astype(np.float32)
    places = place_on_map(features)
    assert places is not None
    assert places.shape == (45, 2)
    assert places.min() == 0
    assert places.max() == pytest.approx(1)
    distances = np.linalg.norm(places[:, None] - places[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    assert np.array_equal(distances.argmin(1) // 15, np.arange(45) // 15)
    assert np.array_equal(places, place_on_map(features))


def test_images_that_are_all_alike_have_places() -> None:
    places = place_on_map(np.ones((FEWEST, 4), np.float32))
    assert places is not None
    assert np.isfinite(places).all()


@pytest.mark.parametrize("count", [0, FEWEST - 1, MOST + 1])
def test_too_few_and_too_many_images_have_none(count: int) -> None:
    assert place_on_map(np.zeros((count, 2), np.float32)) is None
