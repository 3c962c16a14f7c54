"""calibrate(): what is chosen on held-out images after the training, written into a run.

Of one class an image: the threshold for unknown images, and the calibration of prediction sets. Of several labels: the
threshold of each label.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np

from svertka.calibration_file import CalibrationRecord, RunCalibration, advise_on_sets
from svertka.classifier import CONFIG, WEIGHTS, Classifier, read_config
from svertka.conformal_sets import count_needed_images
from svertka.data.dataset import Dataset, Ints
from svertka.data.deduplicated_split import group_images
from svertka.data.image_io import DecodingOptions
from svertka.data.near_duplicates import compare_in_this_process
from svertka.data.source_opener import open_source
from svertka.data.split_manifest import Manifest
from svertka.device import choose_device, set_threads, with_preserved_settings
from svertka.errors import RunError, UsageError
from svertka.escaping import join_first
from svertka.evaluation.evaluate import renumber_labels_by_class_names
from svertka.evaluation.held_out import read_manifest, select_held_out_images
from svertka.evaluation.label_thresholds import LabelThresholds, choose_label_thresholds
from svertka.evaluation.out_of_fold_scores import FoldSettings
from svertka.evaluation.run_images import open_images_of_run
from svertka.evaluation.unknown_threshold import KEEP, LabeledImages, fit_calibration, read_examples
from svertka.files import parse_cache_limit_option, parse_path, write_json
from svertka.models.published_weights import WEIGHT_NAMES
from svertka.models.timm_and_torchvision import PRETRAINED
from svertka.pages.notebook_block import NotebookBlock
from svertka.pages.number_format import count_with_noun
from svertka.run import Run
from svertka.tasks import MultiLabel, Regression
from svertka.training.head_cross_validation import FEW_IMAGES
from svertka.transfer.logistic_and_nearest_mean_heads import fit_logistic_regression
from svertka.type_checking import check_types

COVERAGE = 0.95  # for which the sentence says whether there are enough calibration images


@dataclass(frozen=True, eq=False, repr=False)
class CalibratedRun:
    """The calibration of a run.

    Attributes:
        run: The run folder.
        record: The threshold for unknown images, and what it was chosen on.
        notes: What the new images lack, a sentence each.
    """

    run: Path
    record: CalibrationRecord
    notes: tuple[str, ...] = ()

    @property
    def sentences(self) -> tuple[str, ...]:
        """What is called unknown, how many images prediction sets are calibrated on, and the notes, in words."""
        sets = describe_set_images(self.record, str(self.run))
        return f"unknown: {self.record.unknown.sentence}", sets, *self.notes

    def __repr__(self) -> str:
        return f"CalibratedRun({str(self.run)!r}, {'; '.join(self.sentences)})"

    def _repr_html_(self) -> str:
        return NotebookBlock(str(self.run), self.sentences).render()

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, as `svertka calibrate --json` prints them.

        Returns:
            The keys run, unknown, set_images and notes.
        """
        record = self.record.model_dump(exclude={"weights_hash"})
        return {"run": str(self.run), **record, "notes": list(self.notes)}


