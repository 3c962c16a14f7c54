"""The images on which `optimize` measures the ranges of a network's values."""

import math
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from svertka.compiler.validation import to_plain_images
from svertka.errors import UsageError

MIN_IMAGES = 100  # with fewer, ranges are uncertain
BATCH_SIZE = 16  # images that are run at a time
MAX_KEPT = 32  # images on which the accuracy of the result is checked


class CalibrationImages:
    """The batches of the argument `calibration`, checked while they are iterated over, once.

    Args:
        calibration: Images, (N, C, H, W) float32; or an iterable of such batches, or of (batch, labels).
        shape: The shape of an image, (C, H, W).
        batch_size: The only batch size that the network can run, or None if it can run any.

    Attributes:
        kept: The first images, up to MAX_KEPT, after the iteration.
        low, high: The smallest and the largest number of all images, after the iteration.
    """

    def __init__(self, calibration: Any, shape: tuple[int, ...], batch_size: int | None) -> None:
        if not isinstance(calibration, Iterable) or isinstance(calibration, str | bytes | dict):
            raise UsageError(
                f"calibration= is of type {type(calibration).__name__}; give images, (N, C, H, W) float32, or an "
                "iterable of batches of them"
            )
        self._batches = [calibration] if isinstance(calibration, Tensor) else calibration
        self._shape, self._batch_size = shape, batch_size
        self.kept = torch.empty(0, *shape, device="cpu")
        self.low, self.high = math.inf, -math.inf

    def __iter__(self) -> Iterator[Tensor]:
        """Return an iterator over the images in batches that the network can run; warn if they are few.

        Raises:
            UsageError: there are no images, or some are of another shape or not finite.
        """
        count = 0
        size = self._batch_size or BATCH_SIZE
        rest = self.kept
        for batch in self._batches:
            images = self._check(batch[0] if isinstance(batch, tuple | list) and batch else batch)
            if len(images):
                low, high = (float(one) for one in images.aminmax())
                self.low, self.high = min(self.low, low), max(self.high, high)
            count += len(images)
            self.kept = torch.cat([self.kept, images[: MAX_KEPT - len(self.kept)]])
            rest = torch.cat([rest, images]) if len(rest) else images
            whole = len(rest) // size * size
            yield from torch.split(rest[:whole], size) if whole else ()
            rest = rest[whole:]
        if count == 0:
            raise UsageError("calibration= has no images; give some hundred typical images, (N, C, H, W) float32")
        if len(rest) and self._batch_size is None:
            yield rest
        if count < MIN_IMAGES:
            warnings.warn(
                f"calibration= has {count} images; with fewer than {MIN_IMAGES} the ranges of values are uncertain, so "
                "give more",
                stacklevel=2,
            )

    def _check(self, batch: Any) -> Tensor:
        images = to_plain_images(batch)
        if images.shape[1:] != self._shape:
            sizes = ["×".join(map(str, shape)) for shape in (images.shape[1:], self._shape)]
            raise UsageError(f"calibration= has images of {sizes[0]} and the example's are {sizes[1]}; resize them")
        if not bool(images.isfinite().all()):
            raise UsageError(
                "calibration= has images with numbers that are not finite; use images such as there will be"
            )
        return images
