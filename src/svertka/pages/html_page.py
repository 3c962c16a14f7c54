"""One HTML file with everything inside: escaping, numbers as people read them, and the shell of a page."""

import base64
import hashlib
import html
import re
from functools import cache
from importlib.resources import files

from svertka.escaping import replace_forbidden


def escape(text: str) -> str:
    """`text` for HTML, inside elements and quoted attributes; what HTML or UTF-8 forbids or reorders text becomes �."""
    return html.escape(replace_forbidden(text))


def isolate(text: str) -> str:
    """`text` as HTML that cannot turn its surroundings around, whichever way its script is written."""
    return f"<bdi>{escape(text)}</bdi>"


def render_section(name: str, title: str, body: str) -> str:
    """A chapter of a page, which the address "#name" leads to; empty where `body` (HTML) is."""
    return f'<section id="{name}"><h2>{title}</h2>{body}</section>' if body else ""


def render_scrollable(name: str, table: str) -> str:
    """`table` (HTML) in a frame of its own in which it can be moved where the page is narrow; `name` is said of it."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(name)}">{table}</div>'


def render_page(title: str, body: str, *, chapter: str = "", beside: bool = False, served: bool = False) -> str:
    """A whole HTML document, style and script inside; `title` is text, `body` is HTML.

    `chapter`: of the files chapter.css and chapter*.js, which follow the ones that all pages share. Its `policy` lets
    it load nothing else and run nothing else, whatever a class name may try.
    """
    style, script = _style(chapter), _script(chapter)
    allowed = content_security_policy(chapter, beside=beside, served=served)
    # The script comes before the body: a chosen colour scheme must be there before anything is painted.
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{allowed}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>{style}</style>
<script>{script}</script>
</head>
<body>
<button type="button" id="scheme" aria-label="Colour scheme"></button>
{body}
</body>
</html>
"""


def content_security_policy(chapter: str = "", *, beside: bool = False, served: bool = False) -> str:
    """The content security policy of a page: its own style and script, and pictures inside it.

    `beside`: whether it loads pictures and data from its own folder. `served`: whether it asks the server that it is
    from, and shows pictures that it was given.
    """
    # A page that was opened from a file has no origin: what lies beside it is named by the scheme, too.
    own = " 'self' file:" if beside else ""
    asks = " blob:; connect-src 'self'" if served else ""
    return (
        f"default-src 'none'; img-src data:{own}{asks}; style-src '{_digest(_style(chapter))}'; "
        f"script-src '{_digest(_script(chapter))}'{own}; base-uri 'none'; form-action 'none'"
    )


@cache
def _style(chapter: str) -> str:
    names = ["style.css", *(["build.css", f"{chapter}.css"] if chapter else [])]
    return "".join(_read(name) for name in names)


@cache
def _script(chapter: str) -> str:
    """What all pages share, what those share that make their content, and the chapter's in the order of their names."""
    own = sorted(file.name for file in files("svertka.pages").iterdir() if re.fullmatch(rf"{chapter}.*\.js", file.name))
    return "\n".join(_read(name) for name in ["page.js", *(["build.js", *own] if chapter else [])])


@cache
def _read(name: str) -> str:
    return files("svertka.pages").joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
