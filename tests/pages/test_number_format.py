"""Numbers as text."""

import math

import pytest

from svertka.pages.number_format import count_with_noun, format_brief, format_percent, format_three_digits


@pytest.mark.parametrize(
    ("share", "written"),
    [(0.0114, "1.1\u00a0%"), (0.0, "0.0\u00a0%"), (1.0, "100.0\u00a0%"), (None, "–"), (math.nan, "–")],
)
def test_percent_has_one_decimal(share: float | None, written: str) -> None:
    assert format_percent(share) == written


@pytest.mark.parametrize(
    ("value", "compared", "brief"),
    [
        (0.0123, "0.0123", "0.0123"),
        (1.7, "1.70", "1.7"),
        (2.302585, "2.30", "2.3"),
        (123.4, "123", "123"),
        (0.0005, "0.0005", "0.0005"),
        (1e-6, "10⁻⁶", "10⁻⁶"),
        (3.2e-5, "3.2·10⁻⁵", "3.2·10⁻⁵"),
        (1e8, "10⁸", "10⁸"),
        (0.0, "0", "0"),
        (math.nan, "–", "–"),
        (math.inf, "–", "–"),
    ],
)
def test_three_significant_digits(value: float, compared: str, brief: str) -> None:
    assert (format_three_digits(value), format_brief(value)) == (compared, brief)


def test_count_uses_singular_and_plural() -> None:
    assert [
        count_with_noun(1, "epoch"),
        count_with_noun(0, "epoch"),
        count_with_noun(10_000, "picture"),
    ] == [
        "1\u00a0epoch",
        "0\u00a0epochs",
        "10,000\u00a0pictures",
    ]
