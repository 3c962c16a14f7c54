"""Properties of image files that tell the class, such as the format: a network may learn these, not the subject.

Source: Geirhos et al. 2020, "Shortcut learning in deep neural networks".
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from svertka.escaping import join_first

FEWEST = 5  # images of a class; fewer are alike by chance
NEARLY_ALL, HARDLY_ANY = 0.9, 0.1  # shares of the images of a class
TAIL = 2.0  # percent of the smallest and of the largest images that may lie among those of other classes
SHOWN = 5  # classes in a sentence
ADVICE = "a network may learn that and not the subject; save the images of all classes alike"


@dataclass(frozen=True)
class FileProperties:
    """What a file says of its image, beside the pixels: format, bits per channel, (width, height)."""

    format: str
    bits: int
    size: tuple[int, int]


def describe_shortcuts(names: Sequence[str], labels: Sequence[int], files: Sequence[FileProperties]) -> list[str]:
    """Return a sentence for each property of the files that tells classes apart.

    Args:
        names: Class names.
        labels: Index of the class of each image.
        files: Properties of each image, in the same order.
    """
    counts = Counter(labels)
    classes = [label for label in sorted(counts) if counts[label] >= FEWEST]
    if len(classes) < 2:
        return []
    values: Mapping[str, list[str]] = {
        "file format": [one.format for one in files],
        "bit depth": [f"{one.bits} bits" for one in files],
        "size": ["{}×{} pixels".format(*one.size) for one in files],
    }
    sentences = []
    for title, of_images in values.items():
        told = _classes_of_values(classes, labels, of_images)
        if told:
            listed = "; ".join(f"{value}: {_names(names, some)}" for value, some in told[:SHOWN])
            sentences.append(f"the {title} tells the class ({listed}): {ADVICE}")
    if not any(sentence.startswith("the size") for sentence in sentences):
        sentences += _apart_in_area(names, classes, labels, files)
    return sentences


def _classes_of_values(classes: list[int], labels: Sequence[int], values: Sequence[str]) -> list[tuple[str, list[int]]]:
    """Return each value that nearly all images of some classes have and hardly any of the others, with the classes."""
    counts = Counter(zip(labels, values, strict=True))
    totals = Counter(labels)
    told = []
    for value in sorted(set(values)):
        shares = {label: counts[label, value] / totals[label] for label in classes}
        pure = [label for label, share in shares.items() if share >= NEARLY_ALL]
        others = [share for share in shares.values() if share < NEARLY_ALL]
        if pure and others and max(others) <= HARDLY_ANY:
            told.append((value, pure))
    return told


def _apart_in_area(
    names: Sequence[str], classes: list[int], labels: Sequence[int], files: Sequence[FileProperties]
) -> list[str]:
    """Return a sentence on the first class whose images are smaller, or larger, than those of all others."""
    areas = np.array([one.size[0] * one.size[1] for one in files])
    of_class = np.asarray(labels)
    for label in classes:
        inside, outside = areas[of_class == label], areas[of_class != label]
        for word, small, large in (("smaller", inside, outside), ("larger", outside, inside)):
            if np.percentile(small, 100 - TAIL) < np.percentile(large, TAIL):
                return [
                    f"the images of {names[label]} are {word} than all others, so the size tells the class: {ADVICE}"
                ]
    return []


def _names(names: Sequence[str], labels: Iterable[int]) -> str:
    return join_first([names[label] for label in labels], SHOWN)
