"""Bytes of a picture file to upright RGB pixels; what cannot be read is refused with a short reason."""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import ExifTags, Image, ImageCms
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from svertka.errors import FormatError, PictureError, SizeError, UsageError

Pixels = npt.NDArray[np.uint8]

PIXEL_LIMIT = 100_000_000

# A JPEG is reduced while it is decoded only as far as leaves this many times the side wanted: the resize that follows
# then gives what it gives from the whole picture (bench/decode.py). Reduced to just the side, 5 dB are lost.
SPARE = 3

# The decoders themselves, not Image.open: that one warns above a pixel limit of its own, which all of a process
# shares, and takes a JPEG with previews for another format.
DECODERS: dict[str, tuple[re.Pattern[bytes], type[ImageFile]]] = {
    "JPEG": (re.compile(rb"\xff\xd8\xff"), JpegImageFile),
    "PNG": (re.compile(rb"\x89PNG\r\n\x1a\n"), PngImageFile),
    "WebP": (re.compile(rb"RIFF.{4}WEBP", re.DOTALL), WebPImageFile),
    "BMP": (re.compile(rb"BM"), BmpImageFile),
    "TIFF": (re.compile(rb"II[*+]\0|MM\0[*+]"), TiffImageFile),
    "GIF": (re.compile(rb"GIF8[79]a"), GifImageFile),
}

SUFFIXES = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".png": "PNG",
    ".webp": "WebP",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".gif": "GIF",
}

TURNED = (5, 6, 7, 8)  # EXIF orientations of pictures that are stored on their side

_TILE_WIDTH, _TILE_LENGTH, _PHOTOMETRIC, _MIN_IS_WHITE = 322, 323, 262, 0


def read_picture(
    data: bytes, min_side: int | None = None, suffix: str | None = None, pixel_limit: int = PIXEL_LIMIT
) -> Pixels:
    """The picture in `data` as (H, W, 3) uint8, RGB, turned upright as its EXIF orientation says.

    JPEG, PNG, WebP, BMP, TIFF and GIF (first frame). Alpha and transparent colours are laid over white, of 16 bits
    the upper 8 are kept, colour profiles are ignored. `min_side`: the side, in pixels, to which the picture will be
    resized; a JPEG comes back reduced by 2, 4 or 8 where that leaves `SPARE` times as much. `suffix`: the file name's
    ending, ".jpg"; where it names one of these formats, the content has to be of it. `pixel_limit`: a picture with more
    is refused before it is decoded. Safe to call from several threads.

    Raises:
        PictureError: it cannot be read; the message is the reason. It is a FormatError where it is in none of these
        formats, a SizeError where it is too large.
    """
    with _refusal():
        image = _opened(data, suffix, pixel_limit)
        if isinstance(image, JpegImageFile):
            pixels = _decode_jpeg(data, image, SPARE * (min_side or 0))
            if pixels is not None:
                return _upright(pixels, image)
        return as_rgb(image)


def picture_size(data: bytes, suffix: str | None = None, pixel_limit: int = PIXEL_LIMIT) -> tuple[int, int]:
    """Height and width of what `read_picture` gives for `data`, from the header alone where that says how it is turned.

    Raises:
        PictureError: as for `read_picture`; but pixels that are damaged may go unnoticed.
    """
    with _refusal():
        image = _opened(data, suffix, pixel_limit)
        # PNG may say behind the pixels how it is turned, and Pillow turns TIFF as it reads them.
        late = isinstance(image, PngImageFile) and re.search(rb"exif|xmp", data, re.IGNORECASE)
        if late or isinstance(image, TiffImageFile):
            height, width = as_rgb(image).shape[:2]
            return height, width
        return image.size if _orientation(image) in TURNED else image.size[::-1]


def as_rgb(picture: Image.Image | npt.NDArray[np.uint8]) -> Pixels:
    """`picture` as (H, W, 3) uint8, RGB: a PIL image (turned as its EXIF says), or (H, W), (H, W, 1, 3 or 4) uint8.

    Raises:
        PictureError: the PIL image cannot be read, or its pixels have no known range.
        UsageError: an array of another shape or type.
    """
    if isinstance(picture, np.ndarray):
        return _array_as_rgb(picture)
    with _refusal():
        rawmode = _rawmode(picture)
        picture.load()  # before the orientation: PNG may keep it behind the pixels, and TIFF is turned by Pillow here
        return _upright(_mode_as_rgb(picture, rawmode), picture)


def _array_as_rgb(array: npt.NDArray[np.uint8]) -> Pixels:
    if (
        array.dtype != np.uint8
        or array.size == 0
        or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4)))
    ):
        raise UsageError(
            f"a picture of shape {array.shape} and type {array.dtype} cannot be used; "
            "give (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of type uint8"
        )
    if array.ndim == 2:
        array = array[:, :, None]
    if array.shape[2] == 4:
        return _over_white(Image.fromarray(array))
    return np.broadcast_to(array, (*array.shape[:2], 3))


def _opened(data: bytes, suffix: str | None, pixel_limit: int) -> ImageFile:
    """The picture in `data`, of a known format and size, not decoded yet."""
    if not data:
        raise PictureError("empty file")
    name = next((name for name, (start, _) in DECODERS.items() if start.match(data)), None)
    if name is None:
        raise FormatError(f"not a picture ({', '.join(DECODERS)})")
    if suffix is not None and SUFFIXES.get(suffix.lower(), name) != name:
        raise PictureError(f"named {suffix} but holds {name}")
    image = DECODERS[name][1](io.BytesIO(data))
    _check_size(image, pixel_limit)
    return image


