"""check.html: the images that a check of labels found, to confirm or correct, in one self-contained HTML file."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from markupsafe import Markup

from svertka.curation.confirmed_labels import name_in_source
from svertka.curation.dataset_findings import DuplicateGroup, Findings
from svertka.curation.label_check import LabelFindings, Neighbor
from svertka.curation.map_section import describe_map
from svertka.data.dataset import Dataset, Pixels
from svertka.data.folder_and_table_sources import natural_sort_key
from svertka.data.parallel_map import map_chunks
from svertka.errors import ImageError
from svertka.escaping import escape_csv_cell, escape_csv_path, escape_undecodable, format_command, to_printable
from svertka.evaluation.cross_validation import ERROR, MEAN_ABSOLUTE_ERROR
from svertka.files import write_atomic
from svertka.pages.html_page import render_page
from svertka.pages.inline_images import (
    PIXEL_DENSITY,
    crop_central_square,
    render_image,
    render_strip,
    show_bands,
    shrink,
)
from svertka.pages.number_format import count_with_noun
from svertka.pages.templates import render_template
from svertka.progress import progress

SIDE = 176  # CSS pixels of an image
THUMBNAIL = 32  # CSS pixels of a similar image
MAX_ERRORS = 200  # label errors shown: about 8 MB; further ones are found again once these are corrected
MAX_OUTLIERS = 60
MAX_CONFLICTS = 60  # groups of copies with different labels
MAX_COPIES = 6  # images of such a group
MAX_PAIRS = 20
NUMBERED = 9  # classes that have a digit key
NO_LABEL = "no label"


@dataclass(frozen=True)
class _Card:
    """What the page shows of an image, before the image is read."""

    index: int
    path: str
    label: str
    suggested: str | None = None
    doubt: float | None = None
    reason: str = ""
    neighbors: tuple[Neighbor, ...] = ()


def write_check_page(
    path: Path, dataset: Dataset, findings: Findings, *, threads: int, columns: str | None = None
) -> None:
    """Write the page to `path` as one HTML file, atomically; its images are read again.

    Args:
        path: The file.
        dataset: The images.
        findings: What `check` found in them, with labels.
        threads: Threads that read images.
        columns: Columns of the table that were named, which the command that applies corrections repeats.

    Raises:
        StorageError: The disk is full or the folder cannot be written.
    """
    assert findings.labels is not None
    labels = findings.labels
    sections = {
        "errors": [_Card(one.index, one.path, one.label, one.suggested, one.score, one.reason, one.neighbors)
                   for one in labels.errors[:MAX_ERRORS]],
        "outliers": [_Card(one.index, one.path, one.label, reason=one.reason, neighbors=one.neighbors)
                     for one in labels.outliers[:MAX_OUTLIERS]],
    }  # fmt: skip
    conflicts = _conflicts(dataset, findings)
    pairs = [_pair_cards(dataset, one.indices) for one in labels.ambiguous[:MAX_PAIRS]]
    cards = [*sections["errors"], *sections["outliers"], *_flat(conflicts), *_flat(pairs)]
    choices = _list_choices(dataset, cards)
    images = _Images(dataset, cards, choices, threads)
    body = render_template(
        "check.html",
        source=findings.source,
        sentence=_sentence(labels),
        notes=labels.sentences(),
        errors=[images.describe(card) for card in sections["errors"]],
        errors_left_out=len(labels.errors) - len(sections["errors"]),
        conflicts=[[images.describe(card) for card in group] for group in conflicts],
        outliers=[images.describe(card) for card in sections["outliers"]],
        outliers_left_out=len(labels.outliers) - len(sections["outliers"]),
        pairs=[
            {"pair": one, "cards": [images.describe(card) for card in cards]}
            for one, cards in zip(labels.ambiguous, pairs, strict=False)
        ],
        map=describe_map(dataset, labels, threads),
        command=format_command(
            "check", findings.source, "--apply", "fixes.csv", *(() if columns is None else ("--columns", columns))
        ),
        names=[name or NO_LABEL for name in choices],
        others={"single-label": "another class", "multi-label": "other labels"}.get(dataset.task.kind)
        if len(choices) > NUMBERED
        else None,
        kind=dataset.task.kind,
        facts=_facts(choices, findings),
    )
    write_atomic(path, render_page(f"{PurePath(findings.source).name} – svertka", body, kind="check").encode())


def _sentence(labels: LabelFindings) -> str:
    if not labels.checked:
        return "The labels were not checked"
    nouns: dict[str, str] = {ERROR: "label", MEAN_ABSOLUTE_ERROR: "number"}
    found, noun = len(labels.errors), nouns.get(labels.metric, "picture")
    counted = count_with_noun(labels.checked, noun)
    if noun == "picture":
        said = f"{found:,} of {counted} {'has' if found == 1 else 'have'} labels that look wrong"
        return said if found else f"The labels of none of {counted} look wrong"
    if not found:
        return f"None of {counted} looks wrong"
    return f"{found:,} of {counted} {'looks' if found == 1 else 'look'} wrong"


def _list_choices(dataset: Dataset, cards: Sequence[_Card]) -> tuple[str, ...]:
    """Return what the page can correct a label to: the classes, or all labels or numbers that its cards have."""
    if dataset.task.is_single_label:
        return dataset.names
    given = {text for card in cards for text in (card.label, card.suggested) if text is not None}
    return tuple(sorted(given, key=natural_sort_key))


def _facts(choices: Sequence[str], findings: Findings) -> dict[str, Any]:
    """Return what the script needs: the choices, how CSV files name them, and the key of the browser's storage."""
    listed = [findings.source, *choices]
    key = hashlib.blake2b("\n".join(listed).encode("utf-8", "replace"), digest_size=8).hexdigest()
    return {
        "names": [name or NO_LABEL for name in choices],
        "csv": [escape_csv_cell(name) for name in choices],
        "key": f"svertka-check-{key}",
    }


