"""The HTTP interface and the page, as an ASGI application."""

import asyncio
import contextlib
import json
import math
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from svertka.errors import FormatError, ImageError, RunError, SizeError
from svertka.serving.access_control import AccessControl
from svertka.serving.decoder_pool import DecoderPool, DecodingUsage, Pixels
from svertka.serving.http_errors import HTTPError
from svertka.serving.openapi import IMAGE_TYPES, MAX_TOP, openapi
from svertka.serving.request_batching import Batcher
from svertka.serving.request_limits import BodyReader
from svertka.serving.served_model import ServedModel
from svertka.serving.upload_page import POLICY, render_upload_page
from svertka.serving.uploads import decode_base64, parse_base64_list, parse_form

# What curl says by itself of --data-binary is not held against it: the content tells.
BYTES_TYPES = ("", "application/octet-stream", "binary/octet-stream", "application/x-www-form-urlencoded")
JSON_TYPE, FORM_TYPE = "application/json", "multipart/form-data"
MAX_DECODERS = 8  # processes that decode pictures, at most; they keep up with any network on as many cores
RUN_FILES_POLICY = (
    "sandbox allow-scripts allow-popups; default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; "
    "script-src 'self' 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


Result = TypeVar("Result")
EncodedImage = bytearray | memoryview  # the bytes of a file, or a string of JSON that holds them in base64


class ASCIIJSONResponse(JSONResponse):
    """In ASCII, so that any name survives: a class may be called what UTF-8 cannot hold."""

    def render(self, content: Any) -> bytes:
        """The bytes; what is no number, such as NaN, becomes null."""
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
class ImageRequest:
    """What a request is about: its `query`, and its `pictures`.

    `names`: of files in a form. `alone`: whether it is one picture, sent as it is.
    """

    query: dict[str, str]
    pictures: Sequence[EncodedImage]
    names: Sequence[str | None]
    alone: bool


class App:
    """Answers for `runs`, the first of which is meant where none is named; `app` is the ASGI application.

    `hosts`, `allowed`, `token`, `root`: as for `AccessControl`. `threads`: that prepare pictures.
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
        self.runs = {one.key: one for one in runs}
        self.first, self._root = runs[0], root
        self.decoders = DecoderPool(min(threads, MAX_DECODERS))
        self._readers = ThreadPoolExecutor(threads, "read")
        self._network = ThreadPoolExecutor(1, "network")  # one at a time, with all cores
        # On the processor no picture is read while the network computes: its threads share their work equally, and
        # would all wait for the one whose core was taken.
        self._reading = asyncio.Event()
        self._reading.set()
        shared = asyncio.Event() if self.first.device.type != "cpu" else self._reading
        self._batchers = {one.key: Batcher(one.probabilities, self._network, shared) for one in runs}
        self._bodies = BodyReader()
        self._files = f"/files/{secrets.token_urlsafe(16)}"  # whoever knows it has seen the page
        routes = [
            Route("/", self._show, methods=["GET"]),
            Route("/predict", self._predict, methods=["POST"]),
            Route("/explain", self._explain, methods=["POST"]),
            Route("/health", self._health, methods=["GET"]),
            Route("/openapi.json", self._interface, methods=["GET"]),
            Route(self._files + "/{run}/{name:path}", self._file, methods=["GET"]),
        ]
        guard = Middleware(
            AccessControl, hosts=hosts, allowed=allowed, token=token, unguarded=f"{self._files}/", root=self._root
        )
        self.app = Starlette(
            routes=routes,
            middleware=[guard],
            exception_handlers={HTTPError: _handle_http_error, HTTPException: _handle_starlette_error},
            lifespan=self._working,
        )
        self.app.router.redirect_slashes = False

    @contextlib.asynccontextmanager
    async def _working(self, _: Starlette) -> AsyncIterator[None]:
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

    async def _show(self, request: Request) -> Response:
        address = f"http://{request.headers['host']}{self._root}"
        document = render_upload_page(list(self.runs.values()), self._files, address)
        return HTMLResponse(document, headers={"Content-Security-Policy": POLICY})

    async def _interface(self, _: Request) -> Response:
        return ASCIIJSONResponse(openapi(list(self.runs.values()), self._root))

    async def _health(self, _: Request) -> Response:
        batchers = self._batchers.values()
        return ASCIIJSONResponse(
            {
                "status": "ok",
                "runs": list(self.runs),
                "waiting": sum(batcher.open for batcher in batchers),
                "answered": sum(batcher.answered for batcher in batchers),
            }
        )

    async def _predict(self, request: Request) -> Response:
        query, kind = _parse_query(request, "run", "top"), _content_type(request)
        self._run(query), _parse_top(query)  # before the body is sent in vain
        async with self._bodies.read(request) as body:
            asked = await self._asked(request, body, query, kind, "run", "top")
            run, top = self._run(asked.query), _parse_top(asked.query)
            account = DecodingUsage()
            with self._batchers[run.key].reserve(len(asked.pictures)):
                if asked.alone:
                    answer = self._labelled(run, 0, asked, top, account)
                    return ASCIIJSONResponse([await _cancel_on_disconnect(request, answer)])
                answers = [self._entry(run, number, asked, top, account) for number in range(len(asked.pictures))]
                return ASCIIJSONResponse(await _cancel_on_disconnect(request, _gather(answers)))

    async def _entry(
        self, run: ServedModel, number: int, asked: ImageRequest, top: int, account: DecodingUsage
    ) -> dict[str, Any]:
        """The entry of one of several, which says itself why it has no labels."""
        try:
            return await self._labelled(run, number, asked, top, account)
        except HTTPError as refusal:
            return _entry(number, asked, [], error=refusal.reason)

    async def _labelled(
        self, run: ServedModel, number: int, asked: ImageRequest, top: int, account: DecodingUsage
    ) -> dict[str, Any]:
        prepared = await self._decoded(run, asked.pictures[number], account, run.prepared)
        row = await self._batchers[run.key].submit(prepared)
        with _convert_errors():
            ranked = run.classifier.rank(run.classifier.require_finite(row), top)
        return _entry(number, asked, [{"name": name, "probability": probability} for name, probability in ranked])

    async def _explain(self, request: Request) -> Response:
        query, kind = _parse_query(request, "run", "label"), _content_type(request)
        if kind == JSON_TYPE:
            raise HTTPError(415, "send the bytes of one picture")
        self._class(query)
        async with self._bodies.read(request) as body:
            asked = await self._asked(request, body, query, kind, "run", "label")
            if len(asked.pictures) != 1:
                raise HTTPError(413, "send one picture")
            run, label = self._class(asked.query)
            with self._batchers[run.key].reserve(1):
                return ASCIIJSONResponse(await _cancel_on_disconnect(request, self._explained(run, asked, label)))

    async def _explained(self, run: ServedModel, asked: ImageRequest, label: int | None) -> dict[str, Any]:
        pixels = await self._decoded(run, asked.pictures[0], DecodingUsage(), lambda pixels: pixels)
        work = partial(run.explain, pixels, label)
        with _convert_errors():
            return await asyncio.get_running_loop().run_in_executor(self._network, work)

    async def _decoded(
        self, run: ServedModel, picture: EncodedImage, account: DecodingUsage, then: Callable[[Pixels], Result]
    ) -> Result:
        """What `then` makes of the pixels of `picture`."""
        await self._reading.wait()
        with _convert_errors():
            data = await self._read(decode_base64, picture) if isinstance(picture, memoryview) else picture
            return await self.decoders.decode(data, run.decoding, account, then)

    async def _asked(
        self, request: Request, body: bytearray, query: dict[str, str], kind: str, *names: str
    ) -> ImageRequest:
        """What a request is about; `names`: what the fields of a form may hold."""
        if kind == JSON_TYPE:
            strings = await self._read(parse_base64_list, body)
            return ImageRequest(query, strings, [None] * len(strings), alone=False)
        if kind == FORM_TYPE:
            sent = await self._read(parse_form, body, request.headers["content-type"])
            _reject_unknown(sent.fields, names, "the fields of a form that are no files")
            if query.keys() & sent.fields.keys():
                raise HTTPError(400, f"{min(query.keys() & sent.fields.keys())} is in the query and in the form")
            names_of_files = [part.filename for part in sent.files]
            return ImageRequest(query | sent.fields, [part.content for part in sent.files], names_of_files, alone=False)
        return ImageRequest(query, [body], [None], alone=True)

    async def _file(self, request: Request) -> Response:
        run = self.runs.get(request.path_params["run"])
        path = run.file(request.path_params["name"]) if run is not None else None
        if path is None:
            raise HTTPError(404, "there is no such file")
        # In its sandbox the page has no origin, so that what lies beside it counts as another site's.
        headers = {"Content-Security-Policy": RUN_FILES_POLICY, "Cross-Origin-Resource-Policy": "cross-origin"}
        return FileResponse(path, headers=headers)

    def _run(self, query: dict[str, str]) -> ServedModel:
        key = query.get("run", self.first.key)
        if key not in self.runs:
            raise HTTPError(404, f"there is no run {key[:200]}; there is {', '.join(self.runs)}")
        return self.runs[key]

    def _class(self, query: dict[str, str]) -> tuple[ServedModel, int | None]:
        """The run and the class that are meant; None: the most probable."""
        run, wanted = self._run(query), query.get("label")
        if wanted is None:
            return run, None
        if wanted not in run.classifier.names:
            raise HTTPError(404, f"{run.name} knows no class {wanted[:200]}")
        return run, run.classifier.names.index(wanted)

    async def _read(self, function: Callable[..., Result], *arguments: Any) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._readers, function, *arguments)


async def _gather(answers: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
    return await asyncio.gather(*answers)


async def _cancel_on_disconnect(request: Request, answer: Coroutine[Any, Any, Result]) -> Result:
    """What `answer` gives; it is given up as soon as the client is gone."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = asyncio.create_task(answer), asyncio.create_task(gone())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            return tasks[0].result()
        raise HTTPError(400, "the client is gone")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _entry(number: int, asked: ImageRequest, labels: list[dict[str, Any]], **more: str) -> dict[str, Any]:
    name = asked.names[number]
    return {"path": f"#{number}"} | ({"name": name} if name is not None else {}) | {"labels": labels} | more


def _content_type(request: Request) -> str:
    """The type of the body: JSON_TYPE, FORM_TYPE, one of BYTES_TYPES, or some image/…"""
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise HTTPError(415, "bodies may not be compressed")
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in (JSON_TYPE, FORM_TYPE, *BYTES_TYPES) and not kind.startswith("image/"):
        raise HTTPError(415, f"{kind[:80]} is none of {', '.join(IMAGE_TYPES)}, {FORM_TYPE} and {JSON_TYPE}")
    return kind


def _parse_query(request: Request, *names: str) -> dict[str, str]:
    """The query's values; what is not among `names` is a mistake of the client's."""
    try:
        text = request.scope["query_string"].decode("ascii")
        query = parse_qs(text, keep_blank_values=True, max_num_fields=8, errors="strict")
    except ValueError as error:
        raise HTTPError(400, "the query cannot be read") from error
    if any(len(values) != 1 for values in query.values()):
        raise HTTPError(400, f"the query may hold {' and '.join(names)}, once each")
    _reject_unknown(query, (*names, "token"), "the query")
    return {name: values[0] for name, values in query.items()}


def _reject_unknown(fields: Iterable[str], names: Sequence[str], where: str) -> None:
    for name in fields:
        if name not in names:
            raise HTTPError(400, f"{where} may hold {' and '.join(names)}, not {name[:80]}")


def _parse_top(query: dict[str, str]) -> int:
    text = query.get("top", "5")
    if not (text.isascii() and text.isdigit() and len(text) < 5 and 1 <= int(text) <= MAX_TOP):
        raise HTTPError(400, f"top={text[:20]} is not a number from 1 to {MAX_TOP}")
    return int(text)


@contextlib.contextmanager
def _convert_errors() -> Iterator[None]:
    """Make a refusal of what is wrong with a picture, or with what the network says of it."""
    try:
        yield
    except ImageError as error:
        status = 415 if isinstance(error, FormatError) else 413 if isinstance(error, SizeError) else 400
        raise HTTPError(status, f"the picture cannot be read: {error}", reason=str(error)) from error
    except RunError as error:
        raise HTTPError(422, str(error)) from error


async def _handle_http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPError)
    return ASCIIJSONResponse({"error": error.sentence}, error.status, error.headers)


async def _handle_starlette_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return ASCIIJSONResponse({"error": error.detail.lower()}, error.status_code, error.headers)
