"""Decoding of image files to upright pixels, RGB or bands; an unreadable file is refused with a short reason."""

import io
import logging
import os
import re
import struct
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import ExifTags, Image, features
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from svertka.data.band_layout import BandLayout, check_bands
from svertka.data.band_ranges import BandRanges, HasIntensityRange, sample_band_values
from svertka.data.decode_memory import (
    STRIP_BYTES,
    WEBP_BYTES,
    DecodingBudget,
    count_jpeg_scans,
    estimate_decoding_bytes,
)
from svertka.data.multiband_file import decode_bands, read_band_layout
from svertka.data.multiband_npy import MAGIC, refuse_npy
from svertka.data.rgb_conversion import ImageWithRawMode, Pixels, Range, composite_on_white, make_shade_table
from svertka.errors import ImageError, ImageFormatError, ImageTooLargeError, UsageError
from svertka.escaping import join_first, to_printable
from svertka.files import format_bytes, read_file_and_status

for _library in ("PIL", "tifffile"):  # what they log of files is told in the errors
    logging.getLogger(_library).addHandler(logging.NullHandler())

PIXEL_LIMIT = 100_000_000
MEMORY_LIMIT = 2**30  # bytes that decoding one image may take, besides its file

# A JPEG is decoded at reduced size only if this many times the wanted side remains, so that the resize that follows
# gives the same as from the full image (bench/decode.py). Reducing to the side itself loses 5 dB.
SPARE = 3
REDUCED_ABOVE = 2**24  # pixels; larger images of other formats are reduced during conversion
SCANS = 100  # of a JPEG at most: a scan of a few bytes costs a pass over all pixels; encoders write about 10
SLOW = 2**24  # pixels of a PNM file that Pillow decodes in Python, a microsecond each


# Formats whose decoder is not installed: such a file is not damaged.
NOT_INSTALLED = {
    "HEIC": "HEIC needs pillow-heif; run pip install 'svertka[heif]'",
    "AVIF": "AVIF needs a Pillow built with it; run pip install --upgrade Pillow",
}


def _heif_file(file: io.BytesIO) -> ImageFile:
    try:
        from pillow_heif.as_plugin import HeifImageFile
    except ImportError as error:
        raise ImageFormatError(NOT_INSTALLED["HEIC"]) from error
    image: ImageFile = HeifImageFile(file)  # type: ignore[no-untyped-call]
    return image


def _avif_file(file: io.BytesIO) -> ImageFile:
    if not features.check("avif"):
        raise ImageFormatError(NOT_INSTALLED["AVIF"])
    return AvifImageFile(file)


def _array_file(file: io.BytesIO) -> ImageFile:
    raise refuse_npy(file)


class _TiffFile(TiffImageFile):
    """TIFF whose single band is read as it is stored; Pillow reads one that is called a separate plane as bytes."""

    def _setup(self) -> None:
        if self.tag_v2.get(_BANDS, 1) == 1:
            self.tag_v2[_PLANES] = 1
        super()._setup()


_BRAND = rb".{4}ftyp(?:%s)"

