"""TIFF files of any number of bands: exact values, and hostile files."""

import io
import itertools
import struct

import numpy as np
import pytest

from svertka.data.band_ranges import BandRanges
from svertka.data.image_io import DecodingOptions, decode_image, estimate_memory, read_header, read_image_size
from svertka.data.multiband_file import decode_bands, read_band_layout
from svertka.errors import ImageError

tifffile = pytest.importorskip("tifffile")

RNG = np.random.default_rng(0)


def written(values, *, planar=False, **options):
    """(H, W, C) as a TIFF whose bands are no colors."""
    file = io.BytesIO()
    bands = np.moveaxis(values, -1, 0) if planar else values
    options |= {"planarconfig": "separate" if planar else "contig"} if values.shape[2] > 1 else {}
    one = values[..., 0] if values.shape[2] == 1 else bands
    tifffile.imwrite(file, one, photometric="minisblack", metadata=None, **options)
    return file.getvalue()


def by_hand(values, order="<", **changed):
    """(H, W, C) as an uncompressed TIFF of one strip, written without a library; `changed` replaces tags."""
    height, width, count = values.shape
    body = values.astype(values.dtype.newbyteorder(order)).tobytes()
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    lists = {258: [values.itemsize * 8] * count, 338: [0] * max(count - 1, 1), 339: [kind] * count}
    tags = {256: width, 257: height, 259: 1, 262: 1, 273: 2048, 277: count, 278: height, 279: len(body), 284: 1}
    tags |= {int(tag[1:]): value for tag, value in changed.items()}
    entries, extra, at = b"", b"", 1024
    for tag in sorted(tags | lists):
        if tag in tags:
            entries += struct.pack(f"{order}HHII", tag, 4, 1, tags[tag])
            continue
        packed = struct.pack(f"{order}{len(lists[tag])}H", *lists[tag])
        inline = packed.ljust(4, b"\0") if len(packed) <= 4 else struct.pack(f"{order}I", at + len(extra))
        entries += struct.pack(f"{order}HHI", tag, 3, len(lists[tag])) + inline
        extra += packed if len(packed) > 4 else b""
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8)
    directory = struct.pack(f"{order}H", len(tags | lists)) + entries + struct.pack(f"{order}I", 8)  # a loop
    return (head + directory).ljust(1024, b"\0") + extra.ljust(1024, b"\0") + body


def bands_of(values):
    """Ranges that keep bytes, or map all values of the type."""
    if values.dtype == np.uint8:
        return BandRanges.of_bytes(values.shape[2])
    return BandRanges(str(values.dtype), ((0.0, 65535.0),) * values.shape[2])


def refusal(data, count=13, dtype="uint16"):
    with pytest.raises(ImageError) as caught:
        decode_image(data, decoding=DecodingOptions(intensity_range=BandRanges(dtype, ((0.0, 1.0),) * count)))
    return str(caught.value)


@pytest.mark.parametrize("count", [1, 2, 5, 13, 16])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_every_layout_of_bands_is_decoded_to_the_written_values(count, dtype):
    values = (RNG.random((37, 53, count)) * 250).astype(dtype)
    layouts = itertools.product(
        [False, True], [None, "zlib", "lzw"], "<>", [{"rowsperstrip": 7}, {"tile": (16, 32)}, {"bigtiff": True}]
    )
    for planar, compression, order, options in layouts:
        data = written(values, planar=planar, compression=compression, byteorder=order, **options)
        layout = read_band_layout(data)
        assert (layout.height, layout.width, layout.count, layout.dtype) == (37, 53, count, dtype)
        assert layout.is_color == (count == 1 and dtype != "float32")
        found = decode_bands(data, layout)
        assert found.dtype == dtype
        assert np.array_equal(found, values)


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_file_written_without_a_library_whose_directories_form_a_loop(order):
    values = RNG.integers(0, 65536, (9, 7, 13)).astype(np.uint16)
    data = by_hand(values, order)
    decoding = DecodingOptions(intensity_range=bands_of(values))
    decoded = decode_image(data, decoding=decoding)
    assert np.array_equal(decoded.pixels, np.rint(values / 257).astype(np.uint8))
    assert decoded.deep
    assert read_header(data, decoding).mode == "13 bands of 16-bit unsigned integers"
    assert read_image_size(data, decoding) == (9, 7)
    assert estimate_memory(data, None, decoding) > values.nbytes


def test_bands_are_rotated_upright():
    values = RNG.integers(0, 256, (5, 8, 4)).astype(np.uint8)
    decoding = DecodingOptions(intensity_range=bands_of(values))
    for orientation, wanted in ((3, values[::-1, ::-1]), (6, np.rot90(values, -1)), (8, np.rot90(values, 1))):
        data = by_hand(values, t274=orientation)
        assert np.array_equal(decode_image(data, decoding=decoding).pixels, wanted)
        assert read_image_size(data, decoding) == wanted.shape[:2]


def test_files_unlike_the_others_are_refused_with_what_they_have():
    values = RNG.integers(0, 65536, (9, 7, 13)).astype(np.uint16)
    wanted = ", where 13 bands of uint16 are expected; remove it or save it like the training images"
    assert refusal(by_hand(values[..., :12])) == f"12 bands of 16-bit unsigned integers{wanted}"
    assert refusal(by_hand(values.astype(np.uint8))) == f"13 bands of 8-bit unsigned integers{wanted}"
    assert refusal(by_hand(values.astype(np.float32))) == f"13 bands of 32-bit floating-point values{wanted}"
    seventeen = np.zeros((9, 7, 17), np.uint16)
    assert "17 bands of 16-bit unsigned integers (at most 16 can be used), where" in refusal(by_hand(seventeen))
    assert refusal(by_hand(values, t277=0)).startswith("0 bands of 16-bit")
    assert refusal(b"\x89PNG\r\n\x1a\n").startswith("no file of several bands (TIFF, .npy), or a damaged one, where")
    assert refusal(b"") == "empty file"


def test_damaged_files_are_refused_and_cost_no_memory():
    values = RNG.integers(0, 65536, (9, 7, 13)).astype(np.uint16)
    whole = by_hand(values)
    for end in range(8, len(whole), 61):
        assert "truncated" in refusal(whole[:end]) or "damaged" in refusal(whole[:end])
    assert "megapixels, more than the limit" in refusal(by_hand(values, t256=2**20, t257=2**20))
    assert "megapixels, more than the limit" in refusal(by_hand(values, t322=65520, t323=65520))
    compressed = written(values, compression="zlib")
    body = compressed[:-200] + bytes(200)
    assert refusal(body) in ("damaged", "truncated")
    assert refusal(by_hand(values, t259=50000)) in ("damaged", "truncated")


def test_without_tifffile_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tifffile", None)
    values = RNG.integers(0, 65536, (9, 7, 13)).astype(np.uint16)
    assert refusal(by_hand(values)) == "TIFF files of several bands need tifffile; run pip install 'svertka[bands]'"


def test_pixels_without_data_are_0():
    values = np.full((4, 4, 2), 700, np.uint16)
    values[1, 2, 0] = 9999
    data = written(values, extratags=[(42113, 2, 0, "9999", True)])
    decoding = DecodingOptions(intensity_range=BandRanges("uint16", ((0.0, 1000.0),) * 2))
    pixels = decode_image(data, decoding=decoding).pixels
    assert pixels[1, 2].tolist() == [0, round(255 * 0.7)]
