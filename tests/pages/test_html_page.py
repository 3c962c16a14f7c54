import base64
import hashlib
import math
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svertka.pages.html_page import count, escape, isolated, number, page, percent, plain


class Reader(HTMLParser):
    """What a browser would see: texts and the attributes of every element."""

    def __init__(self, document: str) -> None:
        super().__init__(convert_charrefs=True)
        self.texts: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(document)
        self.close()

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))


@given(st.text(st.characters(exclude_categories=["Cc", "Cs"])))
def test_any_text_comes_back_from_an_element_and_an_attribute(text: str) -> None:
    read = Reader(f'<p title="{escape(text)}">{escape(text)}</p>')
    assert read.elements == [("p", {"title": text})]
    assert "".join(read.texts) == text


def test_what_html_forbids_is_replaced_and_emoji_stay_whole() -> None:
    assert escape("a\0b\x1b\ud800") == "a\ufffdb\ufffd\ufffd"
    assert escape("👩‍🔬 عربي") == "👩‍🔬 عربي"
    assert escape("two\nlines") == "two\ufffdlines"
    assert isolated("<b>") == "<bdi>&lt;b&gt;</bdi>"


@pytest.mark.parametrize(
    ("share", "written"),
    [(0.0114, "1.1\u00a0%"), (0.0, "0.0\u00a0%"), (1.0, "100.0\u00a0%"), (None, "–"), (math.nan, "–")],
)
def test_percent_has_one_decimal(share: float | None, written: str) -> None:
    assert percent(share) == written


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
def test_numbers_as_people_write_them(value: float, compared: str, brief: str) -> None:
    assert (number(value), plain(value)) == (compared, brief)


def test_count_puts_the_noun_into_its_number() -> None:
    assert [count(1, "epoch"), count(0, "epoch"), count(10_000, "picture")] == [
        "1\u00a0epoch",
        "0\u00a0epochs",
        "10,000\u00a0pictures",
    ]


def test_the_policy_admits_exactly_the_style_and_script_that_are_inside() -> None:
    document = page("</title><script>", "<p>body</p>")
    policy = next(
        attributes["content"]
        for tag, attributes in Reader(document).elements
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    assert "default-src 'none'" in policy
    for tag in ("style", "script"):
        inside = re.findall(f"<{tag}>(.*?)</{tag}>", document, re.DOTALL)
        assert len(inside) == 1
        digest = base64.b64encode(hashlib.sha256(inside[0].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_the_page_points_nowhere() -> None:
    for tag, attributes in Reader(page("title", "")).elements:
        for name in ("src", "href", "srcset", "action"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, name)
