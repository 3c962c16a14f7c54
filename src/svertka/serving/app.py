"""The HTTP interface and the upload page, as an ASGI application."""

import contextlib
import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any
from urllib.parse import parse_qs

from fastapi import Depends, FastAPI, Query
from fastapi.exceptions import RequestValidationError
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from svertka.package_version import VERSION
from svertka.serving import docs_page, upload_page
from svertka.serving.access_control import AccessControl
from svertka.serving.http_error import HTTPError
from svertka.serving.json_responses import ERROR_HANDLERS, ASCIIJSONResponse
from svertka.serving.prediction_service import PredictionService, describe_fault
from svertka.serving.run_files import find_run_file, respond_with_run_file
from svertka.serving.schemas import (
    ExplainOptions,
    Explanation,
    Health,
    ImageLabels,
    PredictOptions,
    add_run_enum,
    describe_image_body,
    error_responses,
)
from svertka.serving.served_model import ServedModel


class App:
    """The application; `asgi` is what a server runs.

    Args:
        runs: The served networks; requests that name no run get the first.
        hosts: See `AccessControl`.
        token: See `AccessControl`.
        threads: Threads that read requests and prepare images, and decoder processes up to MAX_DECODERS.
        allowed: See `AccessControl`.
        root: See `AccessControl`.
    """

    def __init__(
        self,
        runs: Sequence[ServedModel],
        *,
        hosts: frozenset[str] | None,
        token: str | None,
        threads: int,
        allowed: frozenset[str] = frozenset(),
        root: str = "",
    ) -> None:
        self.service = PredictionService(threads)
        for run in runs:
            self.service.add(run)
        self.runs, self._root = self.service.runs, root
        self._files = f"/files/{secrets.token_urlsafe(16)}"  # a secret that only the upload page tells
        access_control = Middleware(
            AccessControl, hosts=hosts, allowed=allowed, token=token, unguarded=f"{self._files}/", root=root
        )
        self.asgi = FastAPI(
            title="svertka",
            version=VERSION,
            servers=[{"url": root or "/"}],
            openapi_url=None,  # and so neither /docs nor /redoc, whose scripts come from a CDN
            redirect_slashes=False,
            middleware=[access_control],
            exception_handlers={
                **ERROR_HANDLERS,
                RequestValidationError: _handle_validation_error,
            },
            lifespan=self._lifespan,
        )
        self._add_routes()

    def _add_routes(self) -> None:
        add, checked = self.asgi.add_api_route, [Depends(_check_query)]
        for path, page in (("/", self._upload_page), ("/docs", self._docs_page), ("/openapi.json", self._openapi)):
            add(path, page, include_in_schema=False, response_model=None, methods=["GET", "HEAD"])
        files = f"{self._files}/{{run}}/{{name:path}}"
        add(files, self._file, include_in_schema=False, response_model=None, methods=["GET", "HEAD"])
        add(
            "/predict",
            self._predict,
            methods=["POST"],
            summary="Predict the classes of one image or of several",
            dependencies=checked,
            response_model=list[ImageLabels],
            response_description="one entry for each image, in order",
            responses=error_responses(),
            openapi_extra=describe_image_body(several=True),
        )
        add(
            "/explain",
            self._explain,
            methods=["POST"],
            summary="Show the input of the network, the evidence for a class, and the most active units",
            dependencies=checked,
            response_model=Explanation,
            response_description="images as data: URLs",
            responses=error_responses(),
            openapi_extra=describe_image_body(several=False),
        )
        add(
            "/health",
            self._health,
            methods=["GET"],
            summary="Report the state of the server",
            response_model=Health,
            response_description="the server is ready",
        )
        add("/health", self._health, methods=["HEAD"], include_in_schema=False, response_model=None)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        self.service.start()
        try:
            yield
        finally:  # by now every request is answered
            await self.service.stop()

    def _document(self) -> dict[str, Any]:
        return add_run_enum(self.asgi.openapi(), list(self.runs))

    def _url(self, request: Request) -> str:
        return f"http://{request.headers['host']}{self._root}"

    async def _upload_page(self, request: Request) -> Response:
        document = upload_page.render_upload_page(list(self.runs.values()), self._files, self._url(request))
        return HTMLResponse(document, headers={"Content-Security-Policy": upload_page.POLICY})

    async def _docs_page(self) -> Response:
        document = docs_page.render_docs_page(self._document())
        return HTMLResponse(document, headers={"Content-Security-Policy": docs_page.POLICY})

    async def _openapi(self) -> Response:
        return ASCIIJSONResponse(self._document())

    async def _health(self) -> Response:
        return ASCIIJSONResponse(
            {
                "status": "ok",
                "runs": list(self.runs),
                "waiting": self.service.waiting,
                "answered": self.service.answered,
            }
        )

    async def _predict(self, request: Request, options: Annotated[PredictOptions, Query()]) -> Response:
        return await self.service.predict(request, options)

    async def _explain(self, request: Request, options: Annotated[ExplainOptions, Query()]) -> Response:
        return await self.service.explain(request, options)

    async def _file(self, run: str, name: str) -> Response:
        found = self.runs.get(run)
        return respond_with_run_file(find_run_file(found.folder, name) if found is not None else None)


async def _check_query(request: Request) -> None:
    """Raise HTTPError if the query is not ASCII with UTF-8 in its escapes, or names an option twice."""
    try:
        text = request.scope["query_string"].decode("ascii")
        query = parse_qs(text, keep_blank_values=True, max_num_fields=8, errors="strict")
    except ValueError as error:
        raise HTTPError(400, "the query cannot be read") from error
    for name, values in query.items():
        if len(values) != 1:
            raise HTTPError(400, f"the query has {name[:80]} {len(values)} times; give it once")


async def _handle_validation_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return ASCIIJSONResponse({"error": describe_fault(error.errors()[0])}, 400)
