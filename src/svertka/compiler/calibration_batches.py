"""The images on which `optimize` measures the ranges of a network's values."""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from svertka.compiler.validation import to_plain_images
from svertka.errors import UsageError
from svertka.pages.number_format import count_with_noun

MIN_IMAGES = 100  # with fewer, ranges are uncertain
BATCH_SIZE = 16  # images that are run at a time
MAX_KEPT = 32  # images on which the accuracy of the result is checked


class CalibrationBatches:
    """The batches of the argument `calibration`, checked while they are iterated over, once.

    Args:
        calibration: Images, (N, C, H, W) float32; or an iterable of such batches, or of (batch, labels).
        shape: The shape of an image, (C, H, W).
        batch_size: The only batch size that the network can run, or None if it can run any.

    Attributes:
        kept: The first images, up to MAX_KEPT, after the iteration.
        count: The number of images, after the iteration.
        low, high: The smallest and the largest number of all images, after the iteration.
    """

    def __init__(self, calibration: Any, shape: tuple[int, ...], batch_size: int | None) -> None:
        if not isinstance(calibration, Iterable) or isinstance(calibration, str | bytes | dict | np.ndarray):
            raise UsageError(
                f"calibration= is of type {type(calibration).__name__}; give images, (N, C, H, W) float32, or an "
                f"iterable of batches of them{_hint(calibration)}"
            )
        self._batches = [calibration] if isinstance(calibration, Tensor) else calibration
        self._shape, self._batch_size = shape, batch_size
        self.kept = torch.empty(0, *shape, device="cpu")
        self.count = 0
        self.low, self.high = math.inf, -math.inf
        self._differ = False  # whether any image differs from the first

    def __iter__(self) -> Iterator[Tensor]:
        """Return an iterator over the images in batches that the network can run.

        Raises:
            UsageError: There are no images, all are equal, or some are of another shape or not finite.
        """
        size = self._batch_size or BATCH_SIZE
        rest = self.kept
        for batch in self._batches:
            images = require_float_images(
                "calibration", batch[0] if isinstance(batch, tuple | list) and batch else batch, self._shape
            )
            if len(images):
                low, high = (float(one) for one in images.aminmax())
                self.low, self.high = min(self.low, low), max(self.high, high)
                first = self.kept[:1] if self.count else images[:1]
                self._differ = self._differ or not bool((images == first).all())
            self.count += len(images)
            self.kept = torch.cat([self.kept, images[: MAX_KEPT - len(self.kept)]])
            rest = torch.cat([rest, images]) if len(rest) else images
            whole = len(rest) // size * size
            yield from torch.split(rest[:whole], size) if whole else ()
            rest = rest[whole:]
        if self.count == 0:
            raise UsageError("calibration= has no images; give some hundred typical images, (N, C, H, W) float32")
        if not self._differ and (self.count > 1 or self.low == self.high):
            equal = f"{self.count:,} equal images" if self.count > 1 else "one image of equal values"
            raise UsageError(f"calibration= has {equal}, so the ranges of values are unknown; give typical images")
        if len(rest) and self._batch_size is None:
            yield rest


def describe_few_images(count: int) -> str:
    """Return a warning about fewer than `MIN_IMAGES` images."""
    return (
        f"calibration= has {count_with_noun(count, 'image')}; with fewer than {MIN_IMAGES} the ranges of values are "
        f"uncertain; give at least {MIN_IMAGES} typical images"
    )


def require_float_images(argument: str, batch: Any, shape: tuple[int, ...]) -> Tensor:
    """Return a batch of images as a plain tensor, (N, C, H, W) float32.

    Args:
        argument: The argument of `optimize` that contains it.
        batch: What was given.
        shape: The shape of an image, (C, H, W).

    Raises:
        UsageError: It is no tensor, or its images are of another shape or not finite.
    """
    if not isinstance(batch, Tensor):
        raise UsageError(
            f"{argument}= has batches of type {type(batch).__name__}; give tensors, (N, C, H, W) float32{_hint(batch)}"
        )
    try:
        images = to_plain_images(batch)
    except UsageError as reason:
        raise UsageError(f"in {argument}=, {reason}") from reason
    if images.shape[1:] != shape:
        sizes = ["×".join(map(str, one)) for one in (images.shape[1:], shape)]
        change = "resize" if images.shape[1] == shape[0] else "convert"
        raise UsageError(f"{argument}= has images of {sizes[0]} and the example's are {sizes[1]}; {change} them")
    if not bool(images.isfinite().all()):
        raise UsageError(f"{argument}= has images with values that are not finite; use typical images")
    return images


def _hint(given: Any) -> str:
    """Return the end of an error message, which says how to make batches of what was given."""
    if isinstance(given, np.ndarray):
        return "; use torch.from_numpy(images).float()"
    return "; use torch.utils.data.DataLoader(dataset, batch_size=16)" if isinstance(given, Dataset) else ""
