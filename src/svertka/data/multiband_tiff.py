"""TIFF files of any number of bands, such as satellites and multispectral cameras give: headers and values."""

import io
import struct
from typing import Any

import numpy as np

from svertka.data.band_layout import KIND_WORDS, BandLayout, describe_bands
from svertka.data.band_ranges import BAND_TYPES, Values
from svertka.errors import ImageError

NOT_INSTALLED = "TIFF files of several bands need tifffile; run pip install 'svertka[bands]'"

_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _STRIPS, _ORIENTATION, _BANDS = 256, 257, 258, 262, 273, 274, 277
_TILE_WIDTH, _TILE_LENGTH, _TILES, _EXTRA, _SAMPLE_FORMAT, _NODATA = 322, 323, 324, 338, 339, 42113
_READ = {_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _ORIENTATION, _BANDS, _TILE_WIDTH, _TILE_LENGTH}
_READ |= {_EXTRA, _SAMPLE_FORMAT, _NODATA}
_FIELDS = {1: "B", 2: "s", 3: "H", 4: "I", 16: "Q"}  # types of a tag's values
MAX_TAGS, MAX_VALUES = 4096, 65536  # of a directory, and of a tag

_GRAY, _RGB, _UNKNOWN, _NOT_COMPRESSED = (0, 1), 2, 0, 1  # values of _PHOTOMETRIC, _EXTRA and of the tag of compression
_KINDS = {1: "uint", 2: "int", 3: "float"}  # of _SAMPLE_FORMAT
_WORDS = {1: KIND_WORDS["u"], 2: KIND_WORDS["i"], 3: KIND_WORDS["f"], 5: "complex integers"}


def read_tiff_layout(data: bytes) -> BandLayout | None:
    """Return what the header of a TIFF states; None if there is none, or it is damaged."""
    try:
        tags = _read_first_directory(data)
        if not tags.keys() & {_STRIPS, _TILES}:  # truncated before its last entries
            return None
        return _read_tags(tags)
    except (struct.error, KeyError, IndexError, ValueError, OverflowError, UnicodeDecodeError):  # damaged
        return None


def _read_first_directory(data: bytes) -> dict[int, Any]:
    """Return the tags in `_READ` of the first directory of a TIFF or BigTIFF, as tuples of numbers or strings."""
    order = {b"II": "<", b"MM": ">"}[data[:2]]
    is_big = {42: False, 43: True}[struct.unpack(f"{order}H", data[2:4])[0]]
    offset, entry, counted = ("Q", "HHQ8s", "Q") if is_big else ("I", "HHI4s", "H")
    start = struct.unpack(f"{order}{offset}", data[8:16] if is_big else data[4:8])[0]
    head = struct.calcsize(f"{order}{counted}")
    number = struct.unpack(f"{order}{counted}", data[start : start + head])[0]
    size = struct.calcsize(f"{order}{entry}")
    tags: dict[int, Any] = {}
    for at in range(start + head, start + head + min(number, MAX_TAGS) * size, size):
        tag, kind, count, inline = struct.unpack(f"{order}{entry}", data[at : at + size])
        letter = _FIELDS.get(kind)
        if tag in (_STRIPS, _TILES):
            tags[tag] = ()
        if tag not in _READ or letter is None or count > MAX_VALUES:
            continue
        length = struct.calcsize(f"{order}{count}{letter}")
        if length > len(inline):
            place = struct.unpack(f"{order}{offset}", inline)[0]
            inline = data[place : place + length]
        values = struct.unpack(f"{order}{count}{letter}", inline[:length])
        tags[tag] = values[0].decode("latin-1") if letter == "s" else values
    return tags


def _read_tags(tags: dict[int, Any]) -> BandLayout:
    def one(tag: int, default: int | None = None) -> int:
        values = tags[tag] if default is None else tags.get(tag, (default,))
        return int(values[0])

    bits, kinds = tags.get(_BITS, (1,)), tags.get(_SAMPLE_FORMAT, (1,))
    count, width, height = one(_BANDS, len(bits)), one(_WIDTH), one(_HEIGHT)
    dtype = f"{_KINDS.get(kinds[0], '')}{bits[0]}"
    is_one_type = len(set(bits)) == 1 == len(set(kinds)) and dtype in BAND_TYPES
    sizes = "/".join(map(str, sorted(set(bits))))
    words = describe_bands(count, sizes, _WORDS.get(kinds[0], "values of unknown kind"))
    extra, photometric = tags.get(_EXTRA, ()), one(_PHOTOMETRIC, 1)
    if photometric in _GRAY:
        is_color = count == 1 and dtype not in ("float16", "float32", "float64", "int8")
        is_color = is_color or (count == 2 and bool(extra) and _UNKNOWN not in extra)
    else:
        is_color = kinds[0] == 1 and (photometric != _RGB or count <= 4)
    tile = one(_TILE_WIDTH, 1) * one(_TILE_LENGTH, 1)
    orientation = one(_ORIENTATION, 1)
    return BandLayout(
        height=height,
        width=width,
        count=count,
        dtype=dtype if is_one_type else None,
        words=words,
        is_color=is_color or not is_one_type,
        orientation=orientation if orientation in range(1, 9) else 1,
        nodata=_read_nodata(tags.get(_NODATA)),
        decoded_pixels=max(width * height, tile),
    )


def _read_nodata(text: object) -> float | None:
    try:
        value = float(str(text).strip("\0 "))
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def decode_tiff(data: bytes, layout: BandLayout) -> Values:
    """Return the values of the first page of a TIFF, (H, W, C), as they are stored.

    Raises:
        ImageError: tifffile, or the decoder of the compression, is not installed, or values are missing.
    """
    try:
        import tifffile
    except ImportError as error:
        raise ImageError(NOT_INSTALLED) from error
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages.first
        assert isinstance(page, tifffile.TiffPage)
        stored = [(at, count) for at, count in zip(page.dataoffsets, page.databytecounts, strict=True) if count]
        expected = layout.height * layout.width * layout.count * np.dtype(str(layout.dtype)).itemsize
        is_short = page.compression == _NOT_COMPRESSED and sum(count for _, count in stored) < expected
        if len(stored) < int(np.prod(page.chunked)) or is_short or any(at + count > len(data) for at, count in stored):
            raise ImageError("truncated")
        try:
            values: Values = page.asarray(maxworkers=1)
        except ValueError as error:
            if "imagecodecs" in str(error):
                name = tifffile.COMPRESSION(page.compression).name
                raise ImageError(f"{name} needs imagecodecs; run pip install 'svertka[bands]'") from error
            raise
        if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE and layout.count > 1:
            values = np.moveaxis(values, 0, -1)
    values = values.reshape(layout.height, layout.width, layout.count)
    return values.astype(values.dtype.newbyteorder("="), copy=False)