def _conflicts(dataset: Dataset, findings: Findings) -> list[list[_Card]]:
    """Return the cards of copies and near-duplicates whose labels differ."""
    groups = [one for one in (*findings.duplicates, *findings.near_duplicates) if one.across_classes][:MAX_CONFLICTS]
    if not groups:
        return []
    index_of = {escape_undecodable(dataset.images.name(index)): index for index in range(len(dataset))}
    return [[_Card(index_of[path], path, label) for path, label in _some(group)] for group in groups]


def _some(group: DuplicateGroup) -> list[tuple[str, str]]:
    """Return path and class of the first images of a group, of each class at least one if there is room."""
    pairs = list(zip(group.paths, group.classes, strict=True))
    first: dict[str, tuple[str, str]] = {}
    for path, label in pairs:
        first.setdefault(label, (path, label))
    others = [pair for pair in pairs if pair not in first.values()]
    return [*first.values(), *others][:MAX_COPIES]


def _pair_cards(dataset: Dataset, indices: Sequence[int]) -> list[_Card]:
    return [
        _Card(index, escape_undecodable(dataset.images.name(index)), dataset.names[dataset.labels[index]])
        for index in indices
    ]


def _flat(groups: Iterable[Iterable[_Card]]) -> list[_Card]:
    return [card for group in groups for card in group]


class _Images:
    """The images of `cards` and of their neighbors, read once each, at the sizes shown."""

    def __init__(self, dataset: Dataset, cards: Sequence[_Card], choices: Sequence[str], threads: int) -> None:
        self.dataset, self.choices = dataset, choices
        large, small = {card.index for card in cards}, {one.index for card in cards for one in card.neighbors}
        self.large: dict[int, Pixels | None] = {}
        self.small: dict[int, Pixels | None] = {}
        indices = sorted(large | small)

        def read(index: int) -> tuple[int, Pixels | None, Pixels | None]:
            side = SIDE * PIXEL_DENSITY if index in large else THUMBNAIL * PIXEL_DENSITY
            try:
                pixels = show_bands(dataset.images.read(index, side))
            except ImageError:
                return index, None, None
            thumbnail = shrink(crop_central_square(pixels), THUMBNAIL * PIXEL_DENSITY)
            return index, shrink(pixels, SIDE * PIXEL_DENSITY) if index in large else None, thumbnail

        with progress("reading images for the page", len(indices), "images") as shown:
            for some in map_chunks(read, indices, threads, 4 * threads):
                for index, image, thumbnail in some:
                    self.large[index], self.small[index] = image, thumbnail
                shown.advance(len(some))

    def describe(self, card: _Card) -> dict[str, Any]:
        """Return what the template shows of a card."""
        suggested = "" if card.suggested is None else f", perhaps {card.suggested or NO_LABEL}"
        names, number = self.choices, self.choices.index(card.label)
        likely = -1 if card.suggested is None else names.index(card.suggested)
        alt = f"{PurePath(card.path).name}: labeled {card.label or NO_LABEL}{suggested}"
        has_digits = self.dataset.task.is_single_label and len(names) <= NUMBERED
        image = self.large[card.index]
        near = [pixels for one in card.neighbors if (pixels := self.small[one.index]) is not None]
        strip_alt = f"The most similar pictures, labeled {', '.join(one.label or NO_LABEL for one in card.neighbors)}"
        return {
            "card": card,
            "alt": alt,
            "file": PurePath(card.path).name,
            "csv": self._csv_path(card.index),
            "number": number,
            "suggested": likely,
            # Few classes have the same digits on every image; of many, each image offers its likely ones.
            "offered": range(len(names)) if has_digits else sorted({number, likely} - {-1}, key=number.__ne__),
            "image": None if image is None else render_image(image, SIDE, alt),
            "strip": render_strip(near, THUMBNAIL, strip_alt) if near else Markup(),
        }

    def _csv_path(self, index: int) -> str:
        """Return the path that a CSV file of corrections has; "" if the name has characters that text cannot hold."""
        path = name_in_source(self.dataset, index)
        return escape_csv_path(path) if to_printable(path) == path else ""
