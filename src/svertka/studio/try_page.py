"""The page Try: what a run answers for pictures that are dropped, pasted or seen by the camera."""

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from svertka.classifier import read_config
from svertka.errors import SvertkaError
from svertka.serving.prediction_service import PredictionService
from svertka.serving.run_files import find_run_file
from svertka.serving.schemas import MAX_TOP, ExplainOptions, PredictOptions
from svertka.serving.served_model import describe_network
from svertka.studio.loaded_runs import LoadedRuns
from svertka.studio.request_fields import Fields, read_query
from svertka.studio.studio_page import add_routes, render_studio_page
from svertka.studio.workspace import Workspace


class PredictFields(Fields):
    """A run, and how many classes are answered."""

    run: str = Field(max_length=200)
    top: int = Field(default=5, ge=1, le=MAX_TOP)


class ExplainFields(Fields):
    """A run, and the class to explain; None: the most probable."""

    run: str = Field(max_length=200)
    label: str | None = None


class TryPage:
    """Routes of the page Try of one workspace.

    Args:
        workspace: The data set and the runs.
        service: What answers.
        loaded: The runs that it answers for.
        files: Path under which the server has the files of the runs.
    """

    def __init__(self, workspace: Workspace, service: PredictionService, loaded: LoadedRuns, files: str) -> None:
        self._workspace, self._service, self._loaded, self._files = workspace, service, loaded, files

    def add_routes(self, app: FastAPI) -> None:
        """Add the routes to `app`."""
        pages: dict[str, Callable[..., Any]] = {"try": self._page}
        forms: dict[str, Callable[..., Any]] = {"predict": self._predict, "explain": self._explain}
        add_routes(app, self._workspace, pages, forms)

    async def _page(self) -> Response:
        return render_studio_page(self._workspace, "try", runs=await run_in_threadpool(self._describe_runs))

    async def _predict(self, request: Request) -> Response:
        wanted = read_query(request, PredictFields)
        key = await self._loaded.load(wanted.run)
        return await self._service.predict(request, PredictOptions(run=key, top=wanted.top))

    async def _explain(self, request: Request) -> Response:
        wanted = read_query(request, ExplainFields)
        key = await self._loaded.load(wanted.run)
        return await self._service.explain(request, ExplainOptions(run=key, label=wanted.label))

    def _describe_runs(self) -> list[dict[str, Any]]:
        """Return the finished runs, those on this data set first."""
        runs, shown = self._workspace.runs, []
        for name in self._workspace.trained_runs():
            run = runs.run(name)
            try:
                sentence, size = describe_network(read_config(run.folder), run.folder), read_config(run.folder)
            except SvertkaError:
                continue
            start = f"..{self._files}/{quote(name, safe='')}"
            links = {"report": "report.html", "atlas": "atlas/index.html"}
            found = {key: f"{start}/{path}" if find_run_file(run.folder, path) else None for key, path in links.items()}
            side = size.preprocess.size
            shown.append({"key": name, "name": name, "sentence": sentence, "size": side, **found})
        return shown
