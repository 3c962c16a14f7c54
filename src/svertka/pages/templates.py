"""Jinja2 templates of the pages, with autoescaping."""

from functools import cache
from importlib.resources import files
from typing import Any
from unicodedata import category

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

# Embeddings, overrides and isolates: a <bdi> element does not contain their effect.
BIDI_CONTROLS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def render_template(name: str, **values: Any) -> Markup:
    """Render pages/templates/NAME. Strings are escaped as by `html_page.escape`, Markup is inserted as it is."""
    return Markup(_environment().get_template(name).render(**values))


def replace_forbidden(text: str) -> str:
    """Replace with � every character that HTML or UTF-8 forbids or that changes the direction of the text around it."""
    return "".join("\ufffd" if _is_forbidden(letter) else letter for letter in text)


def _is_forbidden(letter: str) -> bool:
    return letter in BIDI_CONTROLS or category(letter) in ("Cc", "Cs", "Zl", "Zp")


@cache
def _environment() -> Environment:
    return Environment(
        loader=FunctionLoader(lambda name: files("svertka.pages").joinpath("templates", name).read_text("utf-8")),
        autoescape=True,
        finalize=lambda value: (
            replace_forbidden(value) if isinstance(value, str) and not isinstance(value, Markup) else value
        ),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
