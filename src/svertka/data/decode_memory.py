"""Memory that decoding an image takes, estimated before decoding, and a budget that all threads share."""

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

# Bytes per pixel that decoders take besides what Pillow keeps; measured by tests/data/test_decode_memory.py.
WEBP_BYTES = 17  # two canvases, the frame and the decoded pixels
AVIF_BYTES = 10
HEIC_BYTES = 10
JPEG_2000_BYTES = 5  # per band
STRIP_BYTES = 2**25  # for the strip being converted
SMALL = 2**26  # bytes; smaller images never wait

_COMPRESSION, _STRIP_ROWS, _TILE_LENGTH = 259, 278, 323
_OF_MODE = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


def estimate_decoding_bytes(image: ImageFile, factor: int, *, scans: int, deep: bool) -> int:
    """Estimate the peak memory of decoding an image, including the RGB result, bytes.

    Args:
        image: The image, opened but not loaded.
        factor: By how much the image is reduced.
        scans: Number of scans of a JPEG.
        deep: Whether all bits of 16-bit colors are wanted.
    """
    width, height = image.size
    pixels = width * height
    reduced = pixels // factor**2
    if isinstance(image, JpegImageFile):
        return STRIP_BYTES + 7 * reduced + (int(_coefficients(image) * pixels) if scans > 1 else 0)
    native = _OF_MODE.get(image.mode, 4)
    decoder = 0
    if isinstance(image, WebPImageFile):
        decoder = WEBP_BYTES - native
    elif isinstance(image, AvifImageFile):
        decoder = AVIF_BYTES
    elif isinstance(image, Jpeg2KImageFile):
        decoder = JPEG_2000_BYTES * max(len(image.getbands()), 1)
    elif isinstance(image, TiffImageFile):  # rotated into a copy, while one strip or row of tiles is unpacked
        rows = min(image.tag_v2.get(_TILE_LENGTH, image.tag_v2.get(_STRIP_ROWS, height)), height)
        decoder = native + (native * rows // height if image.tag_v2.get(_COMPRESSION, 1) != 1 else 0)
    elif image.format == "HEIF":
        decoder = HEIC_BYTES
    twice = 2 if deep and native == 4 else 1  # decoded once for the upper bits and once for the lower ones
    return STRIP_BYTES + (twice * native + decoder) * pixels + 3 * reduced


def count_jpeg_scans(jpeg: bytes) -> int:
    """Return the number of scans of a JPEG file's first image; each is a pass over its pixels."""
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
    """Return the bytes per pixel of the coefficients that a multi-scan JPEG keeps, from the sampling of its bands."""
    bands = [(across, down) for _, across, down, _ in image.layer]
    largest = max(across for across, _ in bands) * max(down for _, down in bands)
    return 2 * sum(across * down for across, down in bands) / largest


class DecodingBudget:
    """Memory that the decoders of one process may take together.

    Args:
        limit: Bytes.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.taken = limit, 0
        self._changed = threading.Condition()

    @contextmanager
    def reserve(self, count: float) -> Iterator[None]:
        """Hold `count` bytes during the body, once they are free; a request above the limit runs alone."""
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
