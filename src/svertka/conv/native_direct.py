"""Direct convolution in compiled kernels (`native/`): an implicit matrix product for any kernel, on the CPU.

The result is the product of the windows, gathered block by block, and the weights. The input gradient is the
convolution of the gradient with flipped taps, in which inputs and outputs are exchanged; with a stride, zeros are
inserted into the gradient first. The weight gradient is the product of gradients and windows over all pixels.

Mostly for 1×1 kernels, for which PyTorch uses matrix products that are not made for every processor. Results are
channels-last; tensors in other orders are copied first. Results and input gradients do not depend on the number of
threads; weight gradients are the same numbers again with as many threads.
"""

from dataclasses import replace

import torch
from torch import Tensor

from svertka.conv import native_support
from svertka.conv.native_support import empty_channels_last, to_channels_last, to_kernel_array, to_kernel_input
from svertka.conv_shape import ConvShape

IS_LOCAL = True


def why_not(shape: ConvShape, dtype: torch.dtype) -> str | None:
    """Return why the kernels do not support `shape`, as a phrase, or None if they do."""
    reason = native_support.why_not_direct_training(shape, dtype)
    return "it is for one group" if reason is None and shape.groups != 1 else reason


def forward(x: Tensor, weight: Tensor, shape: ConvShape, bias: Tensor | None = None) -> Tensor:
    """Return `x`, (N, C, H, W), convolved with `weight`, (O, C, kh, kw), plus `bias`, (O): (N, O, H', W')."""
    return _forward(x, _pack(weight, adjoint=False), native_support.convolution_window(shape), shape.output, bias)


def input_gradient(gradient: Tensor, weight: Tensor, shape: ConvShape) -> Tensor:
    """Return the gradient with respect to the input, (N, C, H, W); `gradient`: of the result, (N, O, H', W')."""
    if shape.kernel == (1, 1) and shape.stride != (1, 1):  # most pixels are not read
        vertical, horizontal = shape.stride
        result = gradient.new_zeros(shape.input).contiguous(memory_format=torch.channels_last)
        compact = replace(shape, height=shape.out_height, width=shape.out_width, stride=(1, 1))
        result[:, :, ::vertical, ::horizontal] = input_gradient(gradient, weight, compact)
        return result
    packed = _pack(weight, adjoint=True)
    return _forward(
        native_support.dilate_gradient(gradient, shape),
        packed,
        native_support.input_gradient_window(shape),
        shape.input,
    )


def weight_gradient(gradient: Tensor, x: Tensor, shape: ConvShape) -> Tensor:
    """Return the weight gradient, (O, C, kh, kw); `gradient`: of the result; `x`: the input."""
    is_product = shape.kernel == shape.stride == (1, 1)
    if is_product and shape.in_channels < shape.out_channels:  # the kernel is faster with many inputs and few outputs
        exchanged = replace(shape, in_channels=shape.out_channels, out_channels=shape.in_channels)
        return _weight_gradient(x, gradient, exchanged).transpose(0, 1)
    return _weight_gradient(gradient, x, shape)


def _weight_gradient(gradient: Tensor, x: Tensor, shape: ConvShape) -> Tensor:
    gradient, x = to_channels_last(gradient), to_channels_last(x)
    result = _empty_weights(shape.out_channels, *shape.kernel, shape.in_channels)
    native_support.kernels.direct_weight_gradient(
        native_support.convolution_window(shape), gradient, x, result, torch.get_num_threads()
    )
    return result.permute(0, 3, 1, 2)


def _forward(
    x: Tensor,
    packed: Tensor,
    sizes: "native_support.kernels.Window",
    shape: tuple[int, int, int, int],
    bias: Tensor | None = None,
) -> Tensor:
    x, output = to_channels_last(x), empty_channels_last(shape)
    bias = None if bias is None else to_kernel_array(bias)
    native_support.kernels.direct_forward(sizes, x, packed, bias, output, torch.get_num_threads())
    return output


def _pack(weight: Tensor, *, adjoint: bool) -> Tensor:
    """Return `weight`, (O, C, kh, kw), in panels of outputs, or of inputs for the input gradient (`adjoint`)."""
    (out_channels, in_channels, *kernel), panel = weight.shape, native_support.kernels.panel_width()
    taps = kernel[0] * kernel[1]
    made, read = (in_channels, out_channels) if adjoint else (out_channels, in_channels)
    packed = _empty_weights(-(-made // panel) * panel, taps, read)
    native_support.kernels.direct_pack(out_channels, taps, in_channels, to_kernel_input(weight), adjoint, packed)
    return packed


def _empty_weights(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device="cpu")
