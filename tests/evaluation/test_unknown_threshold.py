"""The threshold for unknown images keeps the share that is asked for, or separates examples best."""

import numpy as np
import pytest

from svertka.evaluation.unknown_threshold import choose_threshold


@pytest.mark.parametrize(("images", "keep", "kept"), [(19, 0.95, 19), (39, 0.95, 38), (99, 0.9, 90), (7, 0.95, 7)])
def test_the_share_of_new_images_kept_is_as_asked(images: int, keep: float, kept: int) -> None:
    scores = np.random.default_rng(0).permutation(images).astype(np.float32)
    found = choose_threshold("mahalanobis+energy", scores, None, keep)
    assert (scores <= found.threshold).sum() == kept
    assert found.kept == kept / images
    assert (found.images, found.examples, found.rejected) == (images, 0, None)


def test_rounding_does_not_change_the_answer() -> None:
    scores = np.random.default_rng(0).normal(30, 1, 200).astype(np.float32)
    threshold = choose_threshold("mahalanobis+energy", scores, None, 0.95).threshold
    assert np.abs(scores - threshold).min() > 1e-5
    assert threshold == float(np.float32(threshold))  # ONNX compares in float32
    highest = choose_threshold("mahalanobis+energy", scores[:10], None, 0.95).threshold
    assert highest > scores[:10].max() * (1 + 1e-5)


def test_new_images_of_the_classes_are_kept_as_often_as_asked() -> None:
    generator, kept = np.random.default_rng(1), []
    for _ in range(400):
        threshold = choose_threshold("energy", generator.normal(size=60).astype(np.float32), None, 0.9).threshold
        kept.append((generator.normal(size=200) <= threshold).mean())
    # The threshold is above the score of rank 55 of 60, which 55 of 61 new images are below.
    assert 55 / 61 < np.mean(kept) < 56.5 / 61


def test_examples_are_separated_as_well_as_possible() -> None:
    generator = np.random.default_rng(2)
    known, other = (generator.normal(mean, 1, count).astype(np.float32) for mean, count in ((0, 80), (2, 50)))
    found = choose_threshold("mahalanobis+energy", known, other, 0.95)
    best = max(
        (known <= limit).mean() + (other > limit).mean() for limit in np.concatenate([known, other, [-9.0, 9.0]])
    )
    assert found.kept + (found.rejected or 0) == pytest.approx(best)
    assert found.kept == (known <= found.threshold).mean()
    assert found.rejected == (other > found.threshold).mean()
    assert (found.examples, found.images) == (50, 80)


def test_examples_far_away_lose_no_known_image() -> None:
    known, other = np.arange(10, dtype=np.float32), np.arange(100, 104, dtype=np.float32)
    found = choose_threshold("mahalanobis+energy", known, other, 0.95)
    assert (found.kept, found.rejected) == (1, 1)
    assert 9 < found.threshold < 100
