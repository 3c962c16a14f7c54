"""Report on a data set before training: its contents, and by path what is wrong with it."""

from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from svertka.curation.check_page import write_check_page
from svertka.curation.confirmed_labels import name_in_source, read_confirmed
from svertka.curation.label_check import LabelFindings, check_labels
from svertka.curation.unreadable_images import name_unreadable
from svertka.data.builtin import NAMES
from svertka.data.class_shortcuts import FileProperties, describe_shortcuts
from svertka.data.content_hash import hash_names, unwrap_subset
from svertka.data.dataset import BAD_SHARE, PARTS, ArrayImages, Dataset, EncodedImages, FileImages, Images, Ints, Pixels
from svertka.data.deduplicated_split import DatasetSplit, split_dataset
from svertka.data.file_accounting import FileAccount
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
from svertka.escaping import escape_undecodable, to_printable
from svertka.files import parse_cache_limit_option
from svertka.output_paths import HTML, prepare_output_file
from svertka.pages.notebook_block import NotebookBlock
from svertka.progress import progress
from svertka.tasks import AnyTask, Regression
from svertka.type_checking import check_types

AT_ONCE = 64  # images per thread between two updates of the progress bar
SHOWN = 10  # items per kind in `describe_findings`
UNEVEN = 1.5  # ratio of the largest to the smallest class from which it is reported
CROPPED = 0.05  # share of an image cut off from which it is reported
FEWEST = 10  # images needed to call one unusual
USUAL, RARE = 0.9, 0.02  # shares of images with the usual mode, and with a rare one
TINY = 100  # times smaller than the median
SAMPLED = 1000  # images that a fast check reads
ARRAY_MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True)
class DuplicateGroup:
    """Images of equal content, or that look the same.

    Attributes:
        paths, classes, parts: Path, class (or labels, or number) and part of each image.
    """

    paths: tuple[str, ...]
    classes: tuple[str, ...]
    parts: tuple[str, ...]

    @property
    def across_classes(self) -> bool:
        """Whether the images have different labels, so that at least one label is wrong."""
        return len(set(self.classes)) > 1

    @property
    def across_parts(self) -> bool:
        """Whether the images are in different parts, so that a training image also judges the network."""
        return len(set(self.parts)) > 1

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "paths": list(self.paths),
            "classes": list(self.classes),
            "parts": list(self.parts),
            "across_classes": self.across_classes,
            "across_parts": self.across_parts,
        }


