"""Sizes that convolution and pooling give."""

from svertka.errors import UsageError


def output_size(size: int, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> int:
    """Number of positions of a kernel along one axis: ⌊(size + 2·padding − dilation·(kernel − 1) − 1) / stride + 1⌋.

    Everything in pixels. At least 1.

    Raises:
        UsageError: the dilated kernel is larger than the padded input.

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
