"""The HTTP interface and the upload page, as an ASGI application."""

import asyncio
import contextlib
import json
import math
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Generic, TypeVar
from urllib.parse import parse_qs

from fastapi import Depends, FastAPI, Query
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response

from svertka.errors import ImageError, ImageFormatError, ImageTooLargeError, RunError
from svertka.package_version import VERSION
from svertka.serving import docs_page, upload_page
from svertka.serving.access_control import AccessControl
from svertka.serving.decoder_pool import DecoderPool, Pixels, RequestDecoding
from svertka.serving.http_error import HTTPError
from svertka.serving.request_batching import Batcher
from svertka.serving.request_body_limits import BodyReader
from svertka.serving.schemas import (
    IMAGE_TYPES,
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
from svertka.serving.uploads import decode_base64, parse_form, split_base64_list

# The last is curl's default for --data-binary. The content says whether the body is an image.
BYTES_TYPES = ("", "application/octet-stream", "binary/octet-stream", "application/x-www-form-urlencoded")
JSON_TYPE, FORM_TYPE = "application/json", "multipart/form-data"
MAX_DECODERS = 8  # processes that decode images; they keep up with any network on as many cores
RUN_FILES_POLICY = (
    "sandbox allow-scripts allow-popups; default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; "
    "script-src 'self' 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

Result = TypeVar("Result")
Options = TypeVar("Options", PredictOptions, ExplainOptions)
EncodedImage = bytearray | memoryview  # the bytes of a file, or a JSON string with the file in base64


class ASCIIJSONResponse(JSONResponse):
    """JSON in ASCII: class names may hold lone surrogates, which UTF-8 cannot encode."""

    def render(self, content: Any) -> bytes:
        """Encode `content`; NaN and infinity become null."""
        try:
            return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()
        except ValueError:
            return json.dumps(_replace_nan(content), allow_nan=False, separators=(",", ":")).encode()


def _replace_nan(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _replace_nan(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_replace_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


@dataclass(frozen=True)
class ImageRequest(Generic[Options]):
    """Options and images of a request.

    `names`: file names in a form, None elsewhere. `is_single`: the body is one image, and not a list or a form.
    """

    options: Options
    images: Sequence[EncodedImage]
    names: Sequence[str | None]
    is_single: bool

    def entry(self, number: int, answer: dict[str, Any]) -> dict[str, Any]:
        """Return the entry of image `number` in the answer."""
        name = self.names[number]
        return {"path": f"#{number}"} | ({"name": name} if name is not None else {}) | answer


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
        self.runs = {run.key: run for run in runs}
        self.decoders = DecoderPool(min(threads, MAX_DECODERS))
        self._first, self._root = runs[0], root
        self._readers = ThreadPoolExecutor(threads, "read")
        self._network = ThreadPoolExecutor(1, "network")  # one batch at a time, on all cores
        # On a CPU no image is decoded while the network computes: its threads share the work equally, and all would
        # wait for the one whose core the decoder took.
        self._may_decode = asyncio.Event()
        self._may_decode.set()
        shared = asyncio.Event() if self._first.device.type != "cpu" else self._may_decode
        self._batchers = {run.key: Batcher(run.answer, self._network, shared) for run in runs}
        self._bodies = BodyReader()
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
                HTTPError: _handle_http_error,
                HTTPException: _handle_starlette_error,
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
        self.decoders.start()
        tasks = [asyncio.create_task(batcher.run()) for batcher in self._batchers.values()]
        try:
            yield
        finally:  # by now every request is answered
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.decoders.stop()
            self._readers.shutdown(cancel_futures=True)
            self._network.shutdown(cancel_futures=True)

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
        batchers = self._batchers.values()
        return ASCIIJSONResponse(
            {
                "status": "ok",
                "runs": list(self.runs),
                "waiting": sum(batcher.open for batcher in batchers),
                "answered": sum(batcher.answered for batcher in batchers),
            }
        )

    async def _predict(self, request: Request, options: Annotated[PredictOptions, Query()]) -> Response:
        self._find_run(options.run)  # before the body is sent in vain
        content_type = _content_type(request)
        async with self._bodies.read(request) as body:
            wanted = await self._parse_body(request, body, options, content_type)
            run, usage = self._find_run(wanted.options.run), RequestDecoding()
            with self._batchers[run.key].reserve(len(wanted.images)):
                if wanted.is_single:
                    entry = await _cancel_on_disconnect(request, self._predict_one(run, wanted, 0, usage))
                    return ASCIIJSONResponse([entry])
                entries = [self._try_one(run, wanted, number, usage) for number in range(len(wanted.images))]
                return ASCIIJSONResponse(await _cancel_on_disconnect(request, _gather(entries)))

    async def _try_one(
        self, run: ServedModel, wanted: ImageRequest[PredictOptions], number: int, usage: RequestDecoding
    ) -> dict[str, Any]:
        """Return the entry of image `number`, with `error` where it has no labels."""
        try:
            return await self._predict_one(run, wanted, number, usage)
        except HTTPError as error:
            return wanted.entry(number, {"labels": [], "error": error.reason})

    async def _predict_one(
        self, run: ServedModel, wanted: ImageRequest[PredictOptions], number: int, usage: RequestDecoding
    ) -> dict[str, Any]:
        prepared = await self._decode(run, wanted.images[number], usage, run.prepared)
        row, score = await self._batchers[run.key].submit(prepared)
        with _convert_errors():
            probabilities = run.classifier.require_finite(row)
            described = run.classifier.describe(probabilities, wanted.options.top, unknown_score=score)
        return wanted.entry(number, described)

    async def _explain(self, request: Request, options: Annotated[ExplainOptions, Query()]) -> Response:
        self._find_class(options)
        content_type = _content_type(request)
        if content_type == JSON_TYPE:
            raise HTTPError(415, "/explain takes the bytes of one image, not a JSON list")
        async with self._bodies.read(request) as body:
            wanted = await self._parse_body(request, body, options, content_type)
            if len(wanted.images) != 1:
                raise HTTPError(413, f"/explain takes one image, not {len(wanted.images)}")
            run, label = self._find_class(wanted.options)
            with self._batchers[run.key].reserve(1):
                explained = self._explain_one(run, wanted.images[0], label)
                return ASCIIJSONResponse(await _cancel_on_disconnect(request, explained))

    async def _explain_one(self, run: ServedModel, image: EncodedImage, label: int | None) -> dict[str, Any]:
        pixels = await self._decode(run, image, RequestDecoding(), lambda pixels: pixels)
        work = partial(run.explain, pixels, label)
        with _convert_errors():
            return await asyncio.get_running_loop().run_in_executor(self._network, work)

    async def _decode(
        self, run: ServedModel, image: EncodedImage, usage: RequestDecoding, then: Callable[[Pixels], Result]
    ) -> Result:
        """Return what `then` returns for the pixels of `image`."""
        await self._may_decode.wait()
        with _convert_errors():
            data = await self._read(decode_base64, image) if isinstance(image, memoryview) else image
            return await self.decoders.decode(data, run.decoding, usage, then)

    async def _parse_body(
        self, request: Request, body: bytearray, options: Options, content_type: str
    ) -> ImageRequest[Options]:
        if content_type == JSON_TYPE:
            strings = await self._read(split_base64_list, body)
            return ImageRequest(options, strings, [None] * len(strings), is_single=False)
        if content_type == FORM_TYPE:
            form = await self._read(parse_form, body, request.headers["content-type"])
            options = _merge_options(options, request.query_params.keys(), form.fields)
            names = [part.filename for part in form.files]
            return ImageRequest(options, [part.content for part in form.files], names, is_single=False)
        return ImageRequest(options, [body], [None], is_single=True)

    async def _file(self, run: str, name: str) -> Response:
        found = self.runs.get(run)
        path = found.file(name) if found is not None else None
        if path is None:
            raise HTTPError(404, "no such file")
        # A sandboxed page has no origin: the files beside it count as another site's.
        headers = {"Content-Security-Policy": RUN_FILES_POLICY, "Cross-Origin-Resource-Policy": "cross-origin"}
        return FileResponse(path, headers=headers)

    def _find_run(self, key: str | None) -> ServedModel:
        key = self._first.key if key is None else key
        if key not in self.runs:
            raise HTTPError(404, f"no run {key[:200]}; the served runs are {', '.join(self.runs)}")
        return self.runs[key]

    def _find_class(self, options: ExplainOptions) -> tuple[ServedModel, int | None]:
        """Return the run and the index of the class; None: the most probable class."""
        run = self._find_run(options.run)
        if options.label is None:
            return run, None
        if options.label not in run.classifier.names:
            raise HTTPError(404, f"{run.name} has no class {options.label[:200]}")
        return run, run.classifier.names.index(options.label)

    async def _read(self, function: Callable[..., Result], *arguments: Any) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._readers, function, *arguments)


async def _gather(answers: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
    return await asyncio.gather(*answers)


async def _cancel_on_disconnect(request: Request, answer: Coroutine[Any, Any, Result]) -> Result:
    """Return the result of `answer`, which is cancelled when the client disconnects."""

    async def disconnect() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = asyncio.create_task(answer), asyncio.create_task(disconnect())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            return tasks[0].result()
        raise HTTPError(400, "the client disconnected")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _content_type(request: Request) -> str:
    """Return the type of the body: JSON_TYPE, FORM_TYPE, one of BYTES_TYPES, or image/…"""
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise HTTPError(415, "a compressed body is not supported; send it uncompressed")
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type not in (JSON_TYPE, FORM_TYPE, *BYTES_TYPES) and not content_type.startswith("image/"):
        types = f"{', '.join(IMAGE_TYPES)}, {FORM_TYPE} or {JSON_TYPE}"
        raise HTTPError(415, f"the type {content_type[:80]} is not supported; use {types}")
    return content_type


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


def _merge_options(options: Options, query: Set[str], fields: dict[str, str]) -> Options:
    """Return the `options` that the `query` names together with those in the `fields` of a form."""
    if both := query & fields.keys():
        raise HTTPError(400, f"{min(both)} is in the query and in the form; give it once")
    try:
        return type(options).model_validate(options.model_dump(include=set(query)) | fields)
    except ValidationError as error:
        raise HTTPError(400, _describe_fault(error.errors()[0])) from error


def _describe_fault(fault: ErrorDetails) -> str:
    """Return one sentence about an option that pydantic rejects."""
    name = str(fault["loc"][-1])[:80]
    if fault["type"] == "extra_forbidden":
        return f"there is no option {name}"
    reason = fault["msg"].removeprefix("Input should be ")
    return f"{name}={str(fault['input'])[:20]} should be {reason}"


@contextlib.contextmanager
def _convert_errors() -> Iterator[None]:
    """Turn errors about an image, or about the network's output for it, into HTTPError."""
    try:
        yield
    except ImageError as error:
        status = 415 if isinstance(error, ImageFormatError) else 413 if isinstance(error, ImageTooLargeError) else 400
        raise HTTPError(status, f"the image cannot be read: {error}", reason=str(error)) from error
    except RunError as error:
        raise HTTPError(422, str(error)) from error


async def _handle_http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPError)
    return ASCIIJSONResponse({"error": error.sentence}, error.status, error.headers)


async def _handle_starlette_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return ASCIIJSONResponse({"error": error.detail.lower()}, error.status_code, error.headers)


async def _handle_validation_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return ASCIIJSONResponse({"error": _describe_fault(error.errors()[0])}, 400)
