"""Batches of images, changed at random: the ways of the papers.

Each is called with `images` (B, C, S, S) uint8 or float32 in 0 to 255, on any device and in any memory order, the
`draws` of those images, and the `size` of the network's input. uint8 stays uint8, except in PCAColour.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field

from svertka.data.per_image_random import PerImageRandom
from svertka.data.pixel_statistics import Statistics
from svertka.data.preprocessing import Preprocess
from svertka.errors import UsageError


class _Augmentation(BaseModel, ABC):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def stored_side(self, preprocess: Preprocess) -> int:
        """Side of the squares that it wants to be given, pixels."""
        return preprocess.side

    def fit(self, statistics: Statistics) -> Self:
        """Itself, with what it has to know of the training images."""
        return self

    @abstractmethod
    def __call__(self, images: torch.Tensor, draws: PerImageRandom, size: int) -> torch.Tensor:
        """The changed batch, (B, C, S', S')."""


class PadCrop(_Augmentation):
    """Moved by up to `pixels` in each direction; black, or the image's own reflection, comes in from outside.

    Source: He et al. 2015, §4.2 (there the mean comes in: black is what is widely done, before the mean is known).
    """

    kind: Literal["pad_crop"] = "pad_crop"
    pixels: int = Field(default=4, ge=1, le=64)
    outside: Literal["black", "reflection"] = "black"

    def __call__(self, images: torch.Tensor, draws: PerImageRandom, size: int) -> torch.Tensor:
        """S' is S."""
        side = images.shape[-1]
        if self.outside == "black":
            return _windows(F.pad(images, (self.pixels,) * 4), side, draws)
        # By index, since PyTorch reflects no uint8: −1 becomes 1, and S becomes S − 2.
        places = torch.arange(-self.pixels, side + self.pixels, device=images.device).abs()
        places = side - 1 - (side - 1 - places).abs()
        return _windows(images[:, :, places][:, :, :, places], side, draws)


class RandomCrop(_Augmentation):
    """A square of the network's size from anywhere in the stored one.

    Source: Krizhevsky et al. 2012 (AlexNet), §4.1: 224×224 out of 256×256.
    """

    kind: Literal["random_crop"] = "random_crop"

    def __call__(self, images: torch.Tensor, draws: PerImageRandom, size: int) -> torch.Tensor:
        """S' is `size`."""
        return _windows(images, size, draws)


class Flip(_Augmentation):
    """Mirrored, left for right, every second time: by chance, or in turns that begin by chance.

    Source: Krizhevsky et al. 2012 (AlexNet), §4.1; Jordan 2024, §3.6, for the turns.
    """

    kind: Literal["flip"] = "flip"
    in_turns: bool = False

    def __call__(self, images: torch.Tensor, draws: PerImageRandom, size: int) -> torch.Tensor:
        """S' is S."""
        if self.in_turns:
            mirrored = (draws.in_epoch(0).uniform(0) < 0.5) ^ (draws.epoch % 2 == 1)
        else:
            mirrored = draws.uniform(0) < 0.5
        mirrored = mirrored.to(images.device)
        return torch.where(mirrored[:, None, None, None], images.flip(3), images)


class PCAColour(_Augmentation):
    """All pixels shifted by one random colour along the principal axes of the training images' colours.

    float32, which may leave 0 to 255. Along each axis the shift is normal with `deviation` times the standard deviation
    of the pixels on that axis. `axes`: principal axes times that standard deviation, in grey levels.

    Source: Krizhevsky et al. 2012 (AlexNet), §4.1. There the eigenvalue itself, a variance, is the factor, which makes
    the shift depend on the unit of intensity; its square root does not.
    """

    kind: Literal["pca_colour"] = "pca_colour"
    deviation: float = Field(default=0.1, gt=0, le=1)
    axes: tuple[tuple[float, ...], ...] | None = None

    def fit(self, statistics: Statistics) -> Self:
        """Itself, with the axes of `statistics`."""
        variances, axes = np.linalg.eigh(np.asarray(statistics.covariance) * 255**2)
        axes = axes.T * np.sqrt(np.maximum(variances, 0))[:, None]
        return self.model_copy(update={"axes": tuple(tuple(axis) for axis in axes.tolist())})

    def __call__(self, images: torch.Tensor, draws: PerImageRandom, size: int) -> torch.Tensor:
        """S' is S."""
        if self.axes is None:
            raise UsageError("pca_colour does not know the colours of the training images; call fit() first")
        factors = torch.stack([draws.normal(stream) for stream in range(len(self.axes))], dim=1) * self.deviation
        shift = (factors @ torch.tensor(self.axes, dtype=torch.float64)).to(images.device, torch.float32)
        return images + shift[:, :, None, None]


