"""The image operations of RandAugment and TrivialAugment, computed by Pillow."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image, ImageEnhance, ImageOps

LEVELS = 31  # of each magnitude, from 0


@dataclass(frozen=True)
class MaxMagnitudes:
    """The magnitudes of the operations at the highest level; at level 0 they are 0, or leave the image as it is.

    Attributes:
        shear: Pixels that a pixel moves, per pixel of its distance from the edge.
        translate: Pixels.
        translate_share: Share of the image's side, in place of `translate`. None: pixels.
        rotate: Degrees.
        enhance: Change of the factor of brightness, color, contrast and sharpness from 1.
        posterize: Bits per channel that are cleared.
    """

    shear: float
    translate: float
    translate_share: float | None
    rotate: float
    enhance: float
    posterize: int


# Cubuk et al. 2020, "RandAugment", §3.1, with the ranges of AutoAugment.
RAND_AUGMENT = MaxMagnitudes(shear=0.3, translate=0, translate_share=150 / 331, rotate=30, enhance=0.9, posterize=4)
# Müller & Hutter 2021, "TrivialAugment", table 1, the wide space.
TRIVIAL_AUGMENT = MaxMagnitudes(shear=0.99, translate=32, translate_share=None, rotate=135, enhance=0.99, posterize=6)

# (image, share of the range: −1 to 1 for operations with a sign, else 0 to 1; the range) → the image
Apply = Callable[[Image.Image, float, MaxMagnitudes], Image.Image]


@dataclass(frozen=True)
class Operation:
    """An image operation.

    Attributes:
        name: Its name in the papers.
        apply: The operation.
        is_signed: Whether it has two directions.
    """

    name: str
    apply: Apply
    is_signed: bool


def apply_operation(
    image: Image.Image, operation: Operation, level: int, sign: int, magnitudes: MaxMagnitudes
) -> Image.Image:
    """Return `image` (mode RGB or L) after an operation.

    Args:
        image: The image.
        operation: The operation.
        level: Level of its magnitude, 0 to LEVELS − 1.
        sign: 1 or −1, for operations with two directions.
        magnitudes: The range of magnitudes.
    """
    share = level / (LEVELS - 1)
    return operation.apply(image, sign * share if operation.is_signed else share, magnitudes)


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    """Return the image whose pixel (x, y) is that at `matrix` · (x, y, 1); black where there is none."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


def _shift(share: float, side: int, magnitudes: MaxMagnitudes) -> int:
    """Return a number of whole pixels."""
    relative = magnitudes.translate_share
    return int(share * (magnitudes.translate if relative is None else relative * side))


def _enhance(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Apply:
    return lambda image, share, magnitudes: kind(image).enhance(1 + share * magnitudes.enhance)


OPERATIONS = (
    Operation("Identity", lambda image, _share, _range: image, is_signed=False),
    Operation("ShearX", lambda image, s, r: _affine(image, 1, s * r.shear, 0, 0, 1, 0), is_signed=True),
    Operation("ShearY", lambda image, s, r: _affine(image, 1, 0, 0, s * r.shear, 1, 0), is_signed=True),
    Operation("TranslateX", lambda image, s, r: _affine(image, 1, 0, -_shift(s, image.width, r), 0, 1, 0), True),
    Operation("TranslateY", lambda image, s, r: _affine(image, 1, 0, 0, 0, 1, -_shift(s, image.height, r)), True),
    Operation("Rotate", lambda image, s, r: image.rotate(s * r.rotate, Image.Resampling.BILINEAR), is_signed=True),
    Operation("Brightness", _enhance(ImageEnhance.Brightness), is_signed=True),
    Operation("Color", _enhance(ImageEnhance.Color), is_signed=True),
    Operation("Contrast", _enhance(ImageEnhance.Contrast), is_signed=True),
    Operation("Sharpness", _enhance(ImageEnhance.Sharpness), is_signed=True),
    Operation("Posterize", lambda image, s, r: ImageOps.posterize(image, 8 - round(s * r.posterize)), is_signed=False),
    Operation("Solarize", lambda image, s, _range: ImageOps.solarize(image, math.ceil(255 * (1 - s))), is_signed=False),
    Operation("AutoContrast", lambda image, _share, _range: ImageOps.autocontrast(image), is_signed=False),
    Operation("Equalize", lambda image, _share, _range: ImageOps.equalize(image), is_signed=False),
)
