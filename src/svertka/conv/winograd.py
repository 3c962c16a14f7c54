"""Winograd convolution F(m, r), m neighboring results of an r-tap kernel from m + r − 1 products instead of m · r.

**One axis.** The results yᵢ = Σⱼ gⱼ xᵢ₊ⱼ, i < m, j < r, of a tile of n = m + r − 1 pixels are derived from products of
polynomials.

1. The product s(t) = g(t) d(t) of polynomials with r and m coefficients has n coefficients, so its values at n points
   determine it, and each value is one multiplication: s(α) = g(α) d(α). A point may be ∞, where the value of a
   polynomial is its leading coefficient (Toom 1963, Cook 1966). With V_k the matrix whose rows are the powers
   α⁰ … αᵏ⁻¹ of the points, and 0 … 0 1 for ∞, this reads

       s = V_n⁻¹ [(V_r g) ⊙ (V_m d)].

2. For any x, Σₖ xₖ sₖ = Σᵢⱼ xᵢ₊ⱼ gⱼ dᵢ = Σᵢ dᵢ yᵢ. So y is the derivative of this sum with respect to d, and with
   G = V_r, A = V_m, B = V_n⁻ᵀ (Tellegen's transposition)

       y = Aᵀ [(G g) ⊙ (B x)].

3. Row k of B holds the coefficients of Πₗ≠ₖ (t − αₗ), over Nₖ = Πₗ≠ₖ (αₖ − αₗ), by Lagrange's interpolation. Here the
   divisors move to G, so that A and B are exact in binary for dyadic points. This changes rounding errors by less than
   1 %, because the row's factor cancels in the relative error.

4. The sum is Σₖ (G g)ₖ (A d)ₖ (B x)ₖ, the same form in each of the three. Its derivative with respect to g is the
   weight gradient, Gᵀ [(A d) ⊙ (B x)], where d is the gradient of the results. This is the algorithm F(r, m): F(m, r)
   with A and G exchanged. The derivative with respect to x, the input gradient, is computed as a convolution with the
   rotated kernel.

**Two axes.** Rows, then columns: Y = Aᵀ [(G g Gᵀ) ⊙ (B x Bᵀ)] A, so F(4×4, 3×3) takes 36 products instead of 144. The
products are summed over channels (for weight gradients, over tiles and images) before the last transform, as one matrix
product for each of the n². Tiles that extend beyond the border are filled with zeros, and their results outside are
dropped.

**Points.** Each axis magnifies rounding errors √(Σᵢₖ Aₖᵢ² ‖Gₖ‖² ‖Bₖ‖² / (m r)) times. The minimum over all points,
found numerically, is at 0, ±1, ∞ for F(2, 3), at 0, ±0.651, ±1.535, ∞ for F(4, 3), near which 5/8 and 3/2 have few
binary digits, at 0, ±0.506, ±1, ±1.98, ∞ for F(6, 3), and at 0, ±0.501, ±1, ±1.99, ∞ for F(4, 5). Measured in float32
against float64, forward, 256 to 256 channels, 28×28 pixels, normal input and weights, 4 draws (F(6, 3): 2 on a Zen 4),
on a Xeon with MKL; relative to the root mean square of the results (asserted in `tests/conv/test_winograd.py`; the
first column is for both axes):

                                              magnified   RMS error   largest
    F(2×2, 3×3)                                     1.7      2.2e-7    1.2e-6
    F(4×4, 3×3)                                     4.8      6.7e-7    5.8e-6
    the same from 0, ±1, ±2, ∞                     10.8      1.5e-6    1.9e-5
    F(6×6, 3×3)                                    21        2.7e-6    3.2e-5
    F(2×2, 5×5)                                     5.4      7.6e-7    4.1e-6
    F(4×4, 5×5)                                    19        2.7e-6    2.3e-5
    F(2×2, 7×7)                                    25        3.5e-6    2.0e-5
    PyTorch's own, 3×3, channels last                        8.5e-7    1.3e-5
    PyTorch's own, 3×3, channels first                       2.3e-7    1.5e-6

A non-finite value spreads over the tiles that contain it: results are non-finite wherever those of the direct
convolution are, and up to m − 1 rows and columns further. One such value in the gradient makes all taps of a kernel
non-finite.

Source: Winograd 1980, "Arithmetic complexity of computations", chapter V; Blahut 2010, "Fast algorithms for signal
processing", chapter 5; Lavin & Gray 2015, "Fast algorithms for convolutional neural networks", eq. 8 and §4.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from math import prod

import torch
import torch.nn.functional as F

from svertka.conv_shape import ConvShape

Matrix = tuple[tuple[Fraction, ...], ...]

# The n − 1 finite points for n products, to which ∞ is added. n = 1 is a kernel one pixel wide.
POINTS: dict[int, tuple[Fraction, ...]] = {
    1: (),
    4: (Fraction(0), Fraction(1), Fraction(-1)),
    6: (Fraction(0), Fraction(5, 8), Fraction(-5, 8), Fraction(3, 2), Fraction(-3, 2)),
    8: (Fraction(0), Fraction(1, 2), Fraction(-1, 2), Fraction(1), Fraction(-1), Fraction(2), Fraction(-2)),
}


@dataclass(frozen=True)
class WinogradTransforms:
    """F(outputs, taps) along one axis: results = `inverse`ᵀ [(`kernel` · taps) ⊙ (`data` · pixels)], exactly.

    There is one row for each of the n = outputs + taps − 1 products. `inverse`: A, (n, outputs). `data`: B, (n, n);
    Lavin & Gray write it Bᵀ. `kernel`: G, (n, taps).
    """

    inverse: Matrix
    data: Matrix
    kernel: Matrix

    @property
    def products(self) -> int:
        """The number of multiplications, and of pixels, of a tile."""
        return len(self.data)

    @property
    def outputs(self) -> int:
        """The number of results of a tile."""
        return len(self.inverse[0])


def cook_toom(outputs: int, taps: int, points: Sequence[Fraction]) -> WinogradTransforms:
    """Return F(outputs, taps) from `points`, outputs + taps − 2 different fractions, and ∞.

    >>> transforms = cook_toom(2, 3, [Fraction(0), Fraction(1), Fraction(-1)])
    >>> for row in transforms.kernel:
    ...     print(*row)
    -1 0 0
    1/2 1/2 1/2
    1/2 -1/2 1/2
    0 0 1
    """
    data, kernel = [], []
    for point, powers in zip(points, _powers(points, taps), strict=True):
        others = [other for other in points if other != point]
        data.append((*_with_roots(others), Fraction(0)))
        divisor = prod((point - other for other in others), start=Fraction(1))
        kernel.append(tuple(power / divisor for power in powers))
    data.append(_with_roots(points))
    return WinogradTransforms((*_powers(points, outputs), _leading(outputs)), tuple(data), (*kernel, _leading(taps)))


def _powers(points: Sequence[Fraction], count: int) -> Matrix:
    return tuple(tuple(point**exponent for exponent in range(count)) for point in points)


def _leading(count: int) -> tuple[Fraction, ...]:
    """Return the row of ∞, which selects the last of `count` coefficients."""
    return tuple(Fraction(exponent == count - 1) for exponent in range(count))


def _with_roots(roots: Sequence[Fraction]) -> tuple[Fraction, ...]:
    """Return the coefficients of Π (t − root), that of t⁰ first."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted, kept = [Fraction(0), *coefficients], [*coefficients, Fraction(0)]
        coefficients = [high - root * low for high, low in zip(shifted, kept, strict=True)]
    return tuple(coefficients)


