"""16-bit values of every kind of file, brought to 8 bits by the range that is used."""

import io
import itertools
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from svertka.data.image_io import DecodingOptions, decode_to_pixels, measure_intensity_range, read_header, to_rgb
from svertka.data.rgb_conversion import FULL, make_shade_table, shades_to_16_bit
from svertka.errors import ImageError

RANGES = [None, (0, 255), (0, 1023), (0, 4095), (0, 65535), (30_000, 31_000), (100, 140)]
RNG = np.random.default_rng(5)


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(values: np.ndarray, key: tuple[int, ...] = ()) -> bytes:
    """(H, W, 1 to 4) uint16 as a PNG of 16 bits: gray, gray and alpha, RGB, RGBA."""
    height, width, bands = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[bands], 0, 0, 0)
    transparent = chunk(b"tRNS", struct.pack(f">{len(key)}H", *key)) if key else b""
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + transparent
    return start + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(
    values: np.ndarray, order: str = "<", *, deflate: bool = False, photometric: int | None = None, kind: int = 1
) -> bytes:
    """(H, W, bands) as a TIFF of one strip, of the byte order `order`; `kind`: 1 unsigned, 2 signed, 3 floating."""
    height, width, bands = values.shape
    body = values.astype(values.dtype.newbyteorder(order)).tobytes()
    body = zlib.compress(body) if deflate else body
    bits = values.dtype.itemsize * 8
    if photometric is None:
        photometric = 2 if bands in (3, 4) else 1
    entries = [(256, 4, width), (257, 4, height), (259, 3, 8 if deflate else 1), (262, 3, photometric)]
    entries += [(273, 4, 400), (277, 3, bands), (278, 4, height), (279, 4, len(body))]
    lists = [(258, [bits] * bands), (339, [kind] * bands)] + ([(338, [2])] if bands == 4 else [])
    directory, extra = {}, b""
    for tag, type_, value in entries:
        shape = "H2x" if type_ == 3 else "I"
        directory[tag] = struct.pack(f"{order}HHI{shape}", tag, type_, 1, value)
    for tag, numbers in lists:
        packed = struct.pack(f"{order}{len(numbers)}H", *numbers)
        if len(packed) > 4:
            value, extra = struct.pack(f"{order}I", 250 + len(extra)), extra + packed
        else:
            value = packed.ljust(4, b"\0")
        directory[tag] = struct.pack(f"{order}HHI", tag, 3, len(numbers)) + value
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(directory))
    table = b"".join(directory[tag] for tag in sorted(directory)) + bytes(4)
    return ((start + table).ljust(250, b"\0") + extra).ljust(400, b"\0") + body


def shade(values: np.ndarray, used: tuple[int, int] | None) -> np.ndarray:
    """The right shade, in floating point: for a power of two values the upper bits, else the nearest."""
    low, high = used or FULL
    clipped = values.astype(np.float64).clip(low, high) - low
    count = high - low + 1
    exact = np.floor(clipped * 256 / count) if count % 256 == 0 else np.floor(clipped * 255 / (high - low) + 0.5)
    return exact.astype(np.uint8)


KINDS = {
    "PNG": lambda values: png(values),
    "TIFF": lambda values: tiff(values),
    "TIFF, big-endian": lambda values: tiff(values, ">"),
    "TIFF, deflated": lambda values: tiff(values, deflate=True),
    "TIFF, big-endian, deflated": lambda values: tiff(values, ">", deflate=True),
}


