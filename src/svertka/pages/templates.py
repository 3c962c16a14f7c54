"""Jinja2 templates of the pages, with autoescaping."""

from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from svertka.escaping import replace_forbidden


def render_template(name: str, **values: Any) -> Markup:
    """Render pages/templates/NAME. Strings are escaped as by `html_page.escape`, Markup is inserted as it is."""
    return Markup(_environment().get_template(name).render(**values))


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
