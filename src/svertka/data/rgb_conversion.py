"""Conversion of Pillow images of every mode to RGB, strip by strip, so that large images are not copied whole."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms
from PIL.TiffImagePlugin import TiffImageFile

from svertka.errors import ImageError

Pixels = npt.NDArray[np.uint8]
Deep = npt.NDArray[np.uint16]
Range = tuple[int, int]

FULL = (0, 65535)  # the range in which 16-bit values are shown by their upper 8 bits
STRIP = 2**20  # pixels converted at once

_PHOTOMETRIC, _MIN_IS_WHITE = 262, 0


def read_raw_mode(image: Image.Image) -> str:
    """Return how the file stores the pixels of an unloaded image, as Pillow's unpackers call it; "" if unknown."""
    tiles = getattr(image, "tile", None)
    args = tiles[0][3] if tiles else ""
    return str(args[0] if isinstance(args, tuple) and args else args)


def intensity_to_shade_factors(intensity_range: Range) -> tuple[int, int, int]:
    """Return (a, b, c) such that a value v of the range has the shade ((v − low) a + b) // c, 0 to 255.

    A range of 256·n values, as sensors have, is shown by its upper 8 bits; another by the nearest shade.
    """
    low, high = intensity_range
    count = high - low + 1
    return (256, 0, count) if count % 256 == 0 else (2 * 255, high - low, 2 * (high - low))