@check_types
@with_preserved_settings
def calibrate(
    run: str | PathLike[str],
    source: str | PathLike[str] | None = None,
    *,
    unknown: str | PathLike[str] | None = None,
    keep: float = KEEP,
    new: str | PathLike[str] | None = None,
    device: str = "auto",
    threads: int | None = None,
    cache_limit: float | None = None,
    max_pixels: int | None = None,
    trust_builder: bool = False,
) -> CalibratedRun | LabelThresholds:
    """Let a run answer "unknown" and give prediction sets, and write what that needs into the run.

    An image is unknown if its unknown score exceeds a threshold. The score compares its features with those of training
    images of the run, and the threshold is chosen on its validation images. Prediction sets are calibrated on images
    that did not choose the weights: the test images of the run, or `new` images; if nothing was chosen on the
    validation images, on these, too. `svertka.train` does all this at its end.

    For a run of several labels, of which an image may have none, this chooses the threshold of each label again: that
    with the highest F1 on the validation images, or on `new` images.

    Args:
        run: The run folder.
        source: The images of the training, if they have moved. None: where they were.
        unknown: A folder of images that show none of the classes. With it, the threshold is the one at which the shares
            of validation images kept and of these images called unknown have the highest sum.
        keep: Without `unknown`, the share of the validation images that are not called unknown, 0 to 1.
        new: Labeled images that are new to the run, for prediction sets or thresholds instead of its own. Those that
            the run has seen are left out.
        device: "auto", "cpu", "cuda" or "cuda:1".
        threads: CPU threads, at least 1. None: all cores.
        cache_limit: Size limit of the image cache, GB (10⁹ bytes). None: a share of the free disk.
        max_pixels: Largest image that is decoded, pixels. None: `data.image_io.PIXEL_LIMIT`.
        trust_builder: As for `Classifier.load`.

    Returns:
        The threshold and the numbers of images; or the thresholds of the labels.

    Raises:
        UsageError: The run predicts a number, has no validation images, or gives NaN for some;
            `unknown` holds no image, or images of the run; or an option is invalid.
        RunError: The run is missing or damaged, or does not record its images.
        DataError: The images cannot be read.
        StorageError: The run cannot be written.
    """
    folder, limit = parse_path(run), parse_cache_limit_option(cache_limit)
    place, workers = choose_device(device), set_threads(threads)
    classifier = Classifier.load(folder, place, trust_builder=trust_builder, with_calibration=False)
    _check_task(classifier, unknown, keep)
    if isinstance(classifier.task, MultiLabel):
        labeled = open_images_of_run(folder, source, max_pixels) if new is None else open_source(new, to_train=False)
        return choose_label_thresholds(
            folder, classifier, labeled, "val" if new is None else "all", device=device, threads=threads,
            cache_limit=cache_limit, max_pixels=max_pixels, trust_builder=trust_builder,
        )  # fmt: skip
    dataset = open_images_of_run(folder, source, max_pixels)
    manifest = read_manifest(folder)
    if manifest is None:
        raise RunError(f"{folder} does not record its training and validation images; train again")
    examples = [] if unknown is None else read_examples(classifier, fspath(unknown), manifest, max_pixels)

    def select(opened: Dataset) -> _OwnAndNewImages:
        return _OwnAndNewImages(classifier, opened, manifest, workers, limit)

    own, notes = select(dataset), []
    if new is not None:
        opened = open_source(new, to_train=False).with_decoding(DecodingOptions.up_to(max_pixels))
        for_sets = select(opened).new
        notes = _describe_missing_classes(fspath(new), classifier.names, for_sets)
    else:
        for_sets = own.part(*find_set_parts(Run(folder)))
    train, val = own.part("train"), own.part("val")
    folds = plan_folds(own.dataset, train.indices, len(val.indices), own.digests, workers)
    calibration = fit_calibration(classifier, train, val, for_sets, examples, keep, folds)
    return CalibratedRun(folder, save_calibration(folder, calibration), tuple(notes))


def _describe_missing_classes(source: str, names: Sequence[str], images: LabeledImages) -> list[str]:
    """Return a sentence on the classes of which `images`, for prediction sets, has none, if it has some of others."""
    counts = np.bincount(images.labels[images.indices], minlength=len(names))
    missing = [name for name, count in zip(names, counts.tolist(), strict=True) if not count]
    if not missing or not len(images.indices):
        return []
    return [
        f"{source} has no new images of {join_first(missing)}: prediction sets may leave these classes out more often "
        "than stated; add images of them"
    ]


