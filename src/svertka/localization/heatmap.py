"""Heat maps from score maps, and the region of an image that shows a class."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from svertka.data.box_annotations import Box
from svertka.localization.patch_pyramid import Floats
from svertka.localization.score_maps import POWER, ScoreMap

CELLS = 96  # of a heat map, along the shorter side of its image
REGION_EDGE = 0.5  # share of the highest heat at which a region ends

HeatMap = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Region:
    """The region of an image that shows a class.

    Attributes:
        peak: Point of the highest heat, (x, y), pixels from the upper left corner of the image.
        box: Bounding box of the connected area around the peak with at least half of its heat, pixels.
    """

    peak: tuple[float, float]
    box: Box


def make_heat_map(maps: Sequence[ScoreMap], index: int, height: int, width: int) -> HeatMap:
    """Return the heat map of one class over an image, as `combine_scales` of all patches.

    Args:
        maps: Score maps of the image.
        index: Index of the class.
        height: Height of the image, pixels.
        width: Width of the image, pixels.

    Returns:
        The heat, (h, w) float32, 0 to 1; 96 cells along the shorter side.
    """
    return combine_scales(
        [(one.level.edges(one.level.places), one.scores[index].ravel()) for one in maps], height, width
    )


def combine_scales(scales: Sequence[tuple[Floats, HeatMap]], height: int, width: int) -> HeatMap:
    """Return the heat map of a class from the probabilities of patches at several scales.

    The heat of a scale is, in each cell, the sum of yᵏ over the patches that cover the cell, divided by the largest
    number of patches over any cell. The result is the mean over the scales. (A mean over the patches of each cell
    would let single patches decide at the edges, which few patches cover.)

    Args:
        scales: For each scale, the edges (left, top, right, bottom) of its patches, (P, 4), and their probabilities
            of the class, (P,).
        height: Height of the image, pixels.
        width: Width of the image, pixels.

    Returns:
        The heat, (h, w) float32, 0 to 1; 96 cells along the shorter side.
    """
    cell = min(height, width) / CELLS
    shape = max(CELLS, round(height / cell)), max(CELLS, round(width / cell))
    per_cell = np.array([shape[1] / width, shape[0] / height] * 2)
    total = np.zeros(shape)
    for patches, probabilities in scales:
        edges = np.rint(patches * per_cell).astype(np.int64)
        values = probabilities.astype(np.float64) ** POWER
        sums, counts = (_sum_of_rectangles(edges, each, shape) for each in (values, np.ones_like(values)))
        total += sums / counts.max()
    return (total / len(scales)).astype(np.float32)


def find_hottest_region(heat: HeatMap, name: str, height: int, width: int) -> Region:
    """Return the hottest region of a heat map.

    Args:
        heat: The heat map, (h, w).
        name: Name of the class.
        height: Height of the image, pixels.
        width: Width of the image, pixels.
    """
    cell_height, cell_width = height / heat.shape[0], width / heat.shape[1]
    highest = heat.max()
    peak = np.unravel_index(heat.argmax(), heat.shape)
    ys, xs = np.nonzero(_connected_part(heat >= highest * (1 - 1e-4), peak))
    rows, columns = np.nonzero(_connected_part(heat >= highest * REGION_EDGE, peak))
    box = Box(
        name,
        columns.min() * cell_width,
        rows.min() * cell_height,
        (columns.max() + 1) * cell_width,
        (rows.max() + 1) * cell_height,
    )
    return Region((float(xs.mean() + 0.5) * cell_width, float(ys.mean() + 0.5) * cell_height), box)


def _sum_of_rectangles(
    edges: npt.NDArray[np.int64], values: npt.NDArray[np.float64], shape: tuple[int, int]
) -> npt.NDArray[np.float64]:
    """Return in each cell the sum of the `values` of the rectangles that cover it, (h, w); `edges` (P, 4) in cells."""
    # Each rectangle adds four corners; cumulative sums along both axes fill it.
    corners = np.zeros((shape[0] + 1, shape[1] + 1))
    left, top, right, bottom = np.minimum(edges, [shape[1], shape[0]] * 2).T
    for rows, columns, sign in ((top, left, 1), (top, right, -1), (bottom, left, -1), (bottom, right, 1)):
        np.add.at(corners, (rows, columns), sign * values)
    sums: npt.NDArray[np.float64] = corners.cumsum(0).cumsum(1)[:-1, :-1]
    return sums


def _connected_part(mask: npt.NDArray[np.bool_], cell: tuple[np.intp, ...]) -> npt.NDArray[np.bool_]:
    """Return the connected part of `mask` that contains `cell`."""
    from scipy import ndimage

    parts, _ = ndimage.label(mask)
    part: npt.NDArray[np.bool_] = parts == parts[cell]
    return part
