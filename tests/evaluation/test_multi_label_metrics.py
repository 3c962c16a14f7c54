import math

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.metrics import average_precision_score, f1_score, hamming_loss, precision_score, recall_score

from svertka.evaluation.multi_label_metrics import (
    MultiLabelEvaluation,
    average_precisions,
    choose_thresholds,
)
from svertka.tasks import MultiLabel

Scores, Targets = npt.NDArray[np.float64], npt.NDArray[np.bool_]


def drawn(images: int, labels: int, seed: int = 0, steps: int = 0) -> tuple[Scores, Targets]:
    """Draw labels, and probabilities that say something about them; with `steps`, many are equal."""
    rng = np.random.default_rng(seed)
    targets = rng.random((images, labels)) < 0.3
    scores = 1 / (1 + np.exp(-(rng.normal(size=targets.shape) + 1.5 * targets - 1)))
    return (np.round(scores * steps) / steps if steps else scores), targets


def evaluation(scores: Scores, targets: Targets, task: MultiLabel | None = None) -> MultiLabelEvaluation:
    names = tuple(f"label {k}" for k in range(targets.shape[1]))
    return MultiLabelEvaluation(names, np.arange(len(scores)), scores, targets, 0.5, task or MultiLabel())


@pytest.mark.parametrize("steps", [0, 5])
def test_metrics_are_those_of_scikit_learn(steps: int) -> None:
    scores, targets = drawn(300, 4, steps=steps)
    found = evaluation(scores, targets, MultiLabel(thresholds=(0.3, 0.4, 0.5, 0.6)))
    predicted = scores >= [0.3, 0.4, 0.5, 0.6]
    assert math.isclose(found.mean_average_precision, average_precision_score(targets, scores, average="macro"))
    assert math.isclose(found.f1, f1_score(targets, predicted, average="macro"))
    assert math.isclose(found.error, hamming_loss(targets, predicted))
    for k, one in enumerate(found.per_label):
        assert one.average_precision == pytest.approx(average_precision_score(targets[:, k], scores[:, k]))
        assert one.precision == pytest.approx(precision_score(targets[:, k], predicted[:, k]))
        assert one.recall == pytest.approx(recall_score(targets[:, k], predicted[:, k]))
        assert one.average_precision_interval is not None
        assert one.average_precision_interval[0] < one.average_precision < one.average_precision_interval[1]


def test_weighted_images_count_like_repeated_ones() -> None:
    scores, targets = drawn(60, 3, seed=1, steps=8)
    counts = np.random.default_rng(2).integers(0, 4, 60)
    weighted = average_precisions(scores, targets, counts[None].astype(float))[0]
    repeated = average_precision_score(targets.repeat(counts, 0), scores.repeat(counts, 0), average=None)
    np.testing.assert_allclose(weighted, repeated)


def test_equal_scores_are_at_chance() -> None:
    _, targets = drawn(200, 2)
    found = evaluation(np.full(targets.shape, 0.2), targets)
    assert math.isclose(found.mean_average_precision, targets.mean(0).mean())
    assert found.never_predicted == ("label 0", "label 1")
    assert "not significantly better than guessing" in found.warnings[0]


def test_interval_covers_the_value_of_many_images(large_count: "object") -> None:
    draws = large_count(25, 200)  # type: ignore[operator]
    truth = evaluation(*drawn(20_000, 2)).mean_average_precision
    intervals = [evaluation(*drawn(150, 2, seed=seed)).mean_average_precision_interval for seed in range(draws)]
    assert np.mean([low <= truth <= high for low, high in intervals]) >= 0.85


def test_thresholds_have_the_highest_f1() -> None:
    scores, targets = drawn(120, 2, seed=3, steps=40)
    targets[:, 1] = False
    targets[:9, 1] = True  # too few images with the label
    first, second = choose_thresholds(scores, targets)
    best = max(f1_score(targets[:, 0], scores[:, 0] >= limit) for limit in np.linspace(0.0125, 1, 40))
    assert f1_score(targets[:, 0], scores[:, 0] >= first) == pytest.approx(best)
    assert np.abs(scores[:, 0] - first).min() > 0.01  # in the middle of a gap
    assert second == 0.5


def test_labels_without_images_are_left_out_of_the_means() -> None:
    scores, targets = drawn(100, 2)
    alone = evaluation(scores[:, :1], targets[:, :1])
    targets[:, 1] = False
    found = evaluation(scores, targets)
    assert found.mean_average_precision == alone.mean_average_precision
    assert (found.per_label[1].average_precision, found.per_label[1].f1) == (None, None)
    empty = evaluation(np.zeros((0, 2)), np.zeros((0, 2), bool))
    assert math.isnan(empty.mean_average_precision)
    assert empty.to_dict()["f1_interval"] is None


def test_mistakes_are_those_farthest_from_their_thresholds() -> None:
    scores = np.array([[0.9, 0.1], [0.05, 0.8], [0.45, 0.5]])
    targets = np.array([[False, False], [True, True], [True, False]])
    found = evaluation(scores, targets).mistakes
    assert [(one.index, one.label, one.is_missed) for one in found] == [
        (1, 0, True),
        (0, 0, False),
        (2, 0, True),
        (2, 1, False),
    ]