class ScaleJitter(_Augmentation):
    """A square of the network's size from anywhere in the image at a random scale.

    The image's side is `low` to `high` times the network's.

    Source: Simonyan & Zisserman 2014 (VGG), §3.1: 256 to 512 for 224. The image is its central square here.
    """

    kind: Literal["scale_jitter"] = "scale_jitter"
    low: float = Field(default=256 / 224, ge=1, le=8)
    high: float = Field(default=512 / 224, ge=1, le=8)

    def stored_side(self, preprocess: Preprocess) -> int:
        """The largest scale, so that nothing is enlarged."""
        return max(preprocess.side, round(self.high * preprocess.size))

    def __call__(self, images: torch.Tensor, draws: PerImageRandom, size: int) -> torch.Tensor:
        """S' is `size`."""
        scale = self.low + (self.high - self.low) * draws.uniform(2)
        return _resized_windows(images, 1 / scale, 1 / scale, draws, size)


class AreaCrop(_Augmentation):
    """A part of the image, of random area and aspect, stretched to the network's size.

    `area`: the smallest share of the image; `aspect`: width to height lies between 1 / aspect and aspect, evenly in
    its logarithm. A side that would be longer than the image is cut to it.

    Source: Szegedy et al. 2014 (GoogLeNet), §6. Always resized with a triangle filter, as images elsewhere here.
    """

    kind: Literal["area_crop"] = "area_crop"
    area: float = Field(default=0.08, gt=0, le=1)
    aspect: float = Field(default=4 / 3, ge=1, le=4)

    def __call__(self, images: torch.Tensor, draws: PerImageRandom, size: int) -> torch.Tensor:
        """S' is `size`."""
        area = self.area + (1 - self.area) * draws.uniform(2)
        root = torch.exp((draws.uniform(3) - 0.5) * math.log(self.aspect))
        return _resized_windows(images, area.sqrt() / root, area.sqrt() * root, draws, size)


Augmentation = Annotated[
    PadCrop | RandomCrop | Flip | PCAColour | ScaleJitter | AreaCrop,
    Field(discriminator="kind"),
]


def augment(
    images: torch.Tensor, augmentations: Sequence[Augmentation], draws: PerImageRandom, size: int
) -> torch.Tensor:
    """`images` after all `augmentations`, one after the other, each with random numbers of its own."""
    for place, augmentation in enumerate(augmentations):
        images = augmentation(images, draws.for_augmentation(place), size)
    return images


def _windows(images: torch.Tensor, side: int, draws: PerImageRandom) -> torch.Tensor:
    """A square of `side` pixels from anywhere in each image, (B, C, side, side)."""
    room = images.shape[-1] - side + 1
    top, left = draws.below(0, room).to(images.device), draws.below(1, room).to(images.device)
    every = torch.arange(len(images), device=images.device)
    return images.unfold(2, side, 1).unfold(3, side, 1)[every, :, top, left]


def _resized_windows(
    images: torch.Tensor, height: torch.Tensor, width: torch.Tensor, draws: PerImageRandom, size: int
) -> torch.Tensor:
    """A window from anywhere in each image, its `height` and `width` shares of the side (B,), at size×size pixels."""
    side = images.shape[-1]
    height, width = ((share * side).round().clamp(1, side).long() for share in (height, width))
    top = (draws.uniform(0) * (side - height + 1)).long()
    left = (draws.uniform(1) * (side - width + 1)).long()
    results = images.new_empty((len(images), images.shape[1], size, size))
    boxes = torch.stack((top, left, top + height, left + width), dim=1).tolist()
    for number, (above, before, below, behind) in enumerate(boxes):
        results[number] = _resized(images[number : number + 1, :, above:below, before:behind], size)[0]
    return results


def _resized(images: torch.Tensor, size: int) -> torch.Tensor:
    """(B, C, size, size) of the same dtype, through a triangle filter as wide as the reduction."""
    if images.dtype == torch.uint8 and images.device.type != "cpu":
        # Only the CPU resizes uint8, and there eight times as fast as float32.
        return _resized(images.float(), size).round_().clamp_(0, 255).to(torch.uint8)
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
