"""NumPy's .npy files of any number of bands: exact values, and hostile files."""

import io
import pickle
import struct

import numpy as np
import pytest

from svertka.data.band_ranges import BAND_TYPES, BandRanges
from svertka.data.image_io import DecodingOptions, decode_image, decode_to_pixels, estimate_memory, read_image_size
from svertka.data.multiband_file import decode_bands, read_band_layout
from svertka.errors import ImageError, ImageFormatError, ImageTooLargeError

RNG = np.random.default_rng(0)


def saved(values, **options):
    file = io.BytesIO()
    np.save(file, values, **options)
    return file.getvalue()


def by_hand(header, body=b"", version=(1, 0)):
    """A .npy file with any header, written without NumPy."""
    text = header.encode("latin-1")
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H" if version[0] == 1 else "<I", len(text)) + text + body


def refusal(data, count=5, dtype="uint16"):
    with pytest.raises(ImageError) as caught:
        decode_image(data, decoding=DecodingOptions(intensity_range=BandRanges(dtype, ((0.0, 1.0),) * count)))
    return str(caught.value)


@pytest.mark.parametrize("dtype", BAND_TYPES)
@pytest.mark.parametrize("order", "<>")
def test_arrays_in_either_order_are_decoded_to_the_written_values(dtype, order):
    for shape in ((37, 53, 1), (37, 53, 5), (5, 7, 16), (37, 53)):
        values = (RNG.random(shape) * 100).astype(np.dtype(dtype).newbyteorder(order))
        for stored in (values, np.asfortranarray(values), values[::-1]):
            layout = read_band_layout(saved(stored))
            assert (layout.height, layout.width, layout.count) == (*shape, 1)[:3]
            assert layout.dtype == dtype
            assert not layout.is_color
            found = decode_bands(saved(stored), layout)
            assert found.dtype == dtype
            assert np.array_equal(found, stored.reshape((*shape, 1)[:3]))


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_version_of_the_format_is_read(version):
    header = "{'descr': '>u2', 'fortran_order': True, 'shape': (2, 3, 5), }\n"
    values = np.arange(30, dtype=">u2")
    data = by_hand(header, values.tobytes(), version)
    assert np.array_equal(decode_bands(data, read_band_layout(data)), values.reshape(2, 3, 5, order="F"))


def test_the_pixels_are_those_of_the_ranges_and_nan_is_0():
    values = RNG.normal(0, 1, (9, 11, 3)).astype(np.float32)
    values[4, 5] = np.nan
    bands = BandRanges("float32", ((-1.0, 1.0), (0.0, 2.0), (-3.0, 3.0)))
    decoded = decode_image(saved(values), decoding=DecodingOptions(intensity_range=bands))
    wanted = np.stack([(values[..., i] - low) / (high - low) * 255 for i, (low, high) in enumerate(bands.bands)], -1)
    wanted = np.rint(np.clip(np.nan_to_num(wanted, nan=0), 0, 255)).astype(np.uint8)
    assert np.abs(decoded.pixels.astype(int) - wanted).max() <= 1  # the oracle divides in float32
    assert decoded.format == "NumPy"
    assert read_image_size(saved(values), DecodingOptions(intensity_range=bands)) == (9, 11)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.zeros((4, 4, 3), np.uint16), "3 bands of 16-bit unsigned integers, where 5 bands of uint16 are expected"),
        (np.zeros((4, 4, 5), np.float32), "5 bands of 32-bit floating-point values, where 5 bands of uint16"),
        (np.zeros((4, 4, 5), np.int64), "5 bands of type int64, where 5 bands of uint16 are expected"),
        (np.zeros((4, 4, 5), bool), "5 bands of type bool, where"),
        (np.zeros((4, 4, 5), np.complex64), "5 bands of type complex64, where"),
        (np.zeros((5, 4, 44), np.uint16), "in an array (5, 4, 44), whose last axis is that of the bands (at most 16"),
        (np.zeros((0, 4, 5), np.uint16), "no pixels"),
        (np.zeros((1, 4, 4, 5), np.uint16), "no file of several bands (TIFF, .npy), or a damaged one, where 5 bands"),
    ],
)
def test_other_arrays_are_refused_with_what_they_are(values, reason):
    assert reason in refusal(saved(values))


class Planted:
    """An object whose unpickling would be noticed."""

    def __reduce__(self):
        return (pytest.fail, ("a pickled object was loaded",))


def test_pickled_objects_are_never_loaded():
    objects = np.empty((4, 4, 5), object)
    objects[:] = [[[Planted()] * 5] * 4] * 4
    assert "5 bands of type object, where" in refusal(saved(objects, allow_pickle=True))
    header = "{'descr': '|O', 'fortran_order': False, 'shape': (1, 1, 5), }\n"
    data = by_hand(header, pickle.dumps(Planted()))
    assert "5 bands of type object" in refusal(data)
    with pytest.raises(ImageFormatError, match=r"an array \(1, 1, 5\) of type object; .* save RGB images as PNG"):
        decode_to_pixels(data)


def test_hostile_headers_are_refused_and_cost_no_memory():
    good = saved(RNG.integers(0, 9, (16, 16, 5)).astype(np.uint16))
    huge = "{'descr': '<u2', 'fortran_order': False, 'shape': (%s, 5), }\n"
    for header in (
        "",
        "(" * 3000,
        "{'descr': '<u2'}",
        "__import__('os').abort()",
        "{'descr': [('a', '<u2')] * 9**9, 'fortran_order': False, 'shape': (1, 1, 5)}",
        "{'descr': '<u2', 'fortran_order': 2, 'shape': (1, 1, 5)}",
        huge % "-1, 4",
        huge % "True, 4",
        huge % ("9" * 4000 + ", 4"),
        huge % f"{2**31}, 4",
    ):
        for version in ((1, 0), (2, 0), (3, 0), (9, 9)):
            assert "or a damaged one, where 5 bands of uint16 are expected" in refusal(by_hand(header, version=version))
    bands = BandRanges("uint16", ((0.0, 1.0),) * 5)
    with pytest.raises(ImageTooLargeError, match="9000 megapixels"):
        estimate_memory(by_hand(huge % "90_000, 100_000"), decoding=DecodingOptions(intensity_range=bands))
    assert refusal(by_hand(huge % "90, 100")) == "truncated"
    for length in range(0, len(good), 23):
        assert refusal(good[:length])
    for place in range(128):
        for byte in b"\xff(9":
            changed = good[:place] + bytes([byte]) + good[place + 1 :]
            layout = read_band_layout(changed)
            assert layout is None or layout.bytes < 2**40
    with pytest.raises(ImageFormatError, match="a damaged .npy file, or one of pickled objects"):
        decode_to_pixels(by_hand("("))
