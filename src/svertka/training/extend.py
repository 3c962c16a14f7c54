"""extend(): add classes or labels to a run by fitting its head again, on the features of its frozen layers."""

import csv
import io
import itertools
import shutil
from dataclasses import dataclass, replace
from os import PathLike, fspath
from os.path import lexists
from pathlib import Path
from typing import Any

import numpy as np

from svertka.classifier import Classifier
from svertka.data.content_hash import unwrap_subset
from svertka.data.dataset import PARTS, Dataset, FileImages
from svertka.data.image_io import DecodingOptions
from svertka.data.in_memory_sources import ARRAYS, FILES, IN_MEMORY
from svertka.data.source_opener import Source, is_path, is_same_source, open_source
from svertka.device import choose_device, set_threads, with_preserved_settings
from svertka.errors import DataError, Interrupted, RunError, UsageError
from svertka.escaping import format_command, join_first, to_printable
from svertka.evaluation.evaluation_scope import format_image_count
from svertka.evaluation.held_out import read_manifest
from svertka.files import parse_cache_limit_option, parse_path, resolve_path, write_atomic
from svertka.pages.notebook_block import NotebookBlock
from svertka.run import Run
from svertka.tasks import MultiLabel, Regression
from svertka.training.config import RunSettings
from svertka.training.extended_dataset import ExtendedDataset, extend_dataset
from svertka.training.extension_accuracy import Estimate, compare_before_and_after
from svertka.training.train import train
from svertka.transfer.freeze import ALL
from svertka.transfer.logistic_and_nearest_mean_heads import SOLVERS
from svertka.type_checking import check_types

TABLE = "images.csv"  # in the new run: the images that it was trained on, with their parts
DEFAULT_SOLVER = "logistic"


