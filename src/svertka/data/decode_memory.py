"""How much memory decoding an image takes, known before it is decoded, and how much all threads together may take."""

import re
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from PIL.AvifImagePlugin import AvifImageFile
from PIL.ImageFile import ImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

# Bytes a pixel that decoders take beside what Pillow keeps, measured (tests/data/test_memory.py).
WEBP_BYTES = 17  # two canvases, the frame, and what is decoded
AVIF_BYTES = 10
HEIC_BYTES = 10
JPEG_2000_BYTES = 5  # for each band
STRIP_BYTES = 2**25  # for what is converted at once
SMALL = 2**26  # bytes; what takes less never waits

_COMPRESSION, _STRIP_ROWS, _TILE_LENGTH = 259, 278, 323
_OF_MODE = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


def estimate_decoding_bytes(image: ImageFile, data: bytes, factor: int, *, deep: bool) -> int:
    """Bytes that decoding `image`, opened from `data`, takes at its peak, the RGB pixels that come back included.

    `factor`: by how much it is reduced. `deep`: whether all bits of 16-bit colours are wanted.
    """
    width, height = image.size
    pixels = width * height
    reduced = pixels // factor**2
    if isinstance(image, JpegImageFile):
        return STRIP_BYTES + 7 * reduced + (int(_coefficients(image) * pixels) if count_scans(data) > 1 else 0)
    native = _OF_MODE.get(image.mode, 4)
    decoder = 0
    if isinstance(image, WebPImageFile):
        decoder = WEBP_BYTES - native
    elif isinstance(image, AvifImageFile):
        decoder = AVIF_BYTES
    elif isinstance(image, Jpeg2KImageFile):
        decoder = JPEG_2000_BYTES * max(len(image.getbands()), 1)
    elif isinstance(image, TiffImageFile):  # it is turned anew; one strip or row of tiles is unpacked beside it
        rows = min(image.tag_v2.get(_TILE_LENGTH, image.tag_v2.get(_STRIP_ROWS, height)), height)
        decoder = native + (native * rows // height if image.tag_v2.get(_COMPRESSION, 1) != 1 else 0)
    elif image.format == "HEIF":
        decoder = HEIC_BYTES
    twice = 2 if deep and native == 4 else 1  # the upper bits, then the lower ones
    return STRIP_BYTES + (twice * native + decoder) * pixels + 3 * reduced


def count_scans(jpeg: bytes) -> int:
    """How many scans the first image of a JPEG file has; each is a pass over its pixels."""
    at, count = 2, 0
    while at + 4 <= len(jpeg):
        found = _MARKER.search(jpeg, at)
        if found is None or found[0] == b"\xff\xd9":
            break
        at = found.end()
        count += found[0] == b"\xff\xda"
        if found[0] not in (b"\xff\x01", b"\xff\xd8") and at + 2 <= len(jpeg):
            at += struct.unpack(">H", jpeg[at : at + 2])[0]
    return count


def _coefficients(image: JpegImageFile) -> float:
    """Bytes a pixel that a JPEG of several scans keeps of its coefficients, by the sampling of its bands."""
    bands = [(across, down) for _, across, down, _ in image.layer]
    largest = max(across for across, _ in bands) * max(down for _, down in bands)
    return 2 * sum(across * down for across, down in bands) / largest


class DecodingBudget:
    """Bytes that the decoders of one process may take together, so that many threads do not take many times as much."""

    def __init__(self, limit: int) -> None:
        self.limit, self.taken = limit, 0
        self._changed = threading.Condition()

    @contextmanager
    def reserve(self, count: float) -> Iterator[None]:
        """Hold `count` bytes during the body, once they are free; more than the limit is given to one alone."""
        if count < SMALL:
            yield
            return
        with self._changed:
            self._changed.wait_for(lambda: not self.taken or self.taken + count <= self.limit)
            self.taken += int(count)
        try:
            yield
        finally:
            with self._changed:
                self.taken -= int(count)
                self._changed.notify_all()
