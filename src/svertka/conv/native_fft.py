"""Convolution by Fourier transforms in compiled kernels (`native/`), for large kernel sizes on the CPU.

The mathematics is that of `fft`. Images are channels-last: a vector holds several channels of one pixel, so transforms
need no shuffling, and at each frequency there is a product of complex matrices over the channels. Images that are large
compared with the kernel are cut into tiles. Results and gradients are channels-last; tensors in other orders are copied
first. Results do not depend on the number of threads. bfloat16 is upcast to float32; all results but the weight
gradient are rounded to bfloat16.

Against float64, 256 channels of 28×28 pixels, 11×11 and 27×27 taps, normal input and weights, the error of each pass
relative to the root mean square of its results is below 4e-7 on average and below 4e-6 at most (asserted in
`tests/conv/test_native_fft.py`). A non-finite value can make all results of the tiles that read it non-finite; if the
image is a single tile, all of its results.

Source: Mathieu, Henaff & LeCun 2014, "Fast training of convolutional networks through FFTs", §2.
"""

from functools import lru_cache

import torch
from torch import Tensor

from svertka.conv import native_support
from svertka.conv.native_support import empty_channels_last, to_kernel_input
from svertka.conv_shape import ConvShape

MIN_TAPS = 25  # with fewer, transforms cost more than they save

IS_LOCAL = False  # whole circles


def why_not(shape: ConvShape, dtype: torch.dtype) -> str | None:
    """Return why the kernels do not support `shape`, as a phrase, or None if they do."""
    reason = native_support.why_not(dtype)
    if reason:
        return reason
    if shape.groups != 1:
        return "the kernels have no groups"
    if shape.kernel[0] * shape.kernel[1] < MIN_TAPS:
        return f"the kernels are for {MIN_TAPS} taps or more"
    if max(shape.span) > native_support.kernels.FFT_MAX_LENGTH:
        return f"the kernels are for taps that span at most {native_support.kernels.FFT_MAX_LENGTH} pixels"
    return None


def forward(x: Tensor, weight: Tensor, shape: ConvShape, bias: Tensor | None = None) -> Tensor:
    """Return `x`, (N, C, H, W), convolved with `weight`, (O, C, kh, kw), plus `bias`, (O): (N, O, H', W')."""
    images, weight, result = to_kernel_input(x), to_kernel_input(weight), empty_channels_last(shape.output)
    native_support.kernels.fft_forward(_sizes(shape), images, weight, False, result, torch.get_num_threads())
    return (result if bias is None else result.add_(bias[:, None, None])).to(x.dtype)


def input_gradient(gradient: Tensor, weight: Tensor, shape: ConvShape) -> Tensor:
    """Return the gradient with respect to the input, (N, C, H, W); `gradient`: of the result, (N, O, H', W')."""
    upstream, weight, result = to_kernel_input(gradient), to_kernel_input(weight), empty_channels_last(shape.input)
    native_support.kernels.fft_forward(_adjoint_sizes(shape), upstream, weight, True, result, torch.get_num_threads())
    return result.to(gradient.dtype)


def weight_gradient(gradient: Tensor, x: Tensor, shape: ConvShape) -> Tensor:
    """Return the weight gradient, (O, C, kh, kw); `gradient`: of the result; `x`: the input."""
    upstream, images, result = to_kernel_input(gradient), to_kernel_input(x), empty_channels_last(shape.weight)
    native_support.kernels.fft_weight_gradient(_sizes(shape), upstream, images, result, torch.get_num_threads())
    return result


@lru_cache(4096)
def _sizes(shape: ConvShape) -> "native_support.kernels.Correlation":
    sizes = (shape.height, shape.width), (shape.out_height, shape.out_width)
    y, x = (
        native_support.kernels.Axis(size, out_size, taps, pad, dilation, spacing=1, stride=stride)
        for size, out_size, taps, pad, dilation, stride in zip(
            *sizes, shape.kernel, shape.padding, shape.dilation, shape.stride, strict=True
        )
    )
    return native_support.kernels.Correlation(shape.batch, shape.in_channels, shape.out_channels, y, x)


@lru_cache(4096)
def _adjoint_sizes(shape: ConvShape) -> "native_support.kernels.Correlation":
    """Return the sizes of the input gradient as a correlation with the rotated kernel."""
    sizes = (shape.out_height, shape.out_width), (shape.height, shape.width)
    y, x = (
        native_support.kernels.Axis(size, out_size, taps, span - 1 - pad, dilation, spacing=stride, stride=1)
        for size, out_size, taps, span, pad, dilation, stride in zip(
            *sizes, shape.kernel, shape.span, shape.padding, shape.dilation, shape.stride, strict=True
        )
    )
    return native_support.kernels.Correlation(shape.batch, shape.out_channels, shape.in_channels, y, x)
