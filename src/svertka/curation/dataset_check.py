"""Report on a data set before training: its contents, and by path what is wrong with it."""

from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

import numpy as np

from svertka.curation.check_page import write_check_page
from svertka.curation.confirmed_labels import name_in_source, read_confirmed
from svertka.curation.dataset_findings import DuplicateGroup, Findings
from svertka.curation.label_check import LabelFindings, check_labels
from svertka.curation.unreadable_images import name_unreadable
from svertka.data.band_detection import find_bands
from svertka.data.builtin import NAMES
from svertka.data.class_shortcuts import FileProperties, describe_shortcuts
from svertka.data.content_hash import hash_names, unwrap_subset
from svertka.data.dataset import BAD_SHARE, PARTS, ArrayImages, Dataset, EncodedImages, FileImages, Images, Ints, Pixels
from svertka.data.deduplicated_split import DatasetSplit, split_dataset
from svertka.data.folder_and_table_sources import FolderListing, list_folder
from svertka.data.groups_by_filename_regex import assign_groups
from svertka.data.hash_split import VAL_SHARE
from svertka.data.image_io import (
    NOT_INSTALLED,
    DecodingOptions,
    decode_to_pixels,
    describe_unused_parts,
    detect_misnamed,
    measure_intensity_range,
    read_header,
)
from svertka.data.in_memory_sources import IN_MEMORY, TorchDatasetImages
from svertka.data.label_tables import parse_columns
from svertka.data.large_split import MOST, split_large_dataset
from svertka.data.perceptual_hash import SIDE, group_look_alikes, make_thumbnail
from svertka.data.pixel_statistics import choose_intensity_range
from svertka.data.preprocessing import discarded_share
from svertka.data.rgb_conversion import FULL, Range
from svertka.data.shard_storage import is_shard_source
from svertka.data.sharded_images import ClassNames
from svertka.data.source_opener import Source, check_exists, names_error, open_source
from svertka.device import set_threads, with_preserved_settings
from svertka.errors import DataError, ImageError, UsageError
from svertka.escaping import escape_undecodable
from svertka.files import parse_cache_limit_option
from svertka.output_paths import HTML, prepare_output_file
from svertka.progress import progress
from svertka.tasks import Regression
from svertka.type_checking import check_types

AT_ONCE = 64  # images per thread between two updates of the progress bar
FEWEST = 10  # images needed to call one unusual
USUAL, RARE = 0.9, 0.02  # shares of images with the usual mode, and with a rare one
TINY = 100  # times smaller than the median
SAMPLED = 1000  # images that a fast check reads
ARRAY_MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True, eq=False)
class _Seen:
    """Facts about one image."""

    digest: bytes
    mode: str
    size: tuple[int, int]
    turned: bool
    thumbnail: Pixels
    misnamed: str | None = None
    intensities: Range | None = None
    file: FileProperties | None = None
    has_unused_parts: bool = False