@dataclass(frozen=True, eq=False, repr=False)
class Extension:
    """A run with further classes, labels or images.

    Attributes:
        run: The new run.
        base: The run that was extended; it is not changed.
        added: The new classes or labels.
        new_images: Number of new images in each part.
        part: Part whose images judge both runs: "test", or without test images "val".
        before: Accuracy, or mean average precision, of `base` on the held-out images of its own classes or labels; None
            if it held out none.
        after: The same of `run`; new classes are further answers.
        lost: Number of these images, or of their labels, that only `base` predicts correctly.
        gained: Number of these that only `run` predicts correctly.
        added_accuracy: Accuracy of `run` on the held-out new images; or its mean average precision of new labels on all
            held-out images, or of all labels on the new ones if no label is new. None without any.
        notes: How the images were used, a sentence each.
        has_labels: Whether images have several labels, instead of one class.
    """

    run: Run
    base: str
    added: tuple[str, ...]
    new_images: dict[str, int]
    part: str
    before: Estimate | None
    after: Estimate | None
    lost: int
    gained: int
    added_accuracy: Estimate | None
    notes: tuple[str, ...]
    has_labels: bool = False

    def sentences(self) -> list[str]:
        """Return what was added, and the accuracies before and after.

        Returns:
            The counts, the accuracies on old and new classes, and the notes.
        """
        nouns, noun, counted = ("labels", "label", " labels") if self.has_labels else ("classes", "class", "")
        listed = f"new {nouns}: {join_first(self.added, 10)}" if self.added else f"no new {noun}"
        found = [f"{listed}; {format_image_count(sum(self.new_images.values()))} added"]
        if self.before is None or self.after is None:
            unknown = "mAP of" if self.has_labels else "accuracy on"
            found.append(f"{self.base} held out no images, so that the {unknown} its {nouns} is not known")
        else:
            found.append(
                f"old {nouns}: {self.before} before, {self.after} after, of {self.before.images:,} {self.part} "
                f"images; {self.lost:,}{counted} only before, {self.gained:,} only after"
            )
        if self.added_accuracy is not None:
            new = "new labels" if self.has_labels and self.added else "new images"
            found.append(f"{new}: {self.added_accuracy}, of {self.added_accuracy.images:,} {self.part} images")
        return [*found, *self.notes]

    def __repr__(self) -> str:
        return f"Extension({str(self.run.folder)!r}: {'; '.join(self.sentences()[:2])})"

    def _repr_html_(self) -> str:
        return NotebookBlock(str(self.run.folder), self.sentences()).render()

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, as `svertka extend --json` prints them.

        Returns:
            The keys run, base, added, new_images, part, before, after, lost, gained, added_accuracy and notes.
        """
        return {
            "run": str(self.run.folder),
            "base": self.base,
            "added": list(self.added),
            "new_images": self.new_images,
            "part": self.part,
            "before": self.before and self.before.to_dict(),
            "after": self.after and self.after.to_dict(),
            "lost": self.lost,
            "gained": self.gained,
            "added_accuracy": self.added_accuracy and self.added_accuracy.to_dict(),
            "notes": list(self.notes),
        }


@check_types
@with_preserved_settings
def extend(
    run: str | PathLike[str],
    source: Source,
    *,
    original: Source | None = None,
    output: str | PathLike[str] | None = None,
    columns: str | None = None,
    device: str = "auto",
    threads: int | None = None,
    cache_limit: float | None = None,
    max_pixels: int | None = None,
    trust_builder: bool = False,
) -> Extension:
    """Add the classes or labels, and the images, of a source to a run, and write the result as a new run.

    The head is fitted again to the features of the images of both, which the frozen layers of the run compute, so that
    it takes seconds. Images keep the parts that they had in the run.

    Of several labels, images of the run keep their labels, and get those that are new to it. Images count as images
    without the labels that their source does not name.

    Args:
        run: A run whose training kept layers frozen; it is not changed.
        source: Labeled images, as for `train`: a folder with a folder for each new class, which may also hold further
            images of the old classes, and those that the run knows; or a table with new labels of images of the run, or
            of further images.
        original: The images that the run was trained on, if they have moved or were in memory. None: where they were.
        output: Folder of the new run. None: that of `run` with "-extended" after its name.
        columns: Columns of a table that contain paths and labels, such as "path=file,label=class".
        device: "auto", "cpu" or "cuda".
        threads: CPU threads, at least 1. None: all cores.
        cache_limit: Size limit of the image cache, and of stored features, GB (10⁹ bytes) each. None: a share of the
            free disk.
        max_pixels: Largest image that is decoded, pixels. None: as in the training of the run.
        trust_builder: As for `Classifier.load`.

    Returns:
        The new run, and the accuracy, or mean average precision, on the held-out images of the old classes or labels
        before and after.

    Raises:
        UsageError: The run predicts a number or trained all of its layers, `source` adds nothing, or `output` exists.
        RunError: The run is missing, damaged or unfinished, or does not record its images.
        DataError: The images of the run are no longer there, a new class has none to train on, or `source` has one
            class an image and the run several labels, or the other way round.
        StorageError: The new run cannot be written.
    """
    base = Run(run)
    settings = RunSettings.of(base)
    base.result()  # raises an error if the training has not finished
    classifier = Classifier.load(base.folder, choose_device(device), trust_builder=trust_builder)
    if isinstance(classifier.task, Regression):
        raise UsageError(
            f"{base.folder} predicts a number, to which no class or label can be added; train again on all images: "
            f"{format_command('train', 'SOURCE', '--weights', base.folder)}"
        )
    _refuse_without_features(base, settings)
    manifest = read_manifest(base)
    if manifest is None:
        raise RunError(f"{base.folder} does not record which images it was trained on; train again on all images")
    workers = set_threads(threads)
    if original is None and settings.source in IN_MEMORY:
        raise UsageError(f"{base.folder} was trained on images in memory; give them again as original (--original)")
    named = settings.source if original is None else original
    decoding = DecodingOptions.up_to(max_pixels or settings.max_pixels)
    old = open_source(named, to_train=False, columns=settings.columns if original is None else None)
    if old.groups is not None:
        raise _groups_error(base, "its table has groups")
    new = open_source(source, to_train=False, columns=columns)
    for opened in (old, new):
        _check_task(classifier, opened)
    extended = extend_dataset(
        old.with_decoding(decoding), new.with_decoding(decoding), classifier.names, manifest,
        val=settings.val, test=settings.test, turn=settings.turn, threads=workers,
    )  # fmt: skip
    folder = _free_folder(base) if output is None else parse_path(output)
    same = is_path(named) and is_path(source) and is_same_source(named, source)
    dataset = extended.dataset if same else _name_source(extended.dataset, folder)
    existed = lexists(folder)
    try:
        made = train(
            dataset, weights=fspath(base.folder), unfreeze="head", head=_solver(settings), augment=False, val=0.0,
            device=device, threads=threads, cache_limit=cache_limit, max_pixels=max_pixels or settings.max_pixels,
            output=folder, trust_builder=trust_builder,
        )  # fmt: skip
        if dataset.source == str((folder / TABLE).absolute()):
            write_atomic(folder / TABLE, _table_of(dataset).encode())
        counts = _count_new_images(made, extended)
        if not extended.added and not sum(counts.values()):
            raise UsageError(
                f"{extended.dataset.source} adds nothing: the images that {base.folder} does not know cannot be read; "
                "svertka check names them; put images that can be read into the folders of their classes"
            )
        after = Classifier.load(made.folder, device, trust_builder=trust_builder)
        judged = compare_before_and_after(classifier, after, extended, workers, parse_cache_limit_option(cache_limit))
    except BaseException as error:
        if not existed:
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, Interrupted):
            raise Interrupted("stopped; nothing is kept; run the same command again", error.exit_code) from error
        raise
    return Extension(
        run=made,
        base=fspath(run),
        added=extended.added,
        new_images=counts,
        part=judged.part,
        before=judged.before,
        after=judged.after,
        lost=judged.lost,
        gained=judged.gained,
        added_accuracy=judged.added,
        notes=dataset.account.notes,
        has_labels=isinstance(classifier.task, MultiLabel),
    )


def _count_new_images(made: Run, extended: ExtendedDataset) -> dict[str, int]:
    """Return the number of new images in each part that the training of the new run could read."""
    dataset, bad = extended.dataset, {one["path"] for one in made.settings()["bad"]}
    read = [i for i in np.flatnonzero(extended.is_new).tolist() if dataset.images.name(i) not in bad]
    return {part: int((dataset.parts[read] == part).sum()) for part in PARTS}


def _check_task(classifier: Classifier, dataset: Dataset) -> None:
    """Raise DataError unless images are labeled with what a run predicts."""
    if dataset.task.kind != classifier.task.kind:
        advice = "name its column of labels: --columns labels=COLUMN" if dataset.task.is_single_label else "use another"
        raise DataError(
            f"{classifier.origin} predicts {classifier.task.phrase}, and {dataset.source} has {dataset.task.phrase}; "
            f"{advice}"
        )


def _refuse_without_features(base: Run, settings: RunSettings) -> None:
    """Raise UsageError if the run cannot be extended by its head alone."""
    again = format_command("train", "SOURCE", "--weights", base.folder)
    if settings.recipe.unfreeze == ALL:
        raise UsageError(
            f"{base.folder} trained all of its layers, so that it has no frozen features to add a class to; train on "
            f"the images of all classes: {again}"
        )
    if settings.boxes is not None:
        raise UsageError(f"{base.folder} was trained on patches of images (--boxes); train on all images: {again}")
    if settings.group is not None:
        raise _groups_error(base, f"--group {settings.group}")


def _groups_error(base: Run, why: str) -> UsageError:
    return UsageError(
        f"{base.folder} kept groups of images in one part ({why}), which extend would not; train on all images with "
        f"them: {format_command('train', 'SOURCE', '--weights', base.folder)}"
    )


def _solver(settings: RunSettings) -> str:
    return settings.recipe.head if settings.recipe.head in SOLVERS else DEFAULT_SOLVER


def _free_folder(base: Run) -> Path:
    """Return the first of NAME-extended, NAME-extended-2, … beside `base` that does not exist."""
    folder = base.folder if base.folder.name == base.name else resolve_path(base.folder)  # such as "."
    first = folder.with_name(f"{base.name}-extended")
    numbered = (first.with_name(f"{first.name}-{number}") for number in itertools.count(2))
    return next(path for path in itertools.chain([first], numbered) if not lexists(path))


def _name_source(dataset: Dataset, folder: Path) -> Dataset:
    """Return the images as the new run names them: by a table in its folder, or as images in memory."""
    files, where = unwrap_subset(dataset.images)
    if not isinstance(files, FileImages):
        return replace(dataset, source=ARRAYS)
    cells = [*(files.paths[index] for index in where.tolist()), *dataset.names]
    odd = next((cell for cell in cells if not to_printable(cell) == cell == cell.strip()), None)
    if odd is None:
        return replace(dataset, source=str((folder / TABLE).absolute()))
    note = (
        f"{TABLE} is not written, because {to_printable(odd)} cannot be in a table: later commands on the new run need "
        "its images as SOURCE; rename it to avoid this"
    )
    return replace(dataset, source=FILES, account=replace(dataset.account, notes=(*dataset.account.notes, note)))


def _table_of(dataset: Dataset) -> str:
    """Return the table of the images, with their classes or labels and their parts."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("path", "label", "part"))
    for index, part in enumerate(dataset.parts.tolist()):
        rows.writerow((dataset.images.name(index), dataset.task.format_cell(dataset.label_text(index)), part))
    return text.getvalue()
