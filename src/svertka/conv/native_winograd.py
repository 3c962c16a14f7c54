"""Winograd convolution in compiled kernels (`native/`), for 3×3 with stride 1 on the CPU.

The algorithm is F(4×4, 3×3) as in `winograd`, with its steps fused so that their data stays in a cache; the weight
gradient is F(3×3, 4×4). In float32, inference can use F(6×6, 3×3). Results and gradients are channels-last; tensors in
other orders are copied first. bfloat16 is converted to float32 in registers; results are rounded once, the weight
gradient is not.

Measured against float64, 256 channels of 28×28 pixels, normal input and weights, the error relative to the root mean
square of the results is 8.1e-7 (weight gradient: 9.3e-7) on average and 1e-5 at most; with tiles of 6×6 results it is
3.3e-6 and 4e-5. A non-finite value can make all 4×4, or 6×6, results of the tiles that read it non-finite.
"""

from functools import lru_cache

import torch
from torch import Tensor

from svertka.conv import native_support
from svertka.conv.native_support import empty_channels_last, to_channels_last, to_kernel_array, to_kernel_input
from svertka.conv_shape import ConvShape

IS_LOCAL = False  # whole tiles


def why_not(shape: ConvShape, dtype: torch.dtype) -> str | None:
    """Return why the kernels do not support `shape`, as a phrase, or None if they do."""
    reason = native_support.why_not(dtype)
    if reason:
        return reason
    if shape.kernel != (3, 3) or shape.stride != (1, 1) or shape.dilation != (1, 1):
        return "the kernels are for 3×3 taps side by side, with stride 1"
    if shape.groups != 1:
        return "the kernels have no groups"
    return None


def forward(x: Tensor, weight: Tensor, shape: ConvShape, bias: Tensor | None = None, *, pairs: bool = False) -> Tensor:
    """Return `x`, (N, C, H, W), convolved with `weight`, (O, C, 3, 3), plus `bias`, (O): (N, O, H', W').

    `pairs`: whether bfloat16 numbers are multiplied, as in `native_winograd_bf16`.
    """
    order = native_support.kernels.Order.PLAIN
    return _forward(x, to_kernel_input(weight), order, _sizes(shape), shape.output, bias, pairs=pairs)


def input_gradient(gradient: Tensor, weight: Tensor, shape: ConvShape, *, pairs: bool = False) -> Tensor:
    """Return the gradient with respect to the input, (N, C, H, W); `gradient`: of the result, (N, O, H', W')."""
    order = native_support.kernels.Order.ADJOINT
    return _forward(gradient, to_kernel_input(weight), order, _adjoint_sizes(shape), shape.input, pairs=pairs)


def weight_gradient(gradient: Tensor, x: Tensor, shape: ConvShape, *, pairs: bool = False) -> Tensor:
    """Return the weight gradient, (O, C, 3, 3); `gradient`: of the result; `x`: the input.

    It is reproducible with the same number of threads. `pairs`: as for `forward`, for bfloat16 tensors only.
    """
    gradient, x, result = to_channels_last(gradient), to_channels_last(x), empty_channels_last(shape.weight)
    native_support.kernels.winograd_weight_gradient(
        _sizes(shape),
        gradient,
        x,
        _precision(pairs),
        result,
        torch.get_num_threads(),
    )
    return result


def pack_weight(weight: Tensor) -> Tensor:
    """Return `weight`, (O, C, 3, 3), packed for `forward_with_epilogue`, with O rounded up to full vectors."""
    out_channels, in_channels = weight.shape[:2]
    packed = empty_channels_last((native_support.kernels.winograd_packed_size(in_channels, out_channels), 1, 1, 1))
    native_support.kernels.winograd_pack(
        to_kernel_input(weight), in_channels, out_channels, packed, torch.get_num_threads()
    )
    return packed


def forward_with_epilogue(
    x: Tensor,
    packed: Tensor,
    shape: ConvShape,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    relu: bool = False,
    tile: int = 4,
) -> Tensor:
    """Return the convolution of `x` with packed weights and a fused epilogue: bias, (O), residual and ReLU.

    For inference. `residual`: (N, O, H', W'), the shape of the result. `tile`: results of a tile along an axis, 4, or 6
    for float32, which takes fewer multiplications on large maps and rounds four times as coarsely.
    """
    order = native_support.kernels.Order.PACKED
    return _forward(x, packed, order, _sizes(shape, tile), shape.output, bias, residual, relu)


def _forward(
    x: Tensor,
    weight: Tensor,
    order: "native_support.kernels.Order",
    sizes: "native_support.kernels.Convolution",
    shape: tuple[int, int, int, int],
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    relu: bool = False,
    *,
    pairs: bool = False,
) -> Tensor:
    x, output = to_channels_last(x), empty_channels_last(shape, x.dtype)
    bias = None if bias is None else to_kernel_array(bias)
    residual = None if residual is None else to_kernel_input(residual)
    native_support.kernels.winograd_forward(
        sizes,
        x,
        weight,
        order,
        bias,
        residual,
        relu,
        _precision(pairs),
        output,
        torch.get_num_threads(),
    )
    return output


def _precision(pairs: bool) -> "native_support.kernels.Precision":
    return native_support.kernels.Precision.BFLOAT16 if pairs else native_support.kernels.Precision.FLOAT32


@lru_cache(4096)
def _sizes(shape: ConvShape, tile: int = 4) -> "native_support.kernels.Convolution":
    channels = shape.in_channels, shape.out_channels
    sizes = native_support.kernels.Convolution(
        shape.batch, *channels, shape.height, shape.width, shape.out_height, shape.out_width, *shape.padding
    )
    sizes.tile = tile
    return sizes


@lru_cache(4096)
def _adjoint_sizes(shape: ConvShape) -> "native_support.kernels.Convolution":
    """Return the sizes of the input gradient as a convolution, with a padding of 2 − padding."""
    channels, (pad_y, pad_x) = (shape.out_channels, shape.in_channels), shape.padding
    return native_support.kernels.Convolution(
        shape.batch, *channels, shape.out_height, shape.out_width, shape.height, shape.width, 2 - pad_y, 2 - pad_x
    )
