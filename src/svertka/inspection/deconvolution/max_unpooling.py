"""Max-unpooling of windows of feature maps by switches, the tap of each pooling window that is the maximum.

A switch is one byte: 16 · tap in y + tap in x.
"""

import torch
from torch import Tensor

from svertka.inspection.deconvolution.backward_graph import Pair, Unpooled

BITS = 4  # of the tap in x
MAX_TAPS = 2**BITS  # on each axis


def find_switches(indices: Tensor, pool: Unpooled, width: int) -> Tensor:
    """Return the switches of a max-pool, (h, w, C) uint8.

    Args:
        indices: The maxima, row · width + column, (1, C, h, w) int64.
        pool: The max-pool.
        width: Columns of its input.
    """
    rows, columns = indices.shape[2:]
    flat = indices[0].permute(1, 2, 0).to(torch.int32)
    y = flat // width - (torch.arange(rows, dtype=torch.int32) * pool.stride[0] - pool.padding[0])[:, None, None]
    x = flat % width - (torch.arange(columns, dtype=torch.int32) * pool.stride[1] - pool.padding[1])[:, None]
    found: Tensor = y // pool.dilation[0] * MAX_TAPS + x // pool.dilation[1]
    return found.to(torch.uint8).contiguous()


def max_unpool(gradient: Tensor, switches: Tensor, pool: Unpooled, offsets: Tensor, size: Pair) -> Tensor:
    """Return the gradient of the input of a max-pool in a window; what belongs to other pixels must be 0.

    Args:
        gradient: Of the output, in a window, (N, C, h, w).
        switches: Of the same window, (N, h, w, C) uint8.
        pool: The max-pool.
        offsets: (N, 2) int64: tap t of position i belongs to pixel i · stride + t · dilation + offset, (y, x) each.
        size: Rows and columns of the result.
    """
    rows, columns = size
    height, width = gradient.shape[2:]
    y = torch.arange(height) * pool.stride[0] + offsets[:, 0, None]
    x = torch.arange(width) * pool.stride[1] + offsets[:, 1, None]
    first = y[:, :, None] * columns + x[:, None]
    down, right = pool.dilation[0] * columns, pool.dilation[1]
    places = switches.to(torch.int64)
    tap_y = places.bitwise_right_shift(BITS)
    if right > 1:
        places.mul_(right)
    # MAX_TAPS · tap in y + tap in x becomes the distance of the pixel from that of tap 0.
    places.add_(tap_y, alpha=down - MAX_TAPS * right).add_(first[..., None])
    reach = (pool.taps[0] - 1) * down + (pool.taps[1] - 1) * right
    if first.min() < 0 or first.max() + reach >= rows * columns:
        places.clamp_(0, rows * columns - 1)
    # PyTorch reads the taps only to check the shape of the gradient.
    taps = rows - height + 1, columns - width + 1
    shape = *gradient.shape[:2], rows, columns
    found: Tensor = torch.ops.aten.max_pool2d_with_indices_backward(
        gradient.contiguous(memory_format=torch.channels_last),
        torch.empty(shape, dtype=gradient.dtype, memory_format=torch.channels_last),
        taps, (1, 1), (0, 0), (1, 1), False, places.permute(0, 3, 1, 2),
    )  # fmt: skip
    return found.relu_() if pool.rectify else found
