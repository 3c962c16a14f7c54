"""The page of the server: a place to put pictures, and links to what else is known of each run."""

import json
from collections.abc import Sequence
from urllib.parse import quote

from svertka.pages.html_page import bidi_isolate, content_security_policy, render_page
from svertka.pages.templates import escape
from svertka.serving.served_model import ServedModel

POLICY = content_security_policy("upload", served=True) + "; frame-ancestors 'none'"


def render_upload_page(runs: Sequence[ServedModel], files: str, address: str) -> str:
    """The whole document; `files` begins the addresses of the runs' own files, `address` is the server's.

    All links are relative, and the page's script writes the address under which it was found.
    """
    facts = [_describe_run(one, files) for one in runs]
    options = "".join(f'<option value="{escape(one.key)}">{escape(one.name)}</option>' for one in runs)
    chosen = f'<label>Run <select id="run" autocomplete="off">{options}</select></label>' if len(runs) > 1 else ""
    links = "".join(
        f'<a id="{name}" href="{escape(str(facts[0][name] or ""))}"{"" if facts[0][name] else " hidden"}>{text}</a>'
        for name, text in (("report", "Report and curves"), ("atlas", "Atlas"))
    )
    text = json.dumps({"runs": facts}, separators=(",", ":")).replace("<", "\\u003c")
    body = (
        f'<main><h1 id="sentence">{bidi_isolate(runs[0].sentence)}</h1>'
        f'<div class="asked">{chosen}{links}</div>'
        '<label id="drop"><span>Drop pictures here, paste one, or <u>choose</u></span>'
        '<input type="file" class="unseen" accept="image/*" multiple></label>'
        '<ol id="answers" aria-live="polite" reversed></ol>'
        '<noscript><p class="how">To name pictures on this page a browser has to run its script.</p></noscript>'
        '<section><h2>From a program</h2><p class="how">The bytes of one picture, a form with files, or a JSON list of '
        'pictures in base64; <a href="openapi.json">openapi.json</a> says the rest.</p>'
        f"<pre>curl --data-binary @picture.jpg {_curl_url(runs, address)}</pre></section></main>"
        f'<script type="application/json" id="facts">{text}</script>'
    )
    return render_page(f"{runs[0].name} – svertka", body, kind="upload", served=True)


def _describe_run(run: ServedModel, files: str) -> dict[str, str | None]:
    there = {name: run.file(path) for name, path in (("report", "report.html"), ("atlas", "atlas/index.html"))}
    start = f"{files.lstrip('/')}/{quote(run.key, safe='')}"
    return {
        "key": run.key,
        "name": run.name,
        "sentence": run.sentence,
        "report": f"{start}/report.html" if there["report"] else None,
        "atlas": f"{start}/atlas/index.html" if there["atlas"] else None,
    }


def _curl_url(runs: Sequence[ServedModel], address: str) -> str:
    place = f'<span id="address">{escape(address)}</span>/predict'
    return place if len(runs) == 1 else f"'{place}?run={escape(quote(runs[0].key, safe=''))}'"
