"""suggest(): the unlabeled images to label next, by the uncertainty of a run and by how much they differ."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from svertka.classifier import Classifier
from svertka.curation.active_learning import (
    choose_uncertain_and_diverse,
    measure_committee_spread,
    score_label_uncertainty,
    score_uncertainty,
)
from svertka.curation.class_folder_copies import check_copy_target, copy_into_class_folders
from svertka.curation.table_of_copies import TableOfCopies
from svertka.curation.unreadable_images import describe_unreadable, name_unreadable
from svertka.data.content_hash import hash_images
from svertka.data.dataset import Dataset, Ints
from svertka.data.image_io import DecodingOptions
from svertka.data.split_manifest import Manifest
from svertka.data.unlabeled_images import open_unlabeled
from svertka.device import choose_device, set_threads, with_preserved_settings
from svertka.errors import DataError, FetchError, UsageError
from svertka.escaping import escape_undecodable, to_printable
from svertka.evaluation.evaluation_scope import format_image_count
from svertka.evaluation.held_out import read_manifest, select_held_out_images
from svertka.evaluation.run_images import open_images_of_run, spread_evenly
from svertka.files import parse_cache_limit_option, parse_path
from svertka.pages.notebook_block import NotebookBlock
from svertka.tasks import MultiLabel, Regression, Targets
from svertka.transfer.image_features import ImageFeatures, compute_features, scale_to_unit_length
from svertka.transfer.logistic_and_nearest_mean_heads import Floats
from svertka.type_checking import check_types

KNOWN_IMAGES = 2000  # of the training set, at most, to which new images are compared


@dataclass(frozen=True)
class Suggestion:
    """An image whose label would help.

    Attributes:
        path: Its path.
        score: How uncertain the run is: 1 minus the difference of the two highest class probabilities, 0 to 1; for
            several labels, the mean over the labels of 1 minus twice the distance of the probability from ½; for a
            number, its spread, as `measure_committee_spread` defines it, in the unit of the number.
        classes: The two most likely classes with their probabilities, the likelier first; or the two most uncertain
            labels; empty for a number.
        similarity: Cosine of its features with those of the most similar suggestion before it, −1 to 1; None for the
            first.
        copy: Path of its copy, which is in the folder of its likelier class; None if none was asked for.
        number: The predicted number; None unless the run predicts one.
    """

    path: str
    score: float
    classes: tuple[tuple[str, float], ...]
    similarity: float | None
    copy: str | None = None
    number: float | None = None

    @property
    def reason(self) -> str:
        """Why it is suggested, such as "cat 52 %, dog 46 %; at most 0.71 similar to the suggestions before it"."""
        unsure = self.uncertainty
        alike = (
            "" if self.similarity is None else f"; at most {self.similarity:.2f} similar to the suggestions before it"
        )
        return unsure + alike

    @property
    def uncertainty(self) -> str:
        """Of what the run is uncertain, such as "cat 52 %, dog 46 %" or "3.1 ± 0.4"."""
        if self.number is not None:
            return f"{self.number:.4g} ± {self.score:.2g}"
        return ", ".join(f"{name} {100 * probability:.0f} %" for name, probability in self.classes)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values.

        Returns:
            The keys path, score, classes, similarity, reason and copy, and number if a number was predicted.
        """
        return {
            "path": self.path,
            "score": self.score,
            **({} if self.number is None else {"number": self.number}),
            "classes": [{"name": name, "probability": probability} for name, probability in self.classes],
            "similarity": self.similarity,
            "reason": self.reason,
            "copy": self.copy,
        }