@cache
def make_transforms(outputs: int, taps: int) -> WinogradTransforms:
    """Return F(outputs, taps) from the points with the least rounding error; outputs + taps − 1 is in POINTS."""
    return cook_toom(outputs, taps, POINTS[outputs + taps - 1])


def choose_tile_transforms(size: int, taps: int) -> WinogradTransforms:
    """Return F(2, taps) or F(4, taps), whichever needs fewer products for `size` results; F(1, 1) for one tap."""
    candidates = [make_transforms(m, taps) for m in ((2, 4) if taps > 1 else (1,)) if m + taps - 1 in POINTS]
    # With equal costs, min returns the smaller tile, which rounds better.
    return min(candidates, key=lambda each: -(-size // each.outputs) * each.products)


IS_LOCAL = False  # whole tiles


def why_not(shape: ConvShape, dtype: torch.dtype) -> str | None:
    """Return why this algorithm does not support `shape`, as a phrase, or None if it does."""
    if dtype not in (torch.float32, torch.float64):
        return f"its transforms need float32 or float64, not {str(dtype).removeprefix('torch.')}"
    if shape.stride != (1, 1) or shape.dilation != (1, 1):
        return (
            f"results of a tile share pixels only at stride 1 and dilation 1, not {shape.stride} and {shape.dilation}"
        )
    if shape.kernel == (1, 1) or not {1, 3, 5, 7}.issuperset(shape.kernel):
        height, width = shape.kernel
        return f"it supports kernels with sides of 3, 5 or 7 pixels, one of which may be 1, not {height}×{width}"
    return None


def forward(x: torch.Tensor, weight: torch.Tensor, shape: ConvShape, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Return the convolution of `x`, (N, C, H, W), with `weight`, (O, C / groups, kh, kw), plus `bias`, (O), or None.

    The result has shape (N, O, H', W').
    """
    result = correlate(x, weight, shape.padding, shape.output[2:], _axes(shape, shape.output[2:]), shape.groups)
    return result if bias is None else result + bias[:, None, None]


def input_gradient(gradient: torch.Tensor, weight: torch.Tensor, shape: ConvShape) -> torch.Tensor:
    """Return the gradient with respect to the input, (N, C, H, W): a convolution of `gradient`, that of the result.

    A pixel contributes through tap i to the result i pixels before it, so the kernel is rotated by half a turn and its
    channels are exchanged.
    """
    out_channels, group_channels, *kernel = shape.weight
    grouped = weight.reshape(shape.groups, out_channels // shape.groups, group_channels, *kernel)
    rotated = grouped.transpose(1, 2).reshape(shape.in_channels, -1, *kernel).flip(2, 3)
    before = kernel[0] - 1 - shape.padding[0], kernel[1] - 1 - shape.padding[1]
    return correlate(gradient, rotated, before, shape.input[2:], _axes(shape, shape.input[2:]), shape.groups)


def weight_gradient(gradient: torch.Tensor, x: torch.Tensor, shape: ConvShape) -> torch.Tensor:
    """Return the weight gradient, (O, C / groups, kh, kw); `gradient`: of the result; `x`: the input."""
    size = shape.output[2:]
    axes = rows, columns = _axes(shape, size)
    pixels = _pixel_tiles(x, shape.padding, axes, size)
    down, across = pixels.shape[4:]
    # Tiles of results do not overlap; the last ones are padded with zeros.
    below, beside = down * rows.outputs - size[0], across * columns.outputs - size[1]
    tiles = torch.unflatten(torch.unflatten(F.pad(gradient, (0, beside, 0, below)), 3, (across, -1)), 2, (down, -1))
    results = torch.einsum("ai,nohiwj,bj->abonhw", _tensor(rows.inverse, x), tiles, _tensor(columns.inverse, x))
    products = _product(_by_group(results, shape.groups), _by_group(pixels, shape.groups).mT)
    sums = products.reshape(rows.products, columns.products, *shape.weight[:2])
    return torch.einsum("ai,aboc,bj->ocij", _tensor(rows.kernel, x), sums, _tensor(columns.kernel, x))


def correlate(
    x: torch.Tensor,
    weight: torch.Tensor,
    before: tuple[int, int],
    size: tuple[int, int],
    axes: tuple[WinogradTransforms, WinogradTransforms],
    groups: int,
) -> torch.Tensor:
    """Return the correlation of `x` and `weight`, (N, O, *size), starting `before` pixels above and left of `x`.

    `axes`: the transforms of rows and columns. `x` is zero outside; a negative `before` starts inside.
    """
    rows, columns = axes
    pixels = _pixel_tiles(x, before, axes, size)
    filters = torch.einsum("ai,ocij,bj->aboc", _tensor(rows.kernel, x), weight, _tensor(columns.kernel, x))
    sums = _product(_by_group(filters, groups), _by_group(pixels, groups))
    products = sums.reshape(*filters.shape[:3], *pixels.shape[3:])
    tiles = torch.einsum("ai,abonhw,bj->nohiwj", _tensor(rows.inverse, x), products, _tensor(columns.inverse, x))
    return tiles.flatten(4, 5).flatten(2, 3)[:, :, : size[0], : size[1]]


def _axes(shape: ConvShape, size: tuple[int, int]) -> tuple[WinogradTransforms, WinogradTransforms]:
    return choose_tile_transforms(size[0], shape.kernel[0]), choose_tile_transforms(size[1], shape.kernel[1])


def _pixel_tiles(
    x: torch.Tensor, before: tuple[int, int], axes: tuple[WinogradTransforms, WinogradTransforms], size: tuple[int, int]
) -> torch.Tensor:
    """Return B x Bᵀ of every tile that `size` results need, (a, b, C, N, down, across); a, b: products."""
    rows, columns = axes
    down, across = -(-size[0] // rows.outputs), -(-size[1] // columns.outputs)
    # Neighboring tiles overlap by the number of pixels by which they exceed their results. F.pad crops where it is
    # negative.
    below = (down - 1) * rows.outputs + rows.products - x.shape[2] - before[0]
    beside = (across - 1) * columns.outputs + columns.products - x.shape[3] - before[1]
    padded = F.pad(x, (before[1], beside, before[0], below))
    tiles = padded.unfold(2, rows.products, rows.outputs).unfold(3, columns.products, columns.outputs)
    return torch.einsum("ai,nchwij,bj->abcnhw", _tensor(rows.data, x), tiles, _tensor(columns.data, x))


def _by_group(transformed: torch.Tensor, groups: int) -> torch.Tensor:
    """Return (a, b, channels, …) as matrices, (a · b, groups, channels / groups, …)."""
    return torch.unflatten(transformed.flatten(3).flatten(0, 1), 1, (groups, -1))


def _product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return `left` @ `right`, summed in slices of 32 terms to reduce rounding."""
    # These sums cause most of the error: for F(4×4, 3×3) with 256 channels it is 1.06e-6 of the root mean square of
    # the results in one sum, and 6.7e-7 in slices.
    total = left[..., :32] @ right[..., :32, :]
    for start in range(32, left.shape[-1], 32):
        total += left[..., start : start + 32] @ right[..., start : start + 32, :]
    return total


def _tensor(matrix: Matrix, like: torch.Tensor) -> torch.Tensor:
    return torch.tensor([[float(entry) for entry in row] for row in matrix], dtype=like.dtype, device=like.device)
