"""Normalization of images of bytes in a compiled kernel (`native/`): 2 to 4 times as fast as in PyTorch."""

import torch
from torch import Tensor

from svertka.conv import native_support


def can_normalize(images: Tensor, result: Tensor) -> bool:
    """Return whether `normalize` supports these tensors.

    Args:
        images: (B, 3, H, W) uint8; the pixels of a row are stored one after the other, as in a (B, H, W, 3) array or
            crops of one.
        result: (B, 3, H, W) float32, contiguous or channels-last.
    """
    return (
        native_support.why_not() is None
        and type(images) is Tensor
        and images.dtype == torch.uint8
        and images.is_cpu
        and images.dim() == 4
        and images.shape[1] == 3
        and images.numel() > 0
        and images.stride(1) == 1
        and images.stride(3) == 3
        and (result.is_contiguous() or result.is_contiguous(memory_format=torch.channels_last))
        and not torch.compiler.is_compiling()
    )


def normalize(images: Tensor, mean: Tensor, scale: Tensor, result: Tensor) -> None:
    """Write (x − mean) · scale of each byte x to `result`.

    The values are those of two operations in float32, bit for bit.

    Args:
        images, result: As for `can_normalize`.
        mean, scale: Of each channel, (3,) float32.
    """
    batch, _, height, width = images.shape
    native_support.kernels.normalize_bytes(
        batch,
        height,
        width,
        images.stride(0),
        images.stride(2),
        images.view(torch.int8),
        mean,
        scale,
        not result.is_contiguous(),
        result,
    )
