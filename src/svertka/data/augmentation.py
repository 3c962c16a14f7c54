"""Random augmentations of image batches, each as in the paper that introduced it.

Each is called with `images` (B, C, S, S), uint8 or float32 in 0 to 255, on any device and in any memory format, with
`draws`, the random numbers of those images, and with `size`, the side of the network's input in pixels. The dtype is
kept, except by PCAColor, which returns float32.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator

from svertka.data.dataset import Ints
from svertka.data.per_image_random_numbers import PerImageRandomNumbers
from svertka.data.pixel_statistics import Statistics
from svertka.data.preprocessing import Interpolation, Preprocess
from svertka.data.rand_augment_operations import (
    LEVELS,
    OPERATIONS,
    RAND_AUGMENT,
    TRIVIAL_AUGMENT,
    MaxMagnitudes,
    apply_operation,
)
from svertka.errors import UsageError
from svertka.text_width import shorten

ERASING_ATTEMPTS = 10  # as torchvision's


class _Augmentation(BaseModel, ABC):
    """Base class of all augmentations."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def stored_side(self, preprocess: Preprocess) -> int:
        """Return the side of the stored squares that the augmentation needs, pixels."""
        return preprocess.side

    def fit(self, statistics: Statistics, interpolation: Interpolation) -> Self:
        """Return a copy with the statistics of the training images and the network's filter, if it needs them."""
        return self

    @abstractmethod
    def __call__(self, images: torch.Tensor, draws: PerImageRandomNumbers, size: int) -> torch.Tensor:
        """Return the augmented batch, (B, C, S', S')."""


class PadCrop(_Augmentation):
    """Random shift by up to `pixels` in each direction, as a crop of the padded image.

    Attributes:
        pixels: Width of the padding, 1 to 64.
        outside: What the padding holds: black, or a reflection of the image.

    Source: He et al. 2015, §4.2. They pad with the mean; black is common practice and needs no statistics.
    """

    kind: Literal["pad_crop"] = "pad_crop"
    pixels: int = Field(default=4, ge=1, le=64)
    outside: Literal["black", "reflection"] = "black"

    def __call__(self, images: torch.Tensor, draws: PerImageRandomNumbers, size: int) -> torch.Tensor:
        """Return the batch shifted; S' is S."""
        side = images.shape[-1]
        if self.outside == "black":
            return _random_crops(F.pad(images, (self.pixels,) * 4), side, draws)
        # PyTorch cannot pad uint8 by reflection, so index: −1 becomes 1, and S becomes S − 2.
        places = torch.arange(-self.pixels, side + self.pixels, device=images.device).abs()
        places = side - 1 - (side - 1 - places).abs()
        return _random_crops(images[:, :, places][:, :, :, places], side, draws)


class RandomCrop(_Augmentation):
    """Random crop of the network's size from the stored square.

    Source: Krizhevsky et al. 2012 (AlexNet), §4.1: 224×224 out of 256×256.
    """

    kind: Literal["random_crop"] = "random_crop"

    def __call__(self, images: torch.Tensor, draws: PerImageRandomNumbers, size: int) -> torch.Tensor:
        """Return the crops; S' is `size`."""
        return _random_crops(images, size, draws)


class Flip(_Augmentation):
    """Horizontal flip with probability 1/2.

    Attributes:
        in_turns: Flip each image at random in the first epoch, then in every other epoch.

    Source: Krizhevsky et al. 2012 (AlexNet), §4.1; Jordan 2024, §3.6, for `in_turns`.
    """

    kind: Literal["flip"] = "flip"
    in_turns: bool = False

    def __call__(self, images: torch.Tensor, draws: PerImageRandomNumbers, size: int) -> torch.Tensor:
        """Return the batch with about half of its images flipped; S' is S."""
        if self.in_turns:
            mirrored = (draws.in_epoch(0).uniform(0) < 0.5) ^ (draws.epoch % 2 == 1)
        else:
            mirrored = draws.uniform(0) < 0.5
        mirrored = mirrored.to(images.device)
        return torch.where(mirrored[:, None, None, None], images.flip(3), images)


