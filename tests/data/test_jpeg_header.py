"""Sizes from headers are those of Pillow: of plain files, and of files with every segment, damaged at random."""

import io
from dataclasses import astuple

import numpy as np
import pytest
from PIL import Image, ImageCms

from svertka.data.image_io import read_header
from svertka.data.jpeg_header import read_plain_jpeg_size
from svertka.errors import ImageError

MODES = {"L": 1, "RGB": 3, "CMYK": 4}
ORIENTATION = 0x0112
BEFORE = 700  # bytes of a file in which damage hits its header


def encode(rng, mode: str, **options) -> bytes:
    height, width = rng.integers(1, 70, 2).tolist()
    pixels = rng.integers(0, 256, (height, width, MODES[mode]), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze(2) if mode == "L" else pixels, mode).save(file, "JPEG", **options)
    return file.getvalue()


def kinds(rng) -> list[tuple[bytes, bool]]:
    """Return JPEGs of every kind that Pillow writes, and whether each is plain."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="8"/></x:xmpmeta>'
    plain = [
        {}, {"progressive": True}, {"optimize": True}, {"quality": 100, "subsampling": 0}, {"restart_marker_rows": 1},
        {"comment": b"a comment"}, {"icc_profile": profile}, {"icc_profile": profile * 40}, {"dpi": (72, 72)},
    ]  # fmt: skip
    turned = [{"exif": exif}, {"xmp": xmp}, {"exif": exif, "icc_profile": profile}]
    return [(encode(rng, mode, **options), options in plain) for mode in MODES for options in plain + turned]


def check(jpeg: bytes) -> bool:
    """Check that a size is only returned for a file that Pillow opens, with this size and upright."""
    size = read_plain_jpeg_size(jpeg)
    if size is None:
        return False
    header = read_header(jpeg)
    assert header.mode in MODES
    assert astuple(header) == ("JPEG", header.mode, size, 1, False, False)
    return True


def test_every_plain_file_has_the_size_that_pillow_finds():
    found = kinds(np.random.default_rng(0))
    assert [check(jpeg) for jpeg, _ in found] == [is_plain for _, is_plain in found]


def test_damaged_headers_are_left_to_pillow_or_read_as_pillow_reads_them():
    rng = np.random.default_rng(1)
    files = [jpeg for jpeg, _ in kinds(rng)]
    same = other = refused = 0
    for _ in range(1000):
        jpeg = bytearray(files[rng.integers(len(files))])
        for place in rng.integers(2, min(BEFORE, len(jpeg)), rng.integers(1, 4)).tolist():
            jpeg[place] = rng.choice([0, 1, 255, rng.integers(256)])
        cut = bytes(jpeg[: rng.integers(2, len(jpeg))] if rng.random() < 0.3 else jpeg)
        if check(cut):
            same += 1
            continue
        try:
            read_header(cut)
            other += 1
        except ImageError:
            refused += 1
    assert min(same, other, refused) > 100  # each case was seen


@pytest.mark.parametrize(
    ("marker", "body"),
    [
        (0xE0, b"JFIF\0"),  # too short for its version
        (0xE1, b"http://ns.adobe.com/xap/1.0/\0"),
        (0xE2, b"ICC_PROFILE\0\1"),  # without the number of its parts
        (0xEE, b"Adobe\0"),
        (0xDB, bytes(64)),
        (0xDB, b"\x10" + bytes(64)),  # 16-bit values
        (0xC0, b"\x08\0\1\0\1\1\1\x11\0"),  # a second frame
        (0xC3, b"\x08\0\1\0\1\1\1\x11\0"),  # a lossless frame
    ],
)
def test_unusual_segments_are_left_to_pillow(marker, body):
    jpeg = encode(np.random.default_rng(2), "RGB")
    assert read_plain_jpeg_size(jpeg)
    segment = bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2, "big") + body
    assert read_plain_jpeg_size(jpeg[:2] + segment + jpeg[2:]) is None


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_other_files_have_no_size(data):
    assert read_plain_jpeg_size(data) is None
