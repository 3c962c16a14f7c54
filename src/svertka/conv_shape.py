"""The shape of a convolution: sizes of its input, weights and output, and multiply-adds."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

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


def as_pair(setting: Any) -> tuple[int, int]:
    """Return a layer setting as (vertical, horizontal); users may have set one number for both."""
    if isinstance(setting, int):
        return setting, setting
    vertical, horizontal = setting
    return vertical, horizontal


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
