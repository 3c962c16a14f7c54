from hypothesis import given
from hypothesis import strategies as st

from svertka.training.recorder import is_as_good


def test_of_epochs_that_cannot_be_told_apart_the_later_is_kept() -> None:
    assert is_as_good([0.1], 100)
    assert is_as_good([0.1, 0.05], 100)
    assert is_as_good([0.16, 0.04, 0.06], 100)  # 4 wrong, and √4 more
    assert not is_as_good([0.16, 0.04, 0.07], 100)
    assert is_as_good([0.0, 0.01], 100)  # one picture
    assert not is_as_good([0.0, 0.02], 100)
    assert not is_as_good([0.1, 0.104], 1_000_000)  # with many pictures small differences count


@given(st.lists(st.integers(0, 500), min_size=1, max_size=30))
def test_a_lowest_error_is_always_kept(wrong: list[int]) -> None:
    errors = [count / 500 for count in wrong]
    assert is_as_good([*errors, min(errors)], 500)
