"""The squares of a picture that a classifier is shown, at eight sizes, and what boxes say is in them.

Source: Oquab, Bottou, Laptev & Sivic 2014, "Learning and transferring mid-level image representations using
convolutional neural networks", §3.2.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from svertka.data.boxes import Box
from svertka.data.dataset import Ints
from svertka.errors import PictureError

Floats = npt.NDArray[np.float64]

# A patch is as wide as the shorter side of its picture over one of these λ. There are eight, as in the paper; each is
# about a quarter larger than the one before.
SCALES = (1.0, 1.3, 1.6, 2.0, 2.4, 2.8, 3.4, 4.0)
# From one training patch to the next, of its side; so neighbours share 71 % at least (the paper: half), and a
# photograph of 4:3 has about the paper's 500 patches.
STEP = Fraction(2, 7)
LEAST_SIDE = 8  # pixels of a patch: what is smaller shows nothing

PATCH_SHARE, OBJECT_SHARE = 0.2, 0.6  # more than this of the patch is object, and of the object in the patch
BACKGROUND_SHARE = 0.1  # of the patches without an object that are trained on
BACKGROUND = "background"  # the class of patches without an object


@dataclass(frozen=True)
class Level:
    """A picture at one size, and the positions of a network's window on it.

    `scale`: λ. `size`: height and width to which the picture is resized, pixels. `shape`: rows and columns of
    positions. `patch`, `way`: height and width of a window, and the way to the next one, in pixels of the picture
    itself. (Sizes are rounded so that no position is left over; so patches are square to a few per cent.)
    """

    scale: float
    size: tuple[int, int]
    shape: tuple[int, int]
    patch: tuple[float, float]
    way: tuple[float, float]

    def patches(self, rows: Ints, columns: Ints) -> Floats:
        """Edges (left, top, right, bottom) of all patches at `rows` × `columns`, (P, 4), in pixels of the picture."""
        tops, lefts = np.meshgrid(rows * self.way[0], columns * self.way[1], indexing="ij")
        edges = np.stack([lefts, tops, lefts + self.patch[1], tops + self.patch[0]], axis=-1)
        return edges.reshape(-1, 4)

    def all_patches(self) -> Floats:
        """Those of every position, (rows · columns, 4)."""
        return self.patches(*map(np.arange, self.shape))

    def spaced(self, window: tuple[int, int], stride: tuple[int, int]) -> tuple[Ints, Ints]:
        """Rows and columns of the positions that are trained on: `STEP` apart or less, from edge to edge."""
        rows, columns = (
            np.unique(np.linspace(0, count - 1, math.ceil((count - 1) / max(1, STEP * side // step)) + 1).round())
            for count, side, step in zip(self.shape, window, stride, strict=True)
        )
        return rows.astype(np.int64), columns.astype(np.int64)


def levels(height: int, width: int, window: tuple[int, int], stride: tuple[int, int]) -> list[Level]:
    """A picture of `height` × `width` at each of the SCALES, for a network of such a `window` and `stride`, pixels.

    Raises:
        PictureError: the smallest patch would have less than `LEAST_SIDE` pixels.
    """
    least = math.ceil(LEAST_SIDE * max(SCALES))
    shorter = min(height, width)
    if shorter < least:
        raise PictureError(f"{width}×{height} pixels, too few for patches; it needs {least} a side or more")
    found = []
    for scale in SCALES:
        wanted = [scale * side * there / shorter for side, there in zip(window, (height, width), strict=True)]
        more = [max(0, round((want - side) / step)) for want, side, step in zip(wanted, window, stride, strict=True)]
        size = window[0] + more[0] * stride[0], window[1] + more[1] * stride[1]
        down, across = height / size[0], width / size[1]
        found.append(
            Level(
                scale=scale,
                size=size,
                shape=(more[0] + 1, more[1] + 1),
                patch=(window[0] * down, window[1] * across),
                way=(stride[0] * down, stride[1] * across),
            )
        )
    return found


def labels_of(patches: Floats, boxes: Sequence[Box], names: Sequence[str]) -> Ints:
    """What each of `patches`, (P, 4) edges, shows: an index into `names`, or `len(names)` for background, (P,).

    A patch shows an object if more than a fifth of the patch is the object's box and more than three fifths of the box
    are in the patch, and if the patch touches no box of another class.
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


def _areas(edges: Floats) -> Floats:
    return (edges[:, 2] - edges[:, 0]) * (edges[:, 3] - edges[:, 1])
