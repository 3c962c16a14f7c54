"""The choice of images to label: uncertain ones that differ."""

import numpy as np
import pytest

from svertka.curation.active_learning import (
    choose_uncertain_and_diverse,
    measure_committee_spread,
    score_label_uncertainty,
    score_uncertainty,
)
from svertka.tasks import Regression


def pool() -> tuple[np.ndarray, np.ndarray]:
    """Features in three tight clusters of 20, the first of which is certain, and their probabilities."""
    rng = np.random.default_rng(0)
    features = np.repeat(np.eye(3, 8), 20, 0) + 0.01 * rng.normal(size=(60, 8))
    sure, unsure = [0.999, 0.0005, 0.0005], [0.4, 0.35, 0.25]
    return features.astype(np.float32), np.array([sure] * 20 + [unsure] * 40, np.float32)


@pytest.mark.parametrize("seed", range(3))
def test_the_choice_is_uncertain_and_from_different_clusters(seed: int) -> None:
    order = np.random.default_rng(seed).permutation(60)
    features, probabilities = (values[order] for values in pool())
    chosen = choose_uncertain_and_diverse(features, score_uncertainty(probabilities), 8, seed)
    groups = order[chosen] // 20
    assert len(set(chosen.tolist())) == 8
    assert 0 not in groups
    assert set(groups.tolist()) == {1, 2}


def test_the_most_uncertain_is_first() -> None:
    rng = np.random.default_rng(0)
    features, probabilities = rng.normal(size=(200, 5)).astype(np.float32), rng.dirichlet(np.ones(4), 200)
    scores = score_uncertainty(probabilities)[
        choose_uncertain_and_diverse(features, score_uncertainty(probabilities), 10)
    ]
    assert scores.tolist() == sorted(scores, reverse=True)
    assert scores[-1] >= np.sort(score_uncertainty(probabilities))[-50]


def test_each_image_is_chosen_once_even_if_all_are_alike_or_certain() -> None:
    features = np.ones((5, 3), np.float32)
    certain = np.tile(np.array([1, 0], np.float32), (5, 1))
    for probabilities in (certain, np.full((5, 2), 0.5, np.float32)):
        assert sorted(choose_uncertain_and_diverse(features, score_uncertainty(probabilities), 9)) == [0, 1, 2, 3, 4]
        assert len(set(choose_uncertain_and_diverse(features, score_uncertainty(probabilities), 3).tolist())) == 3
    assert len(choose_uncertain_and_diverse(features[:0], np.empty(0), 3)) == 0


def test_the_uncertainty_is_one_minus_the_margin() -> None:
    probabilities = np.array([[0.5, 0.5, 0.0], [0.1, 0.7, 0.2], [0.0, 0.0, 1.0]], np.float32)
    assert score_uncertainty(probabilities) == pytest.approx([1.0, 0.5, 0.0])


def test_the_uncertainty_of_a_label_is_its_distance_from_a_coin_flip() -> None:
    probabilities = np.array([[0.5, 0.9, 1.0], [0.0, 0.25, 0.75]], np.float32)
    np.testing.assert_allclose(score_label_uncertainty(probabilities), [[1.0, 0.2, 0.0], [0.0, 0.5, 0.5]], atol=1e-6)


def test_a_committee_disagrees_where_there_are_no_labeled_images() -> None:
    rng = np.random.default_rng(0)
    known = rng.normal(size=(60, 4)).astype(np.float32)
    targets = 100 + 5 * known[:, 0] + rng.normal(size=60)
    task = Regression().fit(targets)
    spread = measure_committee_spread(np.array([[0] * 4, [6] * 4], np.float32), known, targets, task)
    assert 0 < 3 * spread[0] < spread[1] < 10
