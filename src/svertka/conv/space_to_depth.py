"""Strided convolution as convolution with stride 1 by space-to-depth, which turns phases of the image into channels.

Along one axis, with stride s, write the position of a tap as u = s·a + r, 0 ≤ r < s. The pixel that it reads at the
i-th kernel position, x(s·i + u), is pixel i + a of phase r of the image, Xᵣ(i) = x(s·i + r). With the phases as
channels, the kernel has ⌈k / s⌉ taps and stride 1:

    y(i) = Σᵤ w(u) x(s·i + u) = Σᵣ Σₐ w(s·a + r) Xᵣ(i + a)

Taps beyond the kernel are zero, so there are (s·⌈k / s⌉ / k)² times as many multiplications. With three taps, as for
11 with stride 4 (AlexNet) and 5 with stride 2, the Winograd kernels need only a quarter of them. Gradients use the same
mapping.

A non-finite value is also multiplied by those zeros and can make all results of its tiles non-finite
(`native_winograd`).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from svertka.conv import native_winograd
from svertka.conv_shape import ConvShape

IS_LOCAL = False  # whole tiles


def why_not(shape: ConvShape, dtype: torch.dtype) -> str | None:
    """Return why this algorithm does not support `shape`, as a phrase, or None if it does."""
    if shape.stride == (1, 1):
        return "it is for strides of 2 and more"
    if shape.dilation != (1, 1) or shape.groups != 1:
        return "it is for taps side by side, without groups"
    folded = _folded(shape)
    if folded.kernel != (3, 3):
        return f"it leaves {folded.kernel[0]}×{folded.kernel[1]} taps without stride, and the kernels are for 3×3"
    return native_winograd.why_not(folded, dtype)


def forward(x: Tensor, weight: Tensor, shape: ConvShape, bias: Tensor | None = None) -> Tensor:
    """Return `x`, (N, C, H, W), convolved with `weight`, (O, C, kh, kw), plus `bias`, (O): (N, O, H', W')."""
    folded = _folded(shape)
    return native_winograd.forward(_fold(x, shape, folded), _fold_weight(weight, shape, folded), folded, bias)


def input_gradient(gradient: Tensor, weight: Tensor, shape: ConvShape) -> Tensor:
    """Return the gradient with respect to the input, (N, C, H, W); `gradient`: of the result, (N, O, H', W')."""
    folded = _folded(shape)
    phases = native_winograd.input_gradient(gradient, _fold_weight(weight, shape, folded), folded)
    return _unfold(phases, shape, folded)


def weight_gradient(gradient: Tensor, x: Tensor, shape: ConvShape) -> Tensor:
    """Return the weight gradient, (O, C, kh, kw); `gradient`: of the result; `x`: the input."""
    folded = _folded(shape)
    return _unfold_weight(native_winograd.weight_gradient(gradient, _fold(x, shape, folded), folded), shape, folded)


def _folded(shape: ConvShape) -> ConvShape:
    """Return the sizes of the convolution over phases; it has no stride, and its padding is part of the image."""
    (sy, sx), (ky, kx) = shape.stride, shape.kernel
    taps = -(-ky // sy), -(-kx // sx)
    height, width = shape.out_height + taps[0] - 1, shape.out_width + taps[1] - 1
    return ConvShape(shape.batch, shape.in_channels * sy * sx, shape.out_channels, height, width, taps)


def _fold(x: Tensor, shape: ConvShape, folded: ConvShape) -> Tensor:
    """Return the phases of `x`, (N, C, H, W), as (N, sy · sx · C, h, w), channels-last, without unread pixels."""
    (sy, sx), (py, px) = shape.stride, shape.padding
    bottom, right = folded.height * sy - py - shape.height, folded.width * sx - px - shape.width
    x = F.pad(x, (px, right, py, bottom)).permute(0, 2, 3, 1)
    phases = x.reshape(shape.batch, folded.height, sy, folded.width, sx, shape.in_channels).transpose(2, 3)
    return phases.reshape(shape.batch, folded.height, folded.width, folded.in_channels).permute(0, 3, 1, 2)


def _unfold(phases: Tensor, shape: ConvShape, folded: ConvShape) -> Tensor:
    """Return the image, (N, C, H, W), channels-last, with these phases; 0 at pixels that are in none."""
    (sy, sx), (py, px) = shape.stride, shape.padding
    split = phases.permute(0, 2, 3, 1).reshape(shape.batch, folded.height, folded.width, sy, sx, shape.in_channels)
    x = split.transpose(2, 3).reshape(shape.batch, folded.height * sy, folded.width * sx, shape.in_channels)
    x = x.permute(0, 3, 1, 2)
    return F.pad(x, (-px, px + shape.width - x.shape[3], -py, py + shape.height - x.shape[2]))


def _fold_weight(weight: Tensor, shape: ConvShape, folded: ConvShape) -> Tensor:
    """Return `weight`, (O, C, kh, kw), as weights for the phases, (O, sy · sx · C, 3, 3)."""
    (sy, sx), (ky, kx), (ny, nx) = shape.stride, shape.kernel, folded.kernel
    whole = F.pad(weight, (0, nx * sx - kx, 0, ny * sy - ky))
    split = whole.reshape(shape.out_channels, shape.in_channels, ny, sy, nx, sx)
    return split.permute(0, 3, 5, 1, 2, 4).reshape(folded.weight)


def _unfold_weight(weight: Tensor, shape: ConvShape, folded: ConvShape) -> Tensor:
    """Return the inverse of `_fold_weight` for gradients, without those of the added zeros."""
    (sy, sx), (ky, kx), (ny, nx) = shape.stride, shape.kernel, folded.kernel
    split = weight.reshape(shape.out_channels, sy, sx, shape.in_channels, ny, nx).permute(0, 3, 4, 1, 5, 2)
    return split.reshape(shape.out_channels, shape.in_channels, ny * sy, nx * sx)[:, :, :ky, :kx]
