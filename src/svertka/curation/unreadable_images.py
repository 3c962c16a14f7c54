"""Images of a source that cannot be read: their paths, and a sentence on them."""

from collections.abc import Mapping, Sequence

from svertka.data.dataset import Dataset
from svertka.escaping import escape_undecodable
from svertka.evaluation.evaluation_scope import format_image_count

Unreadable = tuple[tuple[str, str], ...]  # path and reason of each


def name_unreadable(dataset: Dataset, bad: Mapping[int, str]) -> Unreadable:
    """Return path and reason of each unreadable image, given index and reason, by index."""
    return tuple((escape_undecodable(dataset.images.name(index)), reason) for index, reason in sorted(bad.items()))


def describe_unreadable(bad: Sequence[tuple[str, str]]) -> list[str]:
    """Return a sentence on images that cannot be read, given path and reason of each; [] without such images."""
    if not bad:
        return []
    path, reason = bad[0]
    more = f"; and {len(bad) - 1:,} more" if len(bad) > 1 else ""
    return [f"left out: {format_image_count(len(bad))} that cannot be read: {path}: {reason}{more}"]