@dataclass(frozen=True, repr=False)
class Findings:
    """What `check` found in a data set.

    Attributes:
        source: The source as it was named.
        images: Number of images, unreadable ones included.
        classes: Images per class or with each label, unreadable ones included; of a number, images by its name.
        task: What the images are labeled with.
        numbers: The smallest, the median and the largest number; None unless the images have one.
        bad: Path and reason of each unreadable image.
        duplicates: Groups of exact copies.
        near_duplicates: Groups of images that look the same but are not copies.
        parts: Number of readable images per part, as training would split them.
        split: Number of those of each class or with each label, by part.
        modes: Images per pixel mode, in Pillow's names ("RGB", "L", "CMYK").
        sizes: Width and height in pixels of the smallest, median and largest image by area; empty without images.
        turned: Number of images that EXIF rotates or mirrors.
        misnamed: Path and true format of each image whose name has the suffix of another format.
        outliers: Path and reason of each image that is unlike nearly all others.
        discarded: Share of an image that the central square leaves out, 0 to 1: the median, the largest, and its path.
        intensities: Number of 16-bit images, the range of their values, and the range that training maps to black and
            white; None without such images.
        ignored: Empty folders and folders in no part.
        hidden: Hidden files.
        others: Files that are not images.
        problems: Reasons why training would refuse the data set, a sentence each.
        account: Every file that is not used, and notes on the rest.
        labels: What is wrong with the labels; None unless they were checked.
        read: Number of images that were read; fewer than all in a fast check.
    """

    source: str
    images: int
    classes: dict[str, int]
    task: AnyTask
    numbers: tuple[float, float, float] | None
    bad: tuple[tuple[str, str], ...]
    duplicates: tuple[DuplicateGroup, ...]
    near_duplicates: tuple[DuplicateGroup, ...]
    parts: dict[str, int]
    split: dict[str, dict[str, int]]
    modes: dict[str, int]
    sizes: tuple[tuple[int, int], ...]
    turned: int
    misnamed: tuple[tuple[str, str], ...]
    outliers: tuple[tuple[str, str], ...]
    discarded: tuple[float, float, str] | None
    intensities: tuple[int, Range, Range] | None
    ignored: tuple[str, ...]
    hidden: tuple[str, ...]
    others: tuple[str, ...]
    problems: tuple[str, ...]
    account: FileAccount
    labels: LabelFindings | None = None
    read: int = 0

    @property
    def imbalance(self) -> float | None:
        """Images of the largest class or label divided by those of the smallest; None without images or for numbers."""
        counts = () if self.numbers is not None else self.classes.values()
        return max(counts) / min(counts) if counts and min(counts) else None

    def __repr__(self) -> str:
        what = f"{len(self.classes):,} classes" if self.task.is_single_label else self.describe_names()
        counts = f"{self.images:,} images, {what}, {len(self.bad):,} bad"
        copies = f"{len(self.duplicates):,} groups of duplicates, {len(self.near_duplicates):,} of near-duplicates"
        return f"Findings({self.source!r}: {counts}, {copies}, {len(self.problems):,} problems)"

    def describe_names(self) -> str:
        """Return what the images are labeled with, such as "3 labels, several an image".

        Returns:
            The count and the kind of the labels.
        """
        if self.task.is_single_label:
            return _count(len(self.classes), "class", "classes")
        return self.task.describe_names(tuple(self.classes))

    def _repr_html_(self) -> str:
        title, *lines = describe_findings(self)
        rows = [
            (name, f"{count:,}", *(f"{self.split[part].get(name, 0):,}" for part in self.split))
            for name, count in self.classes.items()
        ]
        # The table has the classes.
        sentences = lines[len(rows) :]
        kind = "class" if self.task.is_single_label else "label" if self.numbers is None else "number"
        return NotebookBlock(title, sentences, header=(kind, "images", *self.split), rows=rows).render()

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; `split` has the sizes of the parts, `split_classes` those by class.

        Returns:
            The values that `svertka check --json` prints.
        """
        return {
            "source": self.source,
            "images": self.images,
            "read": self.read,
            "task": self.task.kind,
            "classes": self.classes,
            "numbers": self.numbers and dict(zip(("smallest", "median", "largest"), self.numbers, strict=True)),
            "imbalance": self.imbalance,
            "bad": [{"path": path, "reason": reason} for path, reason in self.bad],
            "duplicates": [copies.to_dict() for copies in self.duplicates],
            "near_duplicates": [copies.to_dict() for copies in self.near_duplicates],
            "modes": self.modes,
            "sizes": dict(zip(("smallest", "median", "largest"), map(list, self.sizes), strict=False)),
            "exif_rotated": self.turned,
            "misnamed": [{"path": path, "format": name} for path, name in self.misnamed],
            "outliers": [{"path": path, "reason": reason} for path, reason in self.outliers],
            "discarded": self.discarded and dict(zip(("median", "most", "path"), self.discarded, strict=True)),
            "sixteen_bits": self.intensities
            and dict(zip(("images", "values", "range"), self.intensities, strict=True)),
            "ignored": list(self.ignored),
            "hidden": list(self.hidden),
            "others": list(self.others),
            "split": self.parts,
            "split_classes": self.split,
            "problems": list(self.problems),
            **self.account.to_dict(),
            **({} if self.labels is None else self._labels_to_dict(self.labels)),
        }

    def _labels_to_dict(self, labels: LabelFindings) -> dict[str, Any]:
        """Return the JSON values of the label check; `outliers` also has those by size, mode and color."""
        return {
            "labels": labels.to_dict(),
            "label_errors": [one.to_dict() for one in labels.errors],
            "ambiguous": [one.to_dict() for one in labels.ambiguous],
            "outliers": [
                *({"path": path, "reason": reason} for path, reason in self.outliers),
                *(one.to_dict() for one in labels.outliers),
            ],
        }


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
    dataset = dataset.with_intensity_range(findings.intensities and findings.intensities[2])
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


def describe_findings(findings: Findings) -> list[str]:
    """Describe the findings in plain words, a line each."""
    lines = [f"{findings.source}: {_count(findings.images, 'image', 'images')}, {findings.describe_names()}"]
    if findings.read < findings.images:
        lines.append(
            f"{findings.read:,} of them were read, and only these are judged: how many others are bad is not known; "
            "copies are searched for by name and size, near-duplicates are not"
        )
    widest = max(map(len, findings.classes), default=0)
    lines += [f"  {name:{widest}}  {count}" for name, count in findings.classes.items()]
    if findings.numbers is not None:
        low, median, high = findings.numbers
        lines.append(f"numbers, smallest / median / largest: {low:.6g} / {median:.6g} / {high:.6g}")
    if findings.imbalance is not None and findings.imbalance >= UNEVEN:
        kind = "class" if findings.task.is_single_label else "label"
        lines.append(f"the largest {kind} has {findings.imbalance:.1f} times the images of the smallest")
    sizes = " / ".join(f"{width}×{height}" for width, height in findings.sizes)
    if sizes:
        modes = ", ".join(f"{mode} {count}" for mode, count in findings.modes.items())
        lines.append(f"pixels, smallest / median / largest: {sizes}; modes: {modes}; turned by EXIF: {findings.turned}")
    if findings.intensities is not None:
        number, (low, high), (black, white) = findings.intensities
        lines.append(
            f"16 bits: {_count(number, 'image', 'images')} with values of {low:,} to {high:,}; training takes "
            f"{black:,} for black and {white:,} for white"
        )
    if findings.discarded is not None and findings.discarded[1] >= CROPPED:
        middle, most, path = findings.discarded
        lines.append(
            f"the central square leaves out {middle:.0%} of the median image and {most:.0%} of {path}; "
            "--fit pad or --fit squeeze keeps all"
        )
    lines += _listed("bad", [f"{path}: {reason}" for path, reason in findings.bad])
    lines += _listed("used, though the name says another format", [f"{one}: {name}" for one, name in findings.misnamed])
    lines += _listed("unlike the others", [f"{path}: {why}" for path, why in findings.outliers])
    what = {"single-label": "classes", "multi-label": "labels", "regression": "numbers"}[findings.task.kind]
    for title, groups in (("exact", findings.duplicates), ("near-", findings.near_duplicates)):
        name = f"{title} duplicates" if title == "exact" else f"{title}duplicates"
        lines += _listed(f"{name}, groups", [_one_line(one, what) for one in _worst_first(groups)])
    lines += _listed("ignored, empty or in no part", findings.ignored)
    lines += _listed("ignored, hidden", findings.hidden)
    lines += _listed("ignored, not an image in a class folder", findings.others)
    lines += replace(findings.account, not_images=()).sentences()  # those are listed above
    lines += [] if findings.labels is None else findings.labels.sentences()
    lines.append("split: " + ", ".join(f"{part} {count}" for part, count in findings.parts.items()))
    lines += [f"training would refuse: {problem}" for problem in findings.problems]
    return list(map(to_printable, lines))


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
    small = make_thumbnail(
        decode_to_pixels(
            content, SIDE, decoding.with_intensity_range(None if values is None else choose_intensity_range([values]))
        )
    )
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


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _listed(what: str, items: Iterable[str]) -> list[str]:
    """Return a heading with the number of `items` and the first of them; nothing if there are none."""
    items = list(items)
    rest = [f"  and {len(items) - SHOWN} more"] if len(items) > SHOWN else []
    return [f"{what}: {len(items)}", *(f"  {item}" for item in items[:SHOWN]), *rest] if items else []


def _worst_first(copies: Iterable[DuplicateGroup]) -> list[DuplicateGroup]:
    return sorted(copies, key=lambda group: (not group.across_classes, not group.across_parts))


def _one_line(copies: DuplicateGroup, what_differs: str) -> str:
    """Return the paths of a group, and the parts, classes, labels or numbers in which they differ."""
    across = [
        f"across {what} ({', '.join(sorted(set(values)))})"
        for what, values, apart in (
            (what_differs, copies.classes, copies.across_classes),
            ("parts", copies.parts, copies.across_parts),
        )
        if apart
    ]
    named = copies.paths[:SHOWN]
    more = [f"{len(copies.paths) - SHOWN} more"] if len(copies.paths) > SHOWN else []
    return " = ".join([*named, *more]) + "".join(f", {one}" for one in across)