class PCAColor(_Augmentation):
    """Random color shift along the principal components of the training images' colors.

    All pixels of an image shift by one color. The result is float32 and may exceed 0 to 255. Along each component the
    shift is normal with `deviation` times the standard deviation of the pixels along it.

    Attributes:
        deviation: Relative standard deviation of the shift, 0 to 1.
        axes: Principal components scaled by their standard deviation, in gray levels; None before `fit`.

    Source: Krizhevsky et al. 2012 (AlexNet), §4.1. They scale by the eigenvalue, a variance, so that the shift depends
    on the unit of intensity; its square root does not.
    """

    kind: Literal["pca_colour"] = "pca_colour"
    deviation: float = Field(default=0.1, gt=0, le=1)
    axes: tuple[tuple[float, ...], ...] | None = None

    def fit(self, statistics: Statistics, interpolation: Interpolation) -> Self:
        """Return a copy with the principal components of `statistics`."""
        variances, axes = np.linalg.eigh(np.asarray(statistics.covariance) * 255**2)
        axes = axes.T * np.sqrt(np.maximum(variances, 0))[:, None]
        return self.model_copy(update={"axes": tuple(tuple(axis) for axis in axes.tolist())})

    def __call__(self, images: torch.Tensor, draws: PerImageRandomNumbers, size: int) -> torch.Tensor:
        """Return the shifted batch, float32; S' is S."""
        if self.axes is None:
            raise UsageError("pca_colour needs the statistics of the training images; call fit() first")
        factors = torch.stack([draws.normal(stream) for stream in range(len(self.axes))], dim=1) * self.deviation
        shift = (factors @ torch.tensor(self.axes, dtype=torch.float64)).to(images.device, torch.float32)
        return images + shift[:, :, None, None]


class _ResizedCrop(_Augmentation):
    """Base class of the augmentations that resize crops.

    Attributes:
        interpolation: The filter, with antialiasing; that of the network.
    """

    interpolation: Interpolation = "bilinear"

    def fit(self, statistics: Statistics, interpolation: Interpolation) -> Self:
        """Return a copy with the filter of the network."""
        return self.model_copy(update={"interpolation": interpolation})

    def _crop_and_resize(
        self, images: torch.Tensor, height: torch.Tensor, width: torch.Tensor, draws: PerImageRandomNumbers, size: int
    ) -> torch.Tensor:
        """Return a random window of each image, resized to (B, C, size, size).

        `height` and `width` (B,) are shares of the side.
        """
        side = images.shape[-1]
        height, width = ((share * side).round().clamp(1, side).long() for share in (height, width))
        top = (draws.uniform(0) * (side - height + 1)).long()
        left = (draws.uniform(1) * (side - width + 1)).long()
        results = images.new_empty((len(images), images.shape[1], size, size))
        boxes = torch.stack((top, left, top + height, left + width), dim=1).tolist()
        for number, (above, before, below, behind) in enumerate(boxes):
            window = images[number : number + 1, :, above:below, before:behind]
            results[number] = _resize(window, size, self.interpolation)[0]
        return results


class ScaleJitter(_ResizedCrop):
    """Random crop of the network's size from the image at a random scale.

    Attributes:
        low, high: Range of the image's side, as a multiple of the network's input size.

    Source: Simonyan & Zisserman 2014 (VGG), §3.1: 256 to 512 for an input of 224. Here the image is its central square.
    """

    kind: Literal["scale_jitter"] = "scale_jitter"
    low: float = Field(default=256 / 224, ge=1, le=8)
    high: float = Field(default=512 / 224, ge=1, le=8)

    def stored_side(self, preprocess: Preprocess) -> int:
        """Return the side at the largest scale, so that nothing is enlarged."""
        return max(preprocess.side, round(self.high * preprocess.size))

    def __call__(self, images: torch.Tensor, draws: PerImageRandomNumbers, size: int) -> torch.Tensor:
        """Return the crops; S' is `size`."""
        scale = self.low + (self.high - self.low) * draws.uniform(2)
        return self._crop_and_resize(images, 1 / scale, 1 / scale, draws, size)


class AreaCrop(_ResizedCrop):
    """Random crop of random area and aspect ratio, resized to the network's size.

    A side that would exceed the image is clipped to it.

    Attributes:
        area: Smallest share of the image's area, 0 to 1.
        aspect: Largest aspect ratio; ratios are drawn log-uniformly from 1 / aspect to aspect.

    Source: Szegedy et al. 2014 (GoogLeNet), §6.
    """

    kind: Literal["area_crop"] = "area_crop"
    area: float = Field(default=0.08, gt=0, le=1)
    aspect: float = Field(default=4 / 3, ge=1, le=4)

    def __call__(self, images: torch.Tensor, draws: PerImageRandomNumbers, size: int) -> torch.Tensor:
        """Return the crops; S' is `size`."""
        area = self.area + (1 - self.area) * draws.uniform(2)
        root = torch.exp((draws.uniform(3) - 0.5) * math.log(self.aspect))
        return self._crop_and_resize(images, area.sqrt() / root, area.sqrt() * root, draws, size)


