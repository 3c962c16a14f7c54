"""The upload page: a place for pictures, and links to the report and the atlas of each run."""

from collections.abc import Sequence
from urllib.parse import quote

from svertka.pages.html_page import content_security_policy, render_page
from svertka.pages.templates import render_template
from svertka.serving.run_files import find_run_file
from svertka.serving.served_model import ServedModel

POLICY = content_security_policy("upload", served=True) + "; frame-ancestors 'none'"


def render_upload_page(runs: Sequence[ServedModel], files: str, address: str) -> str:
    """Return the page as HTML. Its links are relative, so that it works behind any proxy.

    Args:
        runs: The served runs; the page begins with the first.
        files: Path under which the server has the files of the runs.
        address: URL of the server, for an example; the page's script replaces it by the one in the browser.
    """
    body = render_template(
        "upload_page.html",
        runs=[_describe_run(run, files) for run in runs],
        address=address,
        query=f"?run={quote(runs[0].key, safe='')}" if len(runs) > 1 else "",
    )
    return render_page(f"{runs[0].name} – svertka", body, kind="upload", served=True)


def _describe_run(run: ServedModel, files: str) -> dict[str, str | None]:
    start = f"{files.lstrip('/')}/{quote(run.key, safe='')}"
    pages = {"report": "report.html", "atlas": "atlas/index.html"}
    links = {name: f"{start}/{path}" if find_run_file(run.folder, path) else None for name, path in pages.items()}
    return {"key": run.key, "name": run.name, "sentence": run.sentence, **links}
