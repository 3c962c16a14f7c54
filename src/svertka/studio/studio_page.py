"""The frame of the studio's pages, and what their requests are answered with."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import FastAPI
from markupsafe import Markup
from starlette.responses import HTMLResponse, Response

from svertka.pages.html_page import content_security_policy, render_page
from svertka.pages.templates import render_template
from svertka.studio.workspace import Workspace

VIEWS = {"collect": "Collect", "train": "Train", "understand": "Understand", "try": "Try", "ship": "Ship"}


def add_routes(
    app: FastAPI,
    workspace: Workspace,
    pages: Mapping[str, Callable[..., Any]],
    forms: Mapping[str, Callable[..., Any]],
) -> None:
    """Add routes of a workspace to `app`: `pages` are read with GET, `forms` are sent with POST."""
    for answers, method in ((pages, "GET"), (forms, "POST")):
        for name, answer in answers.items():
            app.add_api_route(f"/{workspace.key}/{name}", answer, methods=[method], response_model=None)


def render_studio_page(workspace: Workspace, view: str, **values: Any) -> Response:
    """Return the page `view` of a workspace; `values` are those of its template."""
    body = render_template(f"studio_{view}.html", workspace=workspace, view=view, views=VIEWS, **values)
    kind = f"studio-{view}"
    document = render_page(f"{workspace.name}: {VIEWS[view]} – svertka", body, kind=kind, served=True)
    policy = content_security_policy(kind, served=True)
    return HTMLResponse(document, headers={"Content-Security-Policy": f"{policy}; frame-ancestors 'none'"})


def render_fragment(name: str, events: Mapping[str, Any] | None = None, **values: Any) -> Response:
    """Return a part of a page, which htmx puts into it.

    `events` are raised there, such as those that `said` returns.
    """
    # After the swap, when htmx raises them also for a form that has been replaced since it was sent.
    headers = {"HX-Trigger-After-Swap": json.dumps(events)} if events else {}
    return HTMLResponse(str(render_template(name, **values)), headers=headers)


def said(sentence: str, **events: Any) -> dict[str, Any]:
    """Return the events that show a sentence."""
    return {"said": str(Markup(sentence))} | events
