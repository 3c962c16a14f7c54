"""Max pooling in compiled kernels (`native/`), for training.

PyTorch stores the place of each maximum in 64 bits and adds the gradients to an image of zeros. The kernels store it in
a byte, and write each pixel of the input gradient once. Nothing depends on the number of threads.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svertka.conv import native_support
from svertka.conv.native_support import are_plain_images, empty_channels_last, make_window_sizes, to_channels_last
from svertka.conv_shape import as_pair

MIN_VALUES = 2**16  # with fewer, the call takes longer than the kernels
MAX_TAPS = 127  # whose numbers fit into a byte


class PoolSizes(NamedTuple):
    """The `window` of the kernels, and the shape of the `result`."""

    window: "native_support.kernels.Window"
    result: tuple[int, int, int, int]


def find_sizes(layer: nn.MaxPool2d, x: Any) -> PoolSizes | None:
    """Return the sizes if the kernels compute what `layer` does for `x`: in training, on plain channels-last images."""
    if (
        torch.is_grad_enabled()
        and are_plain_images(x, MIN_VALUES)
        and x.requires_grad
        and not layer.return_indices
        and as_pair(layer.dilation) == (1, 1)
    ):
        return _sizes(layer, x)
    return None


def pool(layer: nn.MaxPool2d, x: Tensor, sizes: PoolSizes) -> Tensor:
    """Return what `layer` gives for `x`, (N, C, H, W): (N, C, H', W'), channels-last; `sizes` of `find_sizes`."""
    result: Tensor = _MaxPool.apply(x, layer, sizes)  # type: ignore[no-untyped-call]
    return result


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.MaxPool2d, sizes: PoolSizes) -> Tensor:
        window, size = sizes
        result, places = empty_channels_last(size, x.dtype), empty_channels_last(size, torch.int8)
        native_support.kernels.max_pool_forward(window, x, result, places, torch.get_num_threads())
        ctx.save_for_backward(x, places)
        ctx.window = window
        ctx.settings = layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.ceil_mode
        return result

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, None, None]:
        x, places = ctx.saved_tensors
        gradient = upstream[0]
        if torch.is_grad_enabled():  # the gradient is to be derived again
            return torch.autograd.grad(F.max_pool2d(x, *ctx.settings), x, gradient, create_graph=True)[0], None, None
        batch, channels, height, width = x.shape
        result = empty_channels_last((batch, channels, height, width), x.dtype)
        native_support.kernels.max_pool_input_gradient(
            ctx.window, to_channels_last(gradient), places, result, torch.get_num_threads()
        )
        return result, None, None


def _sizes(layer: nn.MaxPool2d, x: Tensor) -> PoolSizes | None:
    """Return the sizes, or None if the kernels do not support them."""
    batch, channels, *sides = x.shape
    kernel, stride, padding = (
        as_pair(layer.kernel_size),
        as_pair(layer.stride or layer.kernel_size),
        as_pair(layer.padding),
    )
    outputs: list[int] = []
    for side, taps, step, pad in zip(sides, kernel, stride, padding, strict=True):
        if not (0 <= pad <= taps // 2 and step > 0 and side + 2 * pad >= taps):
            return None
        size = (side + 2 * pad - taps + (step - 1 if layer.ceil_mode else 0)) // step + 1
        outputs.append(size - 1 if (size - 1) * step >= side + pad else size)  # no window begins in the padding
    if kernel[0] * kernel[1] > MAX_TAPS:
        return None
    axes = zip(sides, outputs, kernel, stride, padding, (1, 1), strict=True)
    window = make_window_sizes(batch, (channels, channels), axes, (channels, channels))
    return PoolSizes(window, (batch, channels, outputs[0], outputs[1]))
