"""Prediction sets cover what they state, and are refused where they cannot."""

import numpy as np
import pytest
import torch

from svertka.conformal_sets import conformal_quantile, count_in_set, count_needed_images, nonconformity_scores
from svertka.errors import UsageError


def test_the_quantile_counts_the_new_image_too() -> None:
    scores = torch.arange(1, 20) / 100  # 19 images
    assert conformal_quantile(scores, 0.95) == pytest.approx(0.19)  # the 19th of 19
    assert conformal_quantile(scores, 0.9) == pytest.approx(0.18)
    assert conformal_quantile(scores, 0.5) == pytest.approx(0.10)


@pytest.mark.parametrize(("coverage", "needed"), [(0.5, 1), (0.8, 4), (0.9, 9), (0.95, 19), (0.99, 99), (0.999, 999)])
def test_it_is_refused_with_one_image_too_few(coverage: float, needed: int) -> None:
    assert count_needed_images(coverage) == needed
    conformal_quantile(torch.rand(needed).sort().values, coverage)
    with pytest.raises(UsageError, match=f"sets={coverage:g} needs at least {needed:,}.calibration image"):
        conformal_quantile(torch.rand(needed - 1).sort().values, coverage)


@pytest.mark.parametrize("coverage", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_a_coverage_is_between_0_and_1(coverage: float) -> None:
    with pytest.raises(UsageError, match="must be a coverage above 0 and below 1"):
        conformal_quantile(torch.rand(50), coverage)


def test_scores_are_one_minus_the_true_class_ascending() -> None:
    probabilities = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.25, 0.25]])
    torch.testing.assert_close(nonconformity_scores(probabilities, torch.tensor([1, 0])), torch.tensor([0.5, 0.8]))


def test_new_images_are_covered_as_stated() -> None:
    """Over 300 draws of 200 calibration images, whatever the classifier: this one is overconfident and often wrong."""
    generator = np.random.default_rng(0)
    covered = []
    for _ in range(300):
        labels = torch.from_numpy(generator.integers(5, size=400))
        logits = torch.from_numpy(generator.normal(size=(400, 5)) * 3)
        logits[torch.arange(400), labels] += 4
        probabilities = logits.softmax(1)
        quantile = conformal_quantile(nonconformity_scores(probabilities[:200], labels[:200]), 0.9)
        own = probabilities[200:].gather(1, labels[200:, None])[:, 0]
        sizes = [count_in_set(row, quantile) for row in probabilities[200:]]
        ranks = (probabilities[200:] > own[:, None]).sum(1)
        covered.append(np.mean(ranks.numpy() < sizes))
    assert np.mean(covered) == pytest.approx(0.9, abs=0.01)


def test_a_set_may_be_empty() -> None:
    assert count_in_set(torch.tensor([0.4, 0.35, 0.25]), 0.1) == 0
    assert count_in_set(torch.tensor([0.4, 0.35, 0.25]), 0.65) == 2
