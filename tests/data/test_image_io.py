"""Exact pixels over modes, formats and orientations; anything else is refused with a reason, whatever the bytes."""

import io
import re
import struct
import sys
import time
import tracemalloc
import warnings
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
import simplejpeg
from PIL import Image, ImageOps

from svertka.data.image_io import (
    DECODERS,
    PIXEL_LIMIT,
    SUFFIXES,
    DecodingOptions,
    decode_image,
    decode_to_pixels,
    detect_format,
    detect_misnamed,
    measure_intensity_range,
    read_header,
    read_image_size,
    to_rgb,
)
from svertka.data.prediction_inputs import describe_files
from svertka.errors import ImageError, ImageFormatError, UsageError

SIZES = [(23, 37), (5, 3)]  # odd, higher than wide; smaller than a JPEG block

# What a viewer does with the stored pixels, EXIF 2.3 table 6 (orientation: the sides where row 0 and column 0 lie).
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: lambda stored: np.fliplr(np.rot90(stored, -1)),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.fliplr(np.rot90(stored, 1)),
    8: lambda stored: np.rot90(stored, 1),
}


def exif(orientation: int) -> bytes:
    entry = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4)


def save(image: Image.Image, format_name: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format_name, **options)
    return file.getvalue()


def heic(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    pillow_heif.from_pillow(image).save(file, **options)
    return file.getvalue()


def png(rows: np.ndarray, depth: int, color_type: int, orientation: int, transparent: bytes = b"") -> bytes:
    """A PNG written by hand: bit depths that Pillow does not write. `rows`: (H, bytes a row) uint8."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    channels = {0: 1, 2: 3, 4: 2, 6: 4}[color_type]
    width = rows.shape[1] * 8 // (depth * channels)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    header = struct.pack(">IIBBBBB", width, len(rows), depth, color_type, 0, 0, 0)
    extra = chunk(b"tRNS", transparent) if transparent else b""
    extra += chunk(b"eXIf", exif(orientation)[6:])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def noise(size: tuple[int, int], *channels: int, kind: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(7).integers(0, np.iinfo(kind).max + 1, (*size, *channels), kind)


def gray(values: np.ndarray) -> np.ndarray:
    return np.repeat(values.astype(np.uint8)[:, :, None], 3, axis=2)


def over_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    alpha = alpha[:, :, None].astype(np.float64)
    return np.floor((rgb * alpha + 255 * (255 - alpha)) / 255 + 0.5).astype(np.uint8)


def saved_by(format_name: str, mode: str, **options: object) -> Callable:
    """A case: what Pillow writes from pixels of `mode`, and the right RGB."""

    def case(size: tuple[int, int], orientation: int) -> tuple[bytes, np.ndarray]:
        image, expected = MODES[mode](size)
        extra: dict[str, object] = {}
        if format_name == "TIFF":
            extra = {"tiffinfo": {274: orientation}}
        elif format_name in ("PNG", "WebP", "JPEG"):
            extra = {"exif": exif(orientation)}
        return save(image, format_name, **extra, **options), expected

    return case


def _bilevel(size):
    values = noise(size) > 127
    return Image.fromarray(values), gray(values * 255)


def _luminance(size):
    values = noise(size)
    return Image.fromarray(values), gray(values)


def _keyed_luminance(size):
    values = noise(size) // 64 * 64
    image = Image.fromarray(values)
    image.info["transparency"] = 64
    return image, gray(np.where(values == 64, 255, values))


def _luminance_alpha(size):
    values = noise(size, 2)
    return Image.fromarray(values, "LA"), over_white(gray(values[..., 0]), values[..., 1])


def _sixteen(size):
    values = noise(size, kind=np.uint16)
    return Image.fromarray(values), gray(values >> 8)


def _sixteen_big_endian(size):
    values = noise(size, kind=np.uint16)
    return Image.frombytes("I;16B", size[::-1], values.astype(">u2").tobytes()), gray(values >> 8)


def _palette(size, alphas: np.ndarray | int | None = None):
    colors, indices = noise((256,), 3), noise(size)
    image = Image.fromarray(indices, "P")
    image.putpalette(colors.tobytes())
    expected = colors[indices]
    if isinstance(alphas, int):
        image.info["transparency"] = alphas
        expected = np.where(indices[..., None] == alphas, 255, expected).astype(np.uint8)
    elif alphas is not None:
        image.info["transparency"] = alphas.tobytes()
        expected = over_white(expected, alphas[indices])
    return image, expected


def _rgb(size):
    values = noise(size, 3)
    return Image.fromarray(values), values


def _keyed_rgb(size):
    values = noise(size, 3) // 128 * 128
    image = Image.fromarray(values)
    image.info["transparency"] = (128, 0, 128)
    return image, np.where((values == (128, 0, 128)).all(axis=2, keepdims=True), 255, values).astype(np.uint8)


def _rgba(size):
    values = noise(size, 4)
    values[0] = [(0, 0, 0, alpha) for alpha in np.linspace(0, 255, size[1]).astype(int)]
    return Image.fromarray(values), over_white(values[..., :3], values[..., 3])


def _cmyk(size):
    values = noise(size, 4)
    ink = values.astype(np.float64)
    light = 255 - ink[..., 3:]
    return Image.fromarray(values, "CMYK"), (light - np.floor(ink[..., :3] * light / 255 + 0.5)).astype(np.uint8)


MODES = {
    "bilevel": _bilevel,
    "L": _luminance,
    "L with a transparent value": _keyed_luminance,
    "LA": _luminance_alpha,
    "16 bits": _sixteen,
    "16 bits, big-endian": _sixteen_big_endian,
    "palette": _palette,
    "palette with a transparent index": lambda size: _palette(size, 9),
    "palette with alphas": lambda size: _palette(size, noise((256,))),
    "RGB": _rgb,
    "RGB with a transparent color": _keyed_rgb,
    "RGBA": _rgba,
    "CMYK": _cmyk,
}


def png_bits(depth: int, key: int | None = None) -> Callable:
    def case(size, orientation):
        values = noise(size) >> (8 - depth)
        bits = np.unpackbits(values[..., None], axis=2)[..., -depth:].reshape(size[0], -1)
        rows = np.packbits(bits, axis=1)
        width = rows.shape[1] * 8 // depth  # as many pixels as fill the last byte
        padded = np.pad(values, ((0, 0), (0, width - size[1])))
        expected = padded * (255 // (2**depth - 1))
        if key is not None:
            expected = np.where(padded == key, 255, expected)
        return png(rows, depth, 0, orientation, b"" if key is None else struct.pack(">H", key)), gray(expected)

    return case


def png_sixteen(color_type: int, *, key: bool = False) -> Callable:
    def case(size, orientation):
        channels = {0: 1, 2: 3, 4: 2, 6: 4}[color_type]
        values = noise(size, channels, kind=np.uint16)
        values[:2, :2] = 4711
        data = png(
            values.astype(">u2").view(np.uint8).reshape(size[0], -1),
            16,
            color_type,
            orientation,
            struct.pack(">H", 4711) * channels if key else b"",
        )
        high = (values >> 8).astype(np.uint8)
        expected = high[..., :3] if channels > 2 else gray(high[..., 0])
        if channels in (2, 4):
            expected = over_white(expected, high[..., -1])
        if key:
            expected = np.where((values == 4711).all(axis=2, keepdims=True), 255, expected).astype(np.uint8)
        return data, expected

    return case


TURNED = {  # formats that carry an orientation
    **{f"PNG {mode}": saved_by("PNG", mode) for mode in MODES if mode not in ("CMYK", "16 bits, big-endian")},
    **{f"PNG of {depth} bits": png_bits(depth) for depth in (1, 2, 4)},
    **{f"PNG of {depth} bits, keyed": png_bits(depth, key=1) for depth in (1, 2, 4)},
    **{f"PNG of 16 bits, color type {kind}": png_sixteen(kind) for kind in (0, 2, 4, 6)},
    **{f"PNG of 16 bits, color type {kind}, keyed": png_sixteen(kind, key=True) for kind in (0, 2)},
    **{
        f"TIFF {mode}": saved_by("TIFF", mode)
        for mode in ("bilevel", "L", "LA", "16 bits", "16 bits, big-endian", "palette", "RGB", "RGBA", "CMYK")
    },
    **{
        f"TIFF {mode} {compression}": saved_by("TIFF", mode, compression=compression)
        for mode in ("16 bits", "RGB", "RGBA", "CMYK")
        for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits")
    },
    "TIFF fax": saved_by("TIFF", "bilevel", compression="group4"),
    **{f"WebP {mode}": saved_by("WebP", mode, lossless=True, exact=True) for mode in ("L", "RGB", "RGBA")},
}
UNTURNED = {
    **{f"BMP {mode}": saved_by("BMP", mode) for mode in ("bilevel", "L", "palette", "RGB")},
    **{
        f"GIF {mode}": saved_by("GIF", mode) for mode in ("bilevel", "L", "palette", "palette with a transparent index")
    },
}
JPEGS = {
    "L": saved_by("JPEG", "L"),
    "RGB": saved_by("JPEG", "RGB", subsampling=0),
    "RGB 4:2:2": saved_by("JPEG", "RGB", subsampling=1),
    "RGB 4:2:0": saved_by("JPEG", "RGB", subsampling=2),
    "RGB progressive": saved_by("JPEG", "RGB", progressive=True),
    "RGB without YCbCr": saved_by("JPEG", "RGB", keep_rgb=True),
    "CMYK": saved_by("JPEG", "CMYK"),
}


@pytest.mark.sample(250)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("case", TURNED)
def test_lossless_pixels_are_exact_and_upright(case, orientation, size):
    data, stored = TURNED[case](size, orientation)
    expected = UPRIGHT[orientation](stored)
    pixels = decode_to_pixels(data)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, expected)
    np.testing.assert_array_equal(to_rgb(Image.open(io.BytesIO(data))), expected)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("case", UNTURNED)
def test_formats_without_orientation_are_exact(case, size):
    data, expected = UNTURNED[case](size, 1)
    np.testing.assert_array_equal(decode_to_pixels(data), expected)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("case", JPEGS)
def test_jpeg_is_what_pillow_decodes_turned_upright(case, orientation, size):
    data, _ = JPEGS[case](size, orientation)
    pillow = Image.open(io.BytesIO(data))
    turned = np.asarray(ImageOps.exif_transpose(pillow).convert("RGB"))
    pixels = decode_to_pixels(data)
    np.testing.assert_array_equal(pixels, turned)  # both are libjpeg-turbo with its accurate transform: exact
    np.testing.assert_array_equal(pixels, UPRIGHT[orientation](np.asarray(pillow.convert("RGB"))))
    np.testing.assert_array_equal(to_rgb(pillow), turned)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_size_is_that_of_the_upright_pixels(orientation, size):
    for name, case in (TURNED | UNTURNED | JPEGS).items():
        data, stored = case(size, orientation)
        upright = stored if name in UNTURNED else UPRIGHT[orientation](stored)
        assert read_image_size(data) == upright.shape[:2], name


def late_exif(data: bytes) -> bytes:
    """A PNG with its EXIF behind the pixels."""
    start = data.index(b"eXIf") - 4
    end = start + 12 + struct.unpack(">I", data[start : start + 4])[0]
    return data[:start] + data[end:-12] + data[start:end] + data[-12:]


def test_an_image_whose_decoder_is_not_installed_says_what_to_install(monkeypatch):
    image = Image.fromarray(noise((9, 7), 3))
    assert decode_to_pixels(heic(image)).shape == (9, 7, 3)
    monkeypatch.setitem(sys.modules, "pillow_heif.as_plugin", None)
    monkeypatch.setattr("PIL.features.check", lambda name: False)
    for data, reason in ((heic(image), r"pip install 'svertka\[heif\]'"), (save(image, "AVIF"), "upgrade Pillow")):
        with pytest.raises(ImageFormatError, match=reason):
            decode_to_pixels(data)


def test_size_needs_no_pixels(shared_data, monkeypatch):
    late = late_exif(TURNED["PNG RGB"]((23, 37), 6)[0])
    assert read_image_size(late) == decode_to_pixels(late).shape[:2] == (37, 23)
    photographs = [path.read_bytes() for path in sorted((shared_data / "cats-dogs" / "cat").iterdir())[:20]]
    sizes = [decode_to_pixels(data).shape[:2] for data in photographs]
    monkeypatch.setattr(simplejpeg, "decode_jpeg", None)
    monkeypatch.setattr(Image.Image, "load", None)
    assert [read_image_size(data) for data in photographs] == sizes
    assert read_image_size(ONE_OF_EACH["PNG"]) == read_image_size(ONE_OF_EACH["JPEG"][:-100]) == (40, 56)


def test_photographs_are_what_pillow_decodes(shared_data):
    paths = [*sorted(shared_data.glob("imagenet-samples/*"))[::8], *sorted(shared_data.glob("cats-dogs/*/*"))[::100]]
    assert len(paths) > 15
    for path in paths:
        expected = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        np.testing.assert_array_equal(decode_to_pixels(path.read_bytes()), np.asarray(expected))


def test_min_side_reduces_photographs_unnoticed(shared_data):
    reduced = 0
    for path in sorted(shared_data.glob("imagenet-samples/*"))[::4]:
        data = path.read_bytes()
        full, small = decode_to_pixels(data), decode_to_pixels(data, min_side=40)
        factor = round(full.shape[0] / small.shape[0])
        assert small.shape == (*(-(-side // factor) for side in full.shape[:2]), 3)
        assert factor in (1, 2, 4, 8)
        assert min(small.shape[:2]) >= 3 * 40 or factor == 1
        assert min(full.shape[:2]) < 2 * factor * 3 * 40
        reduced += factor > 1
        squares = [
            np.asarray(Image.fromarray(one).resize((40, 40), Image.Resampling.BILINEAR)) for one in (full, small)
        ]
        assert np.abs(squares[0].astype(int) - squares[1]).mean() < 4  # levels; another image differs by 50
        assert decode_to_pixels(data, min_side=10**6).shape == full.shape
    assert reduced > 10


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_min_side_holds_on_both_jpeg_paths(mode):
    data = save(Image.fromarray(noise((800, 600), len(mode)), mode), "JPEG")
    assert decode_to_pixels(data, min_side=51).shape == (400, 300, 3)
    assert decode_to_pixels(data, min_side=50).shape == (200, 150, 3)
    assert decode_to_pixels(data, min_side=101).shape == (800, 600, 3)


def test_jpeg_with_stray_bytes_is_readable():
    data = save(Image.fromarray(noise((64, 64), 3)), "JPEG")
    stray = data[:-2] + b"\0\0\0" + data[-2:]  # libjpeg: "extraneous bytes before marker"
    np.testing.assert_array_equal(decode_to_pixels(stray), decode_to_pixels(data))


def test_cielab_tiff_is_close_to_the_formula():
    lightness, a, b = noise((16, 16)) // 2 + 64, noise((16, 16)) % 60 - 30.0, noise((16, 16)).T % 60 - 30.0
    stored = np.stack([lightness, a.astype(np.int8).view(np.uint8), b.astype(np.int8).view(np.uint8)], axis=2)
    data = save(Image.fromarray(stored.astype(np.uint8), "LAB"), "TIFF")
    middle = (lightness / 2.55 + 16) / 116
    roots = np.stack([middle + a / 500, middle, middle - b / 200], axis=2)
    xyz = np.where(roots > 6 / 29, roots**3, 3 * (6 / 29) ** 2 * (roots - 4 / 29)) * [0.96422, 1, 0.82521]  # D50
    to_linear = np.array(  # adapted to the D65 of sRGB by Bradford's method
        [
            [3.1338561, -1.6168667, -0.4906146],
            [-0.9787684, 1.9161415, 0.0334540],
            [0.0719453, -0.2289914, 1.4052427],
        ]
    )
    linear = xyz @ to_linear.T
    inside = ((linear > 0) & (linear < 1)).all(axis=2)  # what sRGB cannot show is clipped one way or the other
    assert inside.mean() > 0.5
    linear = np.clip(linear, 0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055) * 255
    assert np.abs(decode_to_pixels(data) - srgb)[inside].max() <= 1  # level


def gray_tiff(body: bytes, width: int, height: int, bits: int, photometric: int) -> bytes:
    """An uncompressed gray TIFF written by hand: kinds that Pillow does not write."""
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 200, 277: 1, 278: height, 279: len(body)}
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return (b"II*\0" + struct.pack("<IH", 8, len(tags)) + directory + bytes(4)).ljust(200, b"\0") + body


def test_min_is_white_tiff():
    wide, narrow = noise((4, 6), kind=np.uint16), noise((4, 6))
    np.testing.assert_array_equal(decode_to_pixels(gray_tiff(wide.tobytes(), 6, 4, 16, 1)), gray(wide >> 8))
    np.testing.assert_array_equal(decode_to_pixels(gray_tiff(wide.tobytes(), 6, 4, 16, 0)), gray((65535 - wide) >> 8))
    np.testing.assert_array_equal(decode_to_pixels(gray_tiff(narrow.tobytes(), 6, 4, 8, 0)), gray(255 - narrow))


def test_twelve_bit_tiff():
    values = noise((4, 6), kind=np.uint16) >> 4
    pairs = values.reshape(-1, 2).astype(np.int64)
    packed = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], axis=1)
    data = gray_tiff(packed.astype(np.uint8).tobytes(), 6, 4, 12, 1)
    np.testing.assert_array_equal(decode_to_pixels(data), gray(values >> 4))


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate"])
@pytest.mark.parametrize("mode", ["1", "L", "I;16", "P"])
@pytest.mark.parametrize("photometric", [0, 1])
def test_one_band_is_the_same_in_a_plane_of_its_own(mode, compression, photometric):
    """Pillow takes the first letter of "1;I", "L;I" and "I;16" alone: other pixels, without an error."""
    if mode in ("I;16", "P") and photometric == 0:
        return
    image = Image.fromarray(noise((9, 7), kind=np.uint16 if mode == "I;16" else np.uint8))
    image = image if mode == "I;16" else image.convert(mode)
    tags = {} if mode == "P" else {262: photometric}
    one, other = (save(image, "TIFF", compression=compression, tiffinfo=tags | {284: planes}) for planes in (1, 2))
    assert one != other
    np.testing.assert_array_equal(decode_to_pixels(other), decode_to_pixels(one))


@pytest.mark.parametrize("planes", [1, 2])
def test_gray_with_bands_of_unknown_meaning_is_refused(planes):
    """Pillow shows the first of two channels, such as those of a microscope, alone."""
    both = any_tiff(noise((9, 7), 2), 1, planes, "<", extra=[0])
    with pytest.raises(ImageError, match=r"^unsupported: 2 bands of 8-bit unsigned integers"):
        decode_to_pixels(both)


def any_tiff(values: np.ndarray, kind: int, planes: int, order: str, extra: Sequence[int] = ()) -> bytes:
    """An uncompressed TIFF of `values` (H, W, C).

    `kind` is its SampleFormat, `planes` its PlanarConfiguration, `extra` its ExtraSamples; without any, two bands or
    more are called RGB.
    """
    height, width, bands = values.shape
    stored = values if planes == 1 else np.moveaxis(values, 2, 0)
    body = stored.astype(values.dtype.newbyteorder(order)).tobytes()
    each = len(body) // (1 if planes == 1 else bands)
    count, first = len(body) // each, 1000
    longs = {256: [width], 257: [height], 278: [height], 279: [each] * count}
    longs[273] = [first + each * number for number in range(count)]
    shorts = {
        258: [values.itemsize * 8] * bands,
        259: [1],
        262: [2 if bands - len(extra) > 1 else 1],
        277: [bands],
        284: [planes],
    }
    shorts[339] = [kind] * bands
    if extra:
        shorts[338] = list(extra)
    directory, beyond = b"", b""
    for tag, numbers in sorted((longs | shorts).items()):
        letter = "I" if tag in longs else "H"
        content = struct.pack(order + letter * len(numbers), *numbers).ljust(4, b"\0")
        if len(content) > 4:
            place = struct.pack(order + "I", 500 + len(beyond))
            content, beyond = place, beyond + content
        directory += struct.pack(order + "HHI", tag, 4 if tag in longs else 3, len(numbers)) + content
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(longs | shorts))
    return ((start + directory + bytes(4)).ljust(500, b"\0") + beyond).ljust(first, b"\0") + body


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("planes", [1, 2])
@pytest.mark.parametrize("bands", [1, 2, 3, 5])
@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "i1", "i2", "f2", "f4", "f8", "c8"])
def test_every_kind_of_tiff_is_exact_or_unsupported(dtype, bands, planes, order):
    """Pillow reads signed bytes, and 16 bits in separate planes, as other values without an error."""
    values = noise((9, 7), bands).astype(np.int64) - (128 if dtype[0] == "i" else 0)
    values = values * (257 if dtype == "u2" else 1) + (70000 if dtype == "u4" else 0)
    kind = {"u": 1, "i": 2, "f": 3, "c": 6}[dtype[0]]
    data = any_tiff(values.astype(dtype), kind, planes, order)
    if dtype in ("u1", "u2") and bands in (1, 3) and (planes == 1 or dtype == "u1" or bands == 1):
        expected = (values >> (8 if dtype == "u2" else 0)).astype(np.uint8)
        np.testing.assert_array_equal(decode_to_pixels(data), np.broadcast_to(expected, (9, 7, 3)))
    else:
        with pytest.raises(ImageError, match=rf"^unsupported: {bands} bands? of .*bit"):
            decode_to_pixels(data)


def test_animation_gives_its_first_frame():
    frames = [Image.fromarray(noise((8, 8)) // 2 + shift) for shift in (0, 100)]
    for format_name, options in (("GIF", {}), ("WebP", {"lossless": True}), ("PNG", {}), ("TIFF", {})):
        data = save(frames[0], format_name, save_all=True, append_images=frames[1:], **options)
        np.testing.assert_array_equal(decode_to_pixels(data), gray(np.asarray(frames[0])))


@pytest.mark.parametrize("mode", ["RGBX", "HSV", "YCbCr", "I", "RGBa", "La", "PA", "1", "CMYK"])
def test_as_rgb_takes_every_mode(mode):
    image = Image.fromarray(noise((6, 9), 3))
    steps = {"RGBa": ("RGBA", "RGBa"), "La": ("LA", "La"), "PA": ("P", "PA")}
    for step in steps.get(mode, ("L", mode) if mode == "I" else (mode,)):
        image = image.convert(step)
    if mode == "I":
        expected = gray(np.asarray(image) >> 8)
    elif mode in steps:
        expected = np.asarray(image.convert({"RGBa": "RGBA", "La": "LA", "PA": "RGBA"}[mode]).convert("RGB"))
    else:
        expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(to_rgb(image), expected)


def test_as_rgb_takes_arrays():
    rgba = noise((6, 9), 4)
    np.testing.assert_array_equal(to_rgb(rgba[..., 0]), gray(rgba[..., 0]))
    np.testing.assert_array_equal(to_rgb(rgba[..., :1]), gray(rgba[..., 0]))
    np.testing.assert_array_equal(to_rgb(rgba[..., :3]), rgba[..., :3])
    np.testing.assert_array_equal(to_rgb(rgba), over_white(rgba[..., :3], rgba[..., 3]))
    for wrong in (rgba[..., :2], rgba / 255, rgba[0, 0], rgba[:0], np.zeros((1, 2, 3, 3), np.uint8)):
        with pytest.raises(UsageError, match="uint8"):
            to_rgb(wrong)


REASONS = {
    "truncated",
    "damaged",
    "empty file",
    "no pixels",
    "more than the limit of 100 megapixels",
}

ONE_OF_EACH = {
    "JPEG": save(_rgb((40, 56))[0], "JPEG"),
    "PNG": save(_rgb((40, 56))[0], "PNG"),
    "WebP": save(_rgb((40, 56))[0], "WebP", lossless=True),
    "BMP": save(_rgb((40, 56))[0], "BMP"),
    "TIFF": save(_rgb((40, 56))[0], "TIFF", compression="tiff_lzw"),
    "GIF": save(_palette((40, 56))[0], "GIF"),
    "AVIF": save(_rgb((40, 56))[0], "AVIF"),
    "HEIC": heic(_rgb((40, 56))[0]),
    "JPEG 2000": save(_rgb((40, 56))[0], "JPEG2000"),
    "PNM": save(_rgb((40, 56))[0], "PPM"),
}


@pytest.mark.parametrize("name", ONE_OF_EACH)
@pytest.mark.parametrize("left", [0.3, 0.5, 0.9])
def test_truncated(name, left):
    data = ONE_OF_EACH[name]
    with pytest.raises(ImageError, match=r"^(truncated|damaged)$"):
        decode_to_pixels(data[: int(len(data) * left)])


@pytest.mark.parametrize("case", [case for case in TURNED if case.startswith("PNG")])
@pytest.mark.parametrize("left", [0.5, 0.7])
def test_a_png_whose_end_is_zeros_is_damaged(case, left):
    """As an interrupted download leaves it. Pillow decodes zeros to some pixels, whatever the checksum says."""
    data = TURNED[case]((23, 37), 1)[0]
    kept = int(len(data) * left)
    with pytest.raises(ImageError, match=r"^(truncated|damaged)$"):
        decode_to_pixels(data[:kept] + bytes(len(data) - kept))


@pytest.mark.parametrize("min_side", [None, 20])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_ends_early_is_truncated(min_side, progressive):
    data = save(_rgb((400, 400))[0], "JPEG", progressive=progressive)
    for length in (len(data) // 2, len(data) - 100, len(data) - 1):
        with pytest.raises(ImageError, match=r"^truncated$"):
            decode_to_pixels(data[:length], min_side=min_side)


def test_a_damaged_jpeg_is_refused():
    data = bytearray(save(_rgb((200, 200))[0], "JPEG"))
    data[len(data) // 2 : len(data) // 2 + 40] = bytes(range(1, 41))
    data[len(data) // 2 + 60 : len(data) // 2 + 62] = b"\xff\xd9"
    with pytest.raises(ImageError):
        decode_to_pixels(bytes(data))


def test_empty_and_foreign():
    with pytest.raises(ImageError, match=r"^empty file$"):
        decode_to_pixels(b"")
    icon = save(_rgb((16, 16))[0], "ICO")
    for foreign in (b"\0", b"<html>", b"%PDF-1.7", b"P7\nWIDTH 4", icon, bytes(1000)):
        for reads in (decode_to_pixels, read_image_size):
            with pytest.raises(ImageError, match=r"^not an image"):
                reads(foreign)


def test_the_content_decides_and_a_wrong_suffix_is_reported():
    assert set(SUFFIXES.values()) == set(DECODERS)
    for name, data in ONE_OF_EACH.items():
        assert detect_format(data) == name
        for suffix, claimed in SUFFIXES.items():
            assert detect_misnamed(f"a/b{suffix.upper()}", data) == (None if claimed == name else name)
        assert detect_misnamed("a/b.image", data) is None


def test_floating_point_and_wide_integers_are_refused():
    for values in (np.ones((4, 4), np.float32), np.full((4, 4), 70000, np.int32)):
        with pytest.raises(ImageError, match=r"^unsupported: 1 band of .* whose range is not known$"):
            decode_to_pixels(save(Image.fromarray(values), "TIFF"))


def resized_header(name: str, width: int, height: int) -> bytes:
    """One of each, claiming another size in its header."""
    data = bytearray(ONE_OF_EACH[name])
    if name == "JPEG":
        at = next(at for at in range(len(data)) if data[at : at + 2] in (b"\xff\xc0", b"\xff\xc2"))
        struct.pack_into(">HH", data, at + 5, height, width)
    elif name == "PNG":
        struct.pack_into(">II", data, 16, width, height)
        struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))
    elif name == "WebP":
        at = data.index(b"VP8L") + 9
        struct.pack_into("<I", data, at, (width - 1) | (height - 1) << 14)
    elif name == "BMP":
        struct.pack_into("<ii", data, 18, width, height)
    elif name == "TIFF":
        for tag, value in ((256, width), (257, height)):
            at = next(at for kind in (3, 4) if (at := data.find(struct.pack("<HHI", tag, kind, 1))) > 0)
            struct.pack_into("<HI", data, at + 2, 4, 1)
            struct.pack_into("<I", data, at + 8, value)
    elif name == "GIF":
        struct.pack_into("<HH", data, 6, width, height)
    elif name in ("AVIF", "HEIC"):
        struct.pack_into(">II", data, data.rindex(b"ispe") + 8, width, height)
    elif name == "JPEG 2000":
        struct.pack_into(">II", data, data.index(b"ihdr") + 4, height, width)
        struct.pack_into(">II", data, data.index(b"\xff\x4f\xff\x51") + 8, width, height)
    elif name == "PNM":
        data[: data.index(b"255")] = f"P6\n{width} {height}\n".encode()
    return bytes(data)


OVER_LARGE = r"^120 megapixels(, more than the limit of 100; make| of WebP take 2.04 GB)"


@pytest.mark.parametrize("name", ONE_OF_EACH)
@pytest.mark.parametrize("min_side", [None, 64])
def test_over_large_is_refused_before_decoding(name, min_side):
    if name == "HEIC" or (name == "JPEG" and min_side):
        pytest.skip("such a JPEG is decoded reduced; libheif finds the header at odds with the rest")
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match=OVER_LARGE):
            decode_to_pixels(resized_header(name, 12000, 10000), min_side=min_side)
        with pytest.raises(ImageError, match=r"^120 megapixels"):
            read_image_size(resized_header(name, 12000, 10000))
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_an_image_at_the_limit_is_read():
    side = int(PIXEL_LIMIT**0.5)
    data = save(Image.new("1", (side, side)), "PNG")
    pixels = decode_to_pixels(data)  # Pillow itself would warn from 89 megapixels on
    assert pixels.shape == (side, side, 3)
    assert not pixels.any()


def tiled_tiff(tile: int) -> bytes:
    """A gray image of 16 × 16 in one compressed tile of `tile` × `tile`."""
    body = zlib.compress(bytes(16 * 16))
    tags = {256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 277: 1, 322: tile, 323: tile, 324: 200, 325: len(body)}
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return (b"II*\0" + struct.pack("<IH", 8, len(tags)) + directory + bytes(4)).ljust(200, b"\0") + body


def test_tiles_beyond_the_limit_are_refused():
    assert not decode_to_pixels(tiled_tiff(16)).any()
    with pytest.raises(ImageError, match=r"^25600 megapixels, more than the limit of 100; make it"):
        decode_to_pixels(tiled_tiff(160_000))


def test_compressed_text_does_not_fill_memory():
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    bomb = b"Comment\0\0" + zlib.compress(bytes(200_000_000), 9)
    data = ONE_OF_EACH["PNG"]
    long = b"Comment\0" + b"x" * 3_000_000
    many = chunk(b"tEXt", b"a\0" + b"b" * 900_000) * 80
    for text in (chunk(b"zTXt", bomb), chunk(b"iCCP", bomb), chunk(b"zTXt", bomb) * 3, chunk(b"tEXt", long), many):
        tracemalloc.start()
        try:
            np.testing.assert_array_equal(decode_to_pixels(data[:33] + text + data[33:]), decode_to_pixels(data))
            assert tracemalloc.get_traced_memory()[1] < 20 * 2**20 + 3 * len(text)
        finally:
            tracemalloc.stop()


def mutants(seeds: list[bytes], count: int) -> list[bytes]:
    rng = np.random.default_rng(2026)
    out = []
    for number in range(count):
        data = bytearray(seeds[number % len(seeds)])
        other = seeds[int(rng.integers(len(seeds)))]
        kind = rng.integers(5)
        if kind <= 1:  # flips, in the header or anywhere
            reach = min(len(data), 200) if kind == 0 else len(data)
            for at in rng.integers(0, reach, rng.integers(1, 20)):
                data[at] = rng.integers(256)
        elif kind == 2:
            data = data[: rng.integers(len(data))]
        elif kind == 3:
            data = data[: rng.integers(len(data))] + other[rng.integers(len(other)) :]
        else:
            start = int(rng.integers(len(data)))
            data[start : start + int(rng.integers(1, 64))] = rng.bytes(int(rng.integers(64)))
        out.append(bytes(data))
    return out


def seeds() -> list[bytes]:
    made = [case(SIZES[0], 6)[0] for case in (*TURNED.values(), *UNTURNED.values(), *JPEGS.values())]
    return [*made, *ONE_OF_EACH.values()]


def hostile_files() -> dict[str, bytes]:
    """Files that are made to loop, to nest or to promise more than they hold."""
    tiff = ONE_OF_EACH["TIFF"]
    at = struct.unpack("<I", tiff[4:8])[0]
    count = struct.unpack("<H", tiff[at : at + 2])[0]
    looped = tiff[: at + 2 + 12 * count] + struct.pack("<I", at) + tiff[at + 6 + 12 * count :]
    nested = struct.pack("<H", 4) + b"".join(
        struct.pack("<HHII", tag, 4, 1, 8) for tag in (0x8769, 0x8825, 330, 0xA005)
    )
    exif = b"Exif\0\0II*\0\x08\0\0\0" + nested + struct.pack("<I", 8)
    jpeg = ONE_OF_EACH["JPEG"]
    app1 = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    png = ONE_OF_EACH["PNG"]
    empty = struct.pack(">I", 0) + b"teSt" + struct.pack(">I", zlib.crc32(b"teSt"))
    return {
        "a TIFF whose directories lead back": looped,
        "a directory of 65,535 entries": tiff[:at] + b"\xff\xff" + tiff[at + 2 :],
        "EXIF that leads back": jpeg[:2] + app1 + jpeg[2:],
        "EXIF of 65,535 entries": jpeg[:2] + app1.replace(nested[:2], b"\xff\xff") + jpeg[2:],
        "20,000 empty chunks": png[:33] + empty * 20_000 + png[33:],
        "a chunk of 4 GB": png[:33] + b"\xff\xff\xff\xffIDAT" + png[41:],
        "49 megapixels of WebP in 2 kB": resized_header("WebP", 7000, 7000),
        "16,383 pixels a side": resized_header("WebP", 16383, 16383),
        "boxes in boxes": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0\0\x10\0meta" * 2000,
        "a palette that lacks": png[:24] + b"\x08\x03" + png[26:],
        "a plain PBM that never ends": b"P1 4000 4000\n#" + b"#" * 10**6,
        "a number of a million digits": b"P5 " + b"9" * 10**6 + b" 1 255\n",
    }


@pytest.mark.parametrize("name", hostile_files())
@pytest.mark.parametrize("read", [decode_to_pixels, read_image_size, read_header, measure_intensity_range])
def test_files_made_to_hurt_end_in_pixels_or_a_reason(name, read):
    data = hostile_files()[name]
    began = time.process_time()
    tracemalloc.start()
    try:
        reason = ""
        try:
            read(data)
        except ImageError as error:
            reason = str(error)
        assert re.fullmatch(".{0,200}", reason)
        assert tracemalloc.get_traced_memory()[1] < 2**27
        assert time.process_time() - began < 20  # seconds of this process, whatever else the machine does
    finally:
        tracemalloc.stop()


def test_mutated_images_give_pixels_or_a_reason(large_count):
    outcomes = {"pixels": 0, "refused": 0}
    formats = len(seeds())
    for number, data in enumerate(mutants(seeds(), large_count(300, 5000))):
        try:
            side = 4 if number // formats % 2 else None
            pixels = decode_to_pixels(data, side, DecodingOptions(intensity_range=(0, 1023) if number % 3 else None))
        except ImageError as error:
            reason = str(error)
            assert reason in REASONS or re.match(
                "unsupported|[0-9]+ (mega|scans)|not an image|takes|HEIC|AVIF", reason
            ), reason
            outcomes["refused"] += 1
        else:
            assert number // formats % 2 or read_image_size(data) == pixels.shape[:2], number
            assert pixels.dtype == np.uint8, number
            assert pixels.ndim == 3, number
            assert pixels.shape[2] == 3, number
            outcomes["pixels"] += 1
    assert min(outcomes.values()) > 20, outcomes  # both ends of the decoders were reached


def test_threads_read_what_one_thread_reads_and_warnings_stay_inside():
    images = mutants(seeds(), 400)

    def outcome(data: bytes) -> object:
        try:
            return zlib.crc32(decode_to_pixels(data).tobytes())
        except ImageError as error:
            return str(error)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        alone = [outcome(data) for data in images]
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(outcome, images)) == alone


def test_a_fourth_band_that_is_no_alpha_is_told_and_the_colors_are_kept(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 4), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(buffer, "TIFF")
    is_alpha, is_other = (struct.pack("<HHIHH", 338, 3, 1, kind, 0) for kind in (2, 0))  # ExtraSamples
    assert buffer.getvalue().count(is_alpha) == 1
    for name, data in (("alpha", buffer.getvalue()), ("other", buffer.getvalue().replace(is_alpha, is_other))):
        header = read_header(data)
        assert header.has_unused_parts == decode_image(data).has_unused_parts == (name == "other")
        if name == "other":
            np.testing.assert_array_equal(decode_to_pixels(data), pixels[..., :3])
            (tmp_path / "other.tif").write_bytes(data)
    (said,) = describe_files([str(tmp_path / "other.tif")])
    assert f"only the first page and these three bands are used: {tmp_path / 'other.tif'}; save each" in said
