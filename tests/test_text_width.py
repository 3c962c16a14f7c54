import pytest

from svertka.text_width import join_items_that_fit, pad, shorten, text_width

TEXTS = ["album/holidays/0001.jpg", "犬の写真_0001", "a👩‍👩‍👧b👩‍👩‍👧c", "שלום עולם", "e\u0301" * 9, "…………", ""]


@pytest.mark.parametrize(("text", "width"), [("abc", 3), ("犬", 2), ("e\u0301", 1), ("👩‍👩‍👧", 6), ("✈️", 2), ("", 0)])
def test_widths_are_those_of_a_terminal(text: str, width: int) -> None:
    assert text_width(text) == width


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("width", range(12))
def test_shortened_text_fits_and_keeps_both_ends(text: str, width: int) -> None:
    short = shorten(text, width)
    assert text_width(short) <= width
    if short != text and width >= 7:
        head, _, tail = short.partition("…")
        assert head
        assert text.startswith(head)
        assert tail
        assert text.endswith(tail)


def test_text_that_fits_stays() -> None:
    assert shorten("犬の写真", 8) == "犬の写真"
    assert shorten("犬の写真", 7) == "犬…写真"
    assert shorten("0001.jpeg", 7, "...") == "0...peg"


def test_padding_counts_columns() -> None:
    assert pad("犬", 4) == "犬  "
    assert pad("犬", 4, right=True) == "  犬"


def test_facts_are_left_out_whole() -> None:
    facts = ["loss 0.25", "error 12.5%", "1,200 images/s"]
    assert [join_items_that_fit(facts, width) for width in (8, 9, 21, 22)] == [
        "",
        "loss 0.25",
        "loss 0.25",
        "loss 0.25, error 12.5%",
    ]


def test_nothing_long_stays_for_taking_no_columns() -> None:
    """Combining characters and halves of surrogate pairs, as files of unknown origin hold them."""
    for text in ("e" + "\u0301" * 100_000, "\ud800" * 100_000, "9" * 100_000):
        short = shorten(text)
        assert len(short) <= 61
        assert text_width(short) <= 60
        assert "…" in short
