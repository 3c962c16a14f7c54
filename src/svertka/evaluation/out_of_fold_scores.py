"""Unknown scores of training images, from features and heads that were fitted without them.

A run of few images has too few validation images to choose a threshold on: of 4, the threshold is above all, and one in
five new images of the classes exceeds it. Training images cannot be used as they are, because the head and the means of
the classes were fitted to them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from svertka.data.dataset import Ints
from svertka.evaluation.cross_validation import count_folds, find_class_too_small, stratified_group_folds
from svertka.unknown_score import fit_unknown_score

Floats = npt.NDArray[np.floating[Any]]
FitHead = Callable[[npt.NDArray[np.float32], Ints, int], tuple[Floats, Floats]]

TOLERANCE = 0.05  # of the largest logit, by which a head that is fitted again may differ


@dataclass(frozen=True, eq=False)
class FoldSettings:
    """How the head of a run was fitted, and which of its training images stay together.

    Attributes:
        fit_head: Returns weights (K, D) and biases (K,) for features (N, D), their classes (N,), and K.
        groups: A number for each training image, (N,) int64, equal for copies and images of one group.
    """

    fit_head: FitHead
    groups: Ints


def compute_out_of_fold_components(
    features: Tensor, logits: Tensor, labels: Ints, settings: FoldSettings
) -> Tensor | None:
    """Return the distance and the energy of each training image, (N, 2), by a score and a head of the other folds.

    Args:
        features: Features of the training images, (N, D).
        logits: Their logits by the head of the run, (N, K).
        labels: Their classes, (N,) int64.
        settings: How the head was fitted.

    Returns:
        None if the head of the run is not what `settings.fit_head` gives, or if a class has too few images.
    """
    values, classes, groups = features.numpy(), logits.shape[1], settings.groups
    if len(groups) != len(values) or find_class_too_small(labels, groups, classes) is not None:
        return None
    again = _apply(settings.fit_head(values, labels, classes), values)
    if float((again - logits).abs().max()) > TOLERANCE * max(1.0, float(logits.abs().max())):
        return None
    found = torch.empty(len(values), 2)
    for outside, inside in stratified_group_folds(labels, groups, classes, count_folds(labels, groups, classes)):
        own = _apply(settings.fit_head(values[outside], labels[outside], classes), values[inside])
        score = fit_unknown_score(values[outside], labels[outside], features[inside], own)
        found[inside] = score.components(features[inside], own)
    return found


def _apply(head: tuple[Floats, Floats], features: npt.NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(features @ head[0].T + head[1]).float()
