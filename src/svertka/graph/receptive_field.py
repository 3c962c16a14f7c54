"""The receptive fields of a layer along one axis: the pixels of the image that each of its positions depends on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from svertka.conv_shape import output_size


class ReceptiveFieldGrid(NamedTuple):
    """Evenly spaced receptive fields: position i of an unbounded image sees `extent` pixels from start + i·jump on."""

    start: int
    jump: int
    extent: int


@dataclass(frozen=True)
class ReceptiveField:
    """The pixels of the image that each position of a layer depends on, along one axis.

    Attributes:
        size: Size of the image, pixels.
        intervals: The exact first and last pixel inside the image that each position depends on; it may skip pixels
            between them. For a position that sees only padding, the last pixel is before the first.
        grid: The receptive fields in an unbounded image, as papers state them; None if the positions are not evenly
            spaced, as behind a dense layer.

    Source: the grid is that of Araujo, Norris & Sim 2019, "Computing receptive fields of convolutional neural
    networks", eq. 2 and 4.

    >>> field = ReceptiveField.of_pixels(224).through(kernel=7, stride=2, padding=3)
    >>> field = field.through(kernel=3, stride=2, padding=1)
    >>> field.grid
    ReceptiveFieldGrid(start=-5, jump=4, extent=11)
    >>> field.of(0), field.of(1), len(field.intervals)
    ((0, 5), (0, 9), 56)
    """

    size: int
    intervals: tuple[tuple[int, int], ...]
    grid: ReceptiveFieldGrid | None

    @classmethod
    def of_pixels(cls, size: int) -> "ReceptiveField":
        """Return the receptive fields of the image itself: pixel i sees pixel i."""
        return cls(size, tuple((pixel, pixel) for pixel in range(size)), ReceptiveFieldGrid(start=0, jump=1, extent=1))

    def of(self, position: int) -> tuple[int, int]:
        """Return the first and the last pixel that `position` sees."""
        return self.intervals[position]

    @property
    def extent(self) -> int:
        """Number of pixels that a position sees: the grid's, or, without a grid, the largest of all positions."""
        return self.grid.extent if self.grid else max(last - first + 1 for first, last in self.intervals)

    @property
    def whole(self) -> bool:
        """Whether every position sees the whole image."""
        return all(interval == (0, self.size - 1) for interval in self.intervals)

    def through(
        self, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1, positions: int | None = None
    ) -> "ReceptiveField":
        """Return the receptive fields of a convolution or pooling over this layer.

        `padding` is before the first position; behind the last one there is as much as the positions need.
        `positions` is the size of the output; None: as many as fit.
        """
        if positions is None:
            positions = output_size(len(self.intervals), kernel, stride, padding, dilation)
        starts = range(-padding, -padding + positions * stride, stride)
        grid = None
        if self.grid:
            start, jump, extent = self.grid
            grid = ReceptiveFieldGrid(start - padding * jump, stride * jump, extent + dilation * (kernel - 1) * jump)
        return self.reading([range(start, start + dilation * kernel, dilation) for start in starts], grid)

    def reading(self, taps: Sequence[Sequence[int]], grid: ReceptiveFieldGrid | None = None) -> "ReceptiveField":
        """Return those of a layer whose position i reads the positions `taps[i]` of this one; others are padding.

        >>> ReceptiveField.of_pixels(4).through(kernel=2).reading([[0, 1], [2], [3]]).intervals
        ((0, 2), (2, 3), (4, -1))
        """
        count = len(self.intervals)
        seen = [[self.intervals[tap] for tap in window if 0 <= tap < count] for window in taps]
        return ReceptiveField(self.size, tuple(self._hull(intervals) for intervals in seen), grid)

    def united(self, other: "ReceptiveField") -> "ReceptiveField":
        """Return those of a layer whose position i reads position i of both, which have equally many.

        >>> short, long = ReceptiveField.of_pixels(5), ReceptiveField.of_pixels(5).through(kernel=3, padding=1)
        >>> short.united(long) == long
        True
        """
        if self is other or self == other:
            return self
        grid = None
        if self.grid and other.grid and self.grid.jump == other.grid.jump:
            start = min(self.grid.start, other.grid.start)
            end = max(self.grid.start + self.grid.extent, other.grid.start + other.grid.extent)
            grid = ReceptiveFieldGrid(start, self.grid.jump, end - start)
        pairs = zip(self.intervals, other.intervals, strict=True)
        return ReceptiveField(self.size, tuple(self._hull(pair) for pair in pairs), grid)

    def gathered(self) -> "ReceptiveField":
        """Return that of one position that reads all positions, such as of a dense layer or a mean.

        >>> ReceptiveField.of_pixels(6).through(kernel=1, stride=2).gathered().intervals
        ((0, 4),)
        """
        return ReceptiveField(self.size, (self._hull(self.intervals),), grid=None)

    def _hull(self, intervals: Sequence[tuple[int, int]]) -> tuple[int, int]:
        firsts, lasts = [first for first, _ in intervals], [last for _, last in intervals]
        return min(firsts, default=self.size), max(lasts, default=-1)
