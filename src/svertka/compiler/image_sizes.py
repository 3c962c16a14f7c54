"""The image sizes for which one network is compiled, and example images of each."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from svertka.compiler.validation import to_plain_images
from svertka.errors import UsageError
from svertka.pages.number_format import count_with_noun

Size = tuple[int, int]  # height, width


def parse_sizes(sizes: Any) -> list[Size]:
    """Return the argument `sizes` of `optimize` as (height, width) each.

    Raises:
        UsageError: It is not an iterable of positive integers and pairs of them.
    """
    if not isinstance(sizes, Iterable) or isinstance(sizes, str | bytes | dict | Tensor):
        raise UsageError(f"sizes={sizes!r} is not a list of sizes; give one such as [224, 256] or [(192, 320)]")
    return [_parse_size(size) for size in sizes]


def _parse_size(size: Any) -> Size:
    sides = tuple(size) if isinstance(size, tuple | list) else (size, size)
    if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
        raise UsageError(
            f"sizes= has {size!r}, which is not a size in pixels; give a number such as 224 for square images, or "
            "(height, width)"
        )
    return sides[0], sides[1]


def make_examples(example: Tensor | Sequence[int], sizes: Sequence[Size]) -> list[Tensor]:
    """Return example images, (N, C, H, W) float32, of the size of `example` and then of each of the other `sizes`.

    If `example` is a shape, (C, H, W) or (N, C, H, W), images of each size are drawn from a normal distribution.
    Otherwise the images of `example` are resized.

    Raises:
        UsageError: `example` is neither a shape nor images, or has none, or numbers that are not finite.
    """
    first = to_plain_images(_draw_images(example) if isinstance(example, tuple | list) else example)
    _check_example(first)
    others = [size for size in dict.fromkeys(sizes) if size != first.shape[2:]]
    if isinstance(example, tuple | list):
        return [first, *(_draw_images((*first.shape[:2], *size)) for size in others)]
    return [first, *(resize_images(first, size) for size in others)]


def resize_images(images: Tensor, size: Size) -> Tensor:
    """Return images, (N, C, H, W) float32, in another size, by bilinear interpolation with antialiasing."""
    if images.shape[2:] == size:
        return images
    try:
        return F.interpolate(images, size, mode="bilinear", antialias=True)
    except (RuntimeError, MemoryError) as error:
        raise UsageError(
            f"sizes= has {size}, whose images need more memory than this machine has; leave it out"
        ) from error


def _draw_images(shape: Sequence[int]) -> Tensor:
    """Return images of `shape`, (C, H, W) or (N, C, H, W), from a normal distribution.

    Raises:
        UsageError: It is no such shape.
    """
    if any(isinstance(side, Tensor) for side in shape):
        raise UsageError(
            f"example is a {type(shape).__name__} of {count_with_noun(len(shape), 'tensor')}, and an optimized network "
            "takes one tensor, (N, C, H, W); wrap a network of several inputs in a module that takes them as one tensor"
        )
    if len(shape) not in (3, 4) or not all(type(side) is int and side > 0 for side in shape):
        raise UsageError(f"example={shape!r} is not a shape; give (C, H, W), such as (3, 224, 224), or images")
    try:
        return torch.randn((1, *shape)[-4:], generator=torch.Generator().manual_seed(0))
    except (RuntimeError, MemoryError) as error:
        raise UsageError(f"example={shape!r} needs more memory than this machine has; give a smaller shape") from error


def _check_example(example: Tensor) -> None:
    try:
        good = 0 not in example.shape and bool(example.isfinite().all())
    except RuntimeError as error:
        raise UsageError(f"the example, {tuple(example.shape)}, needs more memory than this machine has") from error
    if not good:
        raise UsageError(
            f"the example, {tuple(example.shape)}, has no images, or values that are not finite; use typical images"
        )