def _check_size(image: ImageFile, limit: int) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise PictureError("no pixels")
    pixels = width * height
    if isinstance(image, TiffImageFile):  # a tile is decoded whole, however little of it lies in the picture
        pixels = max(pixels, image.tag_v2.get(_TILE_WIDTH, 1) * image.tag_v2.get(_TILE_LENGTH, 1))
    if pixels > limit:
        raise SizeError(f"{pixels / 1e6:.0f} megapixels, more than the limit of {limit / 1e6:.0f}")


def _decode_jpeg(data: bytes, image: JpegImageFile, least: int) -> Pixels | None:
    """The pixels as stored; None where Pillow, left ready to decode `image` reduced, should have a try."""
    if image.mode != "CMYK":  # whose conversion to RGB simplejpeg does otherwise than everyone else
        try:
            return _reduced_jpeg(data, image.size, least)
        except ValueError as error:
            # What else libjpeg complains about (stray bytes before a marker, rare subsampling) every viewer forgives.
            if "Premature end of JPEG file" in str(error):
                raise PictureError("truncated") from error
            if "Corrupt JPEG data" in str(error) and "extraneous bytes" not in str(error):
                raise PictureError("damaged") from error
    if least:
        image.draft(None, (least, least))
    return None


def _reduced_jpeg(data: bytes, size: tuple[int, int], least: int) -> Pixels:
    """Decoded at a half, a quarter or an eighth, the smallest that leaves `least` pixels a side, or else whole."""
    # The decoder's other scales, such as 5/8, would be neither faster nor as good.
    factor = next((factor for factor in (8, 4, 2) if -(-min(size) // factor) >= least > 0), 1)
    width, height = (-(-side // factor) for side in size)
    pixels: Pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width, strict=True)
    return pixels


def _rawmode(image: Image.Image) -> str:
    """How the file stores the pixels of an image that is not loaded yet, as Pillow's unpackers call it; else ""."""
    tiles = getattr(image, "tile", None)
    args = tiles[0][3] if tiles else ""
    return str(args[0] if isinstance(args, tuple) and args else args)


def _mode_as_rgb(image: Image.Image, rawmode: str) -> Pixels:
    mode = image.mode
    if mode in ("LA", "La", "RGBA", "RGBa", "PA", "P"):
        return _over_white(image)
    if mode == "F":
        raise PictureError("floating-point pixels, whose range is not known")
    if mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        exact = ImageCms.Flags.NOOPTIMIZE  # without it a coarse table is up to 16 levels off
        image = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB", flags=exact) or image
    key = image.info.get("transparency")
    if mode.startswith("I"):
        return _sixteen_bits(image, rawmode, key)
    if mode == "L" and rawmode in ("L;2", "L;4") and isinstance(key, int):
        key *= 85 if rawmode == "L;2" else 17  # Pillow scales the pixels to 8 bits, but not the transparent one
    if mode == "RGB" and rawmode == "RGB;16B" and isinstance(key, tuple):
        key = tuple(value >> 8 for value in key)
    pixels = np.asarray(image.convert("RGB"))
    if key is not None and mode in ("1", "L", "RGB"):
        pixels = np.where(np.all(pixels == key, axis=2, keepdims=True), np.uint8(255), pixels)
    return pixels


def _sixteen_bits(image: Image.Image, rawmode: str, key: object) -> Pixels:
    """The upper 8 of 16 bits; Pillow's own conversion cuts off at 255 instead."""
    values = np.asarray(image)
    if image.mode == "I" and (values.min() < 0 or values.max() > 65535):
        raise PictureError("32-bit pixels, whose range is not known")
    if isinstance(image, TiffImageFile) and image.tag_v2.get(_PHOTOMETRIC) == _MIN_IS_WHITE:
        values = 65535 - values
    grey = (values >> (4 if rawmode == "I;12" else 8)).astype(np.uint8)
    if isinstance(key, int):
        grey[values == key] = 255
    return np.broadcast_to(grey[:, :, None], (*grey.shape, 3))


def _over_white(image: Image.Image) -> Pixels:
    """round((c a + 255 (255 − a)) / 255) for colours c and alpha a."""
    if image.mode in ("La", "RGBa"):  # colours multiplied by alpha
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if image.mode != "RGBA":
        image = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image)
    return np.asarray(white)


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
    except Exception:  # damaged EXIF spoils no picture
        return 1
    return found


_QUIET = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


@contextmanager
def _refusal() -> Iterator[None]:
    """Make PictureError of whatever a decoder raises in the body, and keep Pillow's warnings to itself."""
    if _QUIET not in warnings.filters:  # warnings.catch_warnings would change them under other threads' feet
        warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        yield
    except PictureError:
        raise
    except Image.DecompressionBombError as error:  # from inside a decoder, before it tells the size
        raise SizeError(f"more than the limit of {PIXEL_LIMIT / 1e6:.0f} megapixels") from error
    except MemoryError as error:
        raise PictureError("too large for the memory that is left") from error
    except Exception as error:  # decoders raise nearly anything: OSError, SyntaxError, struct.error, zlib.error
        truncated = isinstance(error, EOFError) or re.search("truncated|incomplete|unpack", str(error), re.IGNORECASE)
        raise PictureError("truncated" if truncated else "damaged") from error