def make_shade_table(intensity_range: Range | None) -> Pixels:
    """Return the 8-bit shade of every 16-bit value, (65536,) uint8.

    The range maps to 0 to 255; values outside are clipped. None is the full range.
    """
    low, high = intensity_range or FULL
    factor, offset, divisor = intensity_to_shade_factors((low, high))
    values = np.arange(65536, dtype=np.int64).clip(low, high) - low
    return ((values * factor + offset) // divisor).astype(np.uint8)


def shades_to_16_bit(pixels: Pixels, intensity_range: Range | None) -> Pixels | Deep:
    """Return the lowest 16-bit values with the shades `pixels`, uint16 of the same shape.

    Without a range, return `pixels` themselves.
    """
    if intensity_range is None:
        return pixels
    low, high = intensity_range
    factor, offset, divisor = intensity_to_shade_factors(intensity_range)
    wanted = pixels.astype(np.int64) * divisor - offset
    return (low - (-wanted // factor)).clip(low, high).astype(np.uint16)


@dataclass(frozen=True)
class ImageWithRawMode:
    """Image with what Pillow forgets of its file once it is loaded.

    Attributes:
        image: The image.
        rawmode: How the file stores pixels, as `read_raw_mode` returns it.
        low: The lower 8 bits of a 16-bit color image, as an image of the same mode; `image` then has the upper ones.
        deep: Whether values have 16 bits of which the file does not say how many are used.
        min_is_white: Whether 0 is white.
    """

    image: Image.Image
    rawmode: str
    low: Image.Image | None = None
    deep: bool = False
    min_is_white: bool = False

    @classmethod
    def of(cls, image: Image.Image) -> "ImageWithRawMode":
        """Return the raw image of an image that is not loaded yet."""
        rawmode = read_raw_mode(image)
        scaled = bool(rawmode) and image.tile[0][0].startswith("ppm")  # type: ignore[attr-defined]
        gray = image.mode.startswith("I") and rawmode != "I;12"
        deep = not scaled and (gray or (image.mode in ("RGB", "RGBA") and re.search("^(RGBX?|RGBA|LA);16", rawmode)))
        tiff = isinstance(image, TiffImageFile)
        inverted = tiff and image.mode.startswith("I") and image.tag_v2.get(_PHOTOMETRIC) == _MIN_IS_WHITE  # type: ignore[attr-defined]
        return cls(image, rawmode, deep=bool(deep), min_is_white=bool(inverted))

    def pixels(self, factor: int, intensity_range: Range | None) -> Pixels:
        """Convert the loaded image to RGB, not rotated.

        Args:
            factor: Side of the squares of pixels that are averaged to one.
            intensity_range: Values of a deep image that become 0 and 255. None: all 16 bits.

        Returns:
            (H, W, 3) uint8.

        Raises:
            ImageError: The range of the values is unknown.
        """
        width, height = self.image.size
        shade = make_shade_table(intensity_range if self.deep else None)
        rows = max(STRIP // width // factor, 1) * factor
        if rows >= height and factor == 1:
            return self._rgb(shade)
        pixels = np.empty((-(-height // factor), -(-width // factor), 3), np.uint8)
        for top, strip in self._strips(rows):
            rgb = strip._rgb(shade)
            if factor > 1:
                rgb = np.asarray(Image.fromarray(rgb).reduce(factor))
            pixels[top // factor :][: len(rgb)] = rgb
        return pixels

    def deep_values(self) -> Iterator[Deep]:
        """Yield the values of a loaded deep image without alpha, strip by strip, each (n,) uint16."""
        for _, strip in self._strips(max(STRIP // self.image.width, 1)):
            values = strip._gray_values() if strip.low is None else strip._join_bytes()[..., :3]
            yield values.reshape(-1)

    def _strips(self, rows: int) -> Iterator[tuple[int, "ImageWithRawMode"]]:
        """Yield the first row of each strip of `rows` rows, and the strip."""
        width, height = self.image.size
        if rows >= height:
            yield 0, self
            return
        for top in range(0, height, rows):
            box = (0, top, width, min(top + rows, height))
            low = None if self.low is None else self.low.crop(box)
            yield top, replace(self, image=self.image.crop(box), low=low)

    def _rgb(self, shade: Pixels) -> Pixels:
        image, mode, key = self.image, self.image.mode, self.image.info.get("transparency")
        if self.low is not None:
            return self._deep_colors(shade, key)
        if mode in ("LA", "La", "RGBA", "RGBa", "PA", "P"):
            return composite_on_white(image)
        if mode == "F":
            raise ImageError("unsupported: 1 band of 32-bit floating-point values, whose range is not known")
        if mode == "LAB":
            lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
            exact = ImageCms.Flags.NOOPTIMIZE  # without it a coarse table is up to 16 levels off
            image = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB", flags=exact) or image
        if mode.startswith("I"):
            values = self._gray_values()
            gray = shade[values]
            if isinstance(key, int):
                gray[values == key] = 255
            return np.broadcast_to(gray[:, :, None], (*gray.shape, 3))
        if mode == "L" and self.rawmode in ("L;2", "L;4") and isinstance(key, int):
            key *= (
                85 if self.rawmode == "L;2" else 17
            )  # Pillow scales the pixels to 8 bits, but not the transparent value
        if mode == "RGB" and self.rawmode == "RGB;16B" and isinstance(key, tuple):
            key = tuple(value >> 8 for value in key)
        pixels = np.asarray(image.convert("RGB"))
        if key is not None and mode in ("1", "L", "RGB"):
            pixels = np.where(np.all(pixels == key, axis=2, keepdims=True), np.uint8(255), pixels)
        return pixels

    def _gray_values(self) -> Deep:
        """Return the values (H, W) of a single-band image, which Pillow's own conversion clips at 255."""
        values = np.asarray(self.image)
        if self.image.mode == "I" and (values.min() < 0 or values.max() > 65535):
            raise ImageError("unsupported: 1 band of 32-bit values beyond 0 to 65535, whose range is not known")
        deep: Deep = values.astype(np.uint16)
        if self.min_is_white:
            deep = np.uint16(65535) - deep
        return deep << np.uint16(4) if self.rawmode == "I;12" else deep

    def _deep_colors(self, shade: Pixels, key: object) -> Pixels:
        values = self._join_bytes()
        colors = shade[values[..., :3]]
        if self.image.mode == "RGBA":
            return composite_on_white(Image.fromarray(np.dstack([colors, (values[..., 3] >> 8).astype(np.uint8)])))
        if isinstance(key, tuple):
            colors = np.where((values == key).all(axis=2, keepdims=True), np.uint8(255), colors)
        return colors

    def _join_bytes(self) -> Deep:
        """Return the 16-bit values of a color image, from its upper and lower bytes."""
        values: Deep = np.asarray(self.image).astype(np.uint16)
        values <<= 8
        values |= np.asarray(self.low)
        return values


def composite_on_white(image: Image.Image) -> Pixels:
    """Return colors c with alpha a on white: round((c a + 255 (255 − a)) / 255), (H, W, 3) uint8."""
    if image.mode in ("La", "RGBa"):  # premultiplied by alpha
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if image.mode != "RGBA":
        image = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image)
    return np.asarray(white)


def to_gray(pixels: Pixels) -> Image.Image:
    """Return an image (H, W, C) uint8 in gray, mode L: the luma of RGB; of bands, their mean."""
    if pixels.shape[2] not in (1, 3):
        pixels = np.rint(pixels.mean(axis=2, dtype=np.float32, keepdims=True)).astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else np.ascontiguousarray(pixels)).convert("L")
