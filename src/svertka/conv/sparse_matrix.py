"""Convolution as one sparse matrix, whose entries define all three passes.

A convolution is linear in the image, so it is a matrix A with a row for each value of the result and a column for each
value of the image. A 2×2 kernel w on a 3×3 image, both read row by row, is

    w₀₀ w₀₁  ·  w₁₀ w₁₁  ·   ·   ·   ·
     ·  w₀₀ w₀₁  ·  w₁₀ w₁₁  ·   ·   ·
     ·   ·   ·  w₀₀ w₀₁  ·  w₁₀ w₁₁  ·
     ·   ·   ·   ·  w₀₀ w₀₁  ·  w₁₀ w₁₁

Stride leaves out rows, padding cuts off entries at the sides, dilation moves the diagonals apart, and groups make
blocks. The gradient with respect to the image is Aᵀ times that of the result, which is also the transposed convolution.
Each weight fills a diagonal, so its gradient is a sum over the entries of that diagonal.

It is slow; in float64 it is the reference for the tests of the other algorithms.
"""

import torch

from svertka.conv_shape import ConvShape

# An entry has two indices, the index of its weight and its value, 32 bytes. 1 GiB in all, twice that during sorting.
MAX_ENTRIES = 2**25


def why_not(shape: ConvShape, dtype: torch.dtype) -> str | None:
    """Return why this algorithm does not support `shape`, as a phrase, or None if it does."""
    if dtype not in (torch.float32, torch.float64):
        return f"sparse products are made of float32 and float64, not {str(dtype).removeprefix('torch.')}"
    entries = shape.multiply_adds // max(shape.batch, 1)
    if entries > MAX_ENTRIES:
        return f"its matrix has up to {entries:,} entries, more than {MAX_ENTRIES:,}"
    return None


def build_matrix(weight: torch.Tensor, shape: ConvShape) -> torch.Tensor:
    """Return the convolution of one image as a sparse matrix, (O · H' · W', C · H · W), in COO form.

    `build_matrix(weight, shape) @ image.flatten()` is the result, flat.

    >>> weight = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    >>> build_matrix(weight, ConvShape.of((1, 1, 3, 3), weight.shape)).to_dense().int()
    tensor([[1, 2, 0, 3, 4, 0, 0, 0, 0],
            [0, 1, 2, 0, 3, 4, 0, 0, 0],
            [0, 0, 0, 1, 2, 0, 3, 4, 0],
            [0, 0, 0, 0, 1, 2, 0, 3, 4]], dtype=torch.int32)
    """
    rows, columns, taps = _entries(shape, weight.device)
    size = shape.out_channels * shape.out_height * shape.out_width, shape.in_channels * shape.height * shape.width
    return torch.sparse_coo_tensor(
        torch.stack((rows, columns)), weight.flatten()[taps], size, check_invariants=False
    ).coalesce()


def forward(x: torch.Tensor, weight: torch.Tensor, shape: ConvShape) -> torch.Tensor:
    """Return the convolution A x of `x`, (N, C, H, W), with `weight`, (O, C / groups, kh, kw): (N, O, H', W')."""
    return (build_matrix(weight, shape) @ x.flatten(1).T).T.reshape(shape.output)


def input_gradient(gradient: torch.Tensor, weight: torch.Tensor, shape: ConvShape) -> torch.Tensor:
    """Return Aᵀ times `gradient`, that of the result: the gradient with respect to the input, (N, C, H, W)."""
    return (build_matrix(weight, shape).T @ gradient.flatten(1).T).T.reshape(shape.input)


def weight_gradient(gradient: torch.Tensor, x: torch.Tensor, shape: ConvShape) -> torch.Tensor:
    """Return the weight gradient, (O, C / groups, kh, kw); `gradient`: of the result; `x`: the input.

    Each entry of the matrix adds the product of the gradient at its row and the input at its column to the gradient of
    its weight.
    """
    rows, columns, taps = _entries(shape, x.device)
    products = (gradient.flatten(1)[:, rows] * x.flatten(1)[:, columns]).sum(0)
    return x.new_zeros(shape.weight).flatten().index_add(0, taps, products).reshape(shape.weight)


def _entries(shape: ConvShape, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the row, the column and the index of the weight of every entry of the matrix."""
    out_channels, group_channels, *kernel = shape.weight

    def axis(length: int, place: int) -> torch.Tensor:
        return torch.arange(length, device=device).reshape([-1 if other == place else 1 for other in range(6)])

    o, c, i, j = axis(out_channels, 0), axis(group_channels, 1), axis(kernel[0], 2), axis(kernel[1], 3)
    p, q = axis(shape.out_height, 4), axis(shape.out_width, 5)
    # Result (o, p, q) reads the image at (channel, y, x) with weight (o, c, i, j); padding has no column.
    channel = o // (out_channels // shape.groups) * group_channels + c
    y = p * shape.stride[0] - shape.padding[0] + i * shape.dilation[0]
    x = q * shape.stride[1] - shape.padding[1] + j * shape.dilation[1]
    rows = (o * shape.out_height + p) * shape.out_width + q
    columns = (channel * shape.height + y) * shape.width + x
    taps = ((o * group_channels + c) * kernel[0] + i) * kernel[1] + j
    inside = (y >= 0) & (y < shape.height) & (x >= 0) & (x < shape.width)
    size = out_channels, group_channels, *kernel, shape.out_height, shape.out_width
    inside = inside.expand(size)
    return rows.expand(size)[inside], columns.expand(size)[inside], taps.expand(size)[inside]
