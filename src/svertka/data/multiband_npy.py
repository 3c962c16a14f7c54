"""Images of any number of bands in NumPy's .npy files, (H, W) or (H, W, C): headers and values.

Pickled objects are never loaded.
"""

import io
import math
import struct
from typing import NamedTuple

import numpy as np

from svertka.data.band_layout import KIND_WORDS, BandLayout, describe_bands
from svertka.data.band_ranges import BAND_TYPES, MAX_BANDS, Values
from svertka.errors import ImageError, ImageFormatError

MAGIC = b"\x93NUMPY"
HEADER_BYTES = 4096  # more than numpy.save writes for an array without fields
MAX_SIDE = 2**31  # what a damaged header may give is not multiplied

_LENGTHS = {1: "<H", 2: "<I", 3: "<I"}  # of the header, by the version of the format


class ArrayHeader(NamedTuple):
    """What the header of a .npy file states: shape, type, order of the values, and where they begin."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    is_fortran: bool
    start: int


def read_array_header(data: bytes) -> ArrayHeader | None:
    """Return what the header of a .npy file states; None if there is none, or it is damaged.

    Args:
        data: The file, or at least its first `HEADER_BYTES`.
    """
    try:
        version = (data[6], data[7])
        length = struct.unpack_from(_LENGTHS[version[0]], data, 8)[0]
        start = 8 + struct.calcsize(_LENGTHS[version[0]]) + length
        if data[:6] != MAGIC or version[1] != 0 or start > HEADER_BYTES:
            return None
        file = io.BytesIO(data[8:start])
        read = np.lib.format.read_array_header_1_0 if version[0] == 1 else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read(file, max_header_size=HEADER_BYTES)
    except Exception:  # numpy raises many types for damaged headers
        return None
    if any(isinstance(side, bool) or not 0 <= side < MAX_SIDE for side in shape):
        return None
    return ArrayHeader(tuple(shape), dtype, bool(is_fortran), start)


def may_be_bands(start: bytes) -> bool:
    """Return whether a .npy file that begins so can be meant as one image: it has two or three axes, or is damaged."""
    header = read_array_header(start)
    return header is None or len(header.shape) in (2, 3)


def read_npy_layout(data: bytes) -> BandLayout | None:
    """Return what the header of a .npy file states; None if it is damaged, or that of no image."""
    header = read_array_header(data)
    if header is None or len(header.shape) not in (2, 3):
        return None
    height, width, count = (*header.shape, 1)[:3]
    name = header.dtype.newbyteorder("=").name
    if name in BAND_TYPES:
        words = describe_bands(count, str(8 * header.dtype.itemsize), KIND_WORDS[header.dtype.kind])
    else:
        words = f"{count} band{'' if count == 1 else 's'} of type {header.dtype.name}"
    if count > MAX_BANDS:
        words += f" in an array {_written(header.shape)}, whose last axis is that of the bands"
    return BandLayout(
        height=height,
        width=width,
        count=count,
        dtype=name if name in BAND_TYPES else None,
        words=words,
        is_color=name not in BAND_TYPES,
        orientation=1,
        nodata=None,
        decoded_pixels=height * width,
    )


def decode_npy_bands(data: bytes, layout: BandLayout) -> Values:
    """Return the values of a .npy file, (H, W, C), as they are stored.

    Raises:
        ImageError: Values are missing.
    """
    header = read_array_header(data)
    assert header is not None
    count = math.prod(header.shape)
    if len(data) - header.start < count * header.dtype.itemsize:
        raise ImageError("truncated")
    values: Values = np.frombuffer(data, header.dtype, count, header.start)
    values = values.reshape(header.shape, order="F" if header.is_fortran else "C")
    values = values.reshape(layout.height, layout.width, layout.count)
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def refuse_npy(file: io.BytesIO) -> ImageFormatError:
    """Return why a .npy file cannot be used as an RGB image."""
    header = read_array_header(file.read(HEADER_BYTES))
    if header is None:
        return ImageFormatError("a damaged .npy file, or one of pickled objects; save it again with numpy.save")
    types = ", ".join(BAND_TYPES)
    return ImageFormatError(
        f"an array {_written(header.shape)} of type {header.dtype.name}; .npy files can be used where most images are "
        f"such files, (height, width, bands) of 1 to {MAX_BANDS} bands, one of {types}; save RGB images as PNG"
    )


def _written(shape: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, shape))})"