class RandAugment(_Augmentation):
    """Several random operations on each image, such as a rotation or more contrast, all of one magnitude.

    Attributes:
        operations: Number of operations, drawn with replacement from 14.
        magnitude: Level of their magnitude, 0 to 30.

    Source: Cubuk et al. 2020, "RandAugment", §3.1; the operations and their ranges are those of torchvision, with
    bilinear interpolation and black outside of the image.
    """

    kind: Literal["rand_augment"] = "rand_augment"
    operations: int = Field(default=2, ge=1, le=14)
    magnitude: int = Field(default=9, ge=0, le=LEVELS - 1)

    def __call__(self, images: torch.Tensor, draws: PerImageRandomNumbers, size: int) -> torch.Tensor:
        """Return the changed batch; S' is S."""
        levels = np.full(len(images), self.magnitude)
        for turn in range(self.operations):
            images = _apply_random_operation(images, draws, 2 * turn, levels, RAND_AUGMENT)
        return images


class TrivialAugment(_Augmentation):
    """One random operation of random magnitude on each image.

    Source: Müller & Hutter 2021, "TrivialAugment: Tuning-free yet state-of-the-art data augmentation", §3, with the
    wide space; the operations are those of torchvision, with bilinear interpolation and black outside of the image.
    """

    kind: Literal["trivial_augment"] = "trivial_augment"

    def __call__(self, images: torch.Tensor, draws: PerImageRandomNumbers, size: int) -> torch.Tensor:
        """Return the changed batch; S' is S."""
        return _apply_random_operation(images, draws, 0, draws.below(2, LEVELS).numpy(), TRIVIAL_AUGMENT)


class RandomErasing(_Augmentation):
    """A rectangle of noise in some images: every value in it is uniform in 0 to 255.

    The area is uniform and the aspect ratio log-uniform; of ten draws the first that fits is used.

    Attributes:
        probability: Share of the images that are changed, above 0 to 1.
        area: Smallest and largest share of the image's area, 0 to 1.
        aspect: Largest aspect ratio; the smallest is 1 / aspect.

    Source: Zhong et al. 2020, "Random erasing data augmentation", algorithm 1, RE-R. They draw the ratio uniformly;
    log-uniform treats high and wide rectangles alike.
    """

    kind: Literal["random_erasing"] = "random_erasing"
    probability: float = Field(default=0.25, gt=0, le=1)
    area: tuple[float, float] = (0.02, 1 / 3)
    aspect: float = Field(default=10 / 3, ge=1, le=100)

    @model_validator(mode="after")
    def _has_range(self) -> Self:
        low, high = self.area
        if not 0 < low <= high <= 1:
            raise ValueError(f"area={self.area} must be two shares above 0 to 1, the lower first")
        return self

    def __call__(self, images: torch.Tensor, draws: PerImageRandomNumbers, size: int) -> torch.Tensor:
        """Return the changed batch; S' is S."""
        images, side = images.clone(), images.shape[-1]
        chosen = torch.nonzero(draws.uniform(0) < self.probability).flatten().tolist()
        seeds = draws.below(1, 2**53).tolist()
        for number in chosen:
            generator = np.random.default_rng(seeds[number])
            for _ in range(ERASING_ATTEMPTS):
                root = math.sqrt(generator.uniform(*self.area)) * side
                stretch = math.exp(generator.uniform(-0.5, 0.5) * math.log(self.aspect))
                height, width = max(1, round(root * stretch)), max(1, round(root / stretch))
                if height <= side and width <= side:
                    break
            else:
                continue
            top, left = (int(generator.integers(side - length + 1)) for length in (height, width))
            noise = generator.integers(0, 256, (images.shape[1], height, width), dtype=np.uint8)
            images[number, :, top : top + height, left : left + width] = torch.from_numpy(noise).to(images)
        return images


Augmentation = Annotated[
    PadCrop | RandomCrop | Flip | PCAColor | ScaleJitter | AreaCrop | RandAugment | TrivialAugment | RandomErasing,
    Field(discriminator="kind"),
]


AUTO_AUGMENTATIONS: dict[str, tuple[Augmentation, ...]] = {
    "rand": (RandAugment(),),
    "trivial": (TrivialAugment(),),
    "none": (),
}


