"""Parts of pictures that are enough for some places of a layer: in them the network computes there what it does in all.

A window begins where the strides of the network begin anew, and is a whole number of strides smaller than the picture.
So the positions of every layer lie in it as they lie in the picture, its last ones too, and a place whose receptive
field is inside gets the same value from the same numbers. That is not so where the network depends on the size of its
input in another way; who uses windows has to look (`deconvnet`).
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch import Tensor

from svertka.conv_geometry import ReceptiveField
from svertka.data.dataset import Ints
from svertka.graph.summary import Layer

WHOLE = 0.85  # of a picture: larger windows are not worth it, since whole pictures can serve several places
STEPS = 2  # lengths of windows differ by the receptive field over this: with more of them batches are small


def crops_for_positions(layer: Layer, places: Ints) -> tuple[Ints, Ints]:
    """A window for each of `places` of `layer`, and where that place is in the maps for it.

    `places`: (N, 2) row and column. Gives (N, 4) top, left, height and width in pixels, and (N, 2).
    """
    (tops, heights, rows), (lefts, widths, columns) = (
        _crops_along_axis(field, at) for field, at in zip(layer.fields, places.T, strict=True)
    )
    small = heights * widths < WHOLE * layer.fields[0].size * layer.fields[1].size
    found = np.stack([tops, lefts, heights, widths], axis=1)
    inside = np.stack([rows, columns], axis=1)
    whole = (0, 0, layer.fields[0].size, layer.fields[1].size)
    return np.where(small[:, None], found, whole), np.where(small[:, None], inside, places)


def feature_map_size_in_crop(layer: Layer, height: int, width: int) -> tuple[int, int]:
    """The rows and columns that the maps of `layer` have for a window, if windows do for the network."""
    rows, columns = (
        there - (field.size - length) // (field.grid.jump if field.grid else 1)
        for field, there, length in zip(layer.fields, layer.shape[2:], (height, width), strict=True)
    )
    return rows, columns


def _crops_along_axis(field: ReceptiveField, at: Ints) -> tuple[Ints, Ints, Ints]:
    """First pixels and lengths of windows for the positions `at` along one axis, and where these are in them."""
    size, grid = field.size, field.grid
    if grid is None:
        return np.zeros_like(at), np.full_like(at, size), at
    first = at * grid.jump + grid.start
    last = np.minimum(first + grid.extent, size)
    begin = np.maximum(first, 0) // grid.jump * grid.jump
    step = grid.jump * max(1, round(min(grid.extent, size) / grid.jump / STEPS))
    length = size - (size - np.maximum(last - begin, 1)) // step * step
    begin = np.minimum(begin, size - length)  # a window may be longer than it need be, but not leave the picture
    return begin, length, at - begin // grid.jump


class CropJobs(NamedTuple):
    """N places of a layer: of which picture and unit; the window (N, 4), and the place (N, 2) in the maps for it."""

    pictures: Ints
    units: Ints
    windows: Ints
    places: Ints

    def window(self, images: Tensor, number: int) -> Tensor:
        """The pixels that one job is about, (C, h, w)."""
        top, left, height, width = self.windows[number].tolist()
        return images[self.pictures[number], :, top : top + height, left : left + width]

    def batches(self, pixels: int) -> Iterator[list[Ints]]:
        """The numbers of all jobs, in batches of windows of one size, about `pixels` in each.

        A batch is a list of turns, one number for each window in each: jobs that have the same window of the same
        picture take turns, so that it goes forward once, and back for each of them. −1: all have had theirs.
        """
        windows = np.column_stack([self.pictures, self.windows])
        unique, of_job, counts = np.unique(windows, axis=0, return_inverse=True, return_counts=True)
        waiting = np.split(np.argsort(of_job, kind="stable"), counts.cumsum()[:-1])
        # Together those of one size, and of these the ones with equally many turns.
        order = np.lexsort((-counts, unique[:, 4], unique[:, 3]))
        for first, last in _runs_of_equal_rows(unique[order, 3:]):
            at_once = max(1, pixels // int(unique[order[first], 3:].prod()))
            for start in range(first, last, at_once):
                some = [waiting[number] for number in order[start : min(start + at_once, last)]]
                yield [
                    np.array([jobs[turn] if turn < len(jobs) else -1 for jobs in some]) for turn in range(len(some[0]))
                ]


def _runs_of_equal_rows(rows: Ints) -> Iterator[tuple[int, int]]:
    """The first and one past the last of each run of equal `rows`."""
    ends = np.flatnonzero((rows[1:] != rows[:-1]).any(1)) + 1
    yield from zip([0, *ends], [*ends, len(rows)], strict=True) if len(rows) else ()