@check_types
@with_preserved_settings
def check(
    source: Source,
    val: float = VAL_SHARE,
    test: float = 0.0,
    *,
    columns: str | None = None,
    names: ClassNames | None = None,
    group: str | None = None,
    max_pixels: int | None = None,
    labels: bool = False,
    fast: bool = False,
    output: str | PathLike[str] | None = None,
    overwrite: bool = False,
    device: str = "auto",
    threads: int | None = None,
    cache_limit: float | None = None,
) -> Findings:
    """Report what a source of labeled images contains and what is wrong with it.

    Args:
        source: Labeled images, as for `train`.
        val: Share that training would hold out for validation, 0 to 1.
        test: Share that training would hold out for testing, 0 to 1.
        columns: Columns of a table that contain paths and labels, such as "path=file,label=class".
        names: Class names of shards, as for `train`.
        group: Regular expression; images in whose file names it finds the same text stay in one part.
        max_pixels: Largest image to read, pixels. None: 100 million.
        labels: Whether to look for label errors, images that no class fits, and classes that are confused. The first
            time this takes about as long as one epoch of training with frozen layers.
        fast: Whether to read only a sample of 1,000 images. Copies are then only found among files of the same folder
            name, name and size, or by the index of shards, and near-duplicates are not searched for.
        output: HTML file that shows the images of these findings, to confirm or correct their labels; it needs
            `labels`. None: no file.
        overwrite: Whether to replace an existing `output` that svertka did not write.
        device: "auto", "cpu" or "cuda", for `labels`.
        threads: CPU threads, at least 1. None: all cores.
        cache_limit: Size limit of the image cache, and of stored features, GB (10⁹ bytes) each. None: a share of the
            free disk.

    Returns:
        The findings, which are complete whatever is wrong with the images.

    Raises:
        UsageError: There is no such source, `group` does not tell groups apart, or `output` is given without `labels`
            or would replace another file.
        DataError: The source cannot be listed: a built-in data set or a table is damaged.
        StorageError: `output` cannot be written.
        FetchError: The built-in data set cannot be downloaded.
    """
    if output is not None and not labels:
        raise UsageError(f"output={output} shows label errors; give labels=True (--labels), too")
    if fast and labels:
        raise UsageError("labels are checked on all images, and fast reads a sample; leave one of the two out")
    page = None if output is None else prepare_output_file(output, HTML, overwrite=overwrite)
    limit = parse_cache_limit_option(cache_limit)
    threads = set_threads(threads)
    dataset, listing, problems = _open(source, columns, names, fast=fast)
    if group is not None:
        dataset = assign_groups(dataset, group)
    dataset = dataset.with_decoding(DecodingOptions.up_to(max_pixels))
    dataset = dataset.with_intensity_range(find_bands(dataset))
    chosen = _sample(dataset) if fast else range(len(dataset))
    seen, bad = _look_at(dataset, chosen, threads)
    contents = [seen[index].digest if index in seen else b"" for index in range(len(dataset))]
    if fast:
        contents, gone = hash_names(dataset.images, threads)
        bad = gone | bad
    good = np.array([index for index, content in enumerate(contents) if content and index not in bad], np.int64)
    groups = _same_content(good.tolist(), [contents[index] for index in good.tolist()])
    alike = [] if fast else _same_look(seen, [group[0] for group in groups])
    try:
        if len(good) > MOST:
            division = split_large_dataset(dataset, contents, good, val, test)
        else:
            division = split_dataset(dataset, contents, good, val, test, alike=alike)
    except DataError as error:  # its groups cannot be split
        problems.append(str(error))
        division = DatasetSplit({part: good if part == "train" else good[:0] for part in PARTS})
    parts = division.indices
    per_class = {part: _per_class(dataset, parts[part]) for part in PARTS}
    judged = {index: bad[index] for index in chosen if index in bad}
    problems += _find_problems(dataset, judged, len(chosen), per_class["train"])
    account = division.add_to(dataset.account)
    areas = sorted((one.size for one in seen.values()), key=lambda size: (size[0] * size[1], size))
    unused_parts = [dataset.images.name(index) for index in sorted(seen) if seen[index].has_unused_parts]
    warnings = [*account.warnings, *_shortcuts(dataset, seen), *filter(None, [describe_unused_parts(unused_parts)])]
    findings = Findings(
        source=escape_undecodable(dataset.source),
        images=len(dataset),
        classes=dict(zip(dataset.names, dataset.counts().tolist(), strict=True)),
        task=dataset.task,
        numbers=_numbers(dataset),
        bad=name_unreadable(dataset, bad),
        duplicates=_copies(dataset, parts, (group for group in groups if len(group) > 1)),
        near_duplicates=_copies(dataset, parts, alike),
        parts={part: len(parts[part]) for part in PARTS},
        split=per_class,
        modes=dict(Counter(one.mode for one in seen.values()).most_common()),
        sizes=(areas[0], areas[len(areas) // 2], areas[-1]) if areas else (),
        turned=sum(one.turned for one in seen.values()),
        misnamed=tuple(
            (escape_undecodable(dataset.images.name(i)), name)
            for i, one in sorted(seen.items())
            if (name := one.misnamed)
        ),
        outliers=tuple(
            (escape_undecodable(dataset.images.name(index)), why) for index, why in sorted(_outliers(seen).items())
        ),
        discarded=_discarded(dataset, seen),
        intensities=_intensities([one.intensities for one in seen.values() if one.intensities is not None]),
        ignored=tuple(map(escape_undecodable, listing.empty_classes + listing.ignored)),
        hidden=tuple(map(escape_undecodable, listing.hidden)),
        others=tuple(map(escape_undecodable, listing.others)),
        problems=tuple(map(escape_undecodable, problems)),
        account=replace(account, warnings=tuple(warnings)),
        read=len(chosen),
    )
    if not labels:
        return findings
    if findings.intensities is not None:
        dataset = dataset.with_intensity_range(findings.intensities[2])
    found = check_labels(
        dataset,
        contents,
        good,
        alike,
        device=device,
        threads=threads,
        cache_limit=limit,
        draw_map=page is not None,
    )
    findings = replace(findings, labels=_without_confirmed(found, dataset, source))
    if page is not None:
        write_check_page(page, dataset, findings, threads=threads, columns=columns)
    return findings


def _without_confirmed(found: LabelFindings, dataset: Dataset, source: Source) -> LabelFindings:
    """Return the findings without images whose present label was confirmed."""
    confirmed = read_confirmed(source)
    if not confirmed:
        return found
    listed = {one.index: one.label for one in found.errors} | {one.index: one.label for one in found.outliers}
    return found.without(
        [index for index, label in listed.items() if confirmed.get(name_in_source(dataset, index)) == label]
    )


def _open(
    source: Source, columns: str | None, names: ClassNames | None, *, fast: bool
) -> tuple[Dataset, FolderListing, list[str]]:
    """Return the data set, what its folder holds (empty without a folder), and why it cannot be trained on."""
    if isinstance(source, str | PathLike) and str(source) not in (*NAMES, *IN_MEMORY):
        if is_shard_source(source):
            return *_open_shards(source, names, fast=fast), []
        if names is not None:
            raise names_error(source)
        check_exists(source)
        listing = list_folder(Path(source), parse_columns(columns))
        dataset, problems = listing.dataset(), listing.problems()
    else:
        dataset, listing = open_source(source, columns=columns, names=names), FolderListing(Path(), Path(), ())
        one_class = f"{dataset.source} has only one class, {dataset.names[0]}; a classifier needs two or more"
        problems = [one_class] if dataset.task.is_single_label and len(dataset.names) < 2 else []
    return dataset, listing, problems


def _open_shards(source: str | PathLike[str], names: ClassNames | None, *, fast: bool) -> tuple[Dataset, FolderListing]:
    """Return the images in shards; refuses more than can be compared with one another."""
    dataset = open_source(source, names=names)
    if len(dataset) > MOST and not fast:
        raise UsageError(
            f"{source} has {len(dataset):,} images, and check compares up to {MOST:,}; add --fast, or name some of the "
            "shards, such as train-{000000..000009}.tar"
        )
    return dataset, FolderListing(Path(), Path(), ())


def _find_problems(dataset: Dataset, bad: dict[int, str], read: int, trained_on: dict[str, int]) -> list[str]:
    """Return why training would refuse the images.

    Args:
        dataset: The images.
        bad: Index and reason of each unreadable one among those that were read.
        read: Number of images that were read.
        trained_on: Number of images to train on, per class.
    """
    problems = []
    kind = "" if dataset.task.is_single_label else "label "
    if sum(reason not in NOT_INSTALLED.values() for reason in bad.values()) > BAD_SHARE * read:
        images = "images" if read == len(dataset) else "images that were read"
        problems.append(f"{len(bad):,} of {read:,} {images} are bad, more than a tenth; mend or remove them")
    if isinstance(dataset.task, Regression) and len(set(dataset.labels.tolist())) == 1:
        problems.append(f"all images have the same {dataset.names[0]}, {dataset.label_text(0)}; check its table")
    return problems + [
        f"no image of {kind}{name} is left to train on; add some" for name, n in trained_on.items() if not n
    ]


def _sample(dataset: Dataset) -> Sequence[int]:
    """Return the indices of the images that a fast check reads, ascending."""
    count = min(SAMPLED, len(dataset))
    found: list[int] = np.sort(np.random.default_rng(0).choice(len(dataset), count, replace=False)).tolist()
    return found


def _look_at(dataset: Dataset, chosen: Sequence[int], threads: int) -> tuple[dict[int, _Seen], dict[int, str]]:
    """Examine the images at `chosen`; return the facts of readable ones and the reasons of the others, by index."""
    seen: dict[int, _Seen] = {}
    bad: dict[int, str] = {}
    images, where = unwrap_subset(dataset.images)

    def look(indices: Sequence[int]) -> None:
        for index in indices:
            try:
                seen[index] = _look(images, int(where[index]))
            except ImageError as error:
                bad[index] = str(error)

    blocks = [chosen[start : start + AT_ONCE] for start in range(0, len(chosen), AT_ONCE)]
    with ThreadPoolExecutor(threads) as pool, progress("checking", len(chosen), "images") as bar:
        for block, _ in zip(blocks, pool.map(look, blocks), strict=True):
            bar.advance(len(block))
    return seen, bad


def _look(images: Images, index: int) -> _Seen:
    digest = images.digest(index)
    if isinstance(images, ArrayImages | TorchDatasetImages):
        pixels = images.array[index] if isinstance(images, ArrayImages) else images.pixels(index)
        height, width, channels = pixels.shape
        return _Seen(digest, ARRAY_MODES[channels], (width, height), False, make_thumbnail(pixels))
    assert isinstance(images, EncodedImages)  # the three kinds that sources give
    content, decoding = images.read_bytes(index), images.decoding
    header = read_header(content, decoding)
    values = measure_intensity_range(content, decoding) if header.deep else None
    if values is not None:
        decoding = decoding.with_intensity_range(choose_intensity_range([values]))
    small = make_thumbnail(decode_to_pixels(content, SIDE, decoding))
    properties = FileProperties(header.format, 16 if header.deep else 8, header.size)
    wrong = detect_misnamed(images.paths[index], content) if isinstance(images, FileImages) else None
    turned, more = header.orientation != 1, header.has_unused_parts
    return _Seen(digest, header.mode, header.size, turned, small, wrong, values, properties, more)


def _shortcuts(dataset: Dataset, seen: dict[int, _Seen]) -> list[str]:
    """Return the sentences on properties of the image files that tell the class."""
    if not dataset.task.is_single_label:
        return []
    files = {index: one.file for index, one in seen.items() if one.file is not None}
    return describe_shortcuts(dataset.names, [int(dataset.labels[index]) for index in files], list(files.values()))


def _outliers(seen: dict[int, _Seen]) -> dict[int, str]:
    """Return the images unlike nearly all others and why, such as an icon, a page of text or a blank image."""
    if len(seen) < FEWEST:
        return {}
    modes = Counter(one.mode for one in seen.values())
    (usual, count), *_ = modes.most_common()
    rare = {mode for mode, number in modes.items() if number <= max(1, RARE * len(seen))}
    sizes = sorted((one.size for one in seen.values()), key=lambda size: size[0] * size[1])
    width, height = sizes[len(sizes) // 2]
    odd: dict[int, str] = {}
    for index, one in seen.items():
        reasons = []
        if one.mode in rare and count >= USUAL * len(seen):
            reasons.append(f"mode {one.mode}, where {count} are {usual}")
        if one.size[0] * one.size[1] * TINY < width * height:
            reasons.append(f"{one.size[0]}×{one.size[1]} pixels, where the median is {width}×{height}")
        if one.thumbnail.max() == one.thumbnail.min():
            reasons.append("of one color")
        if reasons:
            odd[index] = "; ".join(reasons)
    return odd


def _discarded(dataset: Dataset, seen: dict[int, _Seen]) -> tuple[float, float, str] | None:
    if not seen:
        return None
    shares = {index: discarded_share(height, width) for index, one in seen.items() for width, height in [one.size]}
    worst = max(shares, key=shares.__getitem__)
    return float(np.median(list(shares.values()))), shares[worst], escape_undecodable(dataset.images.name(worst))


def _intensities(ranges: list[Range]) -> tuple[int, Range, Range] | None:
    if not ranges:
        return None
    values = min(low for low, _ in ranges), max(high for _, high in ranges)
    return len(ranges), values, choose_intensity_range(ranges) or FULL


def _same_content(indices: list[int], digests: list[bytes]) -> list[list[int]]:
    """Return groups of indices with equal content, singletons included."""
    groups: dict[bytes, list[int]] = {}
    for index, digest in zip(indices, digests, strict=True):
        groups.setdefault(digest, []).append(index)
    return list(groups.values())


def _same_look(seen: dict[int, _Seen], indices: list[int]) -> list[list[int]]:
    """Return groups of those `indices` whose images look the same."""
    if not indices:
        return []
    thumbnails = np.stack([seen[index].thumbnail for index in indices])
    small = np.array([min(seen[index].size) < SIDE for index in indices])
    return [[indices[place] for place in group] for group in group_look_alikes(thumbnails, small)]


def _copies(dataset: Dataset, parts: dict[str, Ints], groups: Iterable[list[int]]) -> tuple[DuplicateGroup, ...]:
    part_of = {index: part for part, indices in parts.items() for index in indices.tolist()}
    return tuple(
        DuplicateGroup(
            paths=tuple(escape_undecodable(dataset.images.name(index)) for index in group),
            classes=tuple(map(dataset.label_text, group)),
            parts=tuple(part_of.get(index, str(dataset.parts[index])) for index in group),
        )
        for group in groups
    )


def _per_class(dataset: Dataset, indices: Ints) -> dict[str, int]:
    return dict(zip(dataset.names, dataset.take(indices).counts().tolist(), strict=True))


def _numbers(dataset: Dataset) -> tuple[float, float, float] | None:
    """Return the smallest, the median and the largest number; None unless the images have one."""
    if not isinstance(dataset.task, Regression) or not len(dataset):
        return None
    return float(dataset.labels.min()), float(np.median(dataset.labels)), float(dataset.labels.max())
