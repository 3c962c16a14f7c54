"""The pictures of a training: opened, decoded once, cleaned of bad ones and divided into train, val and test."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from svertka import distributed
from svertka.data.augmentation import Augmentation
from svertka.data.bounding_boxes import BACKGROUND, Annotation, check_classes, match_to_images, read_boxes
from svertka.data.class_shortcuts import FileProperties, describe_shortcuts
from svertka.data.dataset import BAD_SHARE, ArrayImages, Dataset, Ints, decoding_of
from svertka.data.deduplicated_split import DatasetSplit, split_dataset
from svertka.data.image_cache import PreparedImages, Rows, find_misnamed, prepare_images
from svertka.data.image_io import NOT_INSTALLED, describe_misnamed
from svertka.data.loader import BatchLoader
from svertka.data.near_duplicates import find_near_duplicates
from svertka.data.pixel_modes import Range
from svertka.data.pixel_statistics import choose_intensity_range, measure_statistics
from svertka.data.preprocessing import Fit, Preprocess, discarded_share
from svertka.data.row_format import ImageInfo
from svertka.data.split import compute_fingerprint
from svertka.data.split_manifest import Manifest
from svertka.errors import DataError
from svertka.escaping import join_first, to_printable
from svertka.localization.patch_dataset import PatchDataset, cut_patches
from svertka.models.registry import Model
from svertka.training.recipe import Recipe

LISTED = 20  # bad pictures that a message names
SCORED_AT_ONCE = 128  # pictures a batch where nothing is learnt, or fewer of so many pixels together;
SCORED_PIXELS = 2**20  # more would set the peak of memory
FOLDER_SIZE = 64  # pixels, on a folder of photographs, of networks that take any size

CROPPED = 0.05  # share of a picture; what is cut off less nobody need hear of
HEAVIEST = 8.0  # what a whole image counts beside the mean of 1; single ones with more make training diverge
FEW = 20  # training pictures of a class, below which results vary with the pictures by chance


@dataclass(frozen=True, eq=False)
class Parts:
    """Which pictures serve what, and their squares.

    `indices`: of the pictures in "train", "val" and "test". `drawn`: squares that training takes its crops from;
    `shown`: squares as the finished classifier sees them. `bad`: what was left out, as path and reason. `unstored`: why
    some squares are not on disk, a sentence, if so. `digests`: of the contents of all pictures of `dataset`. `patches`:
    these pictures, where they are patches of others. `manifest`: the contents of each part, for the run to keep.
    `facts`: of pictures in files, by index, what they are.
    """

    dataset: Dataset
    indices: dict[str, Ints]
    drawn: Rows
    shown: Rows
    bad: list[dict[str, str]]
    unstored: str | None
    fingerprint: str
    digests: list[bytes]
    manifest: Manifest
    patches: PatchDataset | None = None
    facts: Mapping[int, ImageInfo] = field(default_factory=dict)

    @property
    def intensity_range(self) -> Range | None:
        """The 16-bit values that are black and white in the rows; None: all 16 bits."""
        return decoding_of(self.dataset.images).intensity_range

    def misnamed(self) -> str | None:
        """The sentence on files that are of another format than their name says; None if there are none."""
        return describe_misnamed(find_misnamed(self.dataset.images, self.facts))

    def shown_part(self, preprocess: Preprocess) -> list[tuple[str, str]]:
        """The line of the plan on how much of the pictures the network is shown; none where it is all, or nearly."""
        if preprocess.fit != "crop":
            how = "black around it" if preprocess.fit == "pad" else "its proportions changed"
            return [("fit", f"{preprocess.fit}: all of each picture is shown, {how}")]
        share = min(1.0, preprocess.size / preprocess.resize)
        lost = {index: discarded_share(*facts.size, share) for index, facts in self.facts.items()}
        if self.patches is not None or not lost or max(lost.values()) < CROPPED:
            return []
        worst = max(lost, key=lost.__getitem__)
        text = (
            f"crop: {np.median(list(lost.values())):.0%} of the median picture is not shown, {lost[worst]:.0%} of "
            f"{self.dataset.images.name(worst)}; --fit pad or --fit squeeze shows all"
        )
        return [("fit", to_printable(text))]

    def sizes(self) -> dict[str, int]:
        """Pictures in each part."""
        return {part: len(indices) for part, indices in self.indices.items()}

    def of_whole_images(self) -> "Parts":
        """The same without patches that show a part of an image only: what `evaluate` and `predict` judge by."""
        if self.patches is None:
            return self
        is_whole = self.patches.is_whole
        return replace(self, indices={part: some[is_whole[some]] for part, some in self.indices.items()})

    @property
    def judged(self) -> str:
        """The part by which a finished training is judged: test, or else val, or else train."""
        return next(name for name in ("test", "val", "train") if len(self.indices[name]))

    def counts(self, part: str) -> Ints:
        """Pictures of each class in `part`, (classes,)."""
        return np.bincount(self.dataset.labels[self.indices[part]], minlength=len(self.dataset.names))

    @property
    def patches_only(self) -> tuple[str, ...]:
        """The classes that no whole image is of: background, where objects are of two classes or more."""
        labels = self.of_whole_images().dataset.labels
        whole = np.concatenate([labels[some] for some in self.of_whole_images().indices.values()])
        names = self.dataset.names
        if self.patches is None or len(names) < 3 or (whole == names.index(BACKGROUND)).any():
            return ()
        return (BACKGROUND,)

    def weights(self, *, by_class: bool) -> torch.Tensor | None:
        """What each row counts in the loss, (rows,) float32, 1 on average over the training part; None: all the same.

        `by_class`: inverse to the frequency of its class. Where patches are learned from, they count so among
        themselves, and all whole images together count as much as all patches that show a part of one, or each of them
        `HEAVIEST`: there are so many more of the latter that whole images would hardly be learned.
        """
        train, weights = self.indices["train"], np.ones(len(self.dataset.labels))
        if self.patches is None and not by_class:
            return None
        is_whole = np.zeros(len(weights), bool) if self.patches is None else self.patches.is_whole
        parts, whole = train[~is_whole[train]], train[is_whole[train]]
        if by_class:
            counts = np.bincount(self.dataset.labels[parts], minlength=len(self.dataset.names))
            weights[parts] = 1 / counts[self.dataset.labels[parts]]
        share = min(0.5, HEAVIEST * len(whole) / len(train)) if len(parts) else 1.0
        for some, of_all in ((parts, 1 - share), (whole, share)):
            weights[some] *= of_all * len(train) / max(weights[some].sum(), 1e-12)
        return torch.from_numpy(weights).float()

    def not_used(self) -> list[str]:
        """What of the source is not used and why, and what else has to be said of it, a sentence each."""
        return [*self.dataset.account.sentences(), *unread(self.bad)]

    def few(self, *, is_repeated: bool = False) -> str | None:
        """A warning, if a class has so few training pictures that which they are decides what is learnt.

        `is_repeated`: this is one of several divisions, so that their errors will show how much.
        """
        counts = self.counts("train")
        smallest = int(counts.argmin())
        if counts[smallest] >= FEW:
            return None
        pictures = "1 training picture" if counts[smallest] == 1 else f"{counts[smallest]} training pictures"
        advice = "" if is_repeated else "; --repeats 10 --test 0.3 shows how much"
        return f"{self.dataset.names[smallest]} has {pictures}: what so few teach depends on which they are{advice}"

    def training_batches(
        self,
        preprocess: Preprocess,
        recipe: Recipe,
        seed: int,
        place: torch.device,
        layout: torch.memory_format = torch.contiguous_format,
        *,
        prefetch: bool = False,
    ) -> BatchLoader:
        """The training pictures, shuffled and augmented as `recipe` says."""
        return BatchLoader(
            self.drawn,
            self.dataset.labels,
            self.indices["train"],
            preprocess,
            batch_size=recipe.batch_size,
            seed=seed,
            shuffle=True,
            augmentations=recipe.augmentations,
            weights=self.weights(by_class=recipe.class_weights),
            device=place,
            memory_format=layout,
            prefetch=prefetch,
            rank=distributed.rank(),
            world=distributed.world_size(),
        )

    def sample(self, preprocess: Preprocess, count: int) -> torch.Tensor:
        """The first `count` training pictures as the finished classifier sees them, (N, C, size, size) float32."""
        squares = torch.from_numpy(self.shown[self.indices["train"][:count]])
        return preprocess.normalise(squares.permute(0, 3, 1, 2))

    def batches(
        self, part: str, preprocess: Preprocess, place: torch.device, layout: torch.memory_format
    ) -> BatchLoader:
        """The pictures of `part` as the finished classifier sees them, in order."""
        return BatchLoader(
            self.shown,
            self.dataset.labels,
            self.indices[part],
            preprocess,
            batch_size=min(SCORED_AT_ONCE, max(1, SCORED_PIXELS // preprocess.size**2)),
            device=place,
            memory_format=layout,
            rank=distributed.rank(),
            world=distributed.world_size(),
        )


def unread(bad: Sequence[Mapping[str, str]]) -> list[str]:
    """The sentence on images that cannot be read, of path and reason each; none if there are none."""
    if not bad:
        return []
    images = "1 image" if len(bad) == 1 else f"{len(bad)} images"
    return [to_printable(f"left out: {images} that cannot be read: {_listed(bad)}")]


def _listed(bad: Sequence[Mapping[str, str]]) -> str:
    """The first of them, with their reasons."""
    return join_first([f"{one['path']}: {one['reason']}" for one in bad], LISTED, "; ")


def divide(
    dataset: Dataset,
    preprocess: Preprocess,
    stored_side: int,
    val: float,
    test: float,
    *,
    threads: int,
    limit: int | None,
    turn: int = 0,
    survey: bool = False,
    boxed: bool = False,
    inherited: frozenset[bytes] = frozenset(),
    as_divided: Callable[[list[bytes], Ints], DatasetSplit] | None = None,
) -> Parts:
    """Decode every picture of `dataset` once and divide them; `val`, `test`: shares where the source has no such part.

    `turn`: another number divides them otherwise. `stored_side`: pixels of the squares that training draws its crops
    from. `limit`: bytes of the cache on disk. `survey`: find out which values pictures of 16 bits use; else
    `preprocess` says it. `inherited`: digests of what the weights were trained on before.
    `boxed`: whether patches are to be cut from them, whose background is one more class.
    `as_divided`: for a run that goes on, its parts by the digests of all contents and the indices of what can be read.

    Raises:
        DataError: one class only, a class without pictures, or more than a tenth of the pictures bad.
    """
    dataset = dataset.with_intensity_range(preprocess.intensity_range)

    def squares(resize: int, pad_to: int = 0, *, survey: bool = False) -> PreparedImages:
        """Those of the pictures as they are decoded now."""
        channels, fit = preprocess.channels, preprocess.fit
        return prepare_images(
            dataset, resize, channels, pad_to, fit=fit, threads=threads, cache_limit=limit, survey=survey
        )

    seen = squares(preprocess.resize, preprocess.size, survey=survey)
    bad = [{"path": dataset.images.name(i), "reason": reason} for i, reason in sorted(seen.bad.items())]
    spoilt = [one for one in bad if one["reason"] not in NOT_INSTALLED.values()]
    if len(spoilt) > BAD_SHARE * len(dataset):
        sentence = f"{len(spoilt)} of {len(dataset)} pictures in {dataset.source} are bad, more than a tenth"
        raise DataError(f"{sentence}: {_listed(spoilt)}")
    good = np.array([i for i in range(len(dataset)) if i not in seen.bad], dtype=np.int64)
    deep = {index: facts.intensities for index, facts in seen.info.items() if facts.intensities is not None}
    if as_divided is not None:
        division = as_divided(seen.digests, good)
    else:
        visible = dataset.with_intensity_range(choose_intensity_range(list(deep.values()))) if deep else dataset
        alike = find_near_duplicates(visible.images, seen.digests, good, threads)
        division = split_dataset(
            dataset, seen.digests, good, val, test, alike=alike or [], turn=turn, inherited=inherited
        )
        if alike is None:
            notes = (*division.notes, "near-duplicates are not looked for among so many images; exact copies are")
            division = replace(division, notes=notes)
    account = division.add_to(dataset.account)
    warnings = (*account.warnings, *_shortcuts(dataset, seen.info))
    dataset = replace(dataset, account=replace(account, warnings=warnings))
    if deep:  # decoded now that it is known what is black and what is white, of those that are learnt from
        found = choose_intensity_range([deep[index] for index in division.indices["train"].tolist() if index in deep])
        dataset = dataset.with_intensity_range(found)
        seen = squares(preprocess.resize, preprocess.size)
    drawn = seen if stored_side == preprocess.side else squares(stored_side)
    parts = Parts(
        dataset,
        division.indices,
        drawn.rows,
        seen.rows,
        bad,
        drawn.unstored,
        compute_fingerprint(dataset, seen.digests, good, division.indices),
        seen.digests,
        Manifest.of(seen.digests, division.indices, inherited),
        facts=seen.info,
    )
    if as_divided is None and not boxed:  # a run that goes on is refused as a whole if its images have changed
        _need_classes(parts)
    return parts


def _shortcuts(dataset: Dataset, infos: Mapping[int, ImageInfo]) -> list[str]:
    """Return the sentences on properties of the image files that tell the class."""
    labels = [int(dataset.labels[index]) for index in infos]
    files = [FileProperties(one.format, 16 if one.deep else 8, (one.size[1], one.size[0])) for one in infos.values()]
    return describe_shortcuts(dataset.names, labels, files)


def in_patches(parts: Parts, boxes: str, preprocess: Preprocess, *, seed: int, threads: int) -> Parts:
    """The patches of the pictures of `parts`, labelled from `boxes`, in their stead; one more class is background.

    `boxes`: as for `data.bounding_boxes.read_boxes`. PatchDataset of one image are in one part.

    Raises:
        DataError: no box is of a picture, or one is outside of it, or of an unknown class; no patch for a class.
        UsageError: `boxes` is not there.
    """
    pictures = parts.dataset
    names = tuple(name for name in pictures.names if name != BACKGROUND)
    annotations = read_boxes(boxes)
    check_classes(annotations, names)
    found = match_to_images(annotations, [pictures.images.name(index) for index in range(len(pictures))])
    if not found:
        raise DataError(
            f"{boxes} has boxes without a picture: {annotations[0].image if annotations else 'none'} and all others "
            f"are not in {pictures.source}; check the file names"
        )
    every = np.concatenate([some for some in parts.indices.values() if len(some)])
    patches = cut_patches(pictures, every, found, parts.shown, preprocess, seed=seed, threads=threads)
    of_picture = patches.places[:, 0]
    digests = [patches.digest_in(parts.digests[picture], index) for index, picture in enumerate(of_picture.tolist())]
    indices = {part: np.flatnonzero(np.isin(of_picture, some)) for part, some in parts.indices.items()}
    dataset = Dataset(
        pictures.source,
        (*names, BACKGROUND),
        patches,
        patches.labels,
        np.full(len(patches), "", "<U5"),
        account=replace(pictures.account, notes=(*pictures.account.notes, *_unmatched(annotations, found, parts))),
    )
    made = replace(
        parts,
        dataset=dataset,
        indices=indices,
        drawn=patches,
        shown=patches,
        unstored=None,
        fingerprint=compute_fingerprint(dataset, digests, np.arange(len(patches)), indices),
        digests=digests,
        patches=patches,
    )
    _need_classes(made)
    return made


def _unmatched(annotations: Sequence[Annotation], found: Mapping[int, Annotation], parts: Parts) -> list[str]:
    """Sentences on annotations without an image, and on images without one."""
    known = {id(annotation) for annotation in found.values()}
    lost = [annotation.image for annotation in annotations if id(annotation) not in known]
    said = []
    if lost:
        said.append(f"not used: {len(lost)} of {len(annotations)} annotations are of no image ({join_first(lost)})")
    every = [index for some in parts.indices.values() for index in some.tolist()]
    background = parts.dataset.names.index(BACKGROUND) if BACKGROUND in parts.dataset.names else -1
    bare = [index for index in every if index not in found and parts.dataset.labels[index] != background]
    if bare:
        named = join_first([parts.dataset.images.name(index) for index in bare])
        said.append(f"{len(bare)} of {len(every)} images have no boxes, only their class is learned ({named})")
    return said


def natural_input(
    dataset: Dataset, model: Model, size: int | None, weights: Preprocess | None = None, fit: Fit = "crop"
) -> tuple[int, int, int]:
    """(size, resize, channels) of the input of `model` on these pictures; `size`: the one asked for, if any.

    `weights`: what the weights that it starts from expect, if it does. Pictures that are not cropped to a square are
    not cropped after that, either: `resize` is then `size`.
    """
    if weights is not None:
        size, proportion = size or weights.size, weights.resize / weights.size
        return size, round(size * proportion) if fit == "crop" else size, weights.channels
    array = dataset.images.array if isinstance(dataset.images, ArrayImages) else None
    if model.mean is not None:  # its own normalisation goes with its own channels and size
        channels, native = model.channels, model.size
    else:
        channels = 3 if array is None else array.shape[3]
        native = FOLDER_SIZE if array is None else max(array.shape[1], model.min_size)
    size = size or native
    return size, model.resize_for(size) if fit == "crop" else size, channels


def measured(
    parts: Parts, preprocess: Preprocess, facts: Model, recipe: Recipe, given: Preprocess | None
) -> tuple[Preprocess, Recipe]:
    """The preprocessing and the augmentations with what they have to know of the training pictures.

    `given`: the preprocessing that the weights expect from which training starts, if it starts from any.
    """
    statistics = measure_statistics(parts.drawn, parts.indices["train"])
    mean, std = statistics.mean, statistics.std
    if given is not None:
        mean, std = given.mean, given.std
    elif facts.mean is not None and facts.std is not None:
        mean, std = (facts.mean,) * preprocess.channels, (facts.std,) * preprocess.channels
    elif recipe.normalise == "mean":
        std = (1 / 255,) * preprocess.channels
    fitted = tuple(one.fit(statistics) for one in recipe.augmentations)
    known = {"mean": mean, "std": std, "intensity_range": parts.intensity_range}
    return preprocess.model_copy(update=known), recipe.with_changes(augmentations=fitted)


def stored_side(preprocess: Preprocess, augmentations: tuple[Augmentation, ...]) -> int:
    """Side of the squares from which the augmentations take what they want, pixels."""
    return max([preprocess.side, *(one.stored_side(preprocess) for one in augmentations)])


def _need_classes(parts: Parts) -> None:
    dataset = parts.dataset
    if len(dataset.names) < 2:
        raise DataError(f"{dataset.source} holds one class only, {dataset.names[0]}; a classifier needs two or more")
    counts = parts.counts("train")
    empty = [name for name, count in zip(dataset.names, counts, strict=True) if not count]
    if empty:
        raise DataError(
            f"{dataset.source}: no usable training picture of {', '.join(empty[:5])}; add some or remove the folder"
        )
