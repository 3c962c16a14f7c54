from hypothesis import given
from hypothesis import strategies as st

from svertka.text_table import MIN_WIDTH, append_left_to_right_mark, fit_columns


def test_numbers_after_right_to_left_names_stay_after_them() -> None:
    assert append_left_to_right_mark("שלום עולם 95.1%") == "שלום עולם\u200e 95.1%"
    assert append_left_to_right_mark("犬 95.1%") == "犬 95.1%"


@given(st.lists(st.integers(1, 60), min_size=1, max_size=8), st.integers(1, 200))
def test_columns_fit_and_are_cut_only_if_needed(widths: list[int], available: int) -> None:
    fitted = fit_columns(widths, available, shrink=range(len(widths)))
    left = [width for width in fitted if width]
    assert sum(left) + 2 * (len(left) - 1) + (3 if len(left) < len(widths) else 0) <= max(available, 4)
    if sum(widths) + 2 * (len(widths) - 1) <= available:
        assert fitted == widths
    assert all(width <= natural for width, natural in zip(fitted, widths, strict=True))
    assert all(
        width == 0 or width >= min(natural, MIN_WIDTH) for width, natural in zip(fitted[1:], widths[1:], strict=True)
    )
