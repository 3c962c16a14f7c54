"""From score maps to a place: how much each spot of a picture speaks for a class, and the region that does most."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from svertka.data.bounding_boxes import Box
from svertka.localization.patch_grid import Floats
from svertka.localization.score_maps import POWER, ScoreMap

CELLS = 96  # of a heat map, along the shorter side of its picture
EDGE = 0.5  # of the highest heat: where a region ends

Heat = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Region:
    """Where a class is most to be seen: the spot (x, y) of highest heat, and the box around what is half as hot.

    In pixels of the picture, from its upper left corner.
    """

    peak: tuple[float, float]
    box: Box


def heat(maps: Sequence[ScoreMap], index: int, height: int, width: int) -> Heat:
    """How much each spot of a picture of `height` × `width` pixels speaks for class `index`, (h, w) float32, 0 to 1.

    As `heat_of`, of all patches.
    """
    return heat_of([(one.level.edges(one.level.places), one.scores[index].ravel()) for one in maps], height, width)


def heat_of(scales: Sequence[tuple[Floats, Heat]], height: int, width: int) -> Heat:
    """How much each spot speaks for a class, by some patches a scale: their edges (P, 4), and its probabilities (P,).

    At each scale the sum of yᵏ over the patches that a spot lies in, over the most patches that any spot lies in; and
    the mean of these over the scales. (A mean over its own patches would let single ones speak at the edges, where few
    reach.) The shorter of h and w is `CELLS`.
    """
    cell = min(height, width) / CELLS
    shape = max(CELLS, round(height / cell)), max(CELLS, round(width / cell))
    per_cell = np.array([shape[1] / width, shape[0] / height] * 2)
    total = np.zeros(shape)
    for patches, probabilities in scales:
        edges = np.rint(patches * per_cell).astype(np.int64)
        values = probabilities.astype(np.float64) ** POWER
        sums, counts = (_covered(edges, each, shape) for each in (values, np.ones_like(values)))
        total += sums / counts.max()
    return (total / len(scales)).astype(np.float32)


def _covered(
    edges: npt.NDArray[np.int64], values: npt.NDArray[np.float64], shape: tuple[int, int]
) -> npt.NDArray[np.float64]:
    """The sum of the `values` of all rectangles that a cell lies in, (h, w); `edges`: (P, 4), in cells."""
    # A rectangle is four corners of a field that is then summed along both axes.
    corners = np.zeros((shape[0] + 1, shape[1] + 1))
    left, top, right, bottom = np.minimum(edges, [shape[1], shape[0]] * 2).T
    for rows, columns, sign in ((top, left, 1), (top, right, -1), (bottom, left, -1), (bottom, right, 1)):
        np.add.at(corners, (rows, columns), sign * values)
    sums: npt.NDArray[np.float64] = corners.cumsum(0).cumsum(1)[:-1, :-1]
    return sums


def region(of: Heat, name: str, height: int, width: int) -> Region:
    """The hottest region of heat map `of`, for a class called `name` in a picture of `height` × `width` pixels."""
    tall, wide = height / of.shape[0], width / of.shape[1]
    highest = of.max()
    spot = np.unravel_index(of.argmax(), of.shape)
    ys, xs = np.nonzero(_around(of >= highest * (1 - 1e-4), spot))
    rows, columns = np.nonzero(_around(of >= highest * EDGE, spot))
    box = Box(name, columns.min() * wide, rows.min() * tall, (columns.max() + 1) * wide, (rows.max() + 1) * tall)
    return Region((float(xs.mean() + 0.5) * wide, float(ys.mean() + 0.5) * tall), box)


def _around(where: npt.NDArray[np.bool_], spot: tuple[np.intp, ...]) -> npt.NDArray[np.bool_]:
    """The connected part of `where` that `spot` lies in."""
    parts, _ = ndimage.label(where)
    around: npt.NDArray[np.bool_] = parts == parts[spot]
    return around
