"""The ASGI application of the studio: its pages, errors and background processes."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Sequence
from os import PathLike
from pathlib import Path

import torch
from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from svertka.errors import (
    ImageError,
    ImageFormatError,
    ImageTooLargeError,
    StorageError,
    SvertkaError,
    UsageError,
)
from svertka.serving.access_control import AccessControl
from svertka.serving.json_responses import ERROR_HANDLERS, ASCIIJSONResponse
from svertka.serving.prediction_service import PredictionService
from svertka.serving.run_files import find_run_file, respond_with_run_file
from svertka.studio.background_jobs import BackgroundJobs
from svertka.studio.collect_page import CollectPage
from svertka.studio.data_set_list import DataSetList
from svertka.studio.loaded_runs import LoadedRuns
from svertka.studio.run_list import JOBS, RunList
from svertka.studio.ship_page import ShipPage
from svertka.studio.thumbnails import Thumbnails
from svertka.studio.train_page import TrainPage
from svertka.studio.training_process import TrainingProcesses
from svertka.studio.try_page import TryPage
from svertka.studio.understand_page import UnderstandPage
from svertka.studio.workspace import Workspace

RUNS = "runs"  # folder of the runs, as svertka train has it

STATUSES: dict[type[SvertkaError], int] = {
    ImageFormatError: 415,
    ImageTooLargeError: 413,
    ImageError: 422,
    UsageError: 400,
    StorageError: 507,
    SvertkaError: 409,
}


class StudioApp:
    """The application; `asgi` is what a server runs.

    Args:
        folders: Folders of data sets.
        hosts: See `AccessControl`.
        token: See `AccessControl`.
        threads: Decoder processes.
    """

    def __init__(
        self, folders: Sequence[str | PathLike[str]], *, hosts: frozenset[str] | None, token: str | None, threads: int
    ) -> None:
        self._service = PredictionService(threads)
        self._runs = RunList(Path(RUNS).absolute())
        self._processes, self._jobs = TrainingProcesses(self._runs), BackgroundJobs(self._runs.folder / JOBS)
        self._stopping = asyncio.Event()
        self._files = f"/files/{secrets.token_urlsafe(16)}"  # a secret that only the pages tell
        thumbnails, data_sets = Thumbnails(self._service.decoders), DataSetList(self._runs, self._processes)
        self.workspaces: list[Workspace] = []
        for folder in folders:
            taken = [one.key for one in self.workspaces]
            made = Workspace(folder, thumbnails, self._runs, self._processes, self._jobs, data_sets, taken)
            self.workspaces.append(made)
        for one in self.workspaces:
            one.siblings = self.workspaces
        access_control = Middleware(
            AccessControl, hosts=hosts, allowed=frozenset(), token=token, unguarded=f"{self._files}/", root=""
        )
        self.asgi = FastAPI(
            title="svertka studio",
            openapi_url=None,
            redirect_slashes=False,
            middleware=[access_control],
            exception_handlers={
                **ERROR_HANDLERS,
                SvertkaError: _handle_svertka_error,
            },
            lifespan=self._lifespan,
        )
        self._add_routes()

    def _add_routes(self) -> None:
        for path, answer in (("/", self._home), (f"{self._files}/{{run}}/{{name:path}}", self._file)):
            self.asgi.add_api_route(path, answer, methods=["GET", "HEAD"], response_model=None)
        loaded = LoadedRuns(self._runs, self._service, torch.device("cpu"))
        for workspace in self.workspaces:
            CollectPage(workspace, self._service.bodies).add_routes(self.asgi)
            TrainPage(workspace, self._stopping).add_routes(self.asgi)
            UnderstandPage(workspace, self._files).add_routes(self.asgi)
            TryPage(workspace, self._service, loaded, self._files).add_routes(self.asgi)
            ShipPage(workspace).add_routes(self.asgi)

    def begin_shutdown(self) -> None:
        """End the streams of progress, and ask trainings to write their checkpoints."""
        self._stopping.set()

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        self._service.start()
        try:
            yield
        finally:
            await run_in_threadpool(self._processes.stop_all)
            await run_in_threadpool(self._jobs.stop_all)
            await self._service.stop()

    async def _file(self, run: str, name: str) -> Response:
        try:
            folder = self._runs.run(run).folder
        except SvertkaError:
            return respond_with_run_file(None)
        return respond_with_run_file(find_run_file(folder, name))

    async def _home(self) -> Response:
        shown = next((one for one in self.workspaces if not one.is_archived), self.workspaces[0])
        return RedirectResponse(f"{shown.key}/collect", status_code=303)


async def _handle_svertka_error(_: Request, error: Exception) -> Response:
    status = next(status for kind, status in STATUSES.items() if isinstance(error, kind))
    return ASCIIJSONResponse({"error": str(error)}, status)
