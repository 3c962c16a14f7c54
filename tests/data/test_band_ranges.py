"""Ranges of the values of bands."""

import numpy as np
import pytest

from svertka.data.band_ranges import BandRanges, choose_band_ranges, describe_band_mismatch, sample_band_values
from svertka.data.preprocessing import Preprocess, resize_image

RNG = np.random.default_rng(1)


def test_values_become_the_nearest_of_256_steps():
    values = RNG.integers(0, 65536, (50, 40, 2)).astype(np.uint16)
    ranges = BandRanges("uint16", ((100.0, 1000.0), (0.0, 65535.0)))
    pixels = ranges.to_bytes(values)
    for (row, column, band), value in np.ndenumerate(values[:10]):
        low, high = ranges.bands[band]
        wanted = min(max((int(value) - low) / (high - low), 0.0), 1.0) * 255
        assert abs(int(pixels[row, column, band]) - wanted) <= 0.5
    assert np.array_equal(ranges.to_bytes(ranges.to_values(pixels)), pixels)


def test_nan_becomes_0_and_infinity_is_clipped():
    values = np.array([np.nan, np.inf, -np.inf, 0.5], np.float32).reshape(1, 4, 1)
    assert BandRanges("float32", ((0.0, 1.0),)).to_bytes(values).ravel().tolist() == [0, 255, 0, 128]


def test_the_range_leaves_out_outliers_and_pixels_without_data():
    values = RNG.normal(500, 10, (100, 100, 2)).astype(np.float32)
    values[0, :20, 0] = 1e9  # 0.2 % of the values
    values[1, :, 1] = -9999
    values[2, :, 1] = np.nan
    ranges = choose_band_ranges("float32", [sample_band_values(values, nodata=-9999)])
    for band in range(2):
        usual = values[3:, :, band].ravel()
        low, high = ranges.bands[band]
        assert np.quantile(usual, 0.001) < low < np.quantile(usual, 0.02)
        assert np.quantile(usual, 0.98) < high < np.quantile(usual, 0.9999)


def test_values_far_from_those_of_the_training_images_are_told():
    ranges = BandRanges("float32", ((0.0, 0.4), (0.1, 0.5)))
    like = RNG.uniform(0.1, 0.4, (90, 2))
    scaled = like * 10_000
    scaled[:9] = np.nan
    shares = [ranges.measure_share_outside(one) for one in (like, scaled, np.full((3, 2), np.nan))]
    assert shares == [0, 1, 0]
    assert describe_band_mismatch(shares) is describe_band_mismatch([]) is None
    assert describe_band_mismatch([1, 1, 0]).startswith("100% of the values of the bands lie outside of the ranges of")


@pytest.mark.parametrize("count", [2, 4, 5, 13])
def test_bands_are_resized_as_one_by_one(count):
    pixels = RNG.integers(0, 256, (31, 44, count)).astype(np.uint8)
    for height, width in ((20, 20), (64, 50)):
        resized = resize_image(pixels, height, width, count)
        for band in range(count):
            assert np.array_equal(
                resized[..., band : band + 1], resize_image(pixels[..., band : band + 1], height, width, 1)
            )


def test_bytes_stay_and_a_constant_band_has_a_range():
    assert choose_band_ranges("uint8", [np.zeros((5, 3))]) == BandRanges.of_bytes(3)
    ((low, high),) = choose_band_ranges("uint16", [np.full((5, 1), 7.0)]).bands
    assert low <= 7 < high


@pytest.mark.parametrize("bands", [(), ((1.0, 1.0),), ((0.0, float("inf")),), ((0.0, 1.0),) * 17])
def test_impossible_ranges_are_refused(bands):
    with pytest.raises(ValueError, match=r"bands must be 1 to 16|the range of a band, "):
        BandRanges("uint16", bands)


def test_the_preprocessing_of_bands_survives_json_and_has_as_many_channels():
    ranges = BandRanges("int16", ((-5.0, 5.0),) * 4)
    one = Preprocess(size=8, resize=8, mean=(0.5,) * 4, std=(0.2,) * 4, intensity_range=ranges)
    assert Preprocess.model_validate_json(one.model_dump_json()) == one
    assert (one.channels, one.color) == (4, "4 bands, 16 bit signed")
    with pytest.raises(ValueError, match="mean has 3 values and std 3; both need the 4 of the bands"):
        Preprocess(size=8, resize=8, mean=(0.5,) * 3, std=(0.2,) * 3, intensity_range=ranges)
    values = RNG.integers(-5, 6, (8, 8, 4)).astype(np.int16)
    wanted = (ranges.to_bytes(values) / 255 - 0.5) / 0.2
    assert np.allclose(one(values).numpy(), wanted.transpose(2, 0, 1), atol=1e-5)
