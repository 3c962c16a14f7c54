"""Labels and numbers that disagree with out-of-fold predictions: of several labels an image, and of a number."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from svertka.curation.confident_learning import find_label_issues
from svertka.curation.feature_outliers import EXPECTED, MAX_SHARE, count_upper_outliers
from svertka.data.dataset import Ints
from svertka.evaluation.chance_level import chance_accuracy_mean_and_std
from svertka.transfer.logistic_and_nearest_mean_heads import Floats

SURE = 3.0  # standard deviations by which a prediction must be better than guessing

Bools = npt.NDArray[np.bool_]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class DoubtfulTarget:
    """An image whose labels or number are probably wrong.

    Attributes:
        place: Its place among the images.
        suggested: The labels that it probably has, (K,) bool, or the number that is predicted.
        score: How doubtful it is: of labels 0 to 1, as `confident_learning.score_label_doubt` defines it; of a number,
            its distance from the suggestion, divided by the median error of the predictions.
        column: The most doubtful label; 0 for a number.
    """

    place: int
    suggested: Any
    score: float
    column: int = 0


def find_label_columns_at_chance(has: Bools, probabilities: Floats) -> Ints:
    """Return the labels that out-of-fold probabilities do not tell from guessing, (k,) int64.

    Args:
        has: Whether each image has each label, (N, K).
        probabilities: Out-of-fold probabilities (N, K).
    """
    found = []
    for k in range(has.shape[1]):
        confusion = np.zeros((2, 2), np.int64)
        np.add.at(confusion, (has[:, k].astype(np.int64), (probabilities[:, k] > 0.5).astype(np.int64)), 1)
        guessed, deviation = chance_accuracy_mean_and_std(confusion)
        if confusion.trace() / len(has) <= guessed + SURE * deviation:
            found.append(k)
    return np.array(found, np.int64)


def find_doubtful_labels(
    has: Bools, probabilities: Floats, neighbors: Bools, columns: Sequence[int]
) -> list[DoubtfulTarget]:
    """Find images that confidently have a label which they are not given, or lack one that they are given.

    Each label is a problem of two classes, to have it and to lack it; an image is listed once, with all doubtful labels
    turned over.

    Args:
        has: Whether each image has each label, (N, K).
        probabilities: Out-of-fold probabilities (N, K).
        neighbors: Whether the most similar images have each label, (N, k, K).
        columns: The labels that are checked.

    Returns:
        The images, the most doubtful first.

    Source: Thyagarajan et al. 2022, "Identifying incorrect annotations in multi-label classification data", §3 (each
    label as a binary problem; an image as doubtful as its most doubtful label).
    """
    found: dict[int, DoubtfulTarget] = {}
    for k in columns:
        of_label = np.stack([1 - probabilities[:, k], probabilities[:, k]], 1)
        issues = find_label_issues(has[:, k].astype(np.int64), of_label, neighbors[:, :, k].astype(np.int64))
        for place, doubt in zip(issues.places.tolist(), issues.doubts.tolist(), strict=True):
            known = found.get(place)
            suggested = (has[place] if known is None else known.suggested).copy()
            suggested[k] = not suggested[k]
            score, column = max((doubt, k), (-1.0, k) if known is None else (known.score, known.column))
            found[place] = DoubtfulTarget(place, suggested, score, column)
    return sorted(found.values(), key=lambda one: (-one.score, one.place))


def is_better_than_mean(numbers: Doubles, predicted: Doubles) -> bool:
    """Return whether predictions are closer to the numbers than their mean is, beyond chance.

    Args:
        numbers: The numbers, (N,).
        predicted: Out-of-fold predictions (N,).
    """
    gains = np.square(numbers - numbers.mean()) - np.square(numbers - predicted)
    return bool(gains.mean() > SURE * gains.std() / np.sqrt(len(gains)))


def find_doubtful_numbers(numbers: Doubles, predicted: Doubles, neighbors: Doubles) -> list[DoubtfulTarget]:
    """Find numbers that are unusually far from their out-of-fold predictions, and from those of similar images.

    The generalized extreme Studentized deviate test finds, at both ends, the distances from the predictions that those
    of the set itself do not explain, and likewise the distances from the median of the most similar images. Found are
    the numbers in both, on the same side. In a set without wrong numbers, at most 0.5 are to be expected.

    Args:
        numbers: The numbers, (N,).
        predicted: Out-of-fold predictions (N,).
        neighbors: Numbers of the most similar images, (N, k).

    Returns:
        The images, the most doubtful first; suggested is the prediction or the median, whichever is closer.

    Source: Rosner 1983, "Percentage points for a generalized ESD many-outlier procedure".
    """
    middle, most = np.median(neighbors, 1), int(MAX_SHARE * len(numbers))
    usual = max(float(np.median(np.abs(numbers - predicted))), 1e-300)
    found = []
    for side in (1, -1):
        beyond: list[set[int]] = []
        for expected in (predicted, middle):
            signed = side * (numbers - expected)
            order = np.argsort(-signed, kind="stable")
            beyond.append({*order[: count_upper_outliers(signed[order], most, EXPECTED / 2)].tolist()})
        for place in beyond[0] & beyond[1]:
            suggested = float(min(predicted[place], middle[place], key=lambda value: abs(value - numbers[place])))
            found.append(DoubtfulTarget(place, suggested, abs(float(numbers[place]) - suggested) / usual))
    return sorted(found, key=lambda one: (-one.score, one.place))
