"""The arithmetic around 8-bit kernels: from integer sums to the numbers that are stored."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from svertka.compiler.int8_packing import PackedInt8Weights
from svertka.compiler.ir import LARGEST_BYTE, Elementwise, FusedConvolution, Quantization
from svertka.conv import native_support

Affine = tuple[float, float]  # scale and shift
IDENTITY = (1.0, 0.0)


def dequantization_scale_and_shift(quantization: Quantization) -> Affine:
    """Return the scale and the shift from 8-bit numbers to real ones."""
    return quantization.scale, -quantization.scale * quantization.zero_point


def quantization_scale_and_shift(quantization: Quantization | None) -> Affine:
    """Return the scale and the shift from real numbers to 8-bit ones; None: floats stay as they are."""
    return IDENTITY if quantization is None else (1 / quantization.scale, float(quantization.zero_point))


def quantize_bounds(bounds: tuple[float, float], quantization: Quantization | None) -> tuple[float, float]:
    """Return `bounds` of real numbers as bounds of the numbers that are stored."""
    if quantization is None:
        return bounds
    scale, shift = quantization_scale_and_shift(quantization)
    low, high = (min(max(bound * scale + shift, 0.0), float(LARGEST_BYTE)) for bound in bounds)
    return low, high


def make_requantization(
    step: FusedConvolution,
    packed: PackedInt8Weights,
    group: int,
    tensors: Sequence[Tensor | None],
    quantizations: Sequence[Quantization | None],
    residual: "tuple[native_support.kernels.Place, int]",
) -> "native_support.kernels.Requantization":
    """Return what comes after the integer sums of a convolution.

    Args:
        step: The convolution.
        packed: Its weights.
        group: Its group, or 0 for all channels of a depthwise convolution.
        tensors: The scale of the weights, (O), and the bias, (O) or None.
        quantizations: Those of its input, residual and result; None for floats, or if there is no residual.
        residual: Where the residual is, and the bytes from pixel to pixel.
    """
    count = packed.shape[0] if packed.kernel == "int8-depthwise" else packed.shape[0] // step.groups
    own = slice(group * count, (group + 1) * count)
    of_weights, bias = tensors
    of_x, of_residual, of_result = quantizations
    assert of_x is not None
    assert of_weights is not None
    scale = of_weights[own].double() * of_x.scale
    shift = torch.zeros_like(scale) if bias is None else bias[own].double()
    real = IDENTITY if of_residual is None else dequantization_scale_and_shift(of_residual)
    stored = quantization_scale_and_shift(of_result)
    multiply = step.residual is not None and step.multiply
    if of_result is not None and step.activation == "NONE" and not multiply:  # the kernel has one pass
        scale, shift = scale * stored[0], shift * stored[0] + stored[1]
        if of_residual is not None:
            real = real[0] * stored[0], 0.0
            shift = shift - of_residual.zero_point * real[0]
        stored = IDENTITY
    more = (0, packed.padded_channels - count)
    start = -of_x.zero_point * packed.sums[own]
    return native_support.kernels.Requantization(
        F.pad(start, more), F.pad(scale, more).float(), F.pad(shift, more).float(), *residual, real,
        native_support.kernels.Activation[step.activation], step.slope, multiply, step.residual_last, stored,
        quantize_bounds(step.bounds, of_result), of_result is None,
    )  # fmt: skip


def make_quantized_elementwise(
    step: Elementwise, quantization: Quantization | None, storage: str
) -> "native_support.kernels.ByteOperation":
    """Return an elementwise operation on real numbers whose results have a quantization, or None, and a storage."""
    return native_support.kernels.ByteOperation(
        native_support.kernels.Combination[step.combination],
        native_support.kernels.Activation[step.activation],
        step.slope,
        quantization_scale_and_shift(quantization),
        quantize_bounds(step.bounds, quantization),
        native_support.kernels.Storage[storage],
    )
