"""Max-unpooling of windows of feature maps by switches, the tap of each pooling window that is the maximum.

A switch is one byte: (taps in x) · (tap in y) + (tap in x).
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from svertka.conv import native_support
from svertka.conv.native_max_pool import MAX_TAPS
from svertka.conv.native_support import empty_channels_last, make_window_sizes, to_channels_last
from svertka.data.dataset import Ints
from svertka.inspection.deconvolution.backward_graph import Pair, Transposed, Unpooled

WEIGHT_COLUMNS = 16  # the kernel reads rows of a multiple of so many weights


class PooledWindows(NamedTuple):
    """Windows of the output of a max-pool, for a batch.

    Attributes:
        gradient: (N, C, h, w).
        switches: (N, h, w, C) int8.
        pool: The max-pool.
        offsets: (N, 2): tap t of position i belongs to pixel i · stride + t + offset of the result, (y, x) each.
    """

    gradient: Tensor
    switches: Tensor
    pool: Unpooled
    offsets: Ints


def can_unpool(pool: Unpooled) -> bool:
    """Return whether the kernels undo a max-pool."""
    overlap = all(taps >= stride for taps, stride in zip(pool.taps, pool.stride, strict=True))
    return overlap and pool.dilation == (1, 1) and pool.taps[0] * pool.taps[1] <= MAX_TAPS


def find_switches(indices: Tensor, pool: Unpooled, width: int) -> Tensor:
    """Return the switches of a max-pool, (h, w, C) int8.

    Args:
        indices: The maxima, row · width + column, (1, C, h, w) int64.
        pool: The max-pool.
        width: Columns of its input.
    """
    rows, columns = indices.shape[2:]
    flat = indices[0].permute(1, 2, 0).to(torch.int32)
    y = flat // width - (torch.arange(rows, dtype=torch.int32) * pool.stride[0] - pool.padding[0])[:, None, None]
    x = flat % width - (torch.arange(columns, dtype=torch.int32) * pool.stride[1] - pool.padding[1])[:, None]
    return (y * pool.taps[1] + x).to(torch.int8).contiguous()


def max_unpool(windows: PooledWindows, size: Pair) -> Tensor:
    """Return the gradient of the input of a max-pool in a window; what belongs to other pixels must be 0.

    Args:
        windows: The gradients of the output.
        size: Rows and columns of the result.
    """
    count, channels = windows.gradient.shape[:2]
    result = empty_channels_last((count, channels, *size), torch.float32)
    for images, pool, gradient, switches in _split(windows, size):
        native_support.kernels.max_pool_input_gradient(
            pool, gradient, switches, result[images], torch.get_num_threads()
        )
    return result.relu_() if windows.pool.rectify else result


def can_unpool_and_transpose(term: Transposed) -> bool:
    """Return whether `unpool_and_transpose` computes a transposed convolution."""
    return term.groups == 1 and term.dilation == (1, 1)


def pack_weights(term: Transposed) -> Tensor:
    """Return the weights of a transposed convolution as `unpool_and_transpose` reads them."""
    rows = term.weight.permute(0, 2, 3, 1).flatten(2)
    return F.pad(rows, (0, -rows.shape[2] % WEIGHT_COLUMNS)).contiguous()


def unpool_and_transpose(windows: PooledWindows, size: Pair, term: Transposed, packed: Tensor) -> Tensor:
    """Return a transposed convolution without padding of what `max_unpool` returns.

    Most of what it returns is 0, and is skipped.

    Args:
        windows: The gradients of the output of the max-pool.
        size: Rows and columns of its input.
        term: The transposed convolution.
        packed: Its weights by `pack_weights`.
    """
    channels, outputs = term.weight.shape[:2]
    shape = [(length - 1) * stride + taps for length, stride, taps in zip(size, term.stride, term.taps, strict=True)]
    result = empty_channels_last((len(windows.gradient), outputs, shape[0], shape[1]), torch.float32)
    axes = [*zip(shape, size, term.taps, term.stride, (0, 0), (1, 1), strict=True)]
    for images, pool, gradient, switches in _split(windows, size):
        convolution = make_window_sizes(len(gradient), (outputs, channels), axes, (outputs, channels))
        native_support.kernels.max_pool_convolution_gradient(
            pool, convolution, gradient, switches, windows.pool.rectify, packed, result[images], torch.get_num_threads()
        )
    return result


def _split(
    windows: PooledWindows, size: Pair
) -> Iterator[tuple[slice, "native_support.kernels.Window", Tensor, Tensor]]:
    """Yield images with the same offsets, the sizes for the kernels, the gradients and the switches."""
    gradient, switches, pool, offsets = windows
    step = len(gradient) if (offsets == offsets[0]).all() else 1
    for start in range(0, len(gradient), step):
        images = slice(start, start + step)
        spans: list[slice] = []
        missing: list[int] = []  # positions before the window whose taps are in the result; their gradients are 0
        axes: list[tuple[int, ...]] = []
        sizes = zip(gradient.shape[2:], size, pool.taps, pool.stride, offsets[start].tolist(), strict=True)
        for length, pixels, taps, stride, offset in sizes:
            before = -(-offset // stride) if offset > 0 else min(0, (taps - 1 + offset) // stride)
            last = min(length, (pixels - 1 - offset) // stride + 1)
            spans.append(slice(max(0, -before), last))
            missing.append(max(0, before))
            axes.append((pixels, last + before, taps, stride, before * stride - offset, 1))
        rows, columns = spans
        values, places = gradient[images, :, rows, columns], switches[images, rows, columns]
        if any(missing):
            values = F.pad(values, (missing[1], 0, missing[0], 0))
            places = F.pad(places, (0, 0, missing[1], 0, missing[0], 0))
        channels = (gradient.shape[1],) * 2
        kernel_sizes = make_window_sizes(len(values), channels, axes, channels)
        yield images, kernel_sizes, to_channels_last(values), places.contiguous()
