import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svertka.pages.axes import Scale, fit_scale

POSITIVE = st.floats(1e-8, 1e8)


@given(st.lists(POSITIVE, min_size=1, max_size=20), st.sampled_from(["log", "root"]), st.integers(2, 8))
def test_positions_are_ordered_and_ticks_are_round_and_apart(values: list[float], bent: str, count: int) -> None:
    scale = fit_scale(values, bent)
    places = [scale.place(value) for value in sorted(values)]
    assert all(-1e-9 <= place <= 1 + 1e-9 for place in places)
    assert places == sorted(places)
    ticks = scale.ticks(count)
    assert 1 <= len(ticks) <= count + 2
    assert all(scale.low * (1 - 1e-6) <= tick <= scale.high * (1 + 1e-6) for tick in ticks)
    assert all(b > a for a, b in pairwise(ticks))
    if scale.kind != "linear":
        for tick in ticks:
            mantissa = float(f"{tick:e}".split("e")[0])
            assert mantissa in (0, 1, 2, 5)


def test_scales_apply_their_transform() -> None:
    assert Scale("linear", 0, 10).place(5) == pytest.approx(0.5)
    assert Scale("log", 1, 100).place(10) == pytest.approx(0.5)
    assert Scale("root", 0, 4).place(1) == pytest.approx(0.5)


def test_values_outside_the_range_are_clamped() -> None:
    assert Scale("log", 0.1, 10).place(0.0) == 0
    assert Scale("linear", 0, 1).place(7) == 1


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([0.5, 0.7, 1.0], "linear"),
        ([2.3, 0.01], "log"),
        ([2.3, 0.0, 0.01], "log"),
        ([0.0, 0.0], "linear"),
        ([], "linear"),
        ([math.nan, math.inf, 3.0], "linear"),
    ],
)
def test_axis_is_nonlinear_only_for_a_wide_range(values: list[float], kind: str) -> None:
    scale = fit_scale(values, "log")
    assert scale.kind == kind
    assert scale.high > scale.low
    assert scale.ticks(4)


def test_square_root_axis_includes_zero() -> None:
    scale = fit_scale([0.9, 0.01, 0.0], "root")
    assert (scale.kind, scale.place(0.0)) == ("root", 0.0)
    assert scale.ticks(5)[0] == 0


@pytest.mark.parametrize(
    ("high", "expected"), [(20, [0, 5, 10, 15, 20]), (3, [0, 1, 2, 3]), (1000, [0, 200, 400, 600, 800, 1000])]
)
def test_epoch_ticks_are_integers(high: int, expected: list[int]) -> None:
    assert Scale("linear", 0, high).ticks(5, whole=True) == expected
