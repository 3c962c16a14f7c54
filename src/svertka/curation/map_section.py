"""The map on check.html: a point for each image, colored by class, with its thumbnail in a sprite sheet.

Of several labels the rarest one of an image gives its color, and of a number its tenth of all.
"""

import math
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

import numpy as np

from svertka.curation.label_check import LabelFindings
from svertka.data.dataset import Dataset, Ints, Pixels
from svertka.data.parallel_map import map_chunks
from svertka.errors import ImageError
from svertka.escaping import escape_undecodable
from svertka.pages.inline_images import contact_sheet, crop_central_square, enlarge, show_bands, shrink, to_data_uri
from svertka.progress import progress
from svertka.tasks import Regression

SIDES = 48, 96  # pixels of a thumbnail, among many images and among few
SHEET_PIXELS = 12_000_000  # of all thumbnails, about 3 MB
EXTENT, MARGIN = 640, 12  # of the drawing, CSS pixels
COLORS = 10  # in check.css; of more classes, some share one
NAMED = 12  # classes whose names are written on the map
LISTED = 40  # classes of the legend


def describe_map(dataset: Dataset, labels: LabelFindings, threads: int) -> dict[str, Any] | None:
    """Return what the template shows of the map; None without one.

    Args:
        dataset: The images.
        labels: The findings; their map has the positions.
        threads: Threads that read images.
    """
    if labels.map is None:
        return None
    indices, places = labels.map
    side = min(max(math.isqrt(SHEET_PIXELS // len(indices)), SIDES[0]), SIDES[1])
    thumbnails = _read_thumbnails(dataset, indices.tolist(), side, threads)
    positions = MARGIN + (EXTENT - 2 * MARGIN) * places
    doubted = {one.index for one in labels.errors}
    columns = math.ceil(math.sqrt(len(thumbnails)))
    groups, names = _group_by_color(dataset)
    points = [
        {
            "x": f"{x:.1f}",
            "y": f"{y:.1f}",
            "color": int(groups[index]) % COLORS,
            "label": int(groups[index]),
            "name": names[groups[index]],
            "file": PurePath(escape_undecodable(dataset.images.name(index))).name,
            "index": index,
            "is_doubted": index in doubted,
        }
        for index, (x, y) in zip(indices.tolist(), positions.tolist(), strict=True)
    ]
    return {
        "points": points,
        "classes": _describe_classes(names, groups[indices], positions),
        "sheet": to_data_uri(contact_sheet(thumbnails, columns, gap=0), exact=False),
        "columns": columns,
        "rows": math.ceil(len(thumbnails) / columns),
        "side": side,
        "extent": EXTENT,
        "named": NAMED,
        "listed": LISTED,
    }


def _group_by_color(dataset: Dataset) -> tuple[Ints, tuple[str, ...]]:
    """Return the group of each image, (N,), and the names of the groups: classes, labels or ranges of numbers."""
    groups = dataset.task.strata(dataset.labels)
    if dataset.task.is_single_label:
        return groups, dataset.names
    if not isinstance(dataset.task, Regression):
        return groups, (*dataset.names, "no label")
    names = []
    for group in range(int(groups.max(initial=-1)) + 1):
        own = dataset.labels[groups == group]
        names.append(f"{own.min():.4g} to {own.max():.4g}" if len(own) else "")
    return groups, tuple(names)


def _describe_classes(names: Sequence[str], labels: Ints, positions: Any) -> list[dict[str, Any]]:
    """Return name, color, number of images and the middle of each class, the largest first."""
    found = []
    for label in np.unique(labels).tolist():
        middle = np.median(positions[labels == label], 0)
        found.append(
            {
                "name": names[label],
                "label": label,
                "color": label % COLORS,
                "count": int((labels == label).sum()),
                "x": f"{middle[0]:.1f}",
                "y": f"{middle[1]:.1f}",
            }
        )
    return sorted(found, key=lambda one: -one["count"])


def _read_thumbnails(dataset: Dataset, indices: list[int], side: int, threads: int) -> list[Pixels]:
    """Return a thumbnail (side, side, 3) of each image, gray if it cannot be read any more."""

    def read(index: int) -> Pixels:
        sheet = np.full((side, side, 3), 128, np.uint8)
        try:
            small = enlarge(shrink(crop_central_square(show_bands(dataset.images.read(index, side))), side), side)
        except ImageError:
            return sheet
        height, width = small.shape[:2]
        top, left = (side - height) // 2, (side - width) // 2
        sheet[top : top + height, left : left + width] = small
        return sheet

    found: list[Pixels] = []
    with progress("reading images for the map", len(indices), "images") as shown:
        for some in map_chunks(read, indices, threads, 16 * threads):
            found += some
            shown.advance(len(some))
    return found
