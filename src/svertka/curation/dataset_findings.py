"""What `svertka check` finds in a data set, and how it is told."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from svertka.curation.label_check import LabelFindings
from svertka.data.file_accounting import LEADS_BACK, FileAccount
from svertka.data.rgb_conversion import Range
from svertka.escaping import escape_undecodable, to_printable
from svertka.pages.notebook_block import NotebookBlock
from svertka.tasks import AnyTask
from svertka.text_width import pad, text_width

SHOWN = 10  # items per kind in `describe_findings`
UNEVEN = 1.5  # ratio of the largest to the smallest class from which it is reported
CROPPED = 0.05  # share of an image cut off from which it is reported


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


def describe_findings(findings: Findings) -> list[str]:
    """Describe the findings in plain words, a line each."""
    lines = [f"{findings.source}: {_count(findings.images, 'image', 'images')}, {findings.describe_names()}"]
    if findings.read < findings.images:
        lines.append(
            f"{findings.read:,} of them were read, and only these are judged: how many others are bad is not known; "
            "copies are searched for by name and size, near-duplicates are not"
        )
    shown = {to_printable(name): count for name, count in findings.classes.items()}
    widest = max(map(text_width, shown), default=0)
    lines += [f"  {pad(name, widest)}  {count}" for name, count in shown.items()]
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
    # The account names the links that lead back.
    looped = {escape_undecodable(one.path) for one in findings.account.left_out if one.reason == LEADS_BACK}
    lines += _listed("ignored, not an image in a class folder", [one for one in findings.others if one not in looped])
    lines += replace(findings.account, not_images=()).sentences()  # those are listed above
    lines += [] if findings.labels is None else findings.labels.sentences()
    lines.append("split: " + ", ".join(f"{part} {count}" for part, count in findings.parts.items()))
    lines += [f"training would refuse: {problem}" for problem in findings.problems]
    return list(map(to_printable, lines))


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
