"""Check of the labels of a data set: likely label errors, images that no class fits, and classes that are confused."""

from collections.abc import Container, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from svertka.confidence_intervals import Interval, finite_interval_or_none, finite_or_none, wilson_interval
from svertka.curation.confident_learning import find_label_issues
from svertka.curation.doubtful_labels_and_numbers import (
    DoubtfulTarget,
    find_doubtful_labels,
    find_doubtful_numbers,
    find_label_columns_at_chance,
    is_better_than_mean,
)
from svertka.curation.embedding_map import place_on_map
from svertka.curation.feature_outliers import EXPECTED, FEWEST, Neighbors, find_neighbors, find_outliers
from svertka.data.dataset import Dataset, Ints
from svertka.data.deduplicated_split import group_images
from svertka.escaping import escape_undecodable, join_first
from svertka.evaluation.chance_level import chance_accuracy_mean_and_std
from svertka.evaluation.cross_validation import ERROR, MEAN_ABSOLUTE_ERROR, evaluate_outputs, format_metric
from svertka.evaluation.evaluation_scope import format_image_count
from svertka.tasks import SEPARATOR, MultiLabel, Regression
from svertka.transfer.backbone_features import BackboneFeatures, compute_backbone_features
from svertka.transfer.logistic_and_nearest_mean_heads import FOLDS, Floats, predict_out_of_fold
from svertka.transfer.multi_label_and_regression_heads import (
    divide_into_folds,
    predict_labels_out_of_fold,
    predict_numbers_out_of_fold,
)

SHOWN_NEIGHBORS = 5  # of an image in a list
AMBIGUOUS = 0.01  # share of the images of two classes that are confused, from which the pair is listed
SURE = 3.0  # standard deviations by which the classifier must be better than guessing
LARGEST_RANGE = 1e150  # of numbers, whose squares are finite
EXAMPLES = 6  # images of an ambiguous pair


@dataclass(frozen=True)
class Neighbor:
    """An image that resembles another one.

    Attributes:
        path: Its path.
        label: Its class.
        similarity: Cosine of the features of both, −1 to 1.
        index: Index in the data set.
    """

    path: str
    label: str
    similarity: float
    index: int

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values.

        Returns:
            The keys path, label and similarity.
        """
        return {"path": self.path, "label": self.label, "similarity": self.similarity}


@dataclass(frozen=True)
class LabelError:
    """An image whose label is probably wrong.

    Attributes:
        path: Its path.
        label: Its class, as the source has it; its labels, joined by |; or its number.
        suggested: The class or the labels that it probably has, or the number that is predicted.
        score: How doubtful the label is, 0 to 1, as `confident_learning.score_label_doubt` defines it. Of a number: its
            distance from the suggestion, divided by the median error of the predictions.
        neighbors: The images that resemble it most, the nearest first.
        index: Index in the data set.
        because: Why labels or a number are suspicious; "" for a class.
    """

    path: str
    label: str
    suggested: str
    score: float
    neighbors: tuple[Neighbor, ...]
    index: int
    because: str = ""

    @property
    def agreeing(self) -> int:
        """How many of `neighbors` have the suggested class."""
        return sum(one.label == self.suggested for one in self.neighbors)

    @property
    def reason(self) -> str:
        """Why the label is suspicious, such as "4 of the 5 most similar images are labeled dog"."""
        if self.because:
            return self.because
        are = "is" if self.agreeing == 1 else "are"
        return f"{self.agreeing} of the {len(self.neighbors)} most similar images {are} labeled {self.suggested}"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values.

        Returns:
            The keys path, label, suggested, score, reason and neighbors.
        """
        return {
            "path": self.path,
            "label": self.label,
            "suggested": self.suggested,
            "score": self.score,
            "reason": self.reason,
            "neighbors": [one.to_dict() for one in self.neighbors],
        }


