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
from svertka.evaluation.evaluate import renumber_labels_by_class_names
from svertka.evaluation.evaluation_scope import format_image_count


@dataclass(frozen=True, eq=False)
class ExtendedDataset:
    """The images of a run and new ones.

    Attributes:
        dataset: All of them; each is in "train", "val" or "test". Its classes are those of the run, then new ones.
        is_new: Which of them are new to the run, (N,) bool.
        added: The new classes.
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

    Args:
        old: The source that the run was trained on.
        new: The images to add; those that the run knows are left out.
        names: The classes of the run, in the order of its scores.
        manifest: The contents that the run knows.
        val, test: Shares of the new images that are held out.
        turn: Number of the random split.
        threads: Threads for reading.

    Raises:
        DataError: Images of the run are missing in `old`.
        UsageError: `new` adds nothing, or cannot be combined with `old`.
    """
    old, old_contents = _take_known(old, names, manifest, threads)
    new, new_contents, notes = _take_new(new, manifest, threads)
    places, added, spelled = _number_classes(names, new)
    images = _concatenate(old, new)
    labels = np.concatenate([old.labels, places[new.labels]])
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


def _take_known(
    source: Dataset, names: tuple[str, ...], manifest: Manifest, threads: int
) -> tuple[Dataset, list[bytes]]:
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
    kept = np.flatnonzero(parts != "")
    known = replace(source, parts=parts).take(kept)
    return renumber_labels_by_class_names(names, known), [contents[index] for index in kept.tolist()]


def _take_new(source: Dataset, manifest: Manifest, threads: int) -> tuple[Dataset, list[bytes], list[str]]:
    """Return the readable images that the run does not know, their contents, and what was left out.

    Raises:
        UsageError: There are none.
    """
    contents, bad = manifest.hash_images(source.images, threads)
    of_run = manifest.contents
    kept = [index for index, content in enumerate(contents) if index not in bad and content not in of_run]
    if not kept:
        raise UsageError(
            f"{source.source} adds nothing: the run knows all of its {format_image_count(len(contents))}; put images "
            "of a new class into a folder of their own"
        )
    notes = []
    if known := len(contents) - len(kept) - len(bad):
        notes.append(f"{format_image_count(known)} of {source.source} are of the run already and keep their parts")
    if bad:
        first = min(bad)
        notes.append(
            f"left out: {format_image_count(len(bad))} of {source.source} that cannot be read: "
            f"{source.images.name(first)}: {bad[first]}"
        )
    return source.take(np.array(kept, np.int64)), [contents[index] for index in kept], notes


def _number_classes(names: tuple[str, ...], new: Dataset) -> tuple[Ints, tuple[str, ...], list[str]]:
    """Return the number of each class of `new` among all, the classes that are added, and notes on spellings."""
    simplified = [normalize_class_name(name) for name in names]
    counts, notes = new.counts(), []
    number = {name: place for place, name in enumerate(names)}
    for name, count in zip(new.names, counts.tolist(), strict=True):
        simple = normalize_class_name(name)
        if count and name not in number and simplified.count(simple) == 1:
            number[name] = simplified.index(simple)
            notes.append(f"the class {name} is taken for {names[number[name]]}")
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
