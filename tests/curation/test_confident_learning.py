"""Confident learning against the formulas of the paper, computed by plain loops, and on planted label errors."""

import numpy as np
import pytest

from svertka.curation.confident_learning import find_label_issues, score_label_doubt, self_confidence_thresholds


def random_case(seed: int, images: int = 200, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and probabilities that favor them."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images)
    scores = rng.normal(size=(images, classes)) + 1.5 * np.eye(classes)[labels]
    probabilities = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    return labels.astype(np.int64), probabilities.astype(np.float32)


def plain_thresholds(labels: np.ndarray, probabilities: np.ndarray) -> list[float]:
    found = []
    for one in range(probabilities.shape[1]):
        own = [float(row[one]) for row, label in zip(probabilities, labels, strict=True) if label == one]
        found.append(sum(own) / len(own) if own else float("inf"))
    return found


@pytest.mark.parametrize("seed", range(5))
def test_thresholds_joint_and_errors_are_those_of_the_paper(seed: int) -> None:
    labels, probabilities = random_case(seed)
    thresholds = plain_thresholds(labels, probabilities)
    assert self_confidence_thresholds(labels, probabilities) == pytest.approx(thresholds, abs=1e-6)
    joint = np.zeros((4, 4), int)
    errors = {}
    for place, (label, row) in enumerate(zip(labels.tolist(), probabilities.tolist(), strict=True)):
        confident = [one for one in range(4) if row[one] >= np.float32(thresholds[one])]
        if confident:
            latent = max(confident, key=row.__getitem__)
            joint[label, latent] += 1
            if latent != label and max(row) > row[label]:
                errors[place] = latent
    found = find_label_issues(labels, probabilities, labels[:, None])
    assert found.joint.tolist() == joint.tolist()
    assert dict(zip(found.places.tolist(), found.suggested.tolist(), strict=True)) == errors
    assert len(errors) > 3


def test_a_class_without_labels_is_never_suggested() -> None:
    labels = np.array([0, 0, 1, 1])
    probabilities = np.array([[0.1, 0.0, 0.9], [0.9, 0.0, 0.1], [0.1, 0.8, 0.1], [0.0, 0.9, 0.1]], np.float32)
    found = find_label_issues(labels, probabilities, labels[:, None])
    assert found.places.tolist() == []
    assert found.joint[:, 2].tolist() == [0, 0, 0]


def test_labels_that_all_agree_with_the_classifier_are_no_errors() -> None:
    labels, probabilities = random_case(0)
    assert len(find_label_issues(probabilities.argmax(1), probabilities, labels[:, None]).places) == 0


def test_doubt_is_the_weighted_mean_of_both_doubts() -> None:
    labels = np.array([0, 1])
    probabilities = np.array([[0.9, 0.1, 0.0], [0.6, 0.3, 0.1]], np.float32)
    neighbor_labels = np.array([[0, 0, 0, 1], [0, 0, 1, -1]])
    expected = [(3 * 0.1 + 0.25) / 4, (3 * 0.7 + 0.75) / 4]
    assert score_label_doubt(labels, probabilities, neighbor_labels) == pytest.approx(expected)


def test_the_most_doubtful_come_first_and_need_no_threshold() -> None:
    labels = np.array([0, 0, 0, 1, 1, 1])
    probabilities = np.array([[1, 0], [1, 0], [0.01, 0.99], [0, 1], [0, 1], [0.2, 0.8]], np.float32)
    assert self_confidence_thresholds(labels, probabilities)[1] < 0.99
    probabilities[3:5] = [[0.5, 0.5], [0, 1]]
    neighbors = np.array([[0], [0], [1], [1], [1], [1]])
    found = find_label_issues(labels, probabilities, neighbors)
    assert found.places.tolist() == [2]
    assert found.doubts == pytest.approx([(3 * 0.99 + 1) / 4])
    sure = np.array([[1, 0], [1, 0], [0.01, 0.99], [0, 1], [0, 1], [0, 1]], np.float32)  # the threshold of class 1 is 1
    assert find_label_issues(labels, sure, neighbors).places.tolist() == [2]
    assert find_label_issues(labels, sure, labels[:, None]).places.tolist() == []
