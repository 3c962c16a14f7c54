"""What the header of a file of several bands states, and whether it is what a network expects."""

from dataclasses import dataclass

import numpy as np

from svertka.data.band_ranges import MAX_BANDS
from svertka.errors import ImageError

KIND_WORDS = {"u": "unsigned integers", "i": "signed integers", "f": "floating-point values"}  # by numpy's dtype.kind


@dataclass(frozen=True)
class BandLayout:
    """What the header of a TIFF or of a NumPy array states.

    Attributes:
        height, width: Size as stored, pixels.
        count: Number of bands.
        dtype: Type of the values, one of `BAND_TYPES`; None if they are of another one.
        words: Number and type of the bands in words.
        is_color: Whether the bands are gray or colors, with or without alpha, as Pillow reads them.
        orientation: As in EXIF, 1 to 8.
        nodata: The value of pixels without data, as GDAL writes it; None if there is none.
        decoded_pixels: Pixels of the image or of one tile, whichever are more.
    """

    height: int
    width: int
    count: int
    dtype: str | None
    words: str
    is_color: bool
    orientation: int
    nodata: float | None
    decoded_pixels: int

    @property
    def bytes(self) -> int:
        """Bytes that decoding takes at most: the values, the segment that is being unpacked, and the result."""
        size = 8 if self.dtype is None else np.dtype(self.dtype).itemsize
        return self.decoded_pixels * (self.count * (3 * size + 1) + 16)


def describe_bands(count: int, bits: str, kind: str) -> str:
    """Return number and type of bands in words, as "5 bands of 16-bit unsigned integers"."""
    return f"{count} band{'' if count == 1 else 's'} of {bits}-bit {kind}"


def check_bands(layout: BandLayout | None, count: int, dtype: str) -> BandLayout:
    """Return `layout` unchanged.

    Raises:
        ImageError: It is not that of a file of `count` bands of `dtype`.
    """
    wanted = (
        f"where {count} band{' of' if count == 1 else 's of'} {dtype} {'is' if count == 1 else 'are'} expected; "
        "remove it or save it like the training images"
    )
    if layout is None:
        raise ImageError(f"no file of several bands (TIFF, .npy), or a damaged one, {wanted}")
    if layout.count != count or layout.dtype != dtype:
        limit = f" (at most {MAX_BANDS} can be used)" if layout.count > MAX_BANDS else ""
        raise ImageError(f"{layout.words}{limit}, {wanted}")
    if min(layout.height, layout.width) < 1:
        raise ImageError("no pixels")
    return layout
