"""Confident learning: label errors from out-of-fold class probabilities.

Source: Northcutt, Jiang & Chuang 2021, "Confident learning: estimating uncertainty in dataset labels",
https://arxiv.org/abs/1911.00068.
"""

from dataclasses import dataclass

import numpy as np

from svertka.data.dataset import Ints
from svertka.transfer.logistic_and_nearest_mean_heads import Floats

# Ranks planted errors better than 0, 1/2 and 1 on photographs and on CIFAR-10 together.
NEIGHBOR_WEIGHT = 1 / 3
CERTAIN = 0.9  # doubt from which the classifier and the neighbors agree that a label is wrong


@dataclass(frozen=True, eq=False)
class LabelIssues:
    """Images whose label is probably wrong, the most doubtful first.

    Attributes:
        places: Places of the images in the arrays that were given, (n,) int64.
        suggested: The class that they probably have, (n,) int64.
        doubts: How doubtful their labels are, (n,), 0 to 1.
        joint: The confident joint (K, K) int64: images by label (row) and by the class they confidently have (column).
    """

    places: Ints
    suggested: Ints
    doubts: Floats
    joint: Ints


def self_confidence_thresholds(labels: Ints, probabilities: Floats) -> Floats:
    """Return the mean probability of each class over the images that have it as label, (K,) (eq. 2).

    Args:
        labels: Class of each image, (N,) int64.
        probabilities: Out-of-fold probabilities (N, K).
    """
    classes = probabilities.shape[1]
    counts = np.bincount(labels, minlength=classes)
    own = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    sums = np.bincount(labels, weights=own, minlength=classes)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.inf).astype(np.float32)


def find_label_issues(labels: Ints, probabilities: Floats, neighbor_labels: Ints) -> LabelIssues:
    """Find images that are confidently of another class than their label.

    An image is confidently of the class with the highest probability among those that reach their threshold (eq. 1).
    It counts as a label error if that class, and the one with the highest probability of all, differ from its label.
    In small classes, whose thresholds are near 1, it also counts if its label is extremely doubtful.

    Args:
        labels: Class of each image, (N,) int64.
        probabilities: Out-of-fold probabilities (N, K).
        neighbor_labels: Labels of the most similar images, (N, k) int64.
    """
    classes = probabilities.shape[1]
    reaches = probabilities >= self_confidence_thresholds(labels, probabilities)
    confident = np.where(reaches, probabilities, -1).argmax(1)
    counted = reaches.any(1)
    joint = np.zeros((classes, classes), np.int64)
    np.add.at(joint, (labels[counted], confident[counted]), 1)
    likeliest = probabilities.argmax(1)
    doubts = score_label_doubt(labels, probabilities, neighbor_labels)
    is_confident = counted & (confident != labels)
    is_wrong = (likeliest != labels) & (is_confident | (doubts > CERTAIN))
    places = np.flatnonzero(is_wrong).astype(np.int64)
    places = places[np.argsort(-doubts[places], kind="stable")]
    suggested = np.where(is_confident, confident, likeliest)[places].astype(np.int64)
    return LabelIssues(places, suggested, doubts[places], joint)


def score_label_doubt(labels: Ints, probabilities: Floats, neighbor_labels: Ints) -> Floats:
    """Return how doubtful each label is, (N,), 0 to 1: by a classifier and by the neighbors.

    The doubt of the classifier is 1 minus the out-of-fold probability of the label; that of the neighbors, with a third
    of its weight, is the share of the most similar images that have another label.

    Args:
        labels: Class of each image, (N,) int64.
        probabilities: Out-of-fold probabilities (N, K).
        neighbor_labels: Labels of the most similar images, (N, k) int64.
    """
    own = probabilities[np.arange(len(labels)), labels]
    agreement = (neighbor_labels == labels[:, None]).mean(1)
    return np.asarray(1 - (own + NEIGHBOR_WEIGHT * agreement) / (1 + NEIGHBOR_WEIGHT), np.float32)
