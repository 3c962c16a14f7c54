"""The pyramid of an image: its square patches at eight scales.

Source: Oquab, Bottou, Laptev & Sivic 2014, "Learning and transferring mid-level image representations using
convolutional neural networks", §3.2.
"""

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from svertka.data.dataset import Ints
from svertka.errors import ImageError

Floats = npt.NDArray[np.float64]

# The side of a patch is the shorter side of the image divided by λ. The paper has eight scales, too.
SCALES = (1.0, 1.3, 1.6, 2.0, 2.4, 2.8, 3.4, 4.0)
# Distance of neighboring patches, as a share of their side. Neighbors share at least 71 % (in the paper: half), and a
# 4:3 photograph has about as many patches as in the paper, 500.
MAX_STEP = Fraction(2, 7)
MIN_PATCH_SIDE = 8  # pixels


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
        window: Height and width of the network's input, in pixels.
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
