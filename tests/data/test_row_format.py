"""What is stored of a picture gives its square, bit for bit, and is never larger than pays."""

import numpy as np
import pytest

from svertka.data.preprocessing import FITS, region, squared
from svertka.data.row_format import HEAD, PAYS, Facts, Layout, Row, facts_of

RNG = np.random.default_rng(1)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(64, 64), (20, 31), (8, 8), (90, 40), (300, 200), (1, 5)], ids=str)
@pytest.mark.parametrize("grey", [False, True])
def test_the_square_is_that_of_the_whole_picture(fit, channels, shape, grey):
    rgb = RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)
    if grey:
        rgb = np.repeat(rgb[..., :1], 3, axis=2)
    layout = Layout(56, channels, 60, fit)
    row = Row.of(rgb, layout, "PNG", deep=True)
    expected = squared(region(rgb, fit), 56, channels, 60, fit)
    for one in (row, Row.unpacked(row.packed())):
        np.testing.assert_array_equal(one.square(layout), expected)
        assert one.facts == Facts("PNG", shape, True)
    smallest = min(layout.bytes, region(rgb, fit).size) // (3 if grey and channels == 3 else 1)
    assert len(row.packed()) - HEAD.size <= max(smallest / PAYS, min(layout.bytes, region(rgb, fit).size))


def test_a_small_picture_is_stored_as_it_is():
    rgb = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert len(Row.of(rgb, Layout(256, 3, 256)).packed()) == HEAD.size + rgb.size  # not 256 × 256


def test_a_survey_has_no_pixels():
    facts = Facts("TIFF", (1000, 2000), True, (3, 1023))
    packed = Row(facts, np.empty((0, 0, 1), np.uint8)).packed()
    assert (facts_of(packed), len(packed)) == (facts, HEAD.size)
