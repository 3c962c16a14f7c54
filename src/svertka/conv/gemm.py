"""Convolution as a dense matrix product, in which every patch is a column of one matrix (im2col).

With the patches of an image as the columns of P, (C / groups · kh · kw, H' · W'), and the weights of a group as the
rows of W, (O / groups, C / groups · kh · kw), the result is W P. Its gradients are products of the same matrices:
(∂L/∂y) Pᵀ for the weights and, for the patches, Wᵀ (∂L/∂y), whose columns are added up where patches overlap.

A pixel is in up to kh · kw patches, so P takes up to kh · kw times the memory of the image.

Padding is multiplied like any pixel, so a non-finite gradient of a result at the border makes the gradients of taps
that read padding there NaN. Otherwise non-finite values affect only the results that read them.

Source: Chellapilla, Puri & Simard 2006, "High performance convolutional neural networks for document processing", §3.1.
"""

from math import prod

import torch
import torch.nn.functional as F

from svertka.conv_shape import ConvShape

IS_LOCAL = True


def why_not(shape: ConvShape, dtype: torch.dtype) -> str | None:
    """Return why this algorithm does not support `shape`, as a phrase, or None if it does."""
    if not dtype.is_floating_point:
        return f"it supports real numbers, not {str(dtype).removeprefix('torch.')}"
    return None


def forward(x: torch.Tensor, weight: torch.Tensor, shape: ConvShape, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Return the convolution of `x`, (N, C, H, W), with `weight`, (O, C / groups, kh, kw), plus `bias`, (O), or None.

    The result has shape (N, O, H', W').
    """
    result = (_rows(weight.to(x.dtype), shape) @ _patches(x, shape)).reshape(shape.output)
    return result if bias is None else result + bias[:, None, None].to(x.dtype)


def input_gradient(gradient: torch.Tensor, weight: torch.Tensor, shape: ConvShape) -> torch.Tensor:
    """Return the gradient with respect to the input, (N, C, H, W); `gradient`: of the result, (N, O, H', W')."""
    patches = _rows(weight.to(gradient.dtype), shape).mT @ _split_groups(gradient, shape)
    (ph, pw), (sh, sw), (dh, dw) = shape.padding, shape.stride, shape.dilation
    padded = gradient.new_zeros(shape.batch, shape.in_channels, shape.height + 2 * ph, shape.width + 2 * pw)
    taps = patches.reshape(shape.batch, shape.in_channels, *shape.kernel, shape.out_height, shape.out_width)
    for i in range(shape.kernel[0]):
        for j in range(shape.kernel[1]):
            # The pixels that tap (i, j) reads at all kernel positions; each occurs once, so += is exact.
            rows = slice(i * dh, i * dh + (shape.out_height - 1) * sh + 1, sh)
            columns = slice(j * dw, j * dw + (shape.out_width - 1) * sw + 1, sw)
            padded[:, :, rows, columns] += taps[:, :, i, j]
    return padded[:, :, ph : ph + shape.height, pw : pw + shape.width]


def weight_gradient(gradient: torch.Tensor, x: torch.Tensor, shape: ConvShape) -> torch.Tensor:
    """Return the weight gradient, (O, C / groups, kh, kw); `gradient`: of the result; `x`: the input."""
    # One product per image and their sum avoid a copy that joins the patches of all images.
    return (_split_groups(gradient, shape) @ _patches(x, shape).mT).sum(0).reshape(shape.weight)


def _patches(x: torch.Tensor, shape: ConvShape) -> torch.Tensor:
    """Return the patches as columns, (N, groups, C / groups · kh · kw, H' · W')."""
    (ph, pw), (sh, sw), (dh, dw) = shape.padding, shape.stride, shape.dilation
    padded = F.pad(x, (pw, pw, ph, ph))
    batch, channel, row, column = padded.stride()
    # as_strided makes a view: taps are `dilation` pixels apart, kernel positions `stride`. Only reshape copies.
    taps = padded.as_strided(
        (shape.batch, shape.in_channels, *shape.kernel, shape.out_height, shape.out_width),
        (batch, channel, dh * row, dw * column, sh * row, sw * column),
    )
    return taps.reshape(shape.batch, shape.groups, prod(shape.weight[1:]), shape.out_height * shape.out_width)


def _rows(weight: torch.Tensor, shape: ConvShape) -> torch.Tensor:
    """Return the weights as rows, (groups, O / groups, C / groups · kh · kw)."""
    return weight.reshape(shape.groups, shape.out_channels // shape.groups, -1)


def _split_groups(gradient: torch.Tensor, shape: ConvShape) -> torch.Tensor:
    """Return a tensor of the result's shape as (N, groups, O / groups, H' · W')."""
    channels = shape.out_channels // shape.groups
    return gradient.reshape(shape.batch, shape.groups, channels, shape.out_height * shape.out_width)
