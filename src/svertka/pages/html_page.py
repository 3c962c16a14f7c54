"""The shell of a self-contained HTML page: inlined style and scripts, and a content security policy."""

import base64
import hashlib
from functools import cache
from importlib.resources import files

from markupsafe import Markup

from svertka.pages.templates import render_template

# Files of pages/static/ that each kind of page contains, in their order.
_STYLES = {
    "report": ("base.css",),
    "atlas": ("base.css", "components.css", "atlas.css"),
    "overlays": ("base.css", "components.css", "overlays.css"),
    "upload": ("base.css", "components.css", "upload.css"),
    "classifier": ("base.css", "components.css", "upload.css", "classifier.css"),
    "check": ("base.css", "components.css", "check.css"),
    "docs": ("base.css", "docs.css"),
    "studio-collect": ("base.css", "components.css", "studio.css", "studio-collect.css"),
    "studio-train": ("base.css", "components.css", "studio.css", "studio-train.css"),
    "studio-try": ("base.css", "components.css", "upload.css", "studio.css", "studio-try.css"),
    "studio-understand": ("base.css", "components.css", "studio.css", "studio-train.css", "studio-understand.css"),
    "studio-ship": ("base.css", "components.css", "studio.css", "studio-train.css", "studio-understand.css"),
}
_SCRIPTS = {
    "report": ("base.js",),
    "atlas": (
        "base.js",
        "dom.js",
        "atlas-elements.js",
        "atlas-image.js",
        "atlas-layer.js",
        "atlas-unit.js",
        "atlas.js",
    ),
    "overlays": ("base.js", "dom.js"),
    "upload": ("base.js", "dom.js", "answers.js", "upload.js"),
    "classifier": ("base.js", "dom.js", "answers.js", "classifier.js"),
    "check": ("base.js", "dom.js", "check.js", "check-map.js"),
    "docs": ("base.js",),
    "studio-collect": ("base.js", "dom.js", "htmx.min.js", "studio.js", "studio-collect.js", "studio-camera.js"),
    "studio-train": ("base.js", "dom.js", "htmx.min.js", "studio.js", "studio-train.js"),
    "studio-try": ("base.js", "dom.js", "htmx.min.js", "studio.js", "answers.js", "upload.js", "studio-try.js"),
    "studio-understand": ("base.js", "dom.js", "htmx.min.js", "studio.js", "studio-choose-run.js"),
    "studio-ship": ("base.js", "dom.js", "htmx.min.js", "studio.js", "studio-choose-run.js"),
}


def render_page(
    title: str,
    body: str,
    *,
    kind: str = "report",
    beside: bool = False,
    served: bool = False,
    computes: bool = False,
) -> str:
    """Return a complete HTML document with its style and scripts inside.

    Args:
        title: Text.
        body: HTML.
        kind: "report", "atlas", "overlays", "upload", "classifier", "check", "docs" or "studio-…"; selects style and
            scripts.
        beside, served, computes: See `content_security_policy`.
    """
    document = render_template(
        "page.html",
        title=title,
        body=Markup(body),
        policy=Markup(content_security_policy(kind, beside=beside, served=served, computes=computes)),
        style=Markup(_style(kind)),
        script=Markup(_script(kind)),
    )
    return str(document)


def content_security_policy(
    kind: str = "report", *, beside: bool = False, served: bool = False, computes: bool = False
) -> str:
    """Return the policy of a page: only its own style, scripts and inline images, whatever a class name contains.

    Args:
        kind: As for `render_page`.
        beside: Also allow images and scripts from the folder of the page.
        served: Also allow requests to the server of the page, its images, and images chosen by the user.
        computes: Also allow images chosen by the user, a worker that the page makes, and WebAssembly; no requests.
    """
    # A page opened from disk has no origin: files beside it are allowed by their scheme.
    folder = " 'self' file:" if beside else ""
    requests = " 'self' blob:; connect-src 'self'" if served else ""
    chosen, program, worker = (" blob:", " 'wasm-unsafe-eval'", "; worker-src blob:") if computes else ("", "", "")
    return (
        f"default-src 'none'; img-src data:{folder}{chosen}{requests}; style-src '{_digest(_style(kind))}'; "
        f"script-src '{_digest(_script(kind))}'{folder}{program}{worker}; base-uri 'none'; form-action 'none'"
    )


@cache
def _style(kind: str) -> str:
    return "".join(_read(name) for name in _STYLES[kind])


@cache
def _script(kind: str) -> str:
    return "\n".join(_read(name) for name in _SCRIPTS[kind])


@cache
def _read(name: str) -> str:
    return files("svertka.pages").joinpath("static", name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
