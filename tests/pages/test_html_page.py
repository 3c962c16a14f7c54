import base64
import hashlib
import re
from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from svertka.pages.html_page import render_page
from svertka.pages.templates import escape


class Reader(HTMLParser):
    """Texts and attributes of every element, as a browser reads them."""

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
def test_escaped_text_is_read_back_unchanged(text: str) -> None:
    read = Reader(f'<p title="{escape(text)}">{escape(text)}</p>')
    assert read.elements == [("p", {"title": text})]
    assert "".join(read.texts) == text


def test_forbidden_characters_are_replaced_and_emoji_kept() -> None:
    assert escape("a\0b\x1b\ud800") == "a\ufffdb\ufffd\ufffd"
    assert escape("👩‍🔬 عربي") == "👩‍🔬 عربي"
    assert escape("two\nlines") == "two\ufffdlines"


def test_policy_allows_exactly_the_inlined_style_and_script() -> None:
    document = render_page("</title><script>", "<p>body</p>")
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


def test_page_loads_nothing() -> None:
    for tag, attributes in Reader(render_page("title", "")).elements:
        for name in ("src", "href", "srcset", "action"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#")), (tag, name)
