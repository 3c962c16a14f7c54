"""Selection of the images on which runs are evaluated: by content, those that they were not trained on."""

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path, PurePath

import numpy as np
import numpy.typing as npt

from svertka.classifier import Classifier
from svertka.data.band_ranges import describe_band_mismatch
from svertka.data.content_hash import hash_images, unwrap_subset
from svertka.data.dataset import ArrayImages, Dataset, FileImages, Images, IndexedImage, Ints, Subset
from svertka.data.deduplicated_split import split_by_content_as_before
from svertka.data.hash_split import compute_dataset_fingerprint
from svertka.data.image_disk_cache import (
    SquareImages,
    find_images_with_unused_parts,
    find_misnamed_images,
    prepare_images,
)
from svertka.data.image_io import (
    describe_misnamed,
    describe_unused_parts,
    measure_intensity_range,
    measure_share_outside,
)
from svertka.data.in_memory_sources import IN_MEMORY
from svertka.data.near_duplicates import find_resembling_known_images
from svertka.data.pixel_statistics import describe_intensity_mismatch
from svertka.data.preprocessing import ImageLike, Preprocess
from svertka.data.source_opener import is_same_source, source_word
from svertka.data.split_manifest import Manifest
from svertka.errors import DataError, ImageError, RunError, UsageError
from svertka.escaping import format_command
from svertka.evaluation.evaluation_scope import EvaluationScope, format_image_count
from svertka.progress import say
from svertka.run import Run
from svertka.text_width import shorten

Flags = npt.NDArray[np.bool_]

PART_CHOICES = ("train", "val", "test", "all")
MEASURED = 100  # 16-bit images whose intensities are read
NEW = "new"  # images unknown to the run, in no part of the source


@dataclass(frozen=True, eq=False)
class ImageSelection:
    """The selected images of a data set that can be read.

    Attributes:
        rows: Their square images, by index in the data set.
        indices: Their indices (N,).
        digests: Their content hashes.
        scope: What was selected and what was left out.
    """

    rows: SquareImages
    indices: Ints
    digests: list[bytes]
    scope: EvaluationScope


def select_held_out_images(
    runs: Sequence[str | PathLike[str]],
    dataset: Dataset,
    preprocess: Preprocess,
    part: str | None,
    *,
    include_training: bool = False,
    threads: int,
    cache_limit: int | None = None,
) -> ImageSelection:
    """Select and decode the images of `dataset` on which all of `runs` can be evaluated.

    Args:
        runs: The runs.
        dataset: The data set.
        preprocess: Preprocessing of the first run.
        part: "train", "val", "test" or "all", as in the training of the runs, or as the source says for images new to
            them. None: the test images and new ones; without test images, the validation images and new ones; else all.
        include_training: Whether images that a run was trained on are selected. They are also selected by
            part="train".
        threads: Threads for decoding.
        cache_limit: Size limit of the image cache, bytes.

    Raises:
        DataError: No image can be read.
        UsageError: The runs were trained on different parts.
        NothingSelectedError: There is no such part, or all images trained the runs.
        RunError: The manifest of a run is damaged, or its training images are no longer known.
    """
    if part is not None and part not in PART_CHOICES:
        raise UsageError(f"part={shorten(part)} is not a part; use train, val, test or all")
    manifests = [read_manifest(run) for run in runs]
    by_content = [] if all(one and one.by_name for one in manifests) else hash_images(dataset.images, threads)[0]
    digests_of = [
        one.hash_images(dataset.images, threads)[0] if one and one.by_name else by_content for one in manifests
    ]
    splits = [_RunSplit.of(*one, dataset) for one in zip(runs, manifests, digests_of, strict=True)]
    contents = digests_of[0]
    chosen, training, used_part = _choose(splits, dataset.source, part, include_training)
    wanted = np.flatnonzero(chosen)
    prepared = prepare_images(
        dataset.with_intensity_range(preprocess.intensity_range),
        preprocess.resize,
        preprocess.channels,
        pad_to=preprocess.size,
        fit=preprocess.fit,
        interpolation=preprocess.interpolation,
        only=wanted,
        threads=threads,
        cache_limit=cache_limit,
    )
    good = np.array([i for i in wanted.tolist() if i not in prepared.bad], dtype=np.int64)
    if not len(good):
        raise DataError(f"{dataset.source}: no image can be read; see {_check_command(dataset.source)}")
    misnamed = describe_misnamed(find_misnamed_images(dataset.images, prepared.info))
    unused_parts = describe_unused_parts(find_images_with_unused_parts(dataset.images, prepared.info))
    for sentence in filter(None, (misnamed, unused_parts)):
        say(sentence)
    near_duplicates, not_compared = _near_duplicates(splits, dataset, contents, good, threads)
    deep = [index for index in good.tolist() if index in prepared.info and prepared.info[index].deep]
    notes = [
        next((one.note for one in splits if one.note), not_compared),
        _other_intensities(dataset.images, deep, preprocess),
    ]
    digests = [contents[i] for i in good.tolist()]
    scope = EvaluationScope(
        dataset.source,
        used_part,
        int(training.sum()),
        bool((chosen & training).any()),
        len(prepared.bad),
        near_duplicates,
        "; ".join(filter(None, notes)) or None,
        len(good) - len(set(digests)),
        tuple((dataset.images.name(index), reason) for index, reason in sorted(prepared.bad.items())),
        dataset.account,
    )
    return ImageSelection(prepared.rows, good, digests, scope)


