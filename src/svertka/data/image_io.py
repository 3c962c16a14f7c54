"""Bytes of an image file to upright RGB pixels; what cannot be read is refused with a short reason."""

import io
import re
import struct
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import ExifTags, Image, TiffImagePlugin, features
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

from svertka.data.decode_memory import WEBP_BYTES, DecodingBudget, count_scans, estimate_decoding_bytes
from svertka.data.pixel_modes import Pixels, Range, RawImage, composite_on_white, shades
from svertka.errors import FormatError, ImageError, SizeError, UsageError
from svertka.escaping import join_first, to_printable
from svertka.files import format_bytes, read_regular

PIXEL_LIMIT = 100_000_000
MEMORY_LIMIT = 2**30  # bytes that decoding one image may take, beside its file

# A JPEG is reduced while it is decoded only as far as leaves this many times the side wanted: the resize that follows
# then gives what it gives from the whole image (bench/decode.py). Reduced to just the side, 5 dB are lost.
SPARE = 3
LARGE = 2**24  # pixels from which images of other formats are reduced, too, as they are converted
SCANS = 100  # of a JPEG; each is a pass over all of its pixels, for a few bytes. Encoders write 10 or so
SLOW = 2**24  # pixels of a PNM file that Pillow decodes in Python, a microsecond each


# Why a file cannot be read here that others read; it says nothing against the file.
NOT_INSTALLED = {
    "HEIC": "HEIC needs pillow-heif; pip install 'svertka[heif]'",
    "AVIF": "AVIF needs a Pillow that was built with it; pip install --upgrade Pillow",
}


def _heif_file(file: io.BytesIO) -> ImageFile:
    try:
        from pillow_heif.as_plugin import HeifImageFile
    except ImportError as error:
        raise FormatError(NOT_INSTALLED["HEIC"]) from error
    image: ImageFile = HeifImageFile(file)  # type: ignore[no-untyped-call]
    return image


def _avif_file(file: io.BytesIO) -> ImageFile:
    if not features.check("avif"):
        raise FormatError(NOT_INSTALLED["AVIF"])
    return AvifImageFile(file)


_BRAND = rb".{4}ftyp(?:%s)"

