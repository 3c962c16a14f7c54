"""Names in pages: long ones lose their middle, and are shown whole when they are focused."""

from markupsafe import Markup

from svertka.escaping import replace_forbidden_characters
from svertka.text_width import shorten

NAME_WIDTH = 64  # columns; NAME_WIDTH in dom.js is the same


def truncate_name(name: str, width: int = NAME_WIDTH, *, whole: str | None = None, focusable: bool = True) -> Markup:
    """Return `name` as HTML that does not affect the direction of the text around it.

    A longer name keeps both ends. Hovering and screen readers tell it whole, and it is shown whole while it, or the
    link or button around it, has the focus.

    Args:
        name: Text.
        width: Columns of the longest name that is shown whole.
        whole: What is told in place of a name that was cut, such as the path of a file. None: `name`.
        focusable: Whether Tab reaches a name that was cut. False inside links and buttons.
    """
    short = shorten(name, width)
    if short == name:
        return Markup("<bdi>{}</bdi>").format(replace_forbidden_characters(name))
    text = replace_forbidden_characters(whole or name)
    tab = Markup(' tabindex="0"') if focusable else Markup()
    return Markup(
        '<span class="cut" title="{}"{}><bdi aria-hidden="true">{}</bdi><bdi class="full-name">{}</bdi></span>'
    ).format(text, tab, replace_forbidden_characters(short), text)