def _choose(
    splits: Sequence["_RunSplit"], source: str, part: str | None, include_training: bool
) -> tuple[Flags, Flags, str]:
    """Return which images to evaluate, which ones trained a run, both (N,), and the part.

    Raises:
        UsageError: The runs were trained on different parts, or no image is left.
    """
    choices = [one.chosen(part, include_training) for one in splits]
    for one, choice in zip(splits, choices, strict=True):
        if part != "all" and not np.array_equal(choice.chosen, choices[0].chosen):
            raise UsageError(
                f"{splits[0].run} and {one.run} were trained on different parts of {source}; evaluate them on other "
                "images, or on --part all, which leaves out the training images of all of them"
            )
    chosen = np.logical_and.reduce([choice.chosen for choice in choices])
    training = np.logical_or.reduce([choice.training for choice in choices])
    if not chosen.any():
        raise _nothing_left(source, " and ".join(one.run for one in splits), part, int(training.sum()))
    return chosen, training, choices[0].part


def _near_duplicates(
    found: Sequence["_RunSplit"], dataset: Dataset, contents: list[bytes], judged: Ints, threads: int
) -> tuple[int | None, str | None]:
    """Count the selected images that are new to a run but look the same as its training images.

    Images of the run's own source were compared in training.

    Returns:
        The count, or None if it is unknown, and a sentence that says so.
    """
    counts, note = [], None
    for one in found:
        new = judged[one.own[judged] == ""]
        if not one.trained_on or not len(new):
            continue
        alike = find_resembling_known_images(dataset.images, contents, new, one.trained_on, threads)
        if alike is None:
            note = (
                f"{format_image_count(len(new))} could not be compared with the training images of {one.run}: "
                "if some are near-duplicates, the error is too low"
            )
        else:
            counts.append(len(alike))
    return max(counts, default=None), note


