"""The HTTP interface and the page, as an ASGI application."""

import asyncio
import base64
import binascii
import contextlib
import json
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar
from urllib.parse import parse_qs

import torch
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from torch import Tensor

from svertka.deployment.bodies import Bodies
from svertka.deployment.desk import Desk
from svertka.deployment.guard import Guard
from svertka.deployment.interface import LIST_LIMIT, PICTURE_TYPES, TOP_LIMIT, openapi
from svertka.deployment.page import POLICY, html
from svertka.deployment.refusal import Refusal
from svertka.deployment.served import Served
from svertka.errors import FormatError, PictureError, SizeError

# What curl says by itself of --data-binary is not held against it: the content tells.
BYTES_TYPES = ("", "application/octet-stream", "application/x-www-form-urlencoded", *PICTURE_TYPES)
FILES_POLICY = (
    "sandbox allow-scripts allow-popups; default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; "
    "script-src 'self' 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


Result = TypeVar("Result")


class Json(JSONResponse):
    """In ASCII, so that any name survives: a class may be called what UTF-8 cannot hold."""

    def render(self, content: Any) -> bytes:
        """The bytes."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


class Api:
    """Answers for `runs`, the first of which is meant where none is named; `app` is the ASGI application.

    `hosts`, `token`: as for `Guard`. `threads`: that read pictures.
    """

    def __init__(
        self, runs: Sequence[Served], *, hosts: frozenset[str] | None, token: str | None, threads: int
    ) -> None:
        self.runs = {one.key: one for one in runs}
        self.first = runs[0]
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
        self.app = Starlette(
            routes=routes,
            middleware=[Middleware(Guard, hosts=hosts, token=token, unguarded=f"{self._files}/")],
            exception_handlers={Refusal: _refused, HTTPException: _unknown},
            lifespan=self._working,
        )
        self.app.router.redirect_slashes = False

    @contextlib.asynccontextmanager
    async def _working(self, _: Starlette) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(desk.work()) for desk in self._desks.values()]
        try:
            yield
        finally:  # by now every request is answered
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._readers.shutdown(cancel_futures=True)
            self._network.shutdown(cancel_futures=True)

    async def _show(self, request: Request) -> Response:
        address = str(request.base_url).rstrip("/")
        document = html(list(self.runs.values()), self._files, address)
        return HTMLResponse(document, headers={"Content-Security-Policy": POLICY})

    async def _interface(self, _: Request) -> Response:
        return Json(openapi(list(self.runs.values())))

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
        query = _query(request, "run", "top")
        run, top = self._run(query), _top(query)
        kind = _kind(request)
        async with self._bodies.of(request) as body:
            if kind != "application/json":
                return Json([await self._named(run, body, top)])
            pictures = await self._read(_listed, body)
            with self._desks[run.key].places(len(pictures)):
                named = [self._entry(run, number, one, top) for number, one in enumerate(pictures)]
                return Json(await asyncio.gather(*named))

    async def _named(self, run: Served, body: bytes, top: int) -> dict[str, Any]:
        """The entry of a picture that came alone."""
        with self._desks[run.key].places(1):
            try:
                return _labelled(run, 0, await self._row(run, body), top)
            except PictureError as error:
                raise _refusal(error) from error

    async def _entry(self, run: Served, number: int, text: str, top: int) -> dict[str, Any]:
        """The entry of one of several, which says itself why it has no labels."""
        try:
            body = base64.b64decode(text, validate=True)
            return _labelled(run, number, await self._row(run, body), top)
        except (binascii.Error, ValueError):
            reason = "not base64"
        except PictureError as error:
            reason = str(error)
        return {"path": f"#{number}", "labels": [], "error": reason}

    async def _row(self, run: Served, body: bytes) -> Tensor:
        await self._reading.wait()
        return await self._desks[run.key].result(await self._read(run.prepare, body))

    async def _explain(self, request: Request) -> Response:
        query = _query(request, "run", "label")
        run = self._run(query)
        names = run.classifier.names
        if "label" in query and query["label"] not in names:
            raise Refusal(404, f"{run.name} knows no class {query['label']}")
        label = names.index(query["label"]) if "label" in query else None
        if _kind(request) == "application/json":
            raise Refusal(415, "send the bytes of one picture")
        async with self._bodies.of(request) as body:
            with self._desks[run.key].places(1):
                work = partial(run.explain, body, label)
                try:
                    return Json(await asyncio.get_running_loop().run_in_executor(self._network, work))
                except PictureError as error:
                    raise _refusal(error) from error

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
            raise Refusal(404, f"there is no run {key}; there is {', '.join(self.runs)}")
        return self.runs[key]

    async def _read(self, function: Callable[[bytes], Result], data: bytes) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._readers, function, data)


def _labelled(run: Served, number: int, row: torch.Tensor, top: int) -> dict[str, Any]:
    labels = [{"name": name, "probability": probability} for name, probability in run.classifier.rank(row, top)]
    return {"path": f"#{number}", "labels": labels}


def _listed(body: bytes) -> list[str]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, "the body is not JSON") from error
    if not (isinstance(value, list) and value and all(isinstance(one, str) for one in value)):
        raise Refusal(400, "the body is not a list of pictures in base64")
    if len(value) > LIST_LIMIT:
        raise Refusal(413, f"a list may hold {LIST_LIMIT} pictures")
    return value


def _kind(request: Request) -> str:
    """The type of the body: "application/json", or one of BYTES_TYPES."""
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refusal(415, "bodies may not be compressed")
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and kind not in BYTES_TYPES:
        raise Refusal(415, f"{kind[:80]} is neither a picture ({', '.join(PICTURE_TYPES)}) nor application/json")
    return kind


def _query(request: Request, *names: str) -> dict[str, str]:
    """The query's values; what is not among `names` is a mistake of the client's."""
    try:
        query = parse_qs(request.url.query, keep_blank_values=True, max_num_fields=8, errors="strict")
    except ValueError as error:
        raise Refusal(400, "the query cannot be read") from error
    for name, values in query.items():
        if name not in (*names, "token") or len(values) != 1:
            raise Refusal(400, f"the query may hold {' and '.join(names)}, once each")
    return {name: values[0] for name, values in query.items()}


def _top(query: dict[str, str]) -> int:
    text = query.get("top", "5")
    if not (text.isascii() and text.isdigit() and len(text) < 5 and 1 <= int(text) <= TOP_LIMIT):
        raise Refusal(400, f"top={text[:20]} is not a number from 1 to {TOP_LIMIT}")
    return int(text)


def _refusal(error: PictureError) -> Refusal:
    status = 415 if isinstance(error, FormatError) else 413 if isinstance(error, SizeError) else 400
    return Refusal(status, f"the picture cannot be read: {error}")


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return Json({"error": error.sentence}, error.status, error.headers)


async def _unknown(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return Json({"error": error.detail.lower()}, error.status_code, error.headers)