def merge_augmentations(
    augmentations: Sequence[Augmentation], *, auto_augment: str | None, random_erasing: float | None
) -> tuple[Augmentation, ...]:
    """Return `augmentations` with further ones in place of those of the same kind.

    Args:
        augmentations: The augmentations of a recipe.
        auto_augment: "rand", "trivial" or "none". None: as in the recipe.
        random_erasing: Share of the images with a rectangle of noise, 0 to 1. None: as in the recipe.

    Raises:
        UsageError: A value is not one of these.
    """
    chosen = list(augmentations)
    if auto_augment is not None:
        if auto_augment not in AUTO_AUGMENTATIONS:
            raise UsageError(f"auto_augment={shorten(auto_augment)} is not known; use rand, trivial or none")
        chosen = [one for one in chosen if not isinstance(one, RandAugment | TrivialAugment)]
        last = (place for place, one in enumerate(chosen) if isinstance(one, PCAColor | RandomErasing))
        place = next(last, len(chosen))  # it needs bytes, and noise is not to be rotated
        chosen[place:place] = AUTO_AUGMENTATIONS[auto_augment]
    if random_erasing is not None:
        if not 0 <= random_erasing <= 1:
            given = shorten(str(random_erasing))
            raise UsageError(f"random_erasing={given} must be from 0 to 1, the share of images that it changes")
        chosen = [one for one in chosen if not isinstance(one, RandomErasing)]
        if random_erasing > 0:
            chosen.append(RandomErasing(probability=random_erasing))
    return tuple(chosen)


def augment(
    images: torch.Tensor, augmentations: Sequence[Augmentation], draws: PerImageRandomNumbers, size: int
) -> torch.Tensor:
    """Apply augmentations in order, each with its own random numbers.

    Args:
        images: (B, C, S, S) uint8 or float32 in 0 to 255.
        augmentations: The augmentations.
        draws: Random numbers of these images.
        size: Side of the network's input, pixels.

    Returns:
        The augmented batch, (B, C, S', S').
    """
    for place, augmentation in enumerate(augmentations):
        images = augmentation(images, draws.for_augmentation(place), size)
    return images


def _apply_random_operation(
    images: torch.Tensor, draws: PerImageRandomNumbers, stream: int, levels: Ints, magnitudes: MaxMagnitudes
) -> torch.Tensor:
    """Return the images after one random operation each.

    Args:
        images: (B, C, S, S) uint8 or float32; rounded to bytes.
        draws: Random numbers of these images.
        stream: The first of two streams of random numbers, for the operation and its direction.
        levels: Level of the magnitude for each image, (B,).
        magnitudes: The range of magnitudes.
    """
    which = draws.below(stream, len(OPERATIONS)).tolist()
    signs = (1 - 2 * draws.below(stream + 1, 2)).tolist()
    as_bytes = images if images.dtype == torch.uint8 else images.round().clamp(0, 255).to(torch.uint8)
    pixels = as_bytes.permute(0, 2, 3, 1).cpu().numpy()
    results = np.empty(pixels.shape, np.uint8)
    for number, (operation, sign, level) in enumerate(zip(which, signs, levels.tolist(), strict=True)):
        image = Image.fromarray(pixels[number, :, :, 0] if pixels.shape[3] == 1 else pixels[number])
        changed = apply_operation(image, OPERATIONS[operation], level, sign, magnitudes)
        results[number] = np.asarray(changed).reshape(results.shape[1:])
    return torch.from_numpy(results).permute(0, 3, 1, 2).to(images)


def _random_crops(images: torch.Tensor, side: int, draws: PerImageRandomNumbers) -> torch.Tensor:
    """Return a random square of `side` pixels of each image, (B, C, side, side)."""
    room = images.shape[-1] - side + 1
    top, left = draws.below(0, room).to(images.device), draws.below(1, room).to(images.device)
    every = torch.arange(len(images), device=images.device)
    return images.unfold(2, side, 1).unfold(3, side, 1)[every, :, top, left]


def _resize(images: torch.Tensor, size: int, interpolation: Interpolation) -> torch.Tensor:
    """Return (B, C, size, size) of the same dtype and range, resized with antialiasing."""
    if images.dtype == torch.uint8 and images.device.type != "cpu":
        # Only the CPU can resize uint8, eight times as fast as float32.
        return _resize(images.float(), size, interpolation).round_().to(torch.uint8)
    resized = F.interpolate(images, size=(size, size), mode=interpolation, antialias=True)
    return resized.clamp_(0, 255) if interpolation == "bicubic" and images.is_floating_point() else resized