def _other_intensities(pictures: Images, deep: list[int], preprocess: Preprocess) -> str | None:
    """Return a sentence if the 16-bit images, or bands, at `deep` have other values than those of `preprocess`."""
    files, where = unwrap_subset(pictures)
    if not deep or not isinstance(files, FileImages):
        return None
    some = deep[:: -(-len(deep) // MEASURED)]
    if preprocess.bands is not None:
        decoding = files.decoding.with_intensity_range(preprocess.bands)
        shares = [measure_share_outside(files.read_bytes(int(where[index])), decoding) for index in some]
        return describe_band_mismatch([one for one in shares if one is not None])
    ranges = [measure_intensity_range(files.read_bytes(int(where[index])), files.decoding) for index in some]
    said = describe_intensity_mismatch([one for one in ranges if one is not None], preprocess.deep_range)
    return said and f"{format_image_count(len(deep))} judged have 16 bits and {said}"


def read_manifest(run: str | PathLike[str]) -> Manifest | None:
    """Return the manifest of a run; None for pretrained weights and runs without one.

    Raises:
        RunError: The manifest is damaged.
    """
    path = Run(run).manifest
    return Manifest.read(path) if path.exists() else None


class TrainingImageFilter:
    """Decides for single images whether a run may be evaluated on them, and counts training images.

    Args:
        run: The run. A Classifier has no manifest, so that every image is allowed.
        include_training: Whether training images are allowed.
    """

    def __init__(self, run: str | PathLike[str] | Classifier, *, include_training: bool) -> None:
        self._manifest = None if isinstance(run, Classifier) else read_manifest(run)
        self._include, self._training = include_training, 0
        self._parts: set[str] = set()

    def is_allowed(self, image: ImageLike | IndexedImage) -> bool:
        """Return whether the run may be evaluated on `image`.

        Raises:
            ImageError: The image cannot be read from disk.
        """
        digest = b"" if self._manifest is None else compute_content_hash(image, self._manifest)
        part = str(self._manifest.parts_of([digest])[0]) if self._manifest is not None else ""
        self._training += part == "train"
        if part == "train" and not self._include:
            return False
        self._parts.add(part)
        return True

    def scope(self, source: str) -> EvaluationScope:
        """Return the scope of the images of `source` that were allowed so far."""
        known = self._parts - {""}
        if not known:
            part = "all" if self._manifest is None else NEW
        else:
            part = next(iter(known)) if len(self._parts) == 1 else "held-out" if "train" not in known else "all"
        return EvaluationScope(source, part, self._training, self._include and self._training > 0)


def compute_content_hash(image: ImageLike | IndexedImage, manifest: Manifest | None = None) -> bytes:
    """Return the content hash of an image as in a data set; empty for a PIL image, which has no file.

    With a manifest that identifies files by name, it is the digest under which that knows the image.
    """
    images: Images | None = None
    if isinstance(image, IndexedImage):
        images = Subset(image.images, np.array([image.index]))
    elif isinstance(image, str | PathLike):
        images = FileImages(Path(), [fspath(image)])
    elif isinstance(image, np.ndarray) and image.dtype == np.uint8:
        images = ArrayImages(np.ascontiguousarray(image, np.uint8)[None], "")
    if images is None:
        return b""
    if manifest is None or not manifest.by_name:
        return images.digest(0)
    digests, bad = manifest.hash_images(images, 1)
    if bad:
        raise ImageError(bad[0])
    return digests[0]


@dataclass(frozen=True, eq=False)
class _PartSelection:
    """A part of the data set.

    Attributes:
        part: Name of the part.
        chosen: Which images belong to it, (N,) bool.
        training: Which would belong to it but trained the network, (N,) bool.
    """

    part: str
    chosen: Flags
    training: Flags


@dataclass(frozen=True, eq=False)
class _RunSplit:
    """What is known about the images of a data set, N of them, from the training of one run.

    Attributes:
        run: The run.
        own: Part of the run in which each image was, (N,) str; "" for new images.
        named: Part that the source names, (N,) str; "" for none.
        trained_on: Content hashes of all training images.
        note: A sentence about what is unknown.
    """

    run: str
    own: npt.NDArray[np.str_]
    named: npt.NDArray[np.str_]
    trained_on: frozenset[bytes]
    note: str | None = None

    @classmethod
    def of(
        cls, run: str | PathLike[str], manifest: Manifest | None, contents: list[bytes], dataset: Dataset
    ) -> "_RunSplit":
        """Return what the manifest says of images with these digests."""
        note = None
        if manifest is None:
            manifest, note = _reconstruct_manifest(run, dataset, contents)
        own = manifest.parts_of(contents) if manifest is not None else np.full(len(dataset), "", "<U5")
        return cls(fspath(run), own, dataset.parts, frozenset() if manifest is None else manifest.trained_on, note)

    def chosen(self, part: str | None, include_training: bool) -> _PartSelection:
        """Return the images of `part`; see `select_held_out_images`."""
        new = self.own == ""
        trained = self.own == "train"
        effective = np.where(new, self.named, self.own)
        fresh = new & (self.named == "")
        everything = np.ones(len(new), bool)
        if part == "train":
            chosen = effective == "train"
            return _PartSelection("train", chosen, chosen & trained)
        if part == "all":
            name, chosen, might = "all", everything & ~trained, everything
        elif part is not None:
            name, chosen, might = part, effective == part, self.named == part
        else:
            held = next((name for name in ("test", "val") if (effective == name).any()), "")
            chosen, might = ((effective == held) | fresh, self.named != "train") if held else (~trained, everything)
            name = self._name(held, fresh, trained)
        training = trained & might
        if include_training:
            chosen = chosen | training
            name = "all" if chosen.all() else name
        return _PartSelection(name, chosen, training)

    def _name(self, held: str, fresh: Flags, trained: Flags) -> str:
        if held:
            return "held-out" if fresh.any() else held
        return NEW if trained.any() else "all"


def _reconstruct_manifest(
    run: str | PathLike[str], dataset: Dataset, contents: list[bytes]
) -> tuple[Manifest | None, str | None]:
    """Split `dataset` as the training of a run without manifest did.

    Returns:
        The manifest if the fingerprint of the training confirms it, else None and the reason.

    Raises:
        RunError: The data set of the training has changed.
    """
    if not Run(run).folder.is_dir():
        return None, None  # pretrained weights
    unknown = (
        f"{fspath(run)} does not record which images it was trained on; if some of these are among them, its error is "
        "higher than shown"
    )
    if not Run(run).training.exists():
        return None, unknown  # saved by Classifier.save
    settings = Run(run).settings()
    bad = {PurePath(str(one.get("path"))).name for one in settings.get("bad") or ()}
    names = [PurePath(dataset.images.name(i)).name if bad else "" for i in range(len(dataset))]
    good = np.array([i for i, name in enumerate(names) if contents[i] and name not in bad], dtype=np.int64)
    shares = float(settings["val"]), float(settings["test"])
    indices = split_by_content_as_before(dataset, contents, good, *shares, turn=int(settings.get("turn", 0))).indices
    if compute_dataset_fingerprint(dataset, contents, good, indices) == settings["fingerprint"]:
        return Manifest.of(contents, indices), None
    if is_same_source(str(settings["source"]), dataset.source):
        raise RunError(
            f"{fspath(run)} does not record which images it was trained on, and {dataset.source} has changed since; "
            "restore the images, evaluate the run on others, or train again"
        )
    return None, unknown


def _check_command(source: str) -> str:
    return "svertka.check(source)" if source in IN_MEMORY else format_command("check", source_word(source))


class NothingSelectedError(UsageError):
    """No image of a data set belongs to the part."""


def _nothing_left(source: str, runs: str, part: str | None, training: int) -> NothingSelectedError:
    if training:
        return NothingSelectedError(
            f"{source} holds no new image for {runs}: {format_image_count(training)} trained the network; name other "
            "images, or add --include-training"
        )
    return NothingSelectedError(f"{source} has no {part} part; leave --part out to evaluate on all new images")