@dataclass(frozen=True, repr=False)
class Suggestions:
    """The images to label next.

    Attributes:
        run: The run.
        source: The folder of the images.
        suggestions: The suggested images, the most uncertain first.
        compared: Number of images among which they were chosen.
        known: Number of images that are left out because the run was trained, validated or tested on them.
        copies: Number of images that are left out because they are copies of others of the folder.
        bad: Path and reason of each unreadable image.
        notes: What else is to be known, a sentence each.
        table: The table that lists the copies with their predicted labels or numbers; None without one.
    """

    run: str
    source: str
    suggestions: tuple[Suggestion, ...]
    compared: int
    known: int
    copies: int
    bad: tuple[tuple[str, str], ...]
    notes: tuple[str, ...] = ()
    table: str | None = None

    def sentences(self) -> list[str]:
        """Return what was done, a sentence each, without the images.

        Returns:
            The counts, the images that could not be read, and the notes.
        """
        found = [f"{len(self.suggestions):,} of {format_image_count(self.compared)} suggested"]
        if self.known:
            found.append(f"left out: {format_image_count(self.known)} that {self.run} knows already")
        if self.copies:
            are = "that is a copy of another one" if self.copies == 1 else "that are copies of others"
            found.append(f"left out: {format_image_count(self.copies)} {are}")
        return [*found, *describe_unreadable(self.bad), *self.notes]

    def __repr__(self) -> str:
        return f"Suggestions({self.run!r}, {self.source!r}: {self.sentences()[0]})"

    def _repr_html_(self) -> str:
        rows = [(one.path, f"{one.score:.2f}", one.reason) for one in self.suggestions]
        return NotebookBlock(
            f"{self.source}: what to label next", self.sentences(), header=("image", "score", "reason"), rows=rows
        ).render()

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, as `svertka suggest --json` prints them.

        Returns:
            The keys run, source, suggestions, compared, known, copies, bad and notes, and table if there is one.
        """
        return {
            "run": self.run,
            "source": self.source,
            "suggestions": [one.to_dict() for one in self.suggestions],
            "compared": self.compared,
            "known": self.known,
            "copies": self.copies,
            "bad": [{"path": path, "reason": reason} for path, reason in self.bad],
            "notes": list(self.notes),
            **({} if self.table is None else {"table": self.table}),
        }


@check_types
@with_preserved_settings
def suggest(
    run: str | PathLike[str],
    unlabeled: str | PathLike[str],
    *,
    count: int = 50,
    sort_into: str | PathLike[str] | None = None,
    device: str = "auto",
    threads: int | None = None,
    cache_limit: float | None = None,
    max_pixels: int | None = None,
    trust_builder: bool = False,
) -> Suggestions:
    """Suggest the unlabeled images whose labels a run would learn most from.

    They are those of which the run is uncertain, and differ from one another. Images that the run knows are recognized
    by content and left out, and so are copies. If the run predicts a number, the images that it was trained on are
    needed: regressions on samples of them disagree where the number is uncertain.

    Args:
        run: A run folder, or a network with weights, as for `Classifier.load`.
        unlabeled: Folder of the images; those at any depth are used, and the names of folders are not.
        count: Number of images to suggest, at least 1.
        sort_into: Folder into which the suggested images are copied, to be corrected and trained on: each into the
            folder of its most likely class, or, if the run predicts several labels or a number, with a table labels.csv
            of the predictions. Nothing is moved or overwritten, and rows of such a table are kept. None: nothing is
            copied.
        device: "auto", "cpu" or "cuda".
        threads: CPU threads, at least 1. None: all cores.
        cache_limit: Size limit of the image cache, and of stored features, GB (10⁹ bytes) each. None: a share of the
            free disk.
        max_pixels: Largest image that is decoded, pixels. None: `data.image_io.PIXEL_LIMIT`.
        trust_builder: As for `Classifier.load`.

    Returns:
        The suggestions, the most uncertain first.

    Raises:
        UsageError: There is no such folder, `count` is below 1, the network computes no features or a single class,
            `sort_into` cannot take the copies, or the images that a run of a number was trained on have moved.
        RunError: The run is missing or damaged, or gives NaN.
        DataError: The folder holds no image that can be read and is new to the run.
        StorageError: The copies cannot be written.
    """
    if count < 1:
        raise UsageError(f"count={count} must be at least 1")
    place, workers, limit = choose_device(device), set_threads(threads), parse_cache_limit_option(cache_limit)
    classifier = Classifier.load(run, place, trust_builder=trust_builder)
    if len(classifier.names) < 2 and not isinstance(classifier.task, Regression):
        raise UsageError(f"{classifier.origin} has a single class, so that no image is uncertain; use another run")
    dataset = open_unlabeled(unlabeled).with_decoding(DecodingOptions.up_to(max_pixels))
    target = None if sort_into is None else _prepare_target(sort_into, parse_path(unlabeled), classifier)
    preprocess = classifier.preprocess
    dataset = dataset.with_intensity_range(preprocess.intensity_range)
    known = None
    if isinstance(classifier.task, Regression):  # first, since nothing else is of use without them
        known = _compute_known_features(classifier, run, max_pixels, workers, limit)
    pool = _find_candidates(dataset, read_manifest(run), workers)
    features = compute_features(classifier, preprocess, dataset, pool.indices, threads=workers, cache_limit=limit)
    bad = pool.bad | features.bad
    if not len(features.indices):
        raise DataError(
            f"{dataset.source} has nothing to suggest: {format_image_count(pool.known)} known to {classifier.origin}, "
            f"{len(bad):,} that cannot be read; add new images"
        )
    notes = [] if dataset.account.sentence() is None else [str(dataset.account.sentence())]
    if parse_path(run).is_dir() and pool.is_unknown:
        notes.append(f"{classifier.origin} does not record which images it was trained on; none is left out for that")
    with threadpool_limits(workers):
        suggestions = _choose(dataset, features, known, count)
    if isinstance(target, TableOfCopies):
        suggestions = _list_copies(target, dataset, features, suggestions)
    elif target is not None:
        suggestions = _copy(target, dataset, suggestions)
    return Suggestions(
        run=classifier.origin,
        source=dataset.source,
        suggestions=tuple(one for _, one in suggestions),
        compared=len(features.indices),
        known=pool.known,
        copies=pool.copies,
        bad=name_unreadable(dataset, bad),
        notes=tuple(map(to_printable, notes)),
        table=escape_undecodable(str(target.path)) if isinstance(target, TableOfCopies) else None,
    )


def _prepare_target(folder: str | PathLike[str], source: Path, classifier: Classifier) -> Path | TableOfCopies:
    """Return the folder of copies in class folders, or of copies with a table.

    Raises:
        UsageError: It cannot take the copies.
    """
    if classifier.task.is_single_label:
        return check_copy_target(folder, source, classifier.names)
    return TableOfCopies(folder, source, classifier.task)


@dataclass(frozen=True, eq=False)
class _Candidates:
    """Images that can be suggested, and the number of the others.

    Attributes:
        indices: Their indices, (n,) int64.
        known: Images that the run knows.
        copies: Copies of other images of the folder.
        bad: Index and reason of each unreadable image.
        is_unknown: Whether the run does not record its images.
    """

    indices: Ints
    known: int
    copies: int
    bad: dict[int, str]
    is_unknown: bool


def _find_candidates(dataset: Dataset, manifest: Manifest | None, threads: int) -> _Candidates:
    contents, bad = (hash_images if manifest is None else manifest.hash_images)(dataset.images, threads)
    of_run = frozenset() if manifest is None else manifest.contents | manifest.inherited
    new = [index for index, content in enumerate(contents) if content not in of_run and index not in bad]
    first = {contents[index]: index for index in reversed(new)}
    known = len(contents) - len(bad) - len(new)
    indices = np.array(sorted(first.values()), dtype=np.int64)
    return _Candidates(indices, known, len(new) - len(first), bad, manifest is None)


def _compute_known_features(
    classifier: Classifier, run: str | PathLike[str], max_pixels: int | None, threads: int, cache_limit: int | None
) -> tuple[Floats, Targets]:
    """Return features and numbers of up to 2000 of the images that the run was trained on.

    Raises:
        UsageError: They have moved.
        RunError: The run does not say which they are.
    """
    try:
        trained_on = open_images_of_run(parse_path(run), None, max_pixels)
    except (UsageError, DataError, FetchError) as error:
        raise UsageError(
            f"suggest compares new images with those that {classifier.origin} was trained on, since it predicts a "
            f"number, and cannot open them ({error}); put them back"
        ) from error
    selected = select_held_out_images(
        [classifier.origin], trained_on, classifier.preprocess, "train", include_training=True, threads=threads,
        cache_limit=cache_limit,
    )  # fmt: skip
    indices = selected.indices[spread_evenly(len(selected.indices), KNOWN_IMAGES)]
    found = compute_features(
        classifier, classifier.preprocess, trained_on, indices, threads=threads, cache_limit=cache_limit
    )
    return found.values, trained_on.labels[found.indices]


def _choose(
    dataset: Dataset, features: ImageFeatures, known: tuple[Floats, Targets] | None, count: int
) -> list[tuple[int, Suggestion]]:
    """Return the index and the description of each chosen image.

    Args:
        dataset: The images.
        features: Their features.
        known: Features and numbers of labeled images; None unless the run predicts a number.
        count: Number of images to choose.
    """
    probabilities, names, task = features.probabilities(), features.classifier.names, features.classifier.task
    if isinstance(task, Regression):
        assert known is not None
        ranked: npt.NDArray[np.floating[Any]] = np.zeros((len(probabilities), 0))
        scores = measure_committee_spread(features.values, *known, task)
    elif isinstance(task, MultiLabel):
        ranked = score_label_uncertainty(probabilities)
        scores = ranked.mean(1)
    else:
        ranked, scores = probabilities, score_uncertainty(probabilities)
    places = choose_uncertain_and_diverse(features.values, scores, count)
    unit = scale_to_unit_length(features.values[places])
    cosines = unit @ unit.T
    found = []
    for rank, place in enumerate(places.tolist()):
        first = np.argsort(-ranked[place], kind="stable")[:2].tolist()
        pairs = tuple((names[one], float(probabilities[place, one])) for one in first)
        number = float(probabilities[place, 0]) if isinstance(task, Regression) else None
        similarity = float(cosines[rank, :rank].max()) if rank else None
        index = int(features.indices[place])
        path = escape_undecodable(dataset.images.name(index))
        found.append((index, Suggestion(path, float(scores[place]), pairs, similarity, number=number)))
    return found


def _copy(
    target: Path, dataset: Dataset, suggestions: Sequence[tuple[int, Suggestion]]
) -> list[tuple[int, Suggestion]]:
    """Copy the suggested images into the folders of their likelier classes; return them with the paths."""
    copies = copy_into_class_folders(target, dataset, ((index, one.classes[0][0]) for index, one in suggestions))
    return [
        (index, replace(one, copy=escape_undecodable(str(copy))))
        for (index, one), copy in zip(suggestions, copies, strict=True)
    ]


def _list_copies(
    target: TableOfCopies, dataset: Dataset, features: ImageFeatures, suggestions: Sequence[tuple[int, Suggestion]]
) -> list[tuple[int, Suggestion]]:
    """Copy the suggested images, and list them with what is predicted; return them with the paths of the copies."""
    names, task = features.classifier.names, features.classifier.task
    indices = [index for index, _ in suggestions]
    rows = features.probabilities()[np.searchsorted(features.indices, indices)]
    if isinstance(task, MultiLabel):
        thresholds = np.array([task.threshold(label) for label in range(len(names))])
        texts = [task.text(row >= thresholds, names) for row in rows]
    else:
        texts = [f"{row[0]:.6g}" for row in rows]
    copies = target.add(dataset, indices, texts)
    return [
        (index, replace(one, copy=escape_undecodable(str(copy))))
        for (index, one), copy in zip(suggestions, copies, strict=True)
    ]