@dataclass(frozen=True)
class GlobalOutlier:
    """An image that no class fits: it is far from all others in feature space.

    Attributes:
        path: Its path.
        label: Its class.
        score: Mean distance to the 10 nearest images, divided by the median of that of all images.
        neighbors: The images that resemble it most, the nearest first.
        index: Index in the data set.
    """

    path: str
    label: str
    score: float
    neighbors: tuple[Neighbor, ...]
    index: int

    @property
    def reason(self) -> str:
        """Why it is listed."""
        return f"{self.score:.1f} times as far from the most similar images as is usual"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values.

        Returns:
            The keys path, label, score, reason and neighbors.
        """
        return {
            "path": self.path,
            "label": self.label,
            "score": self.score,
            "reason": self.reason,
            "neighbors": [one.to_dict() for one in self.neighbors],
        }


@dataclass(frozen=True)
class AmbiguousPair:
    """Two classes that are taken for each other.

    Attributes:
        classes: Both classes.
        confused: Number of images of one that are predicted as the other out of fold.
        images: Number of images of both.
        interval: 95 % confidence interval of the share, 0 to 1.
        examples: Paths of some of the confused images, the least certain first.
        indices: Their indices in the data set.
    """

    classes: tuple[str, str]
    confused: int
    images: int
    interval: Interval
    examples: tuple[str, ...]
    indices: tuple[int, ...]

    @property
    def share(self) -> float:
        """Share of the images that are confused, 0 to 1."""
        return self.confused / self.images

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values.

        Returns:
            The keys classes, confused, images, share, interval and examples.
        """
        return {
            "classes": list(self.classes),
            "confused": self.confused,
            "images": self.images,
            "share": self.share,
            "interval": list(self.interval),
            "examples": list(self.examples),
        }


