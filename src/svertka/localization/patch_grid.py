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

from svertka.data.bounding_boxes import Box
from svertka.data.dataset import Ints
from svertka.errors import ImageError

Floats = npt.NDArray[np.float64]

# A patch is as wide as the shorter side of its picture over one of these λ. There are eight, as in the paper; each is
# about a quarter larger than the one before.
SCALES = (1.0, 1.3, 1.6, 2.0, 2.4, 2.8, 3.4, 4.0)
# From one patch to the next, of its side; so neighbours share 71 % at least (the paper: half), and a photograph of 4:3
# has about the paper's 500 patches.
STEP = Fraction(2, 7)
LEAST_SIDE = 8  # pixels of a patch: what is smaller shows nothing

PATCH_SHARE, OBJECT_SHARE = 0.2, 0.6  # more than this of the patch is object, and of the object in the patch
BACKGROUND_SHARE = 0.1  # of the patches without an object that are trained on


@dataclass(frozen=True, eq=False)
class Level:
    """A picture at one size, and the windows of a network on it.

    `scale`: λ. `size`: height and width to which the picture is resized, pixels. `rows`, `columns`: where windows
    begin, in ways from the upper left corner, `STEP` apart or less, from edge to edge. `patch`, `way`: height and width
    of a window, and the way to the next place where one could begin, in pixels of the picture itself. (Sizes are
    rounded so that nothing is left over; so patches are square to a few per cent.)
    """

    scale: float
    size: tuple[int, int]
    rows: Ints
    columns: Ints
    patch: tuple[float, float]
    way: tuple[float, float]

    @property
    def places(self) -> Ints:
        """Row and column of each window, (P, 2), line by line."""
        return np.stack(np.meshgrid(self.rows, self.columns, indexing="ij"), axis=-1).reshape(-1, 2)

    def edges(self, places: Ints) -> Floats:
        """Edges (left, top, right, bottom) of the patches at `places`, (P, 2), in pixels of the picture, (P, 4)."""
        tops, lefts = (places * self.way).T
        return np.stack([lefts, tops, lefts + self.patch[1], tops + self.patch[0]], axis=-1)


def levels(
    height: int, width: int, window: tuple[int, int], stride: tuple[int, int], *, squeezed: bool = False
) -> list[Level]:
    """A picture of `height` × `width` at each of the SCALES, for a network of such a `window` and `stride`, pixels.

    `squeezed`: as a square, whatever its proportions, for a network that learnt from pictures so changed.

    Raises:
        ImageError: the smallest patch would have less than `LEAST_SIDE` pixels.
    """
    least = math.ceil(LEAST_SIDE * max(SCALES))
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
            Level(
                scale=scale,
                size=size,
                rows=rows,
                columns=columns,
                patch=(window[0] * down, window[1] * across),
                way=(stride[0] * down, stride[1] * across),
            )
        )
    return found


def _spaced(last: int, side: int, stride: int) -> Ints:
    """Places from 0 to `last`, no more than `STEP` of a window's `side` apart."""
    ways = max(1, STEP * side // stride)
    places: Ints = np.linspace(0, last, math.ceil(last / ways) + 1).round().astype(np.int64)
    return places


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


def covered_alike(patches: Floats, square: tuple[float, float, float, float]) -> Floats:
    """Of what each of `patches`, (P, 4) edges, and `square` cover together, the share that both do, 0 to 1, (P,)."""
    other = np.array([square], dtype=np.float64)
    sides = np.minimum(patches[:, 2:], other[:, 2:]) - np.maximum(patches[:, :2], other[:, :2])
    shared = np.clip(sides, 0, None).prod(axis=1)
    alike: Floats = shared / (_areas(patches) + _areas(other) - shared)
    return alike


def _areas(edges: Floats) -> Floats:
    return (edges[:, 2] - edges[:, 0]) * (edges[:, 3] - edges[:, 1])
