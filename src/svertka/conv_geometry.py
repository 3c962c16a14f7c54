"""Output sizes and receptive fields of convolution and pooling."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from svertka.errors import UsageError

LARGEST = 2**31 - 1  # largest stride, padding or dilation that PyTorch and the kernels accept
SMALL = 64  # pixels; below this side, networks for photographs are built in their variant for 32×32


def output_size(size: int, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> int:
    """Return the kernel positions along one axis: ⌊(size + 2·padding − dilation·(kernel − 1) − 1) / stride + 1⌋.

    All arguments are in pixels. The result is at least 1.

    Raises:
        UsageError: The dilated kernel is larger than the padded input.

    Source: Dumoulin & Visin 2016, relationship 15.

    >>> output_size(224, kernel=7, stride=2, padding=3)
    112
    """
    span = dilation * (kernel - 1) + 1
    if span > size + 2 * padding:
        raise UsageError(
            f"a kernel of {kernel} with dilation {dilation} spans {span} pixels, more than the {size + 2 * padding} "
            f"of an input of {size} with padding {padding}; use a larger input"
        )
    return (size + 2 * padding - span) // stride + 1


@dataclass(frozen=True)
class ConvShape:
    """All sizes of one 2-D convolution, for which an algorithm is chosen and under which the choice is stored.

    Pairs are (vertical, horizontal), in pixels. `kernel` is a number of taps: with `dilation` d, k taps span
    d·(k − 1) + 1 pixels. `padding` is the number of zeros on each side. `batch` may be 0. The constructor does not
    check its arguments; `of` does.
    """

    batch: int
    in_channels: int
    out_channels: int
    height: int
    width: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @classmethod
    def of(
        cls,
        inputs: Sequence[int],
        weight: Sequence[int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
    ) -> "ConvShape":
        """Return the shape for images of shape `inputs`, (N, C, H, W), and weights `weight`, (O, C / groups, kh, kw).

        A single number for `stride`, `padding` or `dilation` applies to both axes.

        Raises:
            UsageError: They do not fit together; the message has both shapes.

        >>> shape = ConvShape.of((16, 3, 224, 224), (64, 3, 7, 7), stride=2, padding=3)
        >>> shape.output
        (16, 64, 112, 112)
        >>> shape.multiply_adds
        1888223232
        """
        stride, padding, dilation = (
            to_pair("stride", stride),
            to_pair("padding", padding),
            to_pair("dilation", dilation),
        )
        problem = _misfit(inputs, weight, stride, padding, dilation, groups)
        if problem:
            raise UsageError(
                f"an input of shape {tuple(inputs)} and weights of shape {tuple(weight)} do not fit: {problem}"
            )
        batch, in_channels, height, width = inputs
        out_channels, _, *kernel = weight
        taps = kernel[0], kernel[1]
        return cls(batch, in_channels, out_channels, height, width, taps, stride, padding, dilation, groups)

    @property
    def input(self) -> tuple[int, int, int, int]:
        """Shape of the images, (N, C, H, W)."""
        return self.batch, self.in_channels, self.height, self.width

    @property
    def weight(self) -> tuple[int, int, int, int]:
        """Shape of the weights, (O, C / groups, kh, kw)."""
        return self.out_channels, self.in_channels // self.groups, *self.kernel

    @property
    def output(self) -> tuple[int, int, int, int]:
        """Shape of the result, (N, O, H', W')."""
        return self.batch, self.out_channels, self.out_height, self.out_width

    @property
    def span(self) -> tuple[int, int]:
        """Pixels from a kernel's first tap to its last, both included."""
        return self.dilation[0] * (self.kernel[0] - 1) + 1, self.dilation[1] * (self.kernel[1] - 1) + 1

    @cached_property
    def out_height(self) -> int:
        """Rows of the result."""
        return output_size(self.height, self.kernel[0], self.stride[0], self.padding[0], self.dilation[0])

    @cached_property
    def out_width(self) -> int:
        """Columns of the result."""
        return output_size(self.width, self.kernel[1], self.stride[1], self.padding[1], self.dilation[1])

    @property
    def multiply_adds(self) -> int:
        """Products in the definition, including those with padding; the same for each of the three passes."""
        each = self.in_channels // self.groups * self.kernel[0] * self.kernel[1]
        return self.batch * self.out_channels * self.out_height * self.out_width * each


def to_pair(name: str, value: int | tuple[int, int]) -> tuple[int, int]:
    """Return `value`, the argument called `name`, as (vertical, horizontal).

    Raises:
        UsageError: It is neither a whole number nor two of them.
    """
    if isinstance(value, int):
        return value, value
    if not isinstance(value, Sequence) or [type(number) for number in value] != [int, int]:
        raise UsageError(f"{name}={value} must be a whole number or two of them, vertical and horizontal")
    return value[0], value[1]


def _misfit(
    inputs: Sequence[int],
    weight: Sequence[int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> str | None:
    """Return why images and weights of these shapes cannot be convolved and what to do, or None if they can."""
    if len(inputs) != 4:
        return f"the input has {len(inputs)} axes; give it 4: images, channels, rows, columns"
    if len(weight) != 4:
        return f"the weights have {len(weight)} axes; give them 4: output channels, input channels, rows, columns"
    if min(inputs[1:]) < 1 or min(weight) < 1:
        return "an axis other than the batch is empty; make it at least 1 long"
    if min(stride) < 1 or min(dilation) < 1 or min(padding) < 0:
        return f"{stride=}, {dilation=}, {padding=}; strides and dilations are at least 1, padding is at least 0"
    if max(*stride, *dilation, *padding) > LARGEST:
        return f"{stride=}, {dilation=}, {padding=}; none may be above {LARGEST}"
    if groups < 1 or inputs[1] % groups or weight[0] % groups:
        return f"{groups=} must divide {inputs[1]} input and {weight[0]} output channels; use a common divisor of them"
    if weight[1] * groups != inputs[1]:
        of_groups = f" in each of {groups} groups" if groups > 1 else ""
        return (
            f"the weights read {weight[1]} channels{of_groups}, the input has {inputs[1]}; give it {weight[1] * groups}"
        )
    for axis, size, taps, pad, step in zip(("high", "wide"), inputs[2:], weight[2:], padding, dilation, strict=True):
        span = step * (taps - 1) + 1
        if span > size + 2 * pad:
            return f"the kernel spans {span} pixels, the padded input is {size + 2 * pad} {axis}; use a larger input"
    return None


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