@dataclass(frozen=True)
class LabelFindings:
    """What a check of the labels found.

    Attributes:
        checked: Number of images whose labels were checked.
        error: Out-of-fold error of the classifier that judges them, 0 to 1; of labels its mAP, of a number its mean
            absolute error; None if none was fitted.
        interval: 95 % confidence interval of that error.
        metric: What `error` is.
        backbone: The network whose features it uses; None if none were computed.
        errors: Likely label errors, the most suspicious first.
        outliers: Images that no class fits, the furthest first.
        ambiguous: Pairs of classes that are confused, the most confused first.
        notes: What was not checked and why, a sentence each.
        compared: Number of images among which outliers were looked for; 0 if they are too few.
        confirmed: Number of label errors and outliers that are not listed, because their labels were confirmed.
        map: Indices of the images (N,), and their positions (N, 2) float on a map of the features, 0 to 1; None if
            there is none.
    """

    checked: int = 0
    error: float | None = None
    interval: Interval | None = None
    backbone: str | None = None
    errors: tuple[LabelError, ...] = ()
    outliers: tuple[GlobalOutlier, ...] = ()
    ambiguous: tuple[AmbiguousPair, ...] = ()
    notes: tuple[str, ...] = ()
    compared: int = 0
    confirmed: int = 0
    map: tuple[Ints, Floats] | None = field(default=None, repr=False, compare=False)
    metric: str = ERROR

    def without(self, indices: Container[int]) -> "LabelFindings":
        """Return the findings without label errors and outliers that were confirmed; these are counted.

        Args:
            indices: Indices of the confirmed images.

        Returns:
            The other findings.
        """
        errors = tuple(one for one in self.errors if one.index not in indices)
        outliers = tuple(one for one in self.outliers if one.index not in indices)
        listed = {one.index for one in self.errors} | {one.index for one in self.outliers}
        left_out = [index for index in listed if index in indices]
        return replace(self, errors=errors, outliers=outliers, confirmed=len(left_out))

    def sentences(self) -> list[str]:
        """Return what was found, a sentence each, without the images.

        Returns:
            The notes, and what was checked and found.
        """
        found = list(self.notes)
        if self.checked and self.interval is not None:
            error, low, high = (format_metric(self.metric, one) for one in (self.error or 0.0, *self.interval))
            what = "numbers" if self.metric == MEAN_ABSOLUTE_ERROR else "labels"
            found.append(
                f"{what} of {self.checked:,} images checked: {len(self.errors):,} suspicious (out-of-fold "
                f"{self.metric} {error}, 95 % interval {low} to {high})"
            )
        if self.compared:
            found.append(
                f"far from all others in feature space: {len(self.outliers):,} of {self.compared:,} images; in a set "
                f"without outliers, {EXPECTED:g} are to be expected"
            )
        if self.confirmed:
            found.append(f"not listed, because their labels were confirmed: {format_image_count(self.confirmed)}")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, without the three lists.

        Returns:
            The keys checked, metric, out_of_fold_error (of classes), out_of_fold_metric, interval, compared,
            confirmed, backbone and notes.
        """
        return {
            "checked": self.checked,
            "metric": self.metric,
            "out_of_fold_error": self.error if self.metric == ERROR else None,
            "out_of_fold_metric": self.error,
            "interval": self.interval and list(self.interval),
            "compared": self.compared,
            "confirmed": self.confirmed,
            "backbone": self.backbone,
            "notes": list(self.notes),
        }


def check_labels(
    dataset: Dataset,
    contents: Sequence[bytes],
    indices: Ints,
    alike: Sequence[Sequence[int]],
    *,
    device: str = "auto",
    threads: int | None = None,
    cache_limit: int | None = None,
    draw_map: bool = False,
) -> LabelFindings:
    """Check the labels of the images at `indices`.

    A logistic regression on frozen features predicts each image from the images of other folds; copies,
    near-duplicates and images of one group are in one fold, because a copy would confirm a wrong label. Of several
    labels, each has a logistic regression; numbers are predicted by ridge regression.

    Args:
        dataset: The images.
        contents: Content digest of each image.
        indices: Indices of the readable images, (n,) int64.
        alike: Groups of near-duplicates, indices.
        device: Device of the backbone.
        threads: CPU threads, at least 1. None: all cores.
        cache_limit: Bytes of all cached features, and of all cached images. None: a share of the free disk.
        draw_map: Whether to place 10 to 5,000 images on a map, which takes up to half a minute.

    Raises:
        UsageError: There is no such device, or there are too many threads.
    """
    if not len(indices):
        return LabelFindings(notes=("labels are not checked: no image can be read",))
    features = compute_backbone_features(dataset, indices, device=device, threads=threads, cache_limit=cache_limit)
    with threadpool_limits(threads):  # of scikit-learn's products, which PyTorch's number does not limit
        found = _check_features(dataset, contents, features, alike)
        places = place_on_map(features.values) if draw_map else None
    return found if places is None else replace(found, map=(features.indices, places))


def _check_features(
    dataset: Dataset, contents: Sequence[bytes], features: BackboneFeatures, alike: Sequence[Sequence[int]]
) -> LabelFindings:
    """Check the labels of the images that have `features`."""
    indices, labels = features.indices, dataset.labels[features.indices]
    groups = group_images(dataset, contents, indices, alike)
    copies = groups
    if dataset.groups is not None:
        copies = group_images(replace(dataset, groups=None), contents, indices, alike)
    neighbors = find_neighbors(features.values, copies)
    described = _Describer(dataset, indices, neighbors)
    places, ratios = find_outliers(neighbors.distances)
    outliers = [described.outlier(place, float(ratios[place])) for place in places.tolist()]
    compared = len(indices) if len(indices) >= FEWEST else 0
    few = f"outliers are not looked for: {len(indices)} images are too few, {FEWEST} are needed"
    found = LabelFindings(backbone=features.backbone, outliers=tuple(outliers), compared=compared)
    if not dataset.task.is_single_label:
        found = _check_labels_or_numbers(found, features, groups, neighbors, described)
        return found if compared else replace(found, notes=(*found.notes, few))
    judged, notes = _find_judged(dataset, labels, groups)
    if not compared:
        notes = (*notes, few)
    found = replace(found, notes=notes)
    if not len(judged):
        return found
    all_labels = dataset.labels[indices]
    classes, labels = np.unique(all_labels[judged], return_inverse=True)
    probabilities = predict_out_of_fold(features.values[judged], labels, groups[judged], len(classes))
    confusion = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(confusion, (labels, probabilities.argmax(1)), 1)
    wrong = len(labels) - int(confusion.trace())
    found = replace(found, checked=len(labels), error=wrong / len(labels), interval=wilson_interval(wrong, len(labels)))
    guessed, deviation = chance_accuracy_mean_and_std(confusion)
    if 1 - wrong / len(labels) <= guessed + SURE * deviation:
        return replace(found, checked=0, notes=(*notes, _at_chance(wrong, len(labels), guessed)))
    issues = find_label_issues(labels, probabilities, _renumber(all_labels[neighbors.places[judged]], classes))
    errors = [
        described.error(int(judged[place]), dataset.names[classes[suggested]], doubt)
        for place, suggested, doubt in zip(
            issues.places.tolist(), issues.suggested.tolist(), issues.doubts.tolist(), strict=True
        )
    ]
    return replace(
        found,
        errors=tuple(errors),
        ambiguous=tuple(_ambiguous(dataset, indices[judged], classes, labels, probabilities, confusion)),
    )


def _check_labels_or_numbers(
    found: LabelFindings, features: BackboneFeatures, groups: Ints, neighbors: Neighbors, described: "_Describer"
) -> LabelFindings:
    """Return `found` with the doubtful labels, or numbers, of the images that have `features`."""
    dataset = described.dataset
    targets, task = dataset.labels[features.indices], dataset.task
    assert isinstance(task, MultiLabel | Regression)
    what = {"multi-label": "labels", "regression": "numbers"}[task.kind]
    different = len(np.unique(groups))
    splits = divide_into_folds(targets, groups, task) if different >= 2 * FOLDS else []
    if not splits:
        return replace(found, notes=(f"{what} are not checked: {different:,} different images are too few",))
    if isinstance(task, Regression) and not np.ptp(targets) < LARGEST_RANGE:
        return replace(found, notes=(f"numbers are not checked: their range exceeds {LARGEST_RANGE:g}",))
    if isinstance(task, Regression):
        outputs = predict_numbers_out_of_fold(features.values, targets, splits)
        is_checked = is_better_than_mean(targets, outputs)
        judged = find_doubtful_numbers(targets, outputs, targets[neighbors.places]) if is_checked else []
        notes = [] if is_checked else [_NUMBERS_AT_CHANCE]
    else:
        probabilities, has = predict_labels_out_of_fold(features.values, targets, splits), targets > 0.5
        columns, notes = _find_judged_labels(dataset.names, has, probabilities, groups)
        is_checked = bool(columns)
        judged = find_doubtful_labels(has, probabilities, has[neighbors.places], columns)
        outputs = probabilities.astype(np.float64)
    evaluation = evaluate_outputs(task, outputs, targets)
    return replace(
        found,
        checked=len(targets) if is_checked else 0,
        error=finite_or_none(evaluation.metric),
        interval=finite_interval_or_none(evaluation.metric_interval),
        metric=evaluation.metric_name,
        errors=tuple(map(described.doubtful, judged)),
        notes=tuple(notes),
    )


_NUMBERS_AT_CHANCE = "numbers are not checked: the features do not predict them clearly better than their mean"


def _find_judged_labels(
    names: Sequence[str], has: npt.NDArray[np.bool_], probabilities: Floats, groups: Ints
) -> tuple[list[int], list[str]]:
    """Return the labels that can be judged, and sentences on the others."""
    few = [
        k
        for k in range(len(names))
        if min(len(np.unique(groups[has[:, k]])), len(np.unique(groups[~has[:, k]]))) < FOLDS
    ]
    guessed = [k for k in find_label_columns_at_chance(has, probabilities).tolist() if k not in few]
    reasons = (
        (few, f"which fewer than {FOLDS} different images have, or lack"),
        (guessed, "which the features do not tell from guessing"),
    )
    notes = [
        f"{len(some)} {'label is' if len(some) == 1 else 'labels are'} not checked, {why}: "
        f"{join_first([names[k] for k in some])}"
        for some, why in reasons
        if some
    ]
    return [k for k in range(len(names)) if k not in (*few, *guessed)], notes


class _Describer:
    """Builder of what is listed about single images.

    Args:
        dataset: The images.
        indices: Index of each place in `neighbors`.
        neighbors: The most similar images of each.
    """

    def __init__(self, dataset: Dataset, indices: Ints, neighbors: Neighbors) -> None:
        self.dataset, self.indices, self.neighbors = dataset, indices, neighbors

    def error(self, place: int, suggested: str, score: float) -> LabelError:
        index = int(self.indices[place])
        return LabelError(self._path(index), self._label(index), suggested, score, self._neighbors(place), index)

    def doubtful(self, one: DoubtfulTarget) -> LabelError:
        index, neighbors = int(self.indices[one.place]), self._neighbors(one.place)
        if isinstance(self.dataset.task, Regression):
            suggested = f"{one.suggested:.4g}"
            because = f"{one.score:.1f} times the usual error"
        else:
            names, column = self.dataset.names, one.column
            suggested = SEPARATOR.join(names[k] for k in np.flatnonzero(one.suggested).tolist())
            having = sum(bool(self.dataset.labels[near.index][column] > 0.5) for near in neighbors)
            because = f"{having} of the {len(neighbors)} most similar images have {names[column]}"
        label = self.dataset.label_text(index)
        return LabelError(self._path(index), label, suggested, one.score, neighbors, index, because)

    def outlier(self, place: int, ratio: float) -> GlobalOutlier:
        index = int(self.indices[place])
        return GlobalOutlier(self._path(index), self._label(index), ratio, self._neighbors(place), index)

    def _neighbors(self, place: int) -> tuple[Neighbor, ...]:
        near = self.indices[self.neighbors.places[place, :SHOWN_NEIGHBORS]].tolist()
        far = self.neighbors.distances[place, :SHOWN_NEIGHBORS].tolist()
        return tuple(
            Neighbor(self._path(index), self._label(index), 1 - distance, index)
            for index, distance in zip(near, far, strict=True)
        )

    def _path(self, index: int) -> str:
        return escape_undecodable(self.dataset.images.name(index))

    def _label(self, index: int) -> str:
        return self.dataset.label_text(index)


def _find_judged(dataset: Dataset, labels: Ints, groups: Ints) -> tuple[Ints, tuple[str, ...]]:
    """Return the places of the images of classes that can be judged, (n,), and sentences on the others.

    A class needs as many independent images as there are folds; a group counts once, for the class that most of its
    images have.
    """
    places = np.arange(len(labels))
    while True:
        units, first = np.unique(groups[places], return_inverse=True)
        counts = np.zeros((len(units), len(dataset.names)), np.int64)
        np.add.at(counts, (first, labels[places]), 1)
        independent = np.bincount(counts.argmax(1), minlength=len(dataset.names))
        kept = places[independent[labels[places]] >= FOLDS]
        if len(kept) == len(places):
            break
        places = kept
    judged = set(labels[places].tolist())
    few = [dataset.names[label] for label in np.unique(labels).tolist() if label not in judged]
    notes = []
    if few:
        kind = "images" if dataset.groups is None else "groups"
        are = "class is" if len(few) == 1 else "classes are"
        notes.append(
            f"the labels of {len(few)} {are} not checked, which have fewer than {FOLDS} different {kind}: "
            f"{join_first(few)}; add some"
        )
    if len(judged) < 2:
        if len(judged) == 1:
            notes.append(f"labels are not checked: {dataset.names[judged.pop()]} is the only class that could be")
        return np.empty(0, np.int64), tuple(notes)
    return places, tuple(notes)


def _renumber(labels: Ints, classes: Ints) -> Ints:
    """Return the place in `classes` of each label; −1 for labels that are not there."""
    places = np.searchsorted(classes, labels).clip(max=len(classes) - 1)
    return np.where(classes[places] == labels, places, -1).astype(np.int64)


def _at_chance(wrong: int, images: int, guessed: float) -> str:
    """Return why nothing is said about the labels."""
    return (
        f"labels are not checked: the features do not tell the classes apart (out-of-fold error {wrong / images:.1%} "
        f"of {images:,} images, not clearly below the {1 - guessed:.1%} of guessing)"
    )


def _ambiguous(
    dataset: Dataset, indices: Ints, classes: Ints, labels: Ints, probabilities: Floats, confusion: Ints
) -> list[AmbiguousPair]:
    """Return the pairs of classes of which more than `AMBIGUOUS` is confused, by the lower end of the interval."""
    counts, pairs = confusion.sum(1), []
    both = confusion + confusion.T
    predicted = probabilities.argmax(1)
    for one, other in np.argwhere(np.triu(both, 1) > 1).tolist():
        confused, images = int(both[one, other]), int(counts[one] + counts[other])
        interval = wilson_interval(confused, images)
        if interval[0] <= AMBIGUOUS:
            continue
        places = np.flatnonzero(((labels == one) & (predicted == other)) | ((labels == other) & (predicted == one)))
        margins = np.abs(probabilities[places, one] - probabilities[places, other])
        shown = indices[places[np.argsort(margins, kind="stable")[:EXAMPLES]]].tolist()
        names = dataset.names[classes[one]], dataset.names[classes[other]]
        paths = tuple(escape_undecodable(dataset.images.name(index)) for index in shown)
        pairs.append(AmbiguousPair(names, confused, images, interval, paths, tuple(shown)))
    return sorted(pairs, key=lambda pair: -pair.interval[0])
