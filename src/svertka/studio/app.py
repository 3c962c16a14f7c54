"""The ASGI application of the studio: its pages, errors and background processes."""

import contextlib
from collections.abc import AsyncIterator, Sequence
from os import PathLike

from fastapi import FastAPI
from starlette.exceptions import HTTPException
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
from svertka.serving.app import ASCIIJSONResponse
from svertka.serving.decoder_pool import DecoderPool
from svertka.serving.http_error import HTTPError
from svertka.serving.request_body_limits import BodyReader
from svertka.studio.collect_page import CollectPage
from svertka.studio.thumbnails import Thumbnails
from svertka.studio.workspace import Workspace

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
        self._decoders = DecoderPool(threads)
        self.workspaces: list[Workspace] = []
        thumbnails, bodies = Thumbnails(self._decoders), BodyReader()
        for folder in folders:
            taken = [one.key for one in self.workspaces]
            self.workspaces.append(Workspace(folder, thumbnails, taken))
        siblings = [(one.key, one.name) for one in self.workspaces]
        for one in self.workspaces:
            one.siblings = siblings
        access_control = Middleware(
            AccessControl, hosts=hosts, allowed=frozenset(), token=token, unguarded="/files/none/", root=""
        )
        self.asgi = FastAPI(
            title="svertka studio",
            openapi_url=None,
            redirect_slashes=False,
            middleware=[access_control],
            exception_handlers={
                HTTPError: _handle_http_error,
                HTTPException: _handle_starlette_error,
                SvertkaError: _handle_svertka_error,
            },
            lifespan=self._lifespan,
        )
        self.asgi.add_api_route("/", self._home, methods=["GET"], response_model=None)
        for workspace in self.workspaces:
            CollectPage(workspace, bodies).add_routes(self.asgi)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        self._decoders.start()
        try:
            yield
        finally:
            self._decoders.stop()

    async def _home(self) -> Response:
        return RedirectResponse(f"{self.workspaces[0].key}/collect", status_code=303)


async def _handle_http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPError)
    return ASCIIJSONResponse({"error": error.sentence}, error.status, error.headers)


async def _handle_starlette_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return ASCIIJSONResponse({"error": error.detail.lower()}, error.status_code, error.headers)


async def _handle_svertka_error(_: Request, error: Exception) -> Response:
    status = next(status for kind, status in STATUSES.items() if isinstance(error, kind))
    return ASCIIJSONResponse({"error": str(error)}, status)
