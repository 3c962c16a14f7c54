"""The images of a run together with new ones: those of the run keep their parts, and the new ones are split alike."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from svertka.data.content_hash import unwrap_subset
from svertka.data.dataset import PARTS, ArrayImages, Dataset, FileImages, Images, Ints
from svertka.data.deduplicated_split import group_related_images, split_dataset
from svertka.data.folder_and_table_sources import natural_sort_key
from svertka.data.folder_layout import normalize_class_name
from svertka.data.near_duplicates import find_near_duplicates
from svertka.data.split_manifest import Manifest
from svertka.errors import DataError, UsageError
from svertka.escaping import join_first
from svertka.evaluation.evaluate import renumber_labels_by_class_names
from svertka.evaluation.evaluation_scope import format_image_count


@dataclass(frozen=True, eq=False)
class ExtendedDataset:
    """The images of a run and new ones.

    Attributes:
        dataset: All of them; each is in "train", "val" or "test". Its classes or labels are those of the run, then new
            ones.
        is_new: Which of them are new to the run, (N,) bool.
        added: The new classes or labels.
    """

    dataset: Dataset
    is_new: npt.NDArray[np.bool_]
    added: tuple[str, ...]


def extend_dataset(
    old: Dataset,
    new: Dataset,
    names: tuple[str, ...],
    manifest: Manifest,
    *,
    val: float,
    test: float,
    turn: int,
    threads: int,
) -> ExtendedDataset:
    """Add new images to those of a run.

    Images that the run knows are recognized by content and keep their part. A new image that looks the same as one of
    the run's gets its part, and the others are split as in a training.

    Images of several labels that the run knows keep their labels, and get those that are new to the run. A label that a
    source does not name is absent from its images.

    Args:
        old: The source that the run was trained on.
        new: The images to add; those that the run knows only add labels that are new to it.
        names: The classes or labels of the run, in the order of its scores.
        manifest: The contents that the run knows.
        val, test: Shares of the new images that are held out.
        turn: Number of the random split.
        threads: Threads for reading.

    Raises:
        DataError: Images of the run are missing in `old`, or `new` has no image that can be read.
        UsageError: `new` adds nothing, or cannot be combined with `old`.
    """
    old, old_contents = _take_known(old, manifest, threads)
    given, given_contents, notes = _take_readable(new, manifest, threads)
    is_known = np.array([content in manifest.contents for content in given_contents], dtype=bool)
    if not len(given):
        raise DataError(f"{new.source} holds no image that can be read; {'; '.join(notes)}")
    new, new_contents = _take(given, given_contents, ~is_known)
    if old.task.is_single_label:
        old = renumber_labels_by_class_names(names, old)
        places, added, spelled = _number_classes(names, new)
        labels = np.concatenate([old.labels, places[new.labels]])
    else:
        labels, added, spelled = _combine_labels(names, (old, old_contents), (given, given_contents), is_known)
    if not len(new) and not added:
        raise UsageError(
            f"{new.source} adds nothing: the run knows all of its {format_image_count(len(given))}; put images of a "
            "new class into a folder of their own"
            if old.task.is_single_label
            else f"{new.source} adds nothing: the run knows all of its {format_image_count(len(given))} and labels; "
            "add a label to its table, or images"
        )
    if is_known.any():
        notes.append(
            f"{format_image_count(int(is_known.sum()))} of {new.source} are of the run already and keep their parts"
        )
    images = _concatenate(old, new)
    is_new = np.arange(len(labels)) >= len(old)
    contents = [*old_contents, *new_contents]
    parts = np.concatenate([old.parts, np.full(len(new), "", "<U5")])
    dataset = replace(
        new,
        names=(*names, *added),
        images=images,
        labels=labels,
        parts=parts,
        account=replace(new.account, notes=(*new.account.notes, *spelled, *notes)),
        groups=None,
    )
    everything = np.arange(len(labels), dtype=np.int64)
    alike = find_near_duplicates(images, contents, everything, threads) or []
    _follow_look_alikes(parts, contents, alike)
    rest = np.flatnonzero(parts == "")
    if len(rest):
        parts[rest] = _split(dataset, contents, alike, rest, new, manifest, (val, test), turn)
    kept = np.flatnonzero(parts != "")  # others are copies in another part
    return ExtendedDataset(dataset.take(kept), is_new[kept], added)


def _take_known(source: Dataset, manifest: Manifest, threads: int) -> tuple[Dataset, list[bytes]]:
    """Return the images of the run, each in its part, and their contents.

    Raises:
        DataError: Some are missing.
    """
    contents, bad = manifest.hash_images(source.images, threads)
    good = np.array([index for index in range(len(source)) if index not in bad], dtype=np.int64)
    indices = manifest.indices(contents, source.parts, good)
    found = {contents[index] for some in indices.values() for index in some.tolist()}
    if missing := len(manifest.contents - found):
        raise DataError(
            f"{missing:,} of {format_image_count(len(manifest.contents))} of the run are no longer in {source.source}; "
            "put them back, or name their place with --original"
        )
    parts = np.full(len(source), "", "<U5")
    for part, some in indices.items():
        parts[some] = part
    return _take(replace(source, parts=parts), contents, parts != "")


def _take(source: Dataset, contents: Sequence[bytes], kept: npt.NDArray[np.bool_]) -> tuple[Dataset, list[bytes]]:
    """Return those images of `source` with their contents that are `kept`, (N,)."""
    indices = np.flatnonzero(kept).astype(np.int64)
    return source.take(indices), [contents[index] for index in indices.tolist()]


def _take_readable(source: Dataset, manifest: Manifest, threads: int) -> tuple[Dataset, list[bytes], list[str]]:
    """Return the readable images, their contents, and what was left out."""
    contents, bad = manifest.hash_images(source.images, threads)
    notes = []
    if bad:
        first = min(bad)
        notes.append(
            f"left out: {format_image_count(len(bad))} of {source.source} that cannot be read: "
            f"{source.images.name(first)}: {bad[first]}"
        )
    return *_take(source, contents, np.array([index not in bad for index in range(len(source))], dtype=bool)), notes


def _combine_labels(
    names: tuple[str, ...],
    known: tuple[Dataset, Sequence[bytes]],
    given: tuple[Dataset, Sequence[bytes]],
    is_known: npt.NDArray[np.bool_],
) -> tuple[npt.NDArray[np.float32], tuple[str, ...], list[str]]:
    """Return the labels of the images of the run and of the new ones, (N, K), the labels that are added, and notes.

    Args:
        names: The labels of the run.
        known: The images of the run, and their contents.
        given: The readable images of the new source, and their contents.
        is_known: Which of these are of the run, (n,).
    """
    (old, old_contents), (new, new_contents) = known, given
    places, first, notes = _number_classes(names, old)
    more, second, spelled = _number_classes((*names, *first), new)
    notes += spelled
    added = (*first, *second)
    of_old = _place_labels(old, places, len(names) + len(added))
    of_new = _place_labels(new, more, len(names) + len(added))
    named = np.sort(more[_has_images(new)])
    shared = named[named < len(names)]
    rows, differing = dict(zip(new_contents, of_new, strict=True)), 0
    for row, content in zip(of_old, old_contents, strict=True):
        if (other := rows.get(content)) is not None:
            differing += bool((row[shared] != other[shared]).any())
            row[len(names) :] = np.maximum(row[len(names) :], other[len(names) :])
    if differing:
        notes.append(
            f"{format_image_count(differing)} of the run with other labels in {new.source} keep those of the run"
        )
    counted = ", ".join(
        f"{name} {int(count):,}" for name, count in zip(added, of_old[:, len(names) :].sum(0), strict=True)
    )
    if added:
        notes.append(f"images of the run that have the new labels: {counted}; the others count as images without them")
    unnamed = [name for place, name in enumerate(names) if place not in shared]
    if unnamed and not is_known.all():
        notes.append(f"new images count as images without what {new.source} does not name: {join_first(unnamed)}")
    return np.concatenate([of_old, of_new[~is_known]]), added, notes


def _has_images(dataset: Dataset) -> npt.NDArray[np.bool_]:
    """Return which classes or labels have images, (K,)."""
    return np.asarray(dataset.counts() > 0)


def _place_labels(dataset: Dataset, places: Ints, count: int) -> npt.NDArray[np.float32]:
    """Return the labels of a data set, (N, count), each in its place."""
    used = _has_images(dataset)
    labels = np.zeros((len(dataset), count), np.float32)
    labels[:, places[used]] = dataset.labels[:, used]
    return labels


def _number_classes(names: tuple[str, ...], new: Dataset) -> tuple[Ints, tuple[str, ...], list[str]]:
    """Return the place of each class or label of `new` among all, those that are added, and notes on spellings."""
    simplified = [normalize_class_name(name) for name in names]
    counts, notes = new.counts(), []
    number = {name: place for place, name in enumerate(names)}
    for name, count in zip(new.names, counts.tolist(), strict=True):
        simple = normalize_class_name(name)
        if count and name not in number and simplified.count(simple) == 1:
            number[name] = simplified.index(simple)
            noun = "class" if new.task.is_single_label else "label"
            notes.append(f"the {noun} {name} is taken for {names[number[name]]}")
    used = [name for name, count in zip(new.names, counts.tolist(), strict=True) if count]
    added = tuple(sorted((name for name in used if name not in number), key=natural_sort_key))
    number |= {name: len(names) + place for place, name in enumerate(added)}
    return np.array([number.get(name, 0) for name in new.names], np.int64), added, notes


def _concatenate(old: Dataset, new: Dataset) -> Images:
    """Return the images of both in one sequence.

    Raises:
        UsageError: They are not both files, or both arrays of one size.
    """
    (first, of_first), (second, of_second) = unwrap_subset(old.images), unwrap_subset(new.images)
    if isinstance(first, FileImages) and isinstance(second, FileImages):
        paths = [
            str((images.root / images.paths[index]).absolute())
            for images, indices in ((first, of_first), (second, of_second))
            for index in indices.tolist()
        ]
        return FileImages(Path(), paths, second.decoding)
    if isinstance(first, ArrayImages) and isinstance(second, ArrayImages):
        if first.array.shape[1:] != second.array.shape[1:]:
            height, width, channels = first.array.shape[1:]
            raise UsageError(
                f"{new.source} has arrays of {'×'.join(map(str, second.array.shape[1:]))}, and the run was trained on "
                f"{height}×{width}×{channels}; give arrays of that shape"
            )
        return ArrayImages(np.concatenate([first.array[of_first], second.array[of_second]]), second.label)
    raise UsageError(
        f"{old.source} and {new.source} are not both image files or both arrays; save the images of one as files"
    )


def _follow_look_alikes(parts: npt.NDArray[np.str_], contents: list[bytes], alike: Sequence[Sequence[int]]) -> None:
    """Give each image without a part that of a look-alike, in place; "train" if it has several."""
    numbers = group_related_images(np.arange(len(parts), dtype=np.int64), contents, alike)
    part_of: dict[int, str] = {}
    for number, part in zip(numbers.tolist(), parts.tolist(), strict=True):
        if part:
            part_of[number] = min((part_of.get(number, part), part), key=PARTS.index)
    for index in np.flatnonzero(parts == "").tolist():
        parts[index] = part_of.get(int(numbers[index]), "")


def _split(
    dataset: Dataset,
    contents: Sequence[bytes],
    alike: Sequence[Sequence[int]],
    rest: Ints,
    new: Dataset,
    manifest: Manifest,
    shares: tuple[float, float],
    turn: int,
) -> npt.NDArray[np.str_]:
    """Return the parts of the images at `rest`, the last of which are those of `new`; "" for copies in another part."""
    of_new = rest - (len(dataset) - len(new))
    groups = None if new.groups is None else new.groups[of_new]
    place_of = {index: place for place, index in enumerate(rest.tolist())}
    split = split_dataset(
        replace(dataset.take(rest), parts=new.parts[of_new], groups=groups),
        [contents[index] for index in rest.tolist()],
        np.arange(len(rest), dtype=np.int64),
        *shares,
        alike=[[place_of[one] for one in group] for group in alike if all(one in place_of for one in group)],
        turn=turn,
        inherited=manifest.inherited,
    )
    parts = np.full(len(rest), "", "<U5")
    for part, some in split.indices.items():
        parts[some] = part
    return parts
