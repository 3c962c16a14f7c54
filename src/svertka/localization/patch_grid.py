"""The grid of square patches of an image at eight scales, and the labels that boxes give them.

Source: Oquab, Bottou, Laptev & Sivic 2014, "Learning and transferring mid-level image representations using
convolutional neural networks", §3.2.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from svertka.data.box_annotations import Box
from svertka.data.dataset import Ints
from svertka.errors import ImageError

Floats = npt.NDArray[np.float64]

# The side of a patch is the shorter side of the image divided by λ. The paper has eight scales, too.
SCALES = (1.0, 1.3, 1.6, 2.0, 2.4, 2.8, 3.4, 4.0)
# Distance of neighboring patches, as a share of their side. Neighbors share at least 71 % (in the paper: half), and a
# 4:3 photograph has about as many patches as in the paper, 500.
MAX_STEP = Fraction(2, 7)
MIN_PATCH_SIDE = 8  # pixels

PATCH_SHARE, OBJECT_SHARE = 0.2, 0.6  # least share of the patch that is object, and of the object in the patch
BACKGROUND_SHARE = 0.1  # share of the patches without an object that are trained on


@dataclass(frozen=True, eq=False)
class PyramidLevel:
    """An image at one scale, and the positions of the network's window on it.

    Sizes are rounded so that windows reach the edges; patches are therefore square only to a few percent.

    Attributes:
        scale: λ.
        size: Height and width to which the image is resized, pixels.
        rows: Rows of the windows, in strides of the network from the upper edge.
        columns: Columns of the windows, in strides from the left edge.
        patch: Height and width of a window in the original image, pixels.
        stride: Vertical and horizontal stride of the network in the original image, pixels.
    """

    scale: float
    size: tuple[int, int]
    rows: Ints
    columns: Ints
    patch: tuple[float, float]
    stride: tuple[float, float]

    @property
    def places(self) -> Ints:
        """Row and column of each window, (P, 2), row by row."""
        return np.stack(np.meshgrid(self.rows, self.columns, indexing="ij"), axis=-1).reshape(-1, 2)

    def edges(self, places: Ints) -> Floats:
        """Return left, top, right and bottom of the patches at `places` (P, 2), pixels of the image, (P, 4)."""
        tops, lefts = (places * self.stride).T
        return np.stack([lefts, tops, lefts + self.patch[1], tops + self.patch[0]], axis=-1)


def pyramid_levels(
    height: int, width: int, window: tuple[int, int], stride: tuple[int, int], *, squeezed: bool = False
) -> list[PyramidLevel]:
    """Return the levels of an image, from the largest patches to the smallest.

    Args:
        height: Height of the image, pixels.
        width: Width of the image, pixels.
        window: Height and width of the network's input, pixels.
        stride: Vertical and horizontal distance of possible windows, pixels.
        squeezed: Whether the image is resized to a square, for a network that was trained on such images.

    Raises:
        ImageError: The smallest patch would have less than 8 pixels a side.
    """
    least = math.ceil(MIN_PATCH_SIDE * max(SCALES))
    shorter = min(height, width)
    if shorter < least:
        raise ImageError(f"{width}×{height} pixels, too few for patches; it needs {least} a side or more")
    proportions = (1.0, 1.0) if squeezed else (height / shorter, width / shorter)
    found = []
    for scale in SCALES:
        wanted = [scale * side * there for side, there in zip(window, proportions, strict=True)]
        more = [max(0, round((want - side) / step)) for want, side, step in zip(wanted, window, stride, strict=True)]
        size = window[0] + more[0] * stride[0], window[1] + more[1] * stride[1]
        down, across = height / size[0], width / size[1]
        rows, columns = (_spaced(*axis) for axis in zip(more, window, stride, strict=True))
        found.append(
            PyramidLevel(
                scale=scale,
                size=size,
                rows=rows,
                columns=columns,
                patch=(window[0] * down, window[1] * across),
                stride=(stride[0] * down, stride[1] * across),
            )
        )
    return found


def _spaced(last: int, side: int, stride: int) -> Ints:
    """Return evenly spaced positions from 0 to `last`, at most 2/7 of `side` apart; `side` and `stride` in pixels."""
    step = max(1, MAX_STEP * side // stride)
    places: Ints = np.linspace(0, last, math.ceil(last / step) + 1).round().astype(np.int64)
    return places


def label_patches(patches: Floats, boxes: Sequence[Box], names: Sequence[str]) -> Ints:
    """Return the label of each patch from the boxes of its image.

    A patch shows an object if the object's box covers more than a fifth of it, if it contains more than three fifths
    of the box, and if it touches no box of another class.

    Args:
        patches: Edges of the patches, (P, 4), pixels.
        boxes: Boxes of the image.
        names: Class names.

    Returns:
        Indices into `names`, or `len(names)` for background, (P,).
    """
    background = len(names)
    if not boxes:
        return np.full(len(patches), background)
    edges = np.array([(box.left, box.top, box.right, box.bottom) for box in boxes])
    classes = np.array([names.index(box.name) for box in boxes])
    low = np.maximum(patches[:, None, :2], edges[None, :, :2])
    high = np.minimum(patches[:, None, 2:], edges[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)  # (P, boxes)
    of_patch = shared / _areas(patches)[:, None]
    of_object = shared / _areas(edges)[None]
    shows = (of_patch > PATCH_SHARE) & (of_object > OBJECT_SHARE)
    touched = np.stack([(shared[:, classes == index] > 0).any(axis=1) for index in range(background)], axis=1)
    alone = touched.sum(axis=1) == 1
    return np.where(shows.any(axis=1) & alone, touched.argmax(axis=1), background)


def intersection_over_union(patches: Floats, square: tuple[float, float, float, float]) -> Floats:
    """Return the intersection over union of each of `patches` (P, 4) with `square`, both edges in pixels, (P,)."""
    other = np.array([square], dtype=np.float64)
    sides = np.minimum(patches[:, 2:], other[:, 2:]) - np.maximum(patches[:, :2], other[:, :2])
    shared = np.clip(sides, 0, None).prod(axis=1)
    alike: Floats = shared / (_areas(patches) + _areas(other) - shared)
    return alike


def _areas(edges: Floats) -> Floats:
    return (edges[:, 2] - edges[:, 0]) * (edges[:, 3] - edges[:, 1])
