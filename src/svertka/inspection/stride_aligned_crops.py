"""Image crops around receptive fields, in which the network computes the same values as in the whole image.

A crop starts at a multiple of the network's stride and is a whole number of strides smaller than the image. The
positions of every layer are then at the same pixels in the crop as in the image, and a position whose receptive field
lies inside the crop has the same value. Networks may depend on the size of their input in other ways, so callers must
compare the values (`deconvnet`).
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch import Tensor

from svertka.data.dataset import Ints
from svertka.graph.receptive_field import ReceptiveField
from svertka.graph.summary import Layer

MAX_CROP_AREA = 0.85  # of the image; above this, one whole image for several positions is faster
SIZE_STEPS = 2  # sizes per receptive field; with more, few crops have the same size


def crops_for_positions(layer: Layer, positions: Ints) -> tuple[Ints, Ints]:
    """Return a crop for each position of `layer`.

    Args:
        layer: A layer with feature maps.
        positions: (N, 2), row and column in the feature map of the whole image.

    Returns:
        (N, 4) top, left, height and width of the crops in pixels, and (N, 2) the positions in their feature maps.
    """
    (tops, heights, rows), (lefts, widths, columns) = (
        _crops_along_axis(field, at) for field, at in zip(layer.fields, positions.T, strict=True)
    )
    is_small = heights * widths < MAX_CROP_AREA * layer.fields[0].size * layer.fields[1].size
    crops = np.stack([tops, lefts, heights, widths], axis=1)
    positions_in_crop = np.stack([rows, columns], axis=1)
    whole = (0, 0, layer.fields[0].size, layer.fields[1].size)
    return np.where(is_small[:, None], crops, whole), np.where(is_small[:, None], positions_in_crop, positions)


def feature_map_size_in_crop(layer: Layer, height: int, width: int) -> tuple[int, int]:
    """Return the rows and columns of the feature maps of `layer` for a crop, if the network supports crops."""
    rows, columns = (
        size - (field.size - length) // (field.grid.jump if field.grid else 1)
        for field, size, length in zip(layer.fields, layer.shape[2:], (height, width), strict=True)
    )
    return rows, columns


def _crops_along_axis(field: ReceptiveField, positions: Ints) -> tuple[Ints, Ints, Ints]:
    """Return the starts and lengths of crops along one axis, and the positions inside them."""
    size, grid = field.size, field.grid
    if grid is None:
        return np.zeros_like(positions), np.full_like(positions, size), positions
    first = positions * grid.jump + grid.start
    last = np.minimum(first + grid.extent, size)
    start = np.maximum(first, 0) // grid.jump * grid.jump
    step = grid.jump * max(1, round(min(grid.extent, size) / grid.jump / SIZE_STEPS))
    length = size - (size - np.maximum(last - start, 1)) // step * step
    start = np.minimum(start, size - length)  # a crop may be longer than necessary, but must stay inside the image
    return start, length, positions - start // grid.jump


class CropJobs(NamedTuple):
    """N positions to compute in crops.

    Attributes:
        images: (N,) index of the image.
        units: (N,) channel of the layer.
        crops: (N, 4) top, left, height and width in pixels.
        positions: (N, 2) row and column in the crop's feature map.
    """

    images: Ints
    units: Ints
    crops: Ints
    positions: Ints

    def crop(self, images: Tensor, job: int) -> Tensor:
        """Return the pixels of one job's crop, (C, h, w)."""
        top, left, height, width = self.crops[job].tolist()
        return images[self.images[job], :, top : top + height, left : left + width]

    def batches(self, num_pixels: int) -> Iterator[list[Ints]]:
        """Group all jobs into batches of crops of one size, about `num_pixels` in each.

        A batch runs forward once and backward once per turn. Jobs with the same crop of the same image share its
        forward pass and take turns going backward.

        Yields:
            A list of turns, each an array with the index of one job for every crop of the batch; −1 where all jobs of
            the crop are done.
        """
        keys = np.column_stack([self.images, self.crops])
        unique, crop_of_job, counts = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
        jobs_of_crop = np.split(np.argsort(crop_of_job, kind="stable"), counts.cumsum()[:-1])
        # Grouped by size, and within a size by the number of turns.
        order = np.lexsort((-counts, unique[:, 4], unique[:, 3]))
        for first, last in _runs_of_equal_rows(unique[order, 3:]):
            batch_size = max(1, num_pixels // int(unique[order[first], 3:].prod()))
            for start in range(first, last, batch_size):
                batch = [jobs_of_crop[crop] for crop in order[start : min(start + batch_size, last)]]
                yield [
                    np.array([jobs[turn] if turn < len(jobs) else -1 for jobs in batch])
                    for turn in range(len(batch[0]))
                ]


def _runs_of_equal_rows(rows: Ints) -> Iterator[tuple[int, int]]:
    """Yield the first and one past the last index of each run of equal `rows`."""
    ends = np.flatnonzero((rows[1:] != rows[:-1]).any(1)) + 1
    yield from zip([0, *ends], [*ends, len(rows)], strict=True) if len(rows) else ()