# The decoders themselves, not Image.open, which warns above a pixel limit that the whole process shares, and takes a
# JPEG with previews for another format.
DECODERS: dict[str, tuple[re.Pattern[bytes], Callable[[io.BytesIO], ImageFile]]] = {
    "JPEG": (re.compile(rb"\xff\xd8\xff"), JpegImageFile),
    "PNG": (re.compile(rb"\x89PNG\r\n\x1a\n"), PngImageFile),
    "WebP": (re.compile(rb"RIFF.{4}WEBP", re.DOTALL), WebPImageFile),
    "BMP": (re.compile(rb"BM"), BmpImageFile),
    "TIFF": (re.compile(rb"II[*+]\0|MM\0[*+]"), _TiffFile),
    "GIF": (re.compile(rb"GIF8[79]a"), GifImageFile),
    "AVIF": (re.compile(_BRAND % rb"avi[fs]|mi(?:f1|af).{4}(?:.{4})*?avif", re.DOTALL), _avif_file),
    "HEIC": (re.compile(_BRAND % rb"hei[cxms]|hev[cxms]|m[is]f1", re.DOTALL), _heif_file),
    "JPEG 2000": (re.compile(rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n"), Jpeg2KImageFile),
    "PNM": (re.compile(rb"P[1-6f][\s#]"), PpmImageFile),
    "NumPy": (re.compile(re.escape(MAGIC)), _array_file),  # read where images have bands
}

SUFFIXES = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".png": "PNG",
    ".apng": "PNG",
    ".webp": "WebP",
    ".bmp": "BMP",
    ".dib": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".gif": "GIF",
    ".avif": "AVIF",
    ".heic": "HEIC",
    ".heif": "HEIC",
    ".hif": "HEIC",
    ".jp2": "JPEG 2000",
    ".j2k": "JPEG 2000",
    ".j2c": "JPEG 2000",
    ".jpc": "JPEG 2000",
    ".jpf": "JPEG 2000",
    ".jpx": "JPEG 2000",
    ".ppm": "PNM",
    ".pgm": "PNM",
    ".pbm": "PNM",
    ".pnm": "PNM",
    ".npy": "NumPy",
}

TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height

_BITS, _PHOTOMETRIC, _STRIPS, _BANDS, _PLANES, _TILE_WIDTH, _TILE_LENGTH, _TILES, _EXTRA, _SAMPLE_FORMAT = (
    258,
    262,
    273,
    277,
    284,
    322,
    323,
    324,
    338,
    339,
)
_SEPARATE, _SIGNED, _GRAY, _NOT_ALPHA = 2, 2, (0, 1), 0  # values of _PLANES, _SAMPLE_FORMAT, _PHOTOMETRIC and _EXTRA
BANDS_ADVICE = "save it with 1 (gray) or 3 (RGB) bands of 8 or 16 bits"
_IN_USE = DecodingBudget(2 * MEMORY_LIMIT)


@dataclass(frozen=True)
class DecodingOptions(HasIntensityRange):
    """Limits and settings of decoding.

    Attributes:
        max_pixels: Larger images are refused before they are decoded, except JPEGs that can be decoded at reduced size.
        max_memory: Bytes that decoding may take, including the resulting pixels.
        intensity_range: 16-bit values that become 0 and 255; None keeps the upper 8 of 16 bits. BandRanges: images are
            files of these bands, which are not converted to RGB.
    """

    max_pixels: int = PIXEL_LIMIT
    max_memory: int = MEMORY_LIMIT
    intensity_range: Range | BandRanges | None = None

    @classmethod
    def up_to(cls, max_pixels: int | None) -> "DecodingOptions":
        """Return the decoding of images of up to `max_pixels` (None: PIXEL_LIMIT), with memory in proportion.

        Raises:
            UsageError: `max_pixels` is below 1.
        """
        if max_pixels is None:
            return cls()
        if max_pixels < 1:
            raise UsageError(f"max_pixels={max_pixels} must be at least 1")
        return cls(max_pixels, max(MEMORY_LIMIT, MEMORY_LIMIT * max_pixels // PIXEL_LIMIT))

    def with_intensity_range(self, intensity_range: Range | BandRanges | None) -> "DecodingOptions":
        """Return the same with another range of 16-bit values, or with bands."""
        return replace(self, intensity_range=intensity_range)


DEFAULT = DecodingOptions()


@dataclass(frozen=True, eq=False)
class DecodedImage:
    """Decoded image.

    Attributes:
        pixels: (H, W, 3) uint8, RGB; or (H, W, C) uint8 of C bands.
        format: One of `DECODERS`.
        deep: Whether the image has 16 bits per value, or bands, so that the pixels depend on the intensity range.
        has_unused_parts: As in `ImageHeader`.
        pixel_limit: The lowest `max_pixels` with which it is decoded.
    """

    pixels: Pixels
    format: str
    deep: bool
    has_unused_parts: bool = False
    pixel_limit: int = 0


def decode_to_pixels(data: bytes, min_side: int | None = None, decoding: DecodingOptions = DEFAULT) -> Pixels:
    """Decode the bytes of an image file and return its pixels, as `decode_image` does."""
    return decode_image(data, min_side, decoding).pixels


def decode_image(data: bytes, min_side: int | None = None, decoding: DecodingOptions = DEFAULT) -> DecodedImage:
    """Decode the bytes of an image file to RGB, or to the bands of `decoding`, rotated upright as EXIF says.

    Reads JPEG, PNG, WebP, BMP, TIFF, GIF, AVIF, HEIC, JPEG 2000 and PNM; of an animation the first frame. The content
    decides the format. Alpha and transparent colors are composited on white; color profiles are ignored. Thread-safe.

    Args:
        data: The bytes of the file.
        min_side: Side in pixels to which the image will be resized. A JPEG, or a large image of another format, is
            returned reduced by 2, 4 or 8 if `SPARE` times this side remains. None for full size.
        decoding: Limits and settings.

    Raises:
        ImageError: The image cannot be read; the message is the reason. ImageFormatError if it is in none of these
            formats, ImageTooLargeError if it is too large.
    """
    if decoding.bands is not None:
        return _decode_multiband(data, decoding, decoding.bands)
    with _image_errors(decoding):
        image, factor, cost, scans, pixel_limit = _plan(data, min_side, decoding)
        deep = decoding.deep_range is not None
        name, more = detect_format(data) or "", _has_unused_parts(image)
        with _IN_USE.reserve(cost):
            if isinstance(image, JpegImageFile):
                if scans > SCANS:
                    raise ImageError(f"{scans} scans, more than the limit of {SCANS}; save it again")
                pixels = _decode_jpeg(data, image, factor)
                if pixels is not None:
                    return DecodedImage(_upright(pixels, image), name, deep=False, pixel_limit=pixel_limit)
                factor = 1  # Pillow decodes it reduced
            if isinstance(image, PngImageFile):
                _check_png(data)
            source = _load(ImageWithRawMode.of(image), data, deep=deep)
            pixels = _upright(source.pixels(factor, decoding.deep_range), image)
            return DecodedImage(pixels, name, source.deep, more, pixel_limit)


def estimate_memory(data: bytes, min_side: int | None = None, decoding: DecodingOptions = DEFAULT) -> int:
    """Estimate from the header the bytes that `decode_image` takes.

    Raises:
        ImageError: The header shows that the image is refused.
    """
    with _image_errors(decoding):
        if decoding.bands is not None:
            return _check_band_sizes(_read_layout(data, decoding.bands), decoding)
        if detect_format(data) == "WebP":  # its decoder allocates as soon as it is created
            return _webp_bytes(data, decoding.max_memory)
        return _plan(data, min_side, decoding).cost


class _Plan(NamedTuple):
    """How to decode an image.

    Attributes:
        image: The image, not loaded.
        factor: By how much to reduce it.
        cost: Bytes that decoding takes.
        scans: Number of scans of a JPEG, 1 of another format.
        pixel_limit: The lowest sufficient `max_pixels`.
    """

    image: ImageFile
    factor: int
    cost: int
    scans: int
    pixel_limit: int


def _plan(data: bytes, min_side: int | None, decoding: DecodingOptions) -> _Plan:
    image = _open(data, decoding.max_memory)
    factor = _factor(image, SPARE * (min_side or 0), decoding.max_pixels)
    pixels = _check_size(image, factor, decoding.max_pixels)
    scans = _count_scans(image, data)
    cost = _check_memory(image, factor, decoding, scans=scans, deep=decoding.deep_range is not None)
    return _Plan(image, factor, cost, scans, _lowest_pixel_limit(pixels, cost))


def _count_scans(image: ImageFile, data: bytes) -> int:
    """Return the number of scans of a JPEG, 1 of another format; it reads the whole file."""
    return count_jpeg_scans(data) if isinstance(image, JpegImageFile) else 1


def read_image_file(path: str | Path, min_side: int | None = None, decoding: DecodingOptions = DEFAULT) -> Pixels:
    """Decode an image file, as `decode_to_pixels` does.

    Raises:
        ImageError: As `decode_to_pixels`; or the path is not a regular file, or the file is too large.
    """
    return decode_to_pixels(read_bytes(path, decoding), min_side, decoding)


def read_bytes(path: str | Path, decoding: DecodingOptions = DEFAULT) -> bytes:
    """Return the bytes of an image file.

    Raises:
        ImageError: The file cannot be read, is not a regular file, or exceeds `decoding.max_memory`.
    """
    return read_bytes_and_status(path, decoding)[0]


def read_bytes_and_status(path: str | Path, decoding: DecodingOptions = DEFAULT) -> tuple[bytes, os.stat_result]:
    """Return the bytes of an image file and its status before they were read; raises as `read_bytes`."""
    try:
        return read_file_and_status(path, decoding.max_memory)
    except OSError as error:
        raise ImageError((error.strerror or str(error)).lower()) from error
    except ValueError as error:
        raise ImageError(str(error)) from error


def detect_format(data: bytes) -> str | None:
    """Return the format that `data` begins with, one of `DECODERS`; None if unknown."""
    return next((name for name, (start, _) in DECODERS.items() if start.match(data[:64])), None)


def detect_misnamed(path: str | Path, data: bytes) -> str | None:
    """Return the format of `data` if the suffix of `path` names another one, else None."""
    claimed, found = SUFFIXES.get(Path(path).suffix.lower()), detect_format(data)
    return found if claimed is not None and found != claimed else None


def describe_misnamed(found: Sequence[tuple[str, str]]) -> str | None:
    """Return a sentence on files whose suffix names another format; None if there are none.

    Args:
        found: Path and true format of each file.
    """
    if not found:
        return None
    named = join_first([f"{path} is {name}" for path, name in found], separator="; ")
    return to_printable(f"used, though the name says another format: {named}")


@dataclass(frozen=True)
class ImageHeader:
    """Header of an image file.

    Attributes:
        format: One of `DECODERS`.
        mode: The mode in Pillow's terms; ";16" marks color with 16 bits per value. Of bands, their number and type.
        size: (width, height) as stored, pixels.
        orientation: EXIF orientation, 1 to 8.
        deep: Whether the image has 16 bits per value.
        has_unused_parts: Whether the file is a TIFF with pages after the first, which is the one that is read, or with
            bands that are neither colors nor alpha.
    """

    format: str
    mode: str
    size: tuple[int, int]
    orientation: int
    deep: bool
    has_unused_parts: bool = False


def read_header(data: bytes, decoding: DecodingOptions = DEFAULT) -> ImageHeader:
    """Read the header of an image file.

    Raises:
        ImageError: The header cannot be read.
    """
    if decoding.bands is not None:
        layout = _read_layout(data, decoding.bands)
        return ImageHeader(
            detect_format(data) or "", layout.words, (layout.width, layout.height), layout.orientation, deep=True
        )
    with _image_errors(decoding), _open(data, decoding.max_memory) as image:
        deep = ImageWithRawMode.of(image).deep  # first: Pillow loads a PNG to find its orientation
        orientation = _orientation(image)
        mode = f"{image.mode};16" if deep and not image.mode.startswith("I") else image.mode
        orientation = orientation if orientation in range(1, 9) else 1
        more = _has_unused_parts(image)
        return ImageHeader(detect_format(data) or "", mode, image.size, orientation, deep, more)


def _has_unused_parts(image: ImageFile) -> bool:
    """Return whether a file has further pages, or bands that are neither colors nor alpha."""
    if not isinstance(image, TiffImageFile):
        return False
    return image.is_animated or _NOT_ALPHA in image.tag_v2.get(_EXTRA, ())


def describe_unused_parts(paths: Sequence[str]) -> str | None:
    """Return a sentence on the TIFF files at `paths`, of which pages or bands are not used; None if there are none."""
    if not paths:
        return None
    return (
        "TIFF files with several pages, or with bands besides red, green and blue, of which only the first page and "
        f"these three bands are used: {to_printable(join_first(paths))}; save each page or band as a file of its own "
        "if it is an image to learn from"
    )


def measure_intensity_range(data: bytes, decoding: DecodingOptions = DEFAULT) -> Range | None:
    """Return the range that contains nearly all values of a 16-bit image; None for other images, and for bands.

    A ten-thousandth of the values may lie below the range and as many above, so that hot pixels of a sensor do not
    count.

    Raises:
        ImageError: The image cannot be read.
    """
    if decoding.bands is not None:
        return None
    with _image_errors(decoding):
        image = _open(data, decoding.max_memory)
        source = ImageWithRawMode.of(image)
        if not source.deep:
            return None
        _check_size(image, 1, decoding.max_pixels)
        with _IN_USE.reserve(_check_memory(image, 1, decoding, scans=_count_scans(image, data), deep=True)):
            counts = np.zeros(65536, np.int64)
            for values in _load(source, data, deep=True).deep_values():
                counts += np.bincount(values, minlength=65536)
        below = counts.cumsum()
        outside = below[-1] // 10_000
        low = int(np.searchsorted(below, outside, side="right"))
        high = int(np.searchsorted(below, below[-1] - outside, side="left"))
        return low, high


def read_image_size(data: bytes, decoding: DecodingOptions = DEFAULT) -> tuple[int, int]:
    """Return the height and width of the image that `decode_to_pixels` returns, from the header where possible.

    Raises:
        ImageError: As `decode_to_pixels`, except that damaged pixels may go unnoticed.
    """
    if decoding.bands is not None:
        layout = _read_layout(data, decoding.bands)
        _check_band_sizes(layout, decoding)
        size = layout.height, layout.width
        return size[::-1] if layout.orientation in TURNED else size
    with _image_errors(decoding):
        image = _open(data, decoding.max_memory)
        _check_size(image, 1, decoding.max_pixels)
        # PNG may store the orientation after the pixels, and Pillow rotates TIFF while loading.
        late = isinstance(image, PngImageFile) and re.search(rb"exif|xmp", data, re.IGNORECASE)
        if late or isinstance(image, TiffImageFile):
            height, width = decode_to_pixels(data, decoding=decoding).shape[:2]
            return height, width
        return image.size if _orientation(image) in TURNED else image.size[::-1]


def to_rgb(image: Image.Image | npt.NDArray[np.generic], intensity_range: Range | BandRanges | None = None) -> Pixels:
    """Convert an image to RGB, or to the bands of `intensity_range`.

    Args:
        image: A PIL image, which is rotated upright as its EXIF says; or an array (H, W) or (H, W, 1, 3 or 4) of uint8,
            or (H, W) or (H, W, 1 or 3) of uint16; with bands, an array (H, W, C) of their type.
        intensity_range: 16-bit values that become 0 and 255. None: all 16 bits.

    Returns:
        (H, W, 3) uint8; (H, W, C) of C bands.

    Raises:
        ImageError: The PIL image cannot be read, or the range of its values is unknown.
        UsageError: The array has another shape or dtype.
    """
    if isinstance(intensity_range, BandRanges):
        return _array_to_bands(image, intensity_range)
    if isinstance(image, np.ndarray):
        return _array_to_rgb(image, intensity_range)
    decoding = DEFAULT.with_intensity_range(intensity_range)
    with _image_errors(decoding):
        source = ImageWithRawMode.of(image)
        if source.deep and intensity_range and image.mode.startswith("RGB"):  # Pillow drops the lower bits
            file = image.fp  # type: ignore[attr-defined]
            file.seek(0)
            return decode_to_pixels(file.read(), decoding=decoding)
        image.load()  # first: PNG may store the orientation after the pixels, and Pillow rotates TIFF here
        return _upright(source.pixels(1, intensity_range), image)


def check_pixel_count(height: int, width: int, limit: int) -> None:
    """Raise ImageTooLargeError if an image in memory has more than `limit` pixels.

    Decoding and resizing would copy them.
    """
    if height * width > limit:
        raise _too_many_pixels(height * width, limit, f"make it smaller or raise max_pixels to {height * width}")


def _too_many_pixels(pixels: int, limit: int, advice: str) -> ImageTooLargeError:
    return ImageTooLargeError(
        f"{format_megapixels(pixels)} megapixels, more than the limit of {format_megapixels(limit)}; {advice}"
    )


def _smaller_or_raised(pixels: int) -> str:
    return f"make it smaller or raise --max-pixels to {-(-pixels // 10**6)}M"


def _within_memory(cost: int, decoding: DecodingOptions) -> int:
    """Return the bytes that decoding takes; raise ImageTooLargeError if they are more than the limit."""
    if cost > decoding.max_memory:
        raise ImageTooLargeError(
            f"takes {format_bytes(cost)} of memory to decode, more than the limit of "
            f"{format_bytes(decoding.max_memory)}; make it smaller or raise --max-pixels"
        )
    return cost


def _lowest_pixel_limit(pixels: int, cost: int) -> int:
    """Return the lowest `max_pixels` that allows so many pixels, and so many bytes as in `DecodingOptions.up_to`."""
    return max(pixels, -(-cost * PIXEL_LIMIT // MEMORY_LIMIT) if cost > MEMORY_LIMIT else 0)


def _array_to_rgb(array: npt.NDArray[np.generic], intensity_range: Range | None) -> Pixels:
    channels = array.shape[2] if array.ndim == 3 else 1
    allowed = {np.dtype(np.uint8): (1, 3, 4), np.dtype(np.uint16): (1, 3)}.get(array.dtype, ())
    if array.size == 0 or array.ndim not in (2, 3) or channels not in allowed:
        raise UsageError(
            f"an image of shape {array.shape} and dtype {array.dtype} is not supported; "
            "give (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of dtype uint8"
        )
    shown: Pixels = array if array.dtype == np.uint8 else make_shade_table(intensity_range)[array]  # type: ignore[assignment]
    if shown.ndim == 2:
        shown = shown[:, :, None]
    if channels == 4:
        return composite_on_white(Image.fromarray(shown))
    return np.broadcast_to(shown, (*shown.shape[:2], 3))


def _array_to_bands(image: Image.Image | npt.NDArray[np.generic], bands: BandRanges) -> Pixels:
    array = image if isinstance(image, np.ndarray) else np.asarray(image)
    array = array[:, :, None] if array.ndim == 2 else array
    if array.ndim != 3 or array.size == 0 or array.shape[2] != len(bands) or array.dtype != bands.dtype:
        raise UsageError(
            f"an image of shape {array.shape} and dtype {array.dtype} cannot be used by a network of "
            f"{bands.describe()}; give (H, W, {len(bands)}) of dtype {bands.dtype}"
        )
    return bands.to_bytes(array)


def _read_layout(data: bytes, bands: BandRanges) -> BandLayout:
    """Return the header of a TIFF or .npy file; raise ImageError unless it has these bands."""
    if not data:
        raise ImageError("empty file")
    return check_bands(read_band_layout(data), len(bands), bands.dtype)


def _check_band_sizes(layout: BandLayout, decoding: DecodingOptions) -> int:
    """Return the bytes that decoding bands takes; raise ImageTooLargeError if they are too many, or the pixels are."""
    if layout.decoded_pixels > decoding.max_pixels:
        raise _too_many_pixels(layout.decoded_pixels, decoding.max_pixels, _smaller_or_raised(layout.decoded_pixels))
    return _within_memory(STRIP_BYTES + layout.bytes, decoding)


def _decode_multiband(data: bytes, decoding: DecodingOptions, bands: BandRanges) -> DecodedImage:
    layout = _read_layout(data, bands)
    cost = _check_band_sizes(layout, decoding)
    with _image_errors(decoding), _IN_USE.reserve(cost):
        pixels = _turn_upright(bands.to_bytes(decode_bands(data, layout), layout.nodata), layout.orientation)
    return DecodedImage(
        pixels, detect_format(data) or "", deep=True, pixel_limit=_lowest_pixel_limit(layout.decoded_pixels, cost)
    )


def sample_bands(data: bytes, layout: BandLayout, decoding: DecodingOptions = DEFAULT) -> npt.NDArray[np.float64]:
    """Return the values of some pixels of a file of bands, (n, C) float64, evenly spread; NaN without data.

    Raises:
        ImageError: The image cannot be read.
    """
    with _image_errors(decoding), _IN_USE.reserve(_check_band_sizes(layout, decoding)):
        return sample_band_values(decode_bands(data, layout), layout.nodata)


def measure_share_outside(data: bytes, decoding: DecodingOptions) -> float | None:
    """Return the share of the values of bands that lie outside of the ranges of `decoding`; None for RGB and bytes.

    Raises:
        ImageError: The image cannot be read.
    """
    bands = decoding.bands
    if bands is None or bands.dtype == "uint8":
        return None
    return bands.measure_share_outside(sample_bands(data, _read_layout(data, bands), decoding))


def _open(data: bytes, max_memory: int) -> ImageFile:
    """Open the image in `data` with the decoder of its format, without loading it."""
    if not data:
        raise ImageError("empty file")
    name = detect_format(data)
    if name is None:
        formats = ", ".join(one for one in DECODERS if one != "NumPy")
        raise ImageFormatError(f"not an image ({formats})")
    if name == "WebP":  # its decoder allocates for all pixels as soon as it is created
        _webp_bytes(data, max_memory)
    if name == "PNG":
        data = _without_text(data)
    try:
        image = DECODERS[name][1](io.BytesIO(data))
    except (SyntaxError, IndexError) as error:
        if (
            name == "TIFF"
            and re.search("pixel mode|samples per pixel|organization|string index", str(error))
            and (bands := _bands_of_tiff(data))
        ):
            raise ImageError(f"unsupported: {bands}; {BANDS_ADVICE}") from error
        if re.search("unsupported|not yet supported|unable to determine", str(error), re.IGNORECASE):
            raise ImageError(f"unsupported kind of {name}; save it as PNG") from error
        raise
    if isinstance(image, TiffImageFile):
        _check_tiff(image, data)
    return image


def _check_tiff(image: TiffImageFile, data: bytes) -> None:
    """Raise ImageError for kinds of TIFF that Pillow decodes to other values without an error."""
    bits, kinds = image.tag_v2.get(_BITS, (1,)), image.tag_v2.get(_SAMPLE_FORMAT, (1,))
    if _SIGNED in kinds and max(bits) <= 8:
        raise ImageError(f"unsupported: {_bands_of_tiff(data)}; {BANDS_ADVICE}")
    if image.tag_v2.get(_PHOTOMETRIC, 0) in _GRAY and _NOT_ALPHA in image.tag_v2.get(_EXTRA, ()):
        # Pillow shows the first band alone.
        raise ImageError(f"unsupported: {_bands_of_tiff(data)}, one of gray and others; {BANDS_ADVICE}")
    if image.tag_v2.get(_PLANES, 1) == _SEPARATE and max(bits) > 8:
        raise ImageError(f"unsupported: {_bands_of_tiff(data)} in separate planes; save it with interleaved bands")


def _check_png(data: bytes) -> None:
    """Raise ImageError if the pixels of a PNG are not what was written, which Pillow does not check."""
    at = 8
    while at + 12 <= len(data):
        length, name = struct.unpack(">I4s", data[at : at + 8])
        end = at + 12 + length
        if name == b"IEND" or end > len(data):  # a truncated chunk is noticed by the decoder
            break
        if (
            name == b"IDAT"
            and zlib.crc32(memoryview(data)[at + 4 : end - 4]) != struct.unpack(">I", data[end - 4 : end])[0]
        ):
            raise ImageError("damaged")
        at = end


def _webp_bytes(data: bytes, max_memory: int) -> int:
    """Return the bytes that the decoder of a WebP takes, from its header.

    Raises:
        ImageTooLargeError: More than `max_memory`.
    """
    if data[12:16] == b"VP8X" and len(data) >= 30:
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
    elif data[12:16] == b"VP8L" and len(data) >= 25:
        bits = int.from_bytes(data[21:25], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:  # lossy, or truncated, which decoding refuses
        width, height = (value & 0x3FFF for value in struct.unpack("<HH", data[26:30].ljust(4, b"\0")))
    if (cost := WEBP_BYTES * width * height) > max_memory:
        raise ImageTooLargeError(
            f"{width * height / 1e6:.0f} megapixels of WebP take {format_bytes(cost)} of memory to decode, more than "
            "the "
            f"limit of {format_bytes(max_memory)}; make it smaller or raise --max-pixels"
        )
    return cost


def _without_text(png: bytes) -> bytes:
    """Return a PNG without its texts and color profile, which Pillow refuses if they are large."""
    kept, at = [png[:8]], 8
    while at + 12 <= len(png):
        length, name = struct.unpack(">I4s", png[at : at + 8])
        end = at + 12 + length
        orientation = name == b"iTXt" and length < 2**16 and b"XML:com.adobe.xmp\0\0" in png[at : at + 32]
        if name not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP") or orientation:
            kept.append(png[at:end])
        at = end
    return png if sum(map(len, kept)) == len(png) else b"".join([*kept, png[at:]])


def _bands_of_tiff(data: bytes) -> str | None:
    """Return a description of a TIFF's bands; None if they are not declared."""
    layout = read_band_layout(data)
    return None if layout is None else layout.words


def _factor(image: ImageFile, least: int, limit: int) -> int:
    """Return the largest of 8, 4 and 2 by which the image can be reduced to `least` pixels a side or more, else 1."""
    width, height = image.size
    if not least or not (isinstance(image, JpegImageFile) or width * height > min(REDUCED_ABOVE, limit)):
        return 1
    # The JPEG decoder's other scales, such as 5/8, are neither faster nor as good.
    return next((factor for factor in (8, 4, 2) if -(-min(width, height) // factor) >= least), 1)


def format_megapixels(pixels: int) -> str:
    """Format a number of pixels in millions: "120", "1.4", "0.0001"."""
    count = pixels / 1e6
    return f"{count:.0f}" if count >= 10 else f"{count:.2g}"


def _check_size(image: ImageFile, factor: int, limit: int) -> int:
    """Return the pixels that are decoded.

    Raises:
        ImageTooLargeError: More than the limit.
    """
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError("no pixels")
    pixels = width * height
    if isinstance(image, TiffImageFile):  # tiles are decoded whole, even beyond the image
        pixels = max(pixels, image.tag_v2.get(_TILE_WIDTH, 1) * image.tag_v2.get(_TILE_LENGTH, 1))
    decoded = pixels // factor**2 if isinstance(image, JpegImageFile) else pixels
    advice = _smaller_or_raised(pixels)
    if isinstance(image, PpmImageFile) and image.tile[0][0].startswith("ppm") and limit > SLOW:
        limit, advice = SLOW, "save it as PNG"
    if decoded > limit:
        raise _too_many_pixels(pixels, limit, advice)
    return decoded


def _check_memory(image: ImageFile, factor: int, decoding: DecodingOptions, *, scans: int, deep: bool) -> int:
    """Return the bytes that decoding takes; raise ImageTooLargeError if they are more than the limit."""
    return _within_memory(estimate_decoding_bytes(image, factor, scans=scans, deep=deep), decoding)


def _load(source: ImageWithRawMode, data: bytes, *, deep: bool) -> ImageWithRawMode:
    """Load `source`; `deep` says whether all bits of 16-bit values are wanted."""
    if deep and source.deep and source.image.mode in ("RGB", "RGBA"):
        source = replace(source, low=_lower_bits(source, data))
    source.image.load()
    return source


def _lower_bits(source: ImageWithRawMode, data: bytes) -> Image.Image:
    """Return the lower 8 bits of a 16-bit color image. Pillow keeps the upper ones, so swap the byte order."""
    image = _open(data, MEMORY_LIMIT)
    swapped = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}
    gray_alpha = source.rawmode == "LA;16B"
    rawmode = "RGBA" if gray_alpha else source.rawmode[:-1] + swapped[source.rawmode[-1]]
    image.tile = [
        tile._replace(args=(rawmode, *tile.args[1:]) if isinstance(tile.args, tuple) else rawmode)
        for tile in image.tile
    ]
    image.load()
    if not gray_alpha:
        return image
    _, gray, _, alpha = image.split()  # each of gray and alpha has its upper bits first
    return Image.merge("RGBA", (gray, gray, gray, alpha))


def _decode_jpeg(data: bytes, image: JpegImageFile, factor: int) -> Pixels | None:
    """Return the pixels as stored; None to let Pillow try, which is left ready to decode `image` at reduced size."""
    width, height = (-(-side // factor) for side in image.size)
    if image.mode != "CMYK":  # simplejpeg converts CMYK differently from everyone else
        try:
            pixels: Pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width, strict=True)
            return pixels
        except ValueError as error:
            # Other complaints of libjpeg (stray bytes before a marker, rare subsampling) are ignored by every viewer.
            if "Premature end of JPEG file" in str(error):
                raise ImageError("truncated") from error
            if "Corrupt JPEG data" in str(error) and "extraneous bytes" not in str(error):
                raise ImageError("damaged") from error
    image.draft(None, (width, height))
    return None


def _upright(pixels: Pixels, image: Image.Image) -> Pixels:
    """Rotate and mirror `pixels` as the EXIF orientation of `image` says."""
    return _turn_upright(pixels, _orientation(image))


def _turn_upright(pixels: Pixels, orientation: int) -> Pixels:
    if orientation in TURNED:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of `image`; 1 if it is absent or unreadable."""
    try:
        found: int = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF does not make the image unusable
        return 1
    return found


_QUIET = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


@contextmanager
def _image_errors(decoding: DecodingOptions) -> Iterator[None]:
    """Raise ImageError for whatever a decoder raises in the body, and silence Pillow's warnings."""
    if _QUIET not in warnings.filters:  # warnings.catch_warnings is not thread-safe
        warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        yield
    except (ImageError, UsageError):
        raise
    except Image.DecompressionBombError as error:  # raised inside a decoder, before the size is known
        raise ImageTooLargeError(f"more than the limit of {decoding.max_pixels / 1e6:.0f} megapixels") from error
    except MemoryError as error:
        raise ImageError("too large for the available memory") from error
    except Exception as error:  # decoders raise many types: OSError, SyntaxError, struct.error, zlib.error
        truncated = isinstance(error, EOFError) or re.search("truncated|incomplete|unpack", str(error), re.IGNORECASE)
        raise ImageError("truncated" if truncated else "damaged") from error