# The decoders themselves, not Image.open: that one warns above a pixel limit of its own, which all of a process
# shares, and takes a JPEG with previews for another format.
DECODERS: dict[str, tuple[re.Pattern[bytes], Callable[[io.BytesIO], ImageFile]]] = {
    "JPEG": (re.compile(rb"\xff\xd8\xff"), JpegImageFile),
    "PNG": (re.compile(rb"\x89PNG\r\n\x1a\n"), PngImageFile),
    "WebP": (re.compile(rb"RIFF.{4}WEBP", re.DOTALL), WebPImageFile),
    "BMP": (re.compile(rb"BM"), BmpImageFile),
    "TIFF": (re.compile(rb"II[*+]\0|MM\0[*+]"), TiffImageFile),
    "GIF": (re.compile(rb"GIF8[79]a"), GifImageFile),
    "AVIF": (re.compile(_BRAND % rb"avi[fs]|mi(?:f1|af).{4}(?:.{4})*?avif", re.DOTALL), _avif_file),
    "HEIC": (re.compile(_BRAND % rb"hei[cxms]|hev[cxms]|m[is]f1", re.DOTALL), _heif_file),
    "JPEG 2000": (re.compile(rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n"), Jpeg2KImageFile),
    "PNM": (re.compile(rb"P[1-6f][\s#]"), PpmImageFile),
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
}

TURNED = (5, 6, 7, 8)  # EXIF orientations of images that are stored on their side

_BITS, _STRIPS, _BANDS, _TILE_WIDTH, _TILE_LENGTH, _TILES, _SAMPLE_FORMAT = 258, 273, 277, 322, 323, 324, 339
_IN_USE = DecodingBudget(2 * MEMORY_LIMIT)


@dataclass(frozen=True)
class Decoding:
    """How image files are decoded.

    `max_pixels`: an image with more is refused before it is decoded, but for JPEGs that can be decoded reduced.
    `max_memory`: bytes that decoding may take, the pixels that come back included. `intensity_range`: the 16-bit values
    that become 0 and 255; None is all 16 bits, of which the upper 8 are kept.
    """

    max_pixels: int = PIXEL_LIMIT
    max_memory: int = MEMORY_LIMIT
    intensity_range: Range | None = None

    @classmethod
    def up_to(cls, max_pixels: int | None) -> "Decoding":
        """That of images with `max_pixels` (None: PIXEL_LIMIT), and memory in proportion.

        Raises:
            UsageError: `max_pixels` below 1.
        """
        if max_pixels is None:
            return cls()
        if max_pixels < 1:
            raise UsageError(f"max_pixels={max_pixels} must be at least 1")
        return cls(max_pixels, max(MEMORY_LIMIT, MEMORY_LIMIT * max_pixels // PIXEL_LIMIT))

    def with_intensity_range(self, intensity_range: Range | None) -> "Decoding":
        """The same with another range of 16-bit values."""
        return replace(self, intensity_range=intensity_range)


DEFAULT = Decoding()


@dataclass(frozen=True, eq=False)
class Decoded:
    """An image's `pixels` (H, W, 3) uint8, its `format`, one of `DECODERS`, and whether it has 16 bits a value."""

    pixels: Pixels
    format: str
    deep: bool


def read_image(data: bytes, min_side: int | None = None, decoding: Decoding = DEFAULT) -> Pixels:
    """The pixels of the image in `data`, as `decode` gives it."""
    return decode(data, min_side, decoding).pixels


def decode(data: bytes, min_side: int | None = None, decoding: Decoding = DEFAULT) -> Decoded:
    """The image in `data`, RGB, turned upright as its EXIF orientation says.

    JPEG, PNG, WebP, BMP, TIFF, GIF, AVIF, HEIC, JPEG 2000 and PNM; of an animation the first frame. What the content
    is decides, not the file's name. Alpha and transparent colours are laid over white, colour profiles are ignored.
    `min_side`: the side, in pixels, to which the image will be resized; a JPEG, and a large image of another format,
    comes back reduced by 2, 4 or 8 where that leaves `SPARE` times as much. Safe to call from several threads.

    Raises:
        ImageError: it cannot be read; the message is the reason. It is a FormatError where it is in none of these
        formats, a SizeError where it is too large.
    """
    with _refusal(decoding):
        image, factor, cost = _planned(data, min_side, decoding)
        deep = decoding.intensity_range is not None
        name = format_of(data) or ""
        with _IN_USE.reserve(cost):
            if isinstance(image, JpegImageFile):
                if (scans := count_scans(data)) > SCANS:
                    raise ImageError(f"{scans} scans, more than the limit of {SCANS}; save it anew")
                pixels = _decode_jpeg(data, image, factor)
                if pixels is not None:
                    return Decoded(_upright(pixels, image), name, deep=False)
                factor = 1  # Pillow decodes it reduced
            source = _decoded(RawImage.of(image), data, deep=deep)
            return Decoded(_upright(source.pixels(factor, decoding.intensity_range), image), name, source.deep)


def estimate_memory(data: bytes, min_side: int | None = None, decoding: Decoding = DEFAULT) -> int:
    """Bytes that `decode` takes for the image in `data`, from its header.

    Raises:
        ImageError: it is refused for what its header says.
    """
    with _refusal(decoding):
        if format_of(data) == "WebP":  # whose decoder takes the memory as soon as it is made
            return _webp_bytes(data, decoding.max_memory)
        return _planned(data, min_side, decoding)[2]


def _planned(data: bytes, min_side: int | None, decoding: Decoding) -> tuple[ImageFile, int, int]:
    """The image in `data`, not decoded yet, by how much it will be reduced, and the bytes that takes."""
    image = _opened(data, decoding.max_memory)
    factor = _factor(image, SPARE * (min_side or 0), decoding.max_pixels)
    _check_size(image, factor, decoding.max_pixels)
    return image, factor, _afford(image, data, factor, decoding, deep=decoding.intensity_range is not None)


def read_file(path: str | Path, min_side: int | None = None, decoding: Decoding = DEFAULT) -> Pixels:
    """The image in the file `path`, as `read_image` gives it.

    Raises:
        ImageError: as `read_image`; or it is no regular file, or a very large one.
    """
    return read_image(read_bytes(path, decoding), min_side, decoding)


def read_bytes(path: str | Path, decoding: Decoding = DEFAULT) -> bytes:
    """The bytes of the image file `path`; a pipe, a device or a file beyond `decoding.max_memory` is not read.

    Raises:
        ImageError: it cannot be read.
    """
    try:
        return read_regular(Path(path), decoding.max_memory)
    except OSError as error:
        raise ImageError((error.strerror or str(error)).lower()) from error
    except ValueError as error:
        raise ImageError(str(error)) from error


def format_of(data: bytes) -> str | None:
    """The format that `data` begins as, one of `DECODERS`; None if it is of none."""
    return next((name for name, (start, _) in DECODERS.items() if start.match(data[:64])), None)


def detect_misnamed(path: str | Path, data: bytes) -> str | None:
    """The format of `data` where the suffix of `path` names another one, else None."""
    claimed, found = SUFFIXES.get(Path(path).suffix.lower()), format_of(data)
    return found if claimed is not None and found != claimed else None


def describe_misnamed(found: Sequence[tuple[str, str]]) -> str | None:
    """What to say of files, path and format, whose names say another format; None if there are none."""
    if not found:
        return None
    named = join_first([f"{path} is {name}" for path, name in found], separator="; ")
    return to_printable(f"used, though the name says another format: {named}")


@dataclass(frozen=True)
class Header:
    """What an image file says of itself: `mode` as Pillow calls it, (width, height) as stored, EXIF orientation."""

    format: str
    mode: str
    size: tuple[int, int]
    orientation: int
    deep: bool


def read_header(data: bytes, decoding: Decoding = DEFAULT) -> Header:
    """The header of the image in `data`.

    Raises:
        ImageError: it cannot be read.
    """
    with _refusal(decoding), _opened(data, decoding.max_memory) as image:
        orientation = _orientation(image)
        deep = RawImage.of(image).deep
        mode = f"{image.mode};16" if deep and not image.mode.startswith("I") else image.mode
        orientation = orientation if orientation in range(1, 9) else 1
        return Header(format_of(data) or "", mode, image.size, orientation, deep)


def measure_intensities(data: bytes, decoding: Decoding = DEFAULT) -> Range | None:
    """Of a 16-bit image the values between which nearly all of its pixels lie, else None.

    A ten-thousandth of the pixels may lie below, and as many above: a sensor's hot pixels do not count.

    Raises:
        ImageError: it cannot be read.
    """
    with _refusal(decoding):
        image = _opened(data, decoding.max_memory)
        source = RawImage.of(image)
        if not source.deep:
            return None
        _check_size(image, 1, decoding.max_pixels)
        with _IN_USE.reserve(_afford(image, data, 1, decoding, deep=True)):
            counts = np.zeros(65536, np.int64)
            for values in _decoded(source, data, deep=True).deep_values():
                counts += np.bincount(values, minlength=65536)
        below = counts.cumsum()
        outside = below[-1] // 10_000
        low = int(np.searchsorted(below, outside, side="right"))
        high = int(np.searchsorted(below, below[-1] - outside, side="left"))
        return low, high


def read_image_size(data: bytes, decoding: Decoding = DEFAULT) -> tuple[int, int]:
    """Height and width of what `read_image` gives for `data`, from the header alone where that says how it is turned.

    Raises:
        ImageError: as for `read_image`; but pixels that are damaged may go unnoticed.
    """
    with _refusal(decoding):
        image = _opened(data, decoding.max_memory)
        _check_size(image, 1, decoding.max_pixels)
        # PNG may say behind the pixels how it is turned, and Pillow turns TIFF as it reads them.
        late = isinstance(image, PngImageFile) and re.search(rb"exif|xmp", data, re.IGNORECASE)
        if late or isinstance(image, TiffImageFile):
            height, width = read_image(data, decoding=decoding).shape[:2]
            return height, width
        return image.size if _orientation(image) in TURNED else image.size[::-1]


def to_rgb(
    image: Image.Image | npt.NDArray[np.uint8] | npt.NDArray[np.uint16], intensity_range: Range | None = None
) -> Pixels:
    """`image` as (H, W, 3) uint8, RGB: a PIL image (turned as its EXIF says), or an array.

    Arrays are (H, W), (H, W, 1, 3 or 4) uint8, or (H, W), (H, W, 1 or 3) uint16. `intensity_range`: as in `Decoding`.

    Raises:
        ImageError: the PIL image cannot be read, or its pixels have no known range.
        UsageError: an array of another shape or type.
    """
    if isinstance(image, np.ndarray):
        return _array_as_rgb(image, intensity_range)
    decoding = DEFAULT.with_intensity_range(intensity_range)
    with _refusal(decoding):
        source = RawImage.of(image)
        if source.deep and intensity_range and image.mode.startswith("RGB"):  # of which Pillow drops the lower bits
            file = image.fp  # type: ignore[attr-defined]
            file.seek(0)
            return read_image(file.read(), decoding=decoding)
        image.load()  # before the orientation: PNG may keep it behind the pixels, and TIFF is turned by Pillow here
        return _upright(source.pixels(1, intensity_range), image)


def check_pixel_count(height: int, width: int, limit: int) -> None:
    """Raise SizeError if an image in memory has more than `limit` pixels: decoding and resizing would copy them."""
    if height * width > limit:
        raise SizeError(
            f"{megapixels(height * width)} megapixels, more than the limit of {megapixels(limit)}; make it smaller or "
            f"raise max_pixels to {height * width}"
        )


def _array_as_rgb(array: npt.NDArray[np.generic], intensity_range: Range | None) -> Pixels:
    channels = array.shape[2] if array.ndim == 3 else 1
    allowed = {np.dtype(np.uint8): (1, 3, 4), np.dtype(np.uint16): (1, 3)}.get(array.dtype, ())
    if array.size == 0 or array.ndim not in (2, 3) or channels not in allowed:
        raise UsageError(
            f"an image of shape {array.shape} and type {array.dtype} cannot be used; "
            "give (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of type uint8"
        )
    shown: Pixels = array if array.dtype == np.uint8 else shades(intensity_range)[array]  # type: ignore[assignment]
    if shown.ndim == 2:
        shown = shown[:, :, None]
    if channels == 4:
        return composite_on_white(Image.fromarray(shown))
    return np.broadcast_to(shown, (*shown.shape[:2], 3))


def _opened(data: bytes, max_memory: int) -> ImageFile:
    """The image in `data`, of a known format, not decoded yet."""
    if not data:
        raise ImageError("empty file")
    name = format_of(data)
    if name is None:
        raise FormatError(f"not an image ({', '.join(DECODERS)})")
    if name == "WebP":  # whose decoder takes memory for all pixels as soon as it is made
        _webp_bytes(data, max_memory)
    if name == "PNG":
        data = _without_text(data)
    try:
        return DECODERS[name][1](io.BytesIO(data))
    except SyntaxError as error:
        if (
            name == "TIFF"
            and re.search("pixel mode|samples per pixel|organization", str(error))
            and (bands := _bands_of_tiff(data))
        ):
            raise ImageError(f"unsupported: {bands}; save it with 1 (grey) or 3 (RGB) bands of 8 or 16 bits") from error
        if re.search("unsupported|not yet supported|unable to determine", str(error), re.IGNORECASE):
            raise ImageError(f"unsupported kind of {name}; save it as PNG") from error
        raise


def _webp_bytes(data: bytes, max_memory: int) -> int:
    """The bytes that the decoder of a WebP takes, as its header promises.

    Raises:
        SizeError: more than `max_memory`.
    """
    if data[12:16] == b"VP8X" and len(data) >= 30:
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
    elif data[12:16] == b"VP8L" and len(data) >= 25:
        bits = int.from_bytes(data[21:25], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:  # of the other kind, or cut short: what is refused below anyway
        width, height = (value & 0x3FFF for value in struct.unpack("<HH", data[26:30].ljust(4, b"\0")))
    if (cost := WEBP_BYTES * width * height) > max_memory:
        raise SizeError(
            f"{width * height / 1e6:.0f} megapixels of WebP take {format_bytes(cost)} of memory to decode, more than "
            "the "
            f"limit of {format_bytes(max_memory)}; make it smaller or raise --max-pixels"
        )
    return cost


def _without_text(png: bytes) -> bytes:
    """A PNG without its texts and colour profile, which nobody reads and Pillow refuses where they are large."""
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
    """What the pixels of a TIFF are made of, as text; None if it does not say."""
    try:
        directory = TiffImagePlugin.ImageFileDirectory_v2(data[:8])
        file = io.BytesIO(data)
        file.seek(directory.next)
        directory.load(file)
        bits = directory[_BITS]
        number = int(directory.get(_BANDS, len(bits)))
        if not directory.keys() & {_STRIPS, _TILES}:  # cut short before its last entries
            return None
        kinds = {1: "unsigned integers", 2: "signed integers", 3: "floating-point values", 5: "complex integers"}
        kind = kinds.get(directory.get(_SAMPLE_FORMAT, (1,))[0], "values of unknown kind")
        return f"{number} {'band' if number == 1 else 'bands'} of {'/'.join(map(str, sorted(set(bits))))}-bit {kind}"
    except Exception:  # as damaged as its pixels
        return None


def _factor(image: ImageFile, least: int, limit: int) -> int:
    """By how much decoding reduces the image: 8, 4 or 2, the largest that leaves `least` pixels a side, or else 1."""
    width, height = image.size
    if not least or not (isinstance(image, JpegImageFile) or width * height > min(LARGE, limit)):
        return 1
    # The JPEG decoder's other scales, such as 5/8, would be neither faster nor as good.
    return next((factor for factor in (8, 4, 2) if -(-min(width, height) // factor) >= least), 1)


def megapixels(pixels: int) -> str:
    """A number of pixels in millions, for people: "120", "1.4", "0.0001"."""
    count = pixels / 1e6
    return f"{count:.0f}" if count >= 10 else f"{count:.2g}"


def _check_size(image: ImageFile, factor: int, limit: int) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError("no pixels")
    pixels = width * height
    if isinstance(image, TiffImageFile):  # a tile is decoded whole, however little of it lies in the image
        pixels = max(pixels, image.tag_v2.get(_TILE_WIDTH, 1) * image.tag_v2.get(_TILE_LENGTH, 1))
    decoded = pixels // factor**2 if isinstance(image, JpegImageFile) else pixels
    advice = f"make it smaller or raise --max-pixels to {-(-pixels // 10**6)}M"
    if isinstance(image, PpmImageFile) and image.tile[0][0].startswith("ppm") and limit > SLOW:
        limit, advice = SLOW, "save it as PNG"
    if decoded > limit:
        raise SizeError(f"{megapixels(pixels)} megapixels, more than the limit of {megapixels(limit)}; {advice}")


def _afford(image: ImageFile, data: bytes, factor: int, decoding: Decoding, *, deep: bool) -> int:
    """Bytes that decoding takes.

    Raises:
        SizeError: more than the limit.
    """
    cost = estimate_decoding_bytes(image, data, factor, deep=deep)
    if cost > decoding.max_memory:
        raise SizeError(
            f"takes {format_bytes(cost)} of memory to decode, more than the limit of "
            f"{format_bytes(decoding.max_memory)}; "
            "make it smaller or raise --max-pixels"
        )
    return cost


def _decoded(source: RawImage, data: bytes, *, deep: bool) -> RawImage:
    """`source` once it is loaded; `deep`: whether all bits of its values are wanted."""
    if deep and source.deep and source.image.mode in ("RGB", "RGBA"):
        source = replace(source, low=_lower_bits(source, data))
    source.image.load()
    return source


def _lower_bits(source: RawImage, data: bytes) -> Image.Image:
    """The lower 8 bits of a colour image of 16: Pillow keeps the upper ones, so it is told the other byte order."""
    image = _opened(data, MEMORY_LIMIT)
    swapped = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}
    grey_alpha = source.rawmode == "LA;16B"
    rawmode = "RGBA" if grey_alpha else source.rawmode[:-1] + swapped[source.rawmode[-1]]
    image.tile = [
        tile._replace(args=(rawmode, *tile.args[1:]) if isinstance(tile.args, tuple) else rawmode)
        for tile in image.tile
    ]
    image.load()
    if not grey_alpha:
        return image
    _, grey, _, alpha = image.split()  # grey and alpha, of each the upper bits first
    return Image.merge("RGBA", (grey, grey, grey, alpha))


def _decode_jpeg(data: bytes, image: JpegImageFile, factor: int) -> Pixels | None:
    """The pixels as stored; None where Pillow, left ready to decode `image` reduced, should have a try."""
    width, height = (-(-side // factor) for side in image.size)
    if image.mode != "CMYK":  # whose conversion to RGB simplejpeg does otherwise than everyone else
        try:
            pixels: Pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width, strict=True)
            return pixels
        except ValueError as error:
            # What else libjpeg complains about (stray bytes before a marker, rare subsampling) every viewer forgives.
            if "Premature end of JPEG file" in str(error):
                raise ImageError("truncated") from error
            if "Corrupt JPEG data" in str(error) and "extraneous bytes" not in str(error):
                raise ImageError("damaged") from error
    image.draft(None, (width, height))
    return None


def _upright(pixels: Pixels, image: Image.Image) -> Pixels:
    """`pixels` turned and mirrored as the EXIF orientation of `image` says."""
    orientation = _orientation(image)
    if orientation in TURNED:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _orientation(image: Image.Image) -> int:
    """That of the EXIF of `image`, 1 to 8, as far as it is read."""
    try:
        found: int = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF spoils no image
        return 1
    return found


_QUIET = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


@contextmanager
def _refusal(decoding: Decoding) -> Iterator[None]:
    """Make ImageError of whatever a decoder raises in the body, and keep Pillow's warnings to itself."""
    if _QUIET not in warnings.filters:  # warnings.catch_warnings would change them under other threads' feet
        warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        yield
    except (ImageError, UsageError):
        raise
    except Image.DecompressionBombError as error:  # from inside a decoder, before it tells the size
        raise SizeError(f"more than the limit of {decoding.max_pixels / 1e6:.0f} megapixels") from error
    except MemoryError as error:
        raise ImageError("too large for the memory that is left") from error
    except Exception as error:  # decoders raise nearly anything: OSError, SyntaxError, struct.error, zlib.error
        truncated = isinstance(error, EOFError) or re.search("truncated|incomplete|unpack", str(error), re.IGNORECASE)
        raise ImageError("truncated" if truncated else "damaged") from error
