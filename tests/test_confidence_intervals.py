import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from svertka.confidence_intervals import (
    error_interval,
    format_percentage_points,
    mcnemar_p_value,
    paired_difference_interval,
    wilson_interval,
)


@given(images=st.integers(1, 60_000), share=st.floats(0, 1))
def test_wilson_interval_matches_scipy(images: int, share: float) -> None:
    count = round(share * images)
    expected = stats.binomtest(count, images).proportion_ci(0.95, method="wilson")
    assert wilson_interval(count, images) == pytest.approx((expected.low, expected.high), abs=1e-12)


@given(images=st.integers(1, 60_000), share=st.floats(0, 1))
def test_an_error_has_the_interval_of_its_count(images: int, share: float) -> None:
    count = round(share * images)
    assert error_interval(count / images, images) == wilson_interval(count, images)
    assert all(map(math.isnan, error_interval(share, 0)))


@given(first=st.integers(0, 3000), second=st.integers(0, 3000))
def test_mcnemar_matches_the_exact_binomial_test(first: int, second: int) -> None:
    if first + second == 0:
        assert mcnemar_p_value(first, second) == 1
    else:
        assert mcnemar_p_value(first, second) == pytest.approx(stats.binomtest(first, first + second).pvalue, rel=1e-10)


@pytest.mark.parametrize(
    ("only_first", "only_second", "images"), [(120, 80, 1000), (40, 41, 500), (300, 20, 5000), (15, 60, 2000)]
)
def test_paired_interval_matches_the_bootstrap(only_first: int, only_second: int, images: int) -> None:
    generator = np.random.default_rng(1)
    signs = np.repeat([1, -1, 0], [only_first, only_second, images - only_first - only_second])
    means = [generator.choice(signs, images).mean() for _ in range(4000)]
    low, high = np.percentile(means, [2.5, 97.5])
    # a tenth of the interval: what 4,000 resamples and the asymmetry of small counts leave
    assert paired_difference_interval(only_first, only_second, images) == pytest.approx(
        (low, high), abs=0.1 * (high - low)
    )


@pytest.mark.parametrize("images", [20, 50, 300])
@pytest.mark.parametrize(("first", "second"), [(0.05, 0.05), (0.1, 0.02), (0.3, 0.1)])
def test_paired_interval_has_95_percent_coverage(images: int, first: float, second: float) -> None:
    draws = np.random.default_rng(2).multinomial(images, [first, second, 1 - first - second], 4000)
    intervals = [paired_difference_interval(int(one), int(other), images) for one, other, _ in draws]
    held = np.mean([low <= first - second <= high for low, high in intervals])
    assert 0.93 <= held <= 1  # conservative where few pictures differ, as its authors say


def test_differences_have_the_sign_of_every_other_number() -> None:
    assert [format_percentage_points(share) for share in (-0.013, 0.004, -0.0004)] == ["-1.3", "+0.4", "0.0"]


def test_intervals_without_images_are_nan() -> None:
    assert all(map(math.isnan, (*wilson_interval(0, 0), *paired_difference_interval(0, 0, 0))))
    assert wilson_interval(0, 10)[0] == 0
    assert wilson_interval(10, 10)[1] == 1