@pytest.mark.parametrize("used", RANGES, ids=str)
@pytest.mark.parametrize("bands", [1, 3, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_all_16_bits_are_brought_to_8_by_the_range(kind, bands, used):
    low, high = used or FULL
    values = RNG.integers(max(low - 50, 0), min(high + 50, 65535), (37, 23, bands)).astype(np.uint16)
    if bands == 4:
        values[..., 3] = 65535
    expected = shade(np.broadcast_to(values[..., :3], (37, 23, 3)), used)
    data = KINDS[kind](values)
    np.testing.assert_array_equal(decode_to_pixels(data, decoding=DecodingOptions(intensity_range=used)), expected)
    np.testing.assert_array_equal(to_rgb(Image.open(io.BytesIO(data)), used), expected)
    if bands < 4:
        np.testing.assert_array_equal(to_rgb(values, used), expected)


def test_alpha_and_a_transparent_color_of_16_bits():
    decoding = DecodingOptions(intensity_range=(0, 1023))
    values = RNG.integers(0, 1024, (9, 7, 2)).astype(np.uint16)
    values[..., 1] = RNG.choice([0, 65535], (9, 7))
    expected = np.where(values[..., 1:] == 0, 255, shade(values[..., :1], (0, 1023)))
    np.testing.assert_array_equal(decode_to_pixels(png(values), decoding=decoding), np.repeat(expected, 3, axis=2))
    colors = RNG.integers(0, 2, (9, 7, 3)).astype(np.uint16) * 515  # of which two differ in the lower bits alone
    colors[0, 0] = (515, 0, 516)
    expected = np.where((colors == (515, 0, 515)).all(axis=2, keepdims=True), 255, shade(colors, (0, 1023)))
    np.testing.assert_array_equal(decode_to_pixels(png(colors, (515, 0, 515)), decoding=decoding), expected)


def test_the_values_that_an_image_uses():
    for top in (1000, 4000, 65535):
        for bands in (1, 3):
            values = RNG.integers(0, top + 1, (200, 200, bands)).astype(np.uint16)
            values[0, 0] = 65535  # one hot pixel
            low, high = measure_intensity_range(png(values))
            assert 0 <= low < top * 0.001 + 2
            assert top * 0.999 - 2 <= high <= top
    assert measure_intensity_range(png(np.full((3, 3, 1), 700, np.uint16))) == (700, 700)


@pytest.mark.parametrize(("kind", "bands"), [("PNG", 2), *itertools.product(KINDS, (1, 3, 4))])
def test_the_header_names_the_16_bit_files_whose_values_are_measured(kind, bands):
    values = RNG.integers(0, 1024, (37, 23, bands)).astype(np.uint16)
    data = KINDS[kind](values)
    assert read_header(data).deep
    assert measure_intensity_range(data)[1] <= 1023


def test_8_bits_and_files_that_say_their_range_use_no_values():
    for image, format_name in ((Image.new("RGB", (4, 4)), "PNG"), (Image.new("L", (4, 4)), "JPEG")):
        file = io.BytesIO()
        image.save(file, format_name)
        assert measure_intensity_range(file.getvalue()) is None
        np.testing.assert_array_equal(
            decode_to_pixels(file.getvalue(), decoding=DecodingOptions(intensity_range=(0, 1023))),
            decode_to_pixels(file.getvalue()),
        )
    values = np.arange(12, dtype=np.uint16).reshape(3, 4) * 93  # to 1023, as the header says
    pgm = b"P5 4 3 1023\n" + values.astype(">u2").tobytes()
    assert measure_intensity_range(pgm) is None
    for used in (None, (0, 2047)):
        shown = decode_to_pixels(pgm, decoding=DecodingOptions(intensity_range=used))[..., 0]
        assert np.abs(shown - values / 1023 * 255).max() <= 1


@pytest.mark.parametrize(
    ("values", "kind", "told"),
    [
        (np.zeros((4, 4, 5), np.uint16), 1, "5 bands of 16-bit unsigned integers"),
        (np.zeros((4, 4, 2), np.uint16), 1, "2 bands of 16-bit unsigned integers"),
        (np.zeros((4, 4, 3), np.float32), 3, "3 bands of 32-bit floating-point values"),
        (np.ones((4, 4, 1), np.float32), 3, "1 band of 32-bit floating-point values"),
        (np.zeros((4, 4, 1), np.float64), 3, "1 band of 64-bit floating-point values"),
        (np.zeros((4, 4, 13), np.uint8), 1, "13 bands of 8-bit unsigned integers"),
        (np.full((4, 4, 1), -5, np.int16), 2, "1 band of 32-bit values beyond 0 to 65535"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bands_that_are_no_image_are_named(values, kind, told):
    with pytest.raises(ImageError, match=f"^unsupported: {told}"):
        decode_to_pixels(tiff(values, photometric=1, kind=kind))


@pytest.mark.parametrize("used", RANGES[1:], ids=str)
def test_values_that_have_given_shades(used):
    shown = make_shade_table(used)[used[0] : used[1] + 1]
    np.testing.assert_array_equal(make_shade_table(used)[shades_to_16_bit(shown, used)], shown)
    assert (shown[0], shown[-1]) == (0, 255)
