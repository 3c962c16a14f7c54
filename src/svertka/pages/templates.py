"""The Jinja2 environment of all HTML: pages, their parts, and results in notebooks. It escapes every text."""

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from svertka.escaping import replace_forbidden_characters
from svertka.pages.number_format import count_with_noun, format_brief, format_percent, format_three_digits
from svertka.pages.truncated_name import truncate_name
from svertka.text_width import shorten

if TYPE_CHECKING:
    from jinja2 import Environment

FILTERS = {
    "brief": format_brief,
    "count": count_with_noun,
    "integer": "{:,}".format,
    "name": truncate_name,
    "number": format_three_digits,
    "percent": format_percent,
    "shorten": shorten,
}


def render_template(name: str, **values: Any) -> Markup:
    """Render pages/templates/NAME. Strings are escaped as by `escape`, Markup is inserted as it is."""
    return Markup(_environment().get_template(name).render(**values))


def escape(text: str) -> Markup:
    """Escape `text` for HTML elements and quoted attributes.

    Characters that HTML or UTF-8 forbids, or that change the direction of the text around them, become �.
    """
    return Markup.escape(replace_forbidden_characters(text))


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, FunctionLoader, StrictUndefined  # most commands write no page

    environment = Environment(
        loader=FunctionLoader(lambda name: files("svertka.pages").joinpath("templates", name).read_text("utf-8")),
        autoescape=True,
        finalize=lambda value: replace_forbidden_characters(value) if type(value) is str else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FILTERS
    return environment
