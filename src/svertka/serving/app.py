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

from svertka.errors import FormatError, PictureError, RunError, SizeError
from svertka.serving.access_control import Guard
from svertka.serving.decoder_pool import Account, Decoders, Pixels
from svertka.serving.http_errors import Refusal
from svertka.serving.openapi import PICTURE_TYPES, TOP_LIMIT, openapi
from svertka.serving.request_batching import Desk
from svertka.serving.request_limits import Bodies
from svertka.serving.served_model import Served
from svertka.serving.upload_page import POLICY, html
from svertka.serving.uploads import form, from_base64, listed

# What curl says by itself of --data-binary is not held against it: the content tells.
BYTES_TYPES = ("", "application/octet-stream", "binary/octet-stream", "application/x-www-form-urlencoded")
JSON_TYPE, FORM_TYPE = "application/json", "multipart/form-data"
DECODERS = 8  # processes that decode pictures, at most; they keep up with any network on as many cores
FILES_POLICY = (
    "sandbox allow-scripts allow-popups; default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; "
    "script-src 'self' 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


Result = TypeVar("Result")
Picture = bytearray | memoryview  # the bytes of a file, or a string of JSON that holds them in base64


class Json(JSONResponse):
    """In ASCII, so that any name survives: a class may be called what UTF-8 cannot hold."""

    def render(self, content: Any) -> bytes:
        """The bytes; what is no number, such as NaN, becomes null."""
        try:
            return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()
        except ValueError:
            return json.dumps(_without_nan(content), allow_nan=False, separators=(",", ":")).encode()


def _without_nan(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _without_nan(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


@dataclass(frozen=True)
class Asked:
    """What a request is about: its `query`, and its `pictures`.

    `names`: of files in a form. `alone`: whether it is one picture, sent as it is.
    """

    query: dict[str, str]
    pictures: Sequence[Picture]
    names: Sequence[str | None]
    alone: bool


class Api:
    """Answers for `runs`, the first of which is meant where none is named; `app` is the ASGI application.

    `hosts`, `allowed`, `token`, `root`: as for `Guard`. `threads`: that prepare pictures.
    """

    def __init__(
        self,
        runs: Sequence[Served],
        *,
        hosts: frozenset[str] | None,
        token: str | None,
        threads: int,
        allowed: frozenset[str] = frozenset(),
        root: str = "",
    ) -> None:
        self.runs = {one.key: one for one in runs}
        self.first, self._root = runs[0], root
        self.decoders = Decoders(min(threads, DECODERS))
        self._readers = ThreadPoolExecutor(threads, "read")
        self._network = ThreadPoolExecutor(1, "network")  # one at a time, with all cores
        # On the processor no picture is read while the network computes: its threads share their work equally, and
        # would all wait for the one whose core was taken.
        self._reading = asyncio.Event()
        self._reading.set()
        shared = asyncio.Event() if self.first.device.type != "cpu" else self._reading
        self._desks = {one.key: Desk(one.probabilities, self._network, shared) for one in runs}
        self._bodies = Bodies()
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
            Guard, hosts=hosts, allowed=allowed, token=token, unguarded=f"{self._files}/", root=self._root
        )
        self.app = Starlette(
            routes=routes,
            middleware=[guard],
            exception_handlers={Refusal: _refused, HTTPException: _unknown},
            lifespan=self._working,
        )
        self.app.router.redirect_slashes = False

    @contextlib.asynccontextmanager
    async def _working(self, _: Starlette) -> AsyncIterator[None]:
        self.decoders.start()
        tasks = [asyncio.create_task(desk.work()) for desk in self._desks.values()]
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
        document = html(list(self.runs.values()), self._files, address)
        return HTMLResponse(document, headers={"Content-Security-Policy": POLICY})

    async def _interface(self, _: Request) -> Response:
        return Json(openapi(list(self.runs.values()), self._root))

    async def _health(self, _: Request) -> Response:
        desks = self._desks.values()
        return Json(
            {
                "status": "ok",
                "runs": list(self.runs),
                "waiting": sum(desk.open for desk in desks),
                "answered": sum(desk.answered for desk in desks),
            }
        )

    async def _predict(self, request: Request) -> Response:
        query, kind = _query(request, "run", "top"), _kind(request)
        self._run(query), _top(query)  # before the body is sent in vain
        async with self._bodies.of(request) as body:
            asked = await self._asked(request, body, query, kind, "run", "top")
            run, top = self._run(asked.query), _top(asked.query)
            account = Account()
            with self._desks[run.key].places(len(asked.pictures)):
                if asked.alone:
                    answer = self._labelled(run, 0, asked, top, account)
                    return Json([await _while_connected(request, answer)])
                answers = [self._entry(run, number, asked, top, account) for number in range(len(asked.pictures))]
                return Json(await _while_connected(request, _together(answers)))

    async def _entry(self, run: Served, number: int, asked: Asked, top: int, account: Account) -> dict[str, Any]:
        """The entry of one of several, which says itself why it has no labels."""
        try:
            return await self._labelled(run, number, asked, top, account)
        except Refusal as refusal:
            return _entry(number, asked, [], error=refusal.reason)

    async def _labelled(self, run: Served, number: int, asked: Asked, top: int, account: Account) -> dict[str, Any]:
        prepared = await self._decoded(run, asked.pictures[number], account, run.prepared)
        row = await self._desks[run.key].result(prepared)
        with _refusing():
            ranked = run.classifier.rank(run.classifier.require_finite(row), top)
        return _entry(number, asked, [{"name": name, "probability": probability} for name, probability in ranked])

    async def _explain(self, request: Request) -> Response:
        query, kind = _query(request, "run", "label"), _kind(request)
        if kind == JSON_TYPE:
            raise Refusal(415, "send the bytes of one picture")
        self._class(query)
        async with self._bodies.of(request) as body:
            asked = await self._asked(request, body, query, kind, "run", "label")
            if len(asked.pictures) != 1:
                raise Refusal(413, "send one picture")
            run, label = self._class(asked.query)
            with self._desks[run.key].places(1):
                return Json(await _while_connected(request, self._explained(run, asked, label)))

    async def _explained(self, run: Served, asked: Asked, label: int | None) -> dict[str, Any]:
        pixels = await self._decoded(run, asked.pictures[0], Account(), lambda pixels: pixels)
        work = partial(run.explain, pixels, label)
        with _refusing():
            return await asyncio.get_running_loop().run_in_executor(self._network, work)

    async def _decoded(
        self, run: Served, picture: Picture, account: Account, then: Callable[[Pixels], Result]
    ) -> Result:
        """What `then` makes of the pixels of `picture`."""
        await self._reading.wait()
        with _refusing():
            data = await self._read(from_base64, picture) if isinstance(picture, memoryview) else picture
            return await self.decoders.decode(data, run.decoding, account, then)

    async def _asked(self, request: Request, body: bytearray, query: dict[str, str], kind: str, *names: str) -> Asked:
        """What a request is about; `names`: what the fields of a form may hold."""
        if kind == JSON_TYPE:
            strings = await self._read(listed, body)
            return Asked(query, strings, [None] * len(strings), alone=False)
        if kind == FORM_TYPE:
            sent = await self._read(form, body, request.headers["content-type"])
            _refuse_unknown(sent.fields, names, "the fields of a form that are no files")
            if query.keys() & sent.fields.keys():
                raise Refusal(400, f"{min(query.keys() & sent.fields.keys())} is in the query and in the form")
            names_of_files = [part.filename for part in sent.files]
            return Asked(query | sent.fields, [part.content for part in sent.files], names_of_files, alone=False)
        return Asked(query, [body], [None], alone=True)

    async def _file(self, request: Request) -> Response:
        run = self.runs.get(request.path_params["run"])
        path = run.file(request.path_params["name"]) if run is not None else None
        if path is None:
            raise Refusal(404, "there is no such file")
        # In its sandbox the page has no origin, so that what lies beside it counts as another site's.
        headers = {"Content-Security-Policy": FILES_POLICY, "Cross-Origin-Resource-Policy": "cross-origin"}
        return FileResponse(path, headers=headers)

    def _run(self, query: dict[str, str]) -> Served:
        key = query.get("run", self.first.key)
        if key not in self.runs:
            raise Refusal(404, f"there is no run {key[:200]}; there is {', '.join(self.runs)}")
        return self.runs[key]

    def _class(self, query: dict[str, str]) -> tuple[Served, int | None]:
        """The run and the class that are meant; None: the most probable."""
        run, wanted = self._run(query), query.get("label")
        if wanted is None:
            return run, None
        if wanted not in run.classifier.names:
            raise Refusal(404, f"{run.name} knows no class {wanted[:200]}")
        return run, run.classifier.names.index(wanted)

    async def _read(self, function: Callable[..., Result], *arguments: Any) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._readers, function, *arguments)


async def _together(answers: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
    return await asyncio.gather(*answers)


async def _while_connected(request: Request, answer: Coroutine[Any, Any, Result]) -> Result:
    """What `answer` gives; it is given up as soon as the client is gone."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = asyncio.create_task(answer), asyncio.create_task(gone())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            return tasks[0].result()
        raise Refusal(400, "the client is gone")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _entry(number: int, asked: Asked, labels: list[dict[str, Any]], **more: str) -> dict[str, Any]:
    name = asked.names[number]
    return {"path": f"#{number}"} | ({"name": name} if name is not None else {}) | {"labels": labels} | more


def _kind(request: Request) -> str:
    """The type of the body: JSON_TYPE, FORM_TYPE, one of BYTES_TYPES, or some image/…"""
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refusal(415, "bodies may not be compressed")
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in (JSON_TYPE, FORM_TYPE, *BYTES_TYPES) and not kind.startswith("image/"):
        raise Refusal(415, f"{kind[:80]} is none of {', '.join(PICTURE_TYPES)}, {FORM_TYPE} and {JSON_TYPE}")
    return kind


def _query(request: Request, *names: str) -> dict[str, str]:
    """The query's values; what is not among `names` is a mistake of the client's."""
    try:
        text = request.scope["query_string"].decode("ascii")
        query = parse_qs(text, keep_blank_values=True, max_num_fields=8, errors="strict")
    except ValueError as error:
        raise Refusal(400, "the query cannot be read") from error
    if any(len(values) != 1 for values in query.values()):
        raise Refusal(400, f"the query may hold {' and '.join(names)}, once each")
    _refuse_unknown(query, (*names, "token"), "the query")
    return {name: values[0] for name, values in query.items()}


def _refuse_unknown(fields: Iterable[str], names: Sequence[str], where: str) -> None:
    for name in fields:
        if name not in names:
            raise Refusal(400, f"{where} may hold {' and '.join(names)}, not {name[:80]}")


def _top(query: dict[str, str]) -> int:
    text = query.get("top", "5")
    if not (text.isascii() and text.isdigit() and len(text) < 5 and 1 <= int(text) <= TOP_LIMIT):
        raise Refusal(400, f"top={text[:20]} is not a number from 1 to {TOP_LIMIT}")
    return int(text)


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    """Make a refusal of what is wrong with a picture, or with what the network says of it."""
    try:
        yield
    except PictureError as error:
        status = 415 if isinstance(error, FormatError) else 413 if isinstance(error, SizeError) else 400
        raise Refusal(status, f"the picture cannot be read: {error}", reason=str(error)) from error
    except RunError as error:
        raise Refusal(422, str(error)) from error


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return Json({"error": error.sentence}, error.status, error.headers)


async def _unknown(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return Json({"error": error.detail.lower()}, error.status_code, error.headers)
