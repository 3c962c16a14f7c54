"""Long names keep both ends, and are told whole."""

from markupsafe import Markup

from svertka.pages.truncated_name import NAME_WIDTH, truncate_name


def test_a_name_of_usual_length_is_shown_whole() -> None:
    assert truncate_name("<b>") == "<bdi>&lt;b&gt;</bdi>"
    assert truncate_name("n" * NAME_WIDTH) == f"<bdi>{'n' * NAME_WIDTH}</bdi>"


def test_a_long_name_keeps_both_ends_and_is_told_whole() -> None:
    name = f'cat "{"o" * 100}" 57.jpg'
    shown = truncate_name(name)
    assert '<bdi aria-hidden="true">cat &#34;ooo' in shown
    assert "oo&#34; 57.jpg</bdi>" in shown.partition("…")[2]
    assert f'<bdi class="full-name">{Markup.escape(name)}</bdi>' in shown
    assert shown.startswith(f'<span class="cut" title="{Markup.escape(name)}" tabindex="0">')


def test_the_path_of_a_file_is_told_in_place_of_a_long_name() -> None:
    shown = truncate_name("a" * 40, 16, whole="album/<1>", focusable=False)
    assert 'title="album/&lt;1&gt;"><bdi aria-hidden="true">aaaaaa…aaaaaaaaa</bdi>' in shown
