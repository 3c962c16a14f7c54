"""The images of a training: opened, decoded once, without unreadable ones, and split into train, val and test."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from svertka import distributed
from svertka.data.augmentation import Augmentation
from svertka.data.band_detection import measure_bands
from svertka.data.band_ranges import BandRanges
from svertka.data.box_annotations import BACKGROUND, Annotation, check_box_classes, match_to_images, read_boxes
from svertka.data.class_shortcuts import FileProperties, describe_shortcuts
from svertka.data.content_hash import hash_in_source, is_identified_by_name
from svertka.data.dataset import BAD_SHARE, ArrayImages, Dataset, Ints, get_decoding
from svertka.data.deduplicated_split import DatasetSplit, split_dataset
from svertka.data.gpu_jpeg import check_gpu_decoding
from svertka.data.hash_split import compute_dataset_fingerprint
from svertka.data.image_disk_cache import (
    PreparedImages,
    SquareImages,
    decode_on_gpu,
    find_images_with_unused_parts,
    find_misnamed_images,
    is_streamed,
    prepare_images,
)
from svertka.data.image_io import NOT_INSTALLED, describe_misnamed, describe_unused_parts
from svertka.data.large_split import MOST, fingerprint_large_dataset, split_large_dataset
from svertka.data.loader import BatchLoader
from svertka.data.near_duplicates import find_near_duplicates
from svertka.data.packed_image import ImageInfo
from svertka.data.pixel_statistics import choose_intensity_range, measure_statistics
from svertka.data.preprocessing import Fit, Preprocess, discarded_share
from svertka.data.rgb_conversion import Range
from svertka.data.sharded_images import LANES, ShardImages, find_shards
from svertka.data.split_manifest import Manifest
from svertka.data.unreadable_rows import read_readable_rows
from svertka.errors import DataError
from svertka.escaping import join_first, to_printable
from svertka.localization.box_labeled_patches import PatchDataset, cut_training_patches
from svertka.models.registry import Model
from svertka.progress import say
from svertka.tasks import MultiLabel, Regression
from svertka.training.recipe import Recipe

LISTED = 20  # unreadable images named in a message
LISTED_IN_ERROR = 3  # the same in an error, which is one sentence
EVAL_BATCH_SIZE = 128  # largest batch in evaluation, and
EVAL_BATCH_PIXELS = 2**20  # its largest number of pixels: larger batches would set the peak of memory
DEFAULT_SIZE = 64  # pixels; input of networks that take any size, unless the images are smaller

MEASURED = 1024  # images that are decoded at each read, of which statistics are measured
CROPPED = 0.05  # smallest discarded share of an image that is reported
MAX_WEIGHT = 8.0  # of a whole image among patches, relative to the mean; with more, training diverges
BY_NAME = (  # with the number of files
    "{:,} files are too many to be read before training: they are told apart by folder, name and size, so that copies "
    "under other names are not noticed, and an image that cannot be read is left out when it is met"
)
NOT_COMPARED = "near-duplicates are not searched for in shards; svertka shard keeps them in one part"
FEW = 20  # training images of a class, below which results depend on which images these are


@dataclass(frozen=True, eq=False)
class DataSplits:
    """The images of a training, split into parts, and their square versions.

    Attributes:
        dataset: The images, N of them.
        indices: The indices (n,) of the images in "train", "val" and "test".
        train_rows: Squares from which training takes its crops, (N, S, S, C) uint8.
        eval_rows: Squares as the finished classifier sees them.
        bad: Path and reason of each unreadable image.
        unstored: Why some squares are not in the cache on disk, a sentence; None if all are.
        fingerprint: Hash of the contents, labels and parts of the images.
        digests: Content hash of each image, or that of name and size.
        manifest: These hashes by part, for the run.
        patches: The dataset's images, if they are patches; else None.
        image_info: Facts about images in files, by index.
    """

    dataset: Dataset
    indices: dict[str, Ints]
    train_rows: SquareImages
    eval_rows: SquareImages
    bad: list[dict[str, str]]
    unstored: str | None
    fingerprint: str
    digests: list[bytes]
    manifest: Manifest
    patches: PatchDataset | None = None
    image_info: Mapping[int, ImageInfo] = field(default_factory=dict)

    @property
    def feature_keys(self) -> list[bytes]:
        """What features of each image are stored under: its digest, with its source if that is not of its content."""
        if not self.manifest.by_name:
            return self.digests
        return hash_in_source(self.digests, self.dataset.source)

    @property
    def shards(self) -> ShardImages | None:
        """The images in shards; None for other images."""
        return find_shards(self.dataset.images)

    @property
    def intensity_range(self) -> Range | BandRanges | None:
        """The 16-bit values that are black and white in the rows, or those of each band; None: all 16 bits."""
        return get_decoding(self.dataset.images).intensity_range

    def describe_misnamed(self) -> str | None:
        """Return a sentence on files whose suffix names another format; None without such files."""
        return describe_misnamed(find_misnamed_images(self.dataset.images, self.image_info))

    def describe_fit(self, preprocess: Preprocess) -> list[tuple[str, str]]:
        """Return label and value of the line that says how much of each image the network sees; [] if nearly all."""
        if preprocess.fit != "crop":
            how = "with black borders" if preprocess.fit == "pad" else "with other proportions"
            return [("fit", f"{preprocess.fit}: all of each image is shown, {how}")]
        share = min(1.0, preprocess.size / preprocess.resize)
        lost = {index: discarded_share(*info.size, share) for index, info in self.image_info.items()}
        if self.patches is not None or not lost or max(lost.values()) < CROPPED:
            return []
        worst = max(lost, key=lost.__getitem__)
        text = (
            f"crop: {np.median(list(lost.values())):.0%} of the median image is not shown, {lost[worst]:.0%} of "
            f"{self.dataset.images.name(worst)}; --fit pad or --fit squeeze shows all"
        )
        return [("fit", to_printable(text))]

    def sizes(self) -> dict[str, int]:
        """Return the number of images in each part."""
        return {part: len(indices) for part, indices in self.indices.items()}

    def whole_images(self) -> "DataSplits":
        """Return the splits without patches of parts of images, as `evaluate` and `predict` see them."""
        if self.patches is None:
            return self
        is_whole = self.patches.is_whole
        return replace(self, indices={part: some[is_whole[some]] for part, some in self.indices.items()})

    def with_gpu_decoding(self, device: torch.device) -> "DataSplits":
        """Return the splits with a training set whose JPEGs are decoded on the GPU `device`.

        Evaluation decodes on the CPU, as every later command does.

        Raises:
            UsageError: They cannot be decoded there.
        """
        check_gpu_decoding(device)
        rows = decode_on_gpu(self.train_rows, device)
        if rows is self.train_rows:
            say("--gpu-decode changes nothing: decoded images are cached")
        return replace(self, train_rows=rows)

    @property
    def final_part(self) -> str:
        """The part on which the finished network is evaluated: test, or without it val, or without that train."""
        return next(name for name in ("test", "val", "train") if len(self.indices[name]))

    def class_counts(self, part: str) -> Ints:
        """Return the number of images of each class or with each label in `part`, (K,)."""
        return self.dataset.take(self.indices[part]).counts()

    @property
    def patches_only(self) -> tuple[str, ...]:
        """The classes that no whole image belongs to: background, if objects have two classes or more."""
        labels = self.whole_images().dataset.labels
        whole = np.concatenate([labels[some] for some in self.whole_images().indices.values()])
        names = self.dataset.names
        if self.patches is None or len(names) < 3 or (whole == names.index(BACKGROUND)).any():
            return ()
        return (BACKGROUND,)

    def row_weights(self, *, by_class: bool) -> torch.Tensor | None:
        """Return the weight of each row in the loss, (N,) float32, 1 on average over the training set.

        Among patches, all whole images together have the weight of all other patches together, but each at most
        `MAX_WEIGHT`: they are so few that they would hardly be learned otherwise.

        Args:
            by_class: Whether weights are inversely proportional to the frequency of the class.

        Returns:
            The weights; None if all are the same.
        """
        train, weights = self.indices["train"], np.ones(len(self.dataset.labels))
        if self.patches is None and not by_class:
            return None
        is_whole = np.zeros(len(weights), bool) if self.patches is None else self.patches.is_whole
        parts, whole = train[~is_whole[train]], train[is_whole[train]]
        if by_class:
            counts = np.bincount(self.dataset.labels[parts], minlength=len(self.dataset.names))
            weights[parts] = 1 / counts[self.dataset.labels[parts]]
        share = min(0.5, MAX_WEIGHT * len(whole) / len(train)) if len(parts) else 1.0
        for some, of_all in ((parts, 1 - share), (whole, share)):
            weights[some] *= of_all * len(train) / max(weights[some].sum(), 1e-12)
        return torch.from_numpy(weights).float()

    def notes(self) -> list[str]:
        """Return sentences on what of the source is not used and why, and on anything else that is unusual."""
        return [*self.dataset.account.sentences(), *describe_unreadable(self.bad)]

    def small_class_warning(self, *, is_repeated: bool = False) -> str | None:
        """Return a warning if the smallest class has so few training images that the result depends on which they are.

        Of labels that all training images have, it says that nothing is learned.

        Args:
            is_repeated: Whether this is one of several splits, whose errors show how much.
        """
        counts = self.class_counts("train")
        smallest = int(counts.argmin())
        if isinstance(self.dataset.task, MultiLabel) and (counts == len(self.indices["train"])).any():
            everywhere = [name for name, count in zip(self.dataset.names, counts, strict=True) if count == counts.max()]
            return f"all training images have {join_first(everywhere)}, of which a network then learns nothing"
        if counts[smallest] >= FEW:
            return None
        images = "1 training image" if counts[smallest] == 1 else f"{counts[smallest]} training images"
        may_repeat = not is_repeated and self.dataset.task.is_single_label
        advice = "; --repeats 10 --test 0.3 shows how much" if may_repeat else ""
        return f"{self.dataset.names[smallest]} has {images}: the result depends on which these are{advice}"

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
        """Return the training set in shuffled batches, augmented as in `recipe`."""
        return BatchLoader(
            self.train_rows,
            self.dataset.labels,
            self.indices["train"],
            preprocess,
            batch_size=recipe.batch_size,
            seed=seed,
            shuffle=True,
            augmentations=recipe.augmentations,
            mixing=recipe.mixing,
            weights=self.row_weights(by_class=recipe.class_weights),
            device=place,
            memory_format=layout,
            prefetch=prefetch,
            rank=distributed.rank(),
            world=distributed.world_size(),
            permute=np.random.Generator.permutation if self.shards is None else self.shards.shuffle,
            lanes=1 if self.shards is None else LANES,
            request=None if self.shards is None else self.shards.request,
        )

    def first_training_images(self, preprocess: Preprocess, count: int) -> torch.Tensor:
        """Return the first `count` training images as the finished classifier sees them, (N, C, S, S) float32."""
        rows, _ = read_readable_rows(self.eval_rows, self.indices["train"][:count])
        squares = torch.from_numpy(rows)
        return preprocess.normalize(squares.permute(0, 3, 1, 2))

    def eval_batches(
        self, part: str, preprocess: Preprocess, place: torch.device, layout: torch.memory_format
    ) -> BatchLoader:
        """Return the images of `part` in order, as the finished classifier sees them."""
        return BatchLoader(
            self.eval_rows,
            self.dataset.labels,
            self.indices[part],
            preprocess,
            batch_size=min(EVAL_BATCH_SIZE, max(1, EVAL_BATCH_PIXELS // preprocess.size**2)),
            device=place,
            memory_format=layout,
            rank=distributed.rank(),
            world=distributed.world_size(),
            request=None if self.shards is None else self.shards.request,
        )


def describe_unreadable(bad: Sequence[Mapping[str, str]]) -> list[str]:
    """Return a sentence on images that cannot be read, given path and reason of each; [] without such images."""
    if not bad:
        return []
    images = "1 image" if len(bad) == 1 else f"{len(bad)} images"
    return [to_printable(f"left out: {images} that cannot be read: {_listed(bad)}")]


def _listed(bad: Sequence[Mapping[str, str]], count: int = LISTED) -> str:
    """Return the first `count` paths with their reasons."""
    return join_first([f"{one['path']}: {one['reason']}" for one in bad], count, "; ")


def decode_and_split(
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
    resplit: Callable[[list[bytes], Ints], DatasetSplit] | None = None,
) -> DataSplits:
    """Decode every image once and split the images into parts.

    Args:
        dataset: The images.
        preprocess: The preprocessing; its statistics are not used.
        stored_side: Side of the squares from which training takes its crops, pixels.
        val: Share held out for validation if the dataset has no val part, 0 to 1.
        test: Share held out for testing if the dataset has no test part, 0 to 1.
        threads: Threads for decoding.
        limit: Size limit of the image cache, bytes. None: a share of the free disk.
        turn: Number of the random split.
        survey: Whether to measure the range of 16-bit values, or of those of bands; otherwise it is that of
            `preprocess`.
        boxed: Whether `replace_images_by_patches` follows, which adds a class for background.
        inherited: Content hashes of the images that the weights were trained on before.
        resplit: Returns the parts of a resumed run, given the content hash of each image and the readable indices.

    Raises:
        UsageError: The shares leave nothing to train on.
        DataError: There is only one class, a class has no training images, or more than a tenth of the images cannot
            be read.
    """
    dataset, bands = dataset.with_intensity_range(preprocess.intensity_range), preprocess.bands
    survey = survey and not (bands is not None and bands.dtype == "uint8")  # bytes stay as they are

    def squares(resize: int, pad_to: int = 0, *, survey: bool = False) -> PreparedImages:
        channels, fit, interpolation = preprocess.channels, preprocess.fit, preprocess.interpolation
        return prepare_images(
            dataset,
            resize,
            channels,
            pad_to,
            fit=fit,
            interpolation=interpolation,
            threads=threads,
            cache_limit=limit,
            survey=survey,
        )

    prepared = squares(preprocess.resize, preprocess.size, survey=survey)
    bad = [{"path": dataset.images.name(i), "reason": reason} for i, reason in sorted(prepared.bad.items())]
    _check_readable(dataset, bad)
    good = np.array([i for i in range(len(dataset)) if i not in prepared.bad], dtype=np.int64)
    ranges = {index: info.intensities for index, info in prepared.info.items() if info.intensities is not None}
    if resplit is not None:
        division = resplit(prepared.digests, good)
    else:
        visible = dataset.with_intensity_range(choose_intensity_range(list(ranges.values()))) if ranges else dataset
        division = _split_without_duplicates(
            visible, prepared.digests, good, val, test, threads=threads, turn=turn, inherited=inherited
        )
    if is_identified_by_name(dataset.images):
        division = replace(division, notes=(*division.notes, BY_NAME.format(len(dataset))))
    account = division.add_to(dataset.account)
    pages = describe_unused_parts(find_images_with_unused_parts(dataset.images, prepared.info))
    warnings = (*account.warnings, *_describe_shortcuts(dataset, prepared.info), *filter(None, [pages]))
    dataset = replace(dataset, account=replace(account, warnings=warnings))
    if ranges:  # decode 16-bit images with the range of the training images
        of_train = [ranges[index] for index in division.indices["train"].tolist() if index in ranges]
        dataset = dataset.with_intensity_range(choose_intensity_range(of_train))
    elif survey and bands is not None:
        dataset = dataset.with_intensity_range(measure_bands(dataset, bands, division.indices["train"]))
    if ranges or (survey and bands is not None):
        prepared = squares(preprocess.resize, preprocess.size)
    for_crops = prepared
    if stored_side != preprocess.side:
        for_crops = prepared.with_resize(stored_side) or squares(stored_side)
    fingerprint = fingerprint_large_dataset if len(good) > MOST else compute_dataset_fingerprint
    splits = DataSplits(
        dataset,
        division.indices,
        for_crops.rows,
        prepared.rows,
        bad,
        for_crops.unstored,
        fingerprint(dataset, prepared.digests, good, division.indices),
        prepared.digests,
        Manifest.of(prepared.digests, division.indices, inherited, by_name=is_identified_by_name(dataset.images)),
        image_info=prepared.info,
    )
    if resplit is None and not boxed:  # a resumed run whose images have changed is refused later
        _check_classes(splits)
    return splits


def _describe_shortcuts(dataset: Dataset, infos: Mapping[int, ImageInfo]) -> list[str]:
    """Return sentences on properties of the image files that tell the class."""
    if not dataset.task.is_single_label:
        return []
    labels = [int(dataset.labels[index]) for index in infos]
    files = [FileProperties(one.format, 16 if one.deep else 8, (one.size[1], one.size[0])) for one in infos.values()]
    return describe_shortcuts(dataset.names, labels, files)


def _check_readable(dataset: Dataset, bad: Sequence[Mapping[str, str]]) -> None:
    """Raise DataError if more than a tenth of the images cannot be read though a decoder is installed."""
    broken = [one for one in bad if one["reason"] not in NOT_INSTALLED.values()]
    if len(broken) > BAD_SHARE * len(dataset):
        sentence = f"{len(broken)} of {len(dataset)} images in {dataset.source} cannot be read, more than a tenth"
        raise DataError(f"{sentence}: {_listed(broken, LISTED_IN_ERROR)}; fix or remove them")


def _split_without_duplicates(
    dataset: Dataset,
    digests: list[bytes],
    good: Ints,
    val: float,
    test: float,
    *,
    threads: int,
    turn: int,
    inherited: frozenset[bytes],
) -> DatasetSplit:
    """Split the readable images so that near-duplicates stay in one part, if there are few enough to compare.

    Images in shards are not compared, because that would read every shard before training.
    """
    in_shards = find_shards(dataset.images) is not None
    if len(good) > MOST:
        return split_large_dataset(dataset, digests, good, val, test, turn=turn, inherited=inherited)
    is_compared = not in_shards and not is_streamed(dataset.images)
    alike = find_near_duplicates(dataset.images, digests, good, threads) if is_compared else None
    division = split_dataset(dataset, digests, good, val, test, alike=alike or [], turn=turn, inherited=inherited)
    if in_shards:
        return replace(division, notes=(*division.notes, *([NOT_COMPARED] if (dataset.parts == "").any() else [])))
    if alike is not None:
        return division
    note = "near-duplicates are not searched for among so many images; exact copies are"
    return replace(division, notes=(*division.notes, note))


def replace_images_by_patches(
    splits: DataSplits, boxes: str, preprocess: Preprocess, *, seed: int, threads: int
) -> DataSplits:
    """Replace images by patches labeled from bounding boxes, with one more class for background.

    Patches of one image stay in one part.

    Args:
        splits: The images.
        boxes: As for `data.box_annotations.read_boxes`.
        preprocess: The preprocessing.
        seed: Seed of the choice of patches.
        threads: Threads for decoding.

    Raises:
        DataError: No box belongs to an image, a box lies outside its image or has an unknown class, or a class has no
            patches.
        UsageError: `boxes` does not exist.
    """
    images = splits.dataset
    names = tuple(name for name in images.names if name != BACKGROUND)
    annotations = read_boxes(boxes)
    check_box_classes(annotations, names)
    found = match_to_images(annotations, [images.images.name(index) for index in range(len(images))])
    if not found:
        raise DataError(
            f"{boxes} has boxes without an image: {annotations[0].image if annotations else 'none'} and all others "
            f"are not in {images.source}; check the file names"
        )
    used = np.concatenate([some for some in splits.indices.values() if len(some)])
    patches = cut_training_patches(images, used, found, splits.eval_rows, preprocess, seed=seed, threads=threads)
    image_of = patches.places[:, 0]
    digests = [patches.digest_in(splits.digests[image], index) for index, image in enumerate(image_of.tolist())]
    indices = {part: np.flatnonzero(np.isin(image_of, some)) for part, some in splits.indices.items()}
    notes = (*images.account.notes, *_describe_unmatched(annotations, found, splits))
    dataset = Dataset(
        images.source,
        (*names, BACKGROUND),
        patches,
        patches.labels,
        np.full(len(patches), "", "<U5"),
        account=replace(images.account, notes=notes),
    )
    result = replace(
        splits,
        dataset=dataset,
        indices=indices,
        train_rows=patches,
        eval_rows=patches,
        unstored=None,
        fingerprint=compute_dataset_fingerprint(dataset, digests, np.arange(len(patches)), indices),
        digests=digests,
        patches=patches,
    )
    _check_classes(result)
    return result


def _describe_unmatched(
    annotations: Sequence[Annotation], found: Mapping[int, Annotation], splits: DataSplits
) -> list[str]:
    """Return sentences on annotations without an image, and on images without annotations."""
    matched = {id(annotation) for annotation in found.values()}
    lost = [annotation.image for annotation in annotations if id(annotation) not in matched]
    notes = []
    if lost:
        notes.append(f"not used: {len(lost)} of {len(annotations)} annotations match no image ({join_first(lost)})")
    dataset = splits.dataset
    used = [index for some in splits.indices.values() for index in some.tolist()]
    background = dataset.names.index(BACKGROUND) if BACKGROUND in dataset.names else -1
    bare = [index for index in used if index not in found and dataset.labels[index] != background]
    if bare:
        named = join_first([dataset.images.name(index) for index in bare])
        notes.append(f"{len(bare)} of {len(used)} images have no boxes, so that only their class is learned ({named})")
    return notes


def choose_input_size_and_channels(
    dataset: Dataset,
    model: Model,
    size: int | None,
    weights: Preprocess | None = None,
    fit: Fit = "crop",
    bands: BandRanges | None = None,
) -> tuple[int, int, int]:
    """Choose the input of a network for these images.

    Args:
        dataset: The images.
        model: The network.
        size: Requested height and width of the input, pixels. None: that of the weights, of the network, or of the
            images.
        weights: The preprocessing that the weights expect. None: fresh weights.
        fit: How images are made square. Images that are not cropped to a square are not cropped afterwards either.
        bands: The bands of the images, which are the channels. None: gray or RGB.

    Returns:
        Height and width of the input, side of the square that it is cropped from, and number of channels.
    """
    if weights is not None:
        size, proportion = size or weights.size, weights.resize / weights.size
        channels = weights.channels if bands is None else len(bands)
        return size, round(size * proportion) if fit == "crop" else size, channels
    array = dataset.images.array if isinstance(dataset.images, ArrayImages) else None
    if (
        model.mean is not None or model.reference is not None
    ):  # a network with its own normalization has its own channels and size
        channels, native = model.channels, model.size
    else:
        channels = 3 if array is None else array.shape[3]
        native = DEFAULT_SIZE if array is None else max(min(DEFAULT_SIZE, *array.shape[1:3]), model.min_size)
    size, channels = size or native, channels if bands is None else len(bands)
    return size, model.resize_for(size) if fit == "crop" else size, channels


def add_training_statistics(
    parts: DataSplits, preprocess: Preprocess, facts: Model, recipe: Recipe, given: Preprocess | None, seed: int
) -> tuple[Preprocess, Recipe]:
    """Add the statistics of the training set to the preprocessing and to the recipe's augmentations.

    Args:
        parts: The images.
        preprocess: The preprocessing without statistics.
        facts: The network.
        recipe: The recipe.
        given: The preprocessing that the weights expect. None: fresh weights.
        seed: Seed of the training, by whose first epoch images in shards are sampled.

    Returns:
        The preprocessing and the recipe.
    """
    measured = parts.indices["train"]
    if is_streamed(parts.dataset.images):  # those that training reads first
        shuffle = np.random.Generator.permutation if parts.shards is None else parts.shards.shuffle
        measured = shuffle(np.random.default_rng((seed, 0)), measured)[:MEASURED]
    statistics = measure_statistics(parts.train_rows, measured)
    mean, std = statistics.mean, statistics.std
    if given is not None and (given.bands is not None or preprocess.bands is None):
        mean, std = given.mean, given.std
    elif preprocess.bands is not None:
        pass  # neither weights nor papers know these bands
    elif facts.mean is not None and facts.std is not None:
        mean, std = (facts.mean,) * preprocess.channels, (facts.std,) * preprocess.channels
    elif recipe.normalize == "mean":
        std = (1 / 255,) * preprocess.channels
    fitted = tuple(one.fit(statistics, preprocess.interpolation) for one in recipe.augmentations)
    known = {"mean": mean, "std": std, "intensity_range": parts.intensity_range}
    return preprocess.model_copy(update=known), recipe.with_changes(augmentations=fitted)


def stored_side_for_crops(preprocess: Preprocess, augmentations: tuple[Augmentation, ...]) -> int:
    """Return the side of the squares that the augmentations need, pixels."""
    return max([preprocess.side, *(one.stored_side(preprocess) for one in augmentations)])


def _check_classes(parts: DataSplits) -> None:
    """Raise DataError unless there are two classes or more and each has training images, or numbers that differ."""
    dataset = parts.dataset
    if isinstance(dataset.task, Regression):
        if len(np.unique(dataset.labels[parts.indices["train"]])) < 2:
            raise DataError(
                f"{dataset.source} has the same {dataset.names[0]} for all training images; check its table"
            )
        return
    if len(dataset.names) < 2:
        raise DataError(f"{dataset.source} has only one class, {dataset.names[0]}; a classifier needs two or more")
    counts = parts.class_counts("train")
    empty = [name for name, count in zip(dataset.names, counts, strict=True) if not count]
    if empty:
        raise DataError(
            f"{dataset.source}: no usable training image of {join_first(empty, 5)}; add some or remove the class"
        )