def _check_task(classifier: Classifier, unknown: str | PathLike[str] | None, keep: float) -> None:
    """Raise UsageError if the options ask for what the task of a run does not have."""
    if isinstance(classifier.task, Regression):
        raise UsageError(
            f"{classifier.origin} predicts a number, which has no probability, class or threshold to calibrate; "
            "svertka evaluate states how far it is off"
        )
    given = f"unknown={fspath(unknown)}" if unknown is not None else "" if keep == KEEP else f"keep={keep:g}"
    if given and isinstance(classifier.task, MultiLabel):
        raise UsageError(
            f"{given} is about images of none of the classes, and {classifier.origin} predicts several labels, of "
            "which an image may have none; leave it out"
        )


class _OwnAndNewImages:
    """The images of a data set by the part that they had in the training of a run."""

    def __init__(
        self, classifier: Classifier, opened: Dataset, manifest: Manifest, threads: int, cache_limit: int | None
    ) -> None:
        dataset = renumber_labels_by_class_names(classifier.names, opened)
        found = select_held_out_images(
            [classifier.origin], dataset, classifier.preprocess, "all",
            include_training=True, threads=threads, cache_limit=cache_limit,
        )  # fmt: skip
        digests = [b""] * len(dataset)
        for index, digest in zip(found.indices.tolist(), found.digests, strict=True):
            digests[index] = digest
        self.dataset, self.digests = dataset, digests
        self._rows, self._labels = found.rows, dataset.labels
        self._indices = manifest.indices(digests, dataset.parts, found.indices)
        self._is_new = found.indices[manifest.parts_of(found.digests) == ""]

    def part(self, *names: str) -> LabeledImages:
        """Return the images of these parts."""
        indices = np.sort(np.concatenate([self._indices[name] for name in names]))
        return LabeledImages(self._rows, self._labels, indices)

    @property
    def new(self) -> LabeledImages:
        """The images that the run has never seen."""
        return LabeledImages(self._rows, self._labels, self._is_new)


def plan_folds(
    dataset: Dataset, train: Ints, val_count: int, digests: list[bytes], threads: int
) -> FoldSettings | None:
    """Return how to score few training images by the other folds, if the head was computed; None of many images.

    Args:
        dataset: The images.
        train: Indices of the training images, (N,) int64.
        val_count: Number of validation images.
        digests: Content digest of each image.
        threads: Number of threads.
    """
    if not 0 < len(train) + val_count < FEW_IMAGES:
        return None
    alike = compare_in_this_process(dataset.images, digests, train, threads)
    return FoldSettings(fit_logistic_regression, group_images(dataset, digests, train, alike))


def save_calibration(folder: Path, calibration: RunCalibration) -> CalibrationRecord:
    """Write a calibration into a run: the file first, and then its record into config.json.

    Returns:
        The record.

    Raises:
        StorageError: The run cannot be written.
    """
    record = calibration.write(folder, folder / WEIGHTS)
    write_json(folder / CONFIG, read_config(folder).with_calibration(record).model_dump())
    return record


def find_set_parts(run: Run) -> tuple[str, ...]:
    """Return the parts of a run whose images calibrate prediction sets: those that did not choose the weights.

    Validation images choose the epoch where several are validated. In a run that continues the weights of another run,
    they may have chosen the epoch of that one.
    """
    validated = sum(entry["kind"] == "epoch" and entry.get("val_error") is not None for entry in run.history())
    weights = run.settings().get("weights")
    continues_a_run = weights not in (None, PRETRAINED, *WEIGHT_NAMES)
    return ("test",) if validated > 1 or continues_a_run else ("test", "val")


def describe_set_images(record: CalibrationRecord, run: str) -> str:
    """Return how many images prediction sets are calibrated on, and what to do if they are too few."""
    counted = count_with_noun(record.set_images, "image")
    if record.set_images < (needed := count_needed_images(COVERAGE)):
        return (
            f"prediction sets: {counted} for calibration, and a coverage of {COVERAGE:.0%} needs {needed}; "
            f"{advise_on_sets(run)}"
        )
    return f"prediction sets: calibrated on {counted}"
