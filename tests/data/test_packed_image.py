"""What is stored of an image gives its square, bit for bit, and is never larger than pays."""

import numpy as np
import pytest

from svertka.data.packed_image import HEAD, PAYS, ImageInfo, PackedImage, SquareSettings, read_info
from svertka.data.preprocessing import FITS, resize_to_square, select_used_region

RNG = np.random.default_rng(1)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(64, 64), (20, 31), (8, 8), (90, 40), (300, 200), (1, 5)], ids=str)
@pytest.mark.parametrize("gray", [False, True])
def test_the_square_is_that_of_the_whole_image(fit, channels, shape, gray):
    rgb = RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)
    if gray:
        rgb = np.repeat(rgb[..., :1], 3, axis=2)
    layout = SquareSettings(56, channels, 60, fit)
    facts = ImageInfo("PNG", shape, True, None, has_unused_parts=gray, pixel_limit=shape[0] * 10**6)
    row = PackedImage.from_image(rgb, layout, facts)
    expected = resize_to_square(select_used_region(rgb, fit), 56, channels, 60, fit)
    for one in (row, PackedImage.unpack(row.pack())):
        np.testing.assert_array_equal(one.square(layout), expected)
        assert one.info == facts
    smallest = min(layout.bytes, select_used_region(rgb, fit).size) // (3 if gray and channels == 3 else 1)
    assert len(row.pack()) - HEAD.size <= max(smallest / PAYS, min(layout.bytes, select_used_region(rgb, fit).size))


def test_a_small_image_is_stored_as_it_is():
    rgb = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    packed = PackedImage.from_image(rgb, SquareSettings(256, 3, 256), ImageInfo("PNG", (64, 64))).pack()
    assert len(packed) == HEAD.size + rgb.size  # not 256 × 256


def test_a_survey_has_no_pixels():
    facts = ImageInfo("TIFF", (1000, 2000), True, (3, 1023))
    packed = PackedImage(facts, np.empty((0, 0, 1), np.uint8)).pack()
    assert (read_info(packed), len(packed)) == (facts, HEAD.size)
