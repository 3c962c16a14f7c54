"""The labels that bounding boxes give to patches of an image.

Source: Oquab, Bottou, Laptev & Sivic 2014, "Learning and transferring mid-level image representations using
convolutional neural networks", §3.2.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from svertka.data.box_annotations import Box
from svertka.data.dataset import Ints

Floats = npt.NDArray[np.float64]

PATCH_SHARE, OBJECT_SHARE = 0.2, 0.6  # least share of the patch that is object, and of the object in the patch


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
