"""Binary format of stored images: the square, or, if smaller, the region that the square is made from."""

import struct
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from svertka.data.image_io import DECODERS
from svertka.data.preprocessing import Fit, Interpolation, resize_to_square, select_used_region
from svertka.data.rgb_conversion import Pixels, Range

PAYS = 0.75  # of the square's bytes; a larger region is not stored, to save resizing it at each read
# Height and width of the image and of the row; channels; flags; format; intensities; pixel limit.
HEAD = struct.Struct("<IIIIBBBHHI")
DEEP, OWN_SIZE, SURVEYED, UNUSED_PARTS = 1, 2, 4, 8
FORMATS = tuple(DECODERS)


@dataclass(frozen=True)
class SquareSettings:
    """How images become rows of one size.

    Attributes:
        resize: Side to which the region is resized, pixels.
        channels: 1, 3 or the number of bands.
        side: Side of the padded square, pixels.
        fit, interpolation: How an image becomes square, as in `Preprocess`.
    """

    resize: int
    channels: int
    side: int
    fit: Fit = "crop"
    interpolation: Interpolation = "bilinear"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of a row, (S, S, C)."""
        return self.side, self.side, self.channels

    @property
    def bytes(self) -> int:
        """Bytes of a row."""
        return self.side * self.side * self.channels

    def square(self, used: Pixels) -> Pixels:
        """Return the row of a region (H, W, 3), (S, S, C) uint8."""
        return resize_to_square(used, self.resize, self.channels, self.side, self.fit, self.interpolation)


class ImageInfo(NamedTuple):
    """What is known of a stored image.

    Attributes:
        format: One of `image_io.DECODERS`; "" for pixels in memory and images in shards.
        size: (height, width), pixels.
        deep: Whether it has 16 bits per value.
        intensities: Range of its 16-bit values, if they were surveyed.
        has_unused_parts, pixel_limit: As in `image_io.DecodedImage`.
    """

    format: str
    size: tuple[int, int]
    deep: bool = False
    intensities: Range | None = None
    has_unused_parts: bool = False
    pixel_limit: int = 0


@dataclass(frozen=True, eq=False)
class PackedImage:
    """Image as it is stored.

    Attributes:
        info: What is known of the image.
        pixels: (h, w, C) uint8, one channel if RGB is gray: the square or, if `own_size`, the region that the square
            is made from.
        own_size: Whether the region is stored.
    """

    info: ImageInfo
    pixels: Pixels
    own_size: bool = False

    @classmethod
    def from_image(cls, rgb: Pixels, layout: SquareSettings, info: ImageInfo) -> "PackedImage":
        """Return the smaller of the region and the square of an image (H, W, 3)."""
        used = select_used_region(rgb, layout.fit)
        if used.shape[0] * used.shape[1] <= PAYS * layout.bytes:  # it may still be smaller as grayscale
            own = _without_color(used)
            if own.size <= PAYS * layout.bytes:
                return cls(info, own, own_size=True)
        return cls(info, _without_color(layout.square(used)))

    def square(self, layout: SquareSettings) -> Pixels:
        """Return the square (S, S, C) uint8, bit for bit that of the whole image."""
        if not self.own_size:
            return np.broadcast_to(self.pixels, layout.shape)
        height, width, channels = self.pixels.shape
        return layout.square(np.broadcast_to(self.pixels, (height, width, 3 if channels == 1 else channels)))

    def pack(self) -> Pixels:
        """Return the header and the pixels as bytes, (n,) uint8."""
        height, width, channels = self.pixels.shape
        format_name, size, deep, intensities, more, pixel_limit = self.info
        kind = DEEP * deep + OWN_SIZE * self.own_size + SURVEYED * (intensities is not None) + UNUSED_PARTS * more
        number = FORMATS.index(format_name) + 1 if format_name else 0
        limit = min(pixel_limit, 2**32 - 1)
        head = HEAD.pack(*size, height, width, channels, kind, number, *(intensities or (0, 0)), limit)
        return np.concatenate([np.frombuffer(head, np.uint8), self.pixels.reshape(-1)])

    @classmethod
    def unpack(cls, data: Pixels) -> "PackedImage":
        """Return the image of bytes that `pack` returned."""
        _, _, height, width, channels, kind, *_ = HEAD.unpack(data[: HEAD.size].tobytes())
        return cls(read_info(data), data[HEAD.size :].reshape(height, width, channels), bool(kind & OWN_SIZE))


def read_info(head: Pixels) -> ImageInfo:
    """Return the information in the first `HEAD.size` bytes of a packed image."""
    tall, wide, _, _, _, kind, number, low, high, pixel_limit = HEAD.unpack(head[: HEAD.size].tobytes())
    format_name = FORMATS[number - 1] if 0 < number <= len(FORMATS) else ""
    intensities = (low, high) if kind & SURVEYED else None
    return ImageInfo(format_name, (tall, wide), bool(kind & DEEP), intensities, bool(kind & UNUSED_PARTS), pixel_limit)


def _without_color(pixels: Pixels) -> Pixels:
    """Return (H, W, 1) if all channels are equal, else `pixels`."""
    if pixels.shape[2] == 3 and (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 0] == pixels[..., 2]).all():
        return pixels[..., :1]
    return pixels
