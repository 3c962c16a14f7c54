"""An image as it is stored: its square, or what the square is made of where that is smaller; in bytes and back."""

import struct
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from svertka.data.image_io import DECODERS
from svertka.data.pixel_modes import Pixels, Range
from svertka.data.preprocessing import Fit, crop_region, resize_to_square

PAYS = 0.75  # of the bytes of the square; what is not smaller than that need not be resized whenever it is read
HEAD = struct.Struct("<IIIIBBBHH")  # height and width of the image, of the row; channels; kind; format; intensities
DEEP, OWN_SIZE, SURVEYED = 1, 2, 4
FORMATS = tuple(DECODERS)


@dataclass(frozen=True)
class RowLayout:
    """How images become rows: as `preprocessing.squared` makes them of a `region`."""

    resize: int
    channels: int
    side: int
    fit: Fit = "crop"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of a row, (S, S, C)."""
        return self.side, self.side, self.channels

    @property
    def bytes(self) -> int:
        """Of a row."""
        return self.side * self.side * self.channels

    def square(self, used: Pixels) -> Pixels:
        """The row that a region (H, W, 3) gives, (S, S, C) uint8."""
        return resize_to_square(used, self.resize, self.channels, self.side, self.fit)


class ImageInfo(NamedTuple):
    """What a row says of its image: `format`, one of `image_io.DECODERS` ("" for pixels in memory), (height, width).

    `deep`: whether it has 16 bits; `intensities`: between which values its own lie, where that was asked for.
    """

    format: str
    size: tuple[int, int]
    deep: bool = False
    intensities: Range | None = None


@dataclass(frozen=True, eq=False)
class StoredImage:
    """What is stored of an image: `pixels` (h, w, 1 or 3), its square or, with `own_size`, what that is made of."""

    info: ImageInfo
    pixels: Pixels
    own_size: bool = False

    @classmethod
    def from_image(cls, rgb: Pixels, layout: RowLayout, format_name: str = "", *, deep: bool = False) -> "StoredImage":
        """That of an image (H, W, 3): the smaller of what its square is made of, and the square."""
        info = ImageInfo(format_name, (rgb.shape[0], rgb.shape[1]), deep)
        used = crop_region(rgb, layout.fit)
        if used.shape[0] * used.shape[1] <= PAYS * layout.bytes:  # grey, it might be
            own = _without_colour(used)
            if own.size <= PAYS * layout.bytes:
                return cls(info, own, own_size=True)
        return cls(info, _without_colour(layout.square(used)))

    def square(self, layout: RowLayout) -> Pixels:
        """The square, (S, S, C) uint8: the same, to the bit, as that of the whole image."""
        if not self.own_size:
            return np.broadcast_to(self.pixels, layout.shape)
        return layout.square(np.broadcast_to(self.pixels, (*self.pixels.shape[:2], 3)))

    def pack(self) -> Pixels:
        """As bytes, (n,) uint8."""
        height, width, channels = self.pixels.shape
        format_name, size, deep, intensities = self.info
        kind = DEEP * deep + OWN_SIZE * self.own_size + SURVEYED * (intensities is not None)
        number = FORMATS.index(format_name) + 1 if format_name else 0
        head = HEAD.pack(*size, height, width, channels, kind, number, *(intensities or (0, 0)))
        return np.concatenate([np.frombuffer(head, np.uint8), self.pixels.reshape(-1)])

    @classmethod
    def unpack(cls, data: Pixels) -> "StoredImage":
        """That of `packed` bytes."""
        _, _, height, width, channels, kind, *_ = HEAD.unpack(data[: HEAD.size].tobytes())
        return cls(read_info(data), data[HEAD.size :].reshape(height, width, channels), bool(kind & OWN_SIZE))


def read_info(head: Pixels) -> ImageInfo:
    """The facts in the first `HEAD.size` bytes of a packed row."""
    tall, wide, _, _, _, kind, number, low, high = HEAD.unpack(head[: HEAD.size].tobytes())
    format_name = FORMATS[number - 1] if 0 < number <= len(FORMATS) else ""
    return ImageInfo(format_name, (tall, wide), bool(kind & DEEP), (low, high) if kind & SURVEYED else None)


def _without_colour(pixels: Pixels) -> Pixels:
    """(H, W, 1) where the channels are the same."""
    if pixels.shape[2] == 3 and (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 0] == pixels[..., 2]).all():
        return pixels[..., :1]
    return pixels
