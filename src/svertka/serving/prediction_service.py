"""Predictions and explanations for the images in HTTP requests: decoding, batching, and limits shared by all runs."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from starlette.requests import Request
from starlette.responses import Response

from svertka.errors import ImageError, ImageFormatError, ImageTooLargeError, RunError
from svertka.serving.decoder_pool import DecoderPool, Pixels, RequestDecoding
from svertka.serving.http_error import HTTPError
from svertka.serving.json_responses import ASCIIJSONResponse
from svertka.serving.request_batching import Batcher, Reservation
from svertka.serving.request_body_limits import BodyReader
from svertka.serving.schemas import IMAGE_TYPES, ExplainOptions, PredictOptions
from svertka.serving.served_model import Answer, ServedModel
from svertka.serving.uploads import decode_base64, parse_form, split_base64_list

# The last is curl's default for --data-binary. The content says whether the body is an image.
BYTES_TYPES = ("", "application/octet-stream", "binary/octet-stream", "application/x-www-form-urlencoded")
JSON_TYPE, FORM_TYPE = "application/json", "multipart/form-data"
MAX_DECODERS = 8  # processes that decode images; they keep up with any network on as many cores

Result = TypeVar("Result")
Options = TypeVar("Options", PredictOptions, ExplainOptions)
EncodedImage = bytearray | memoryview  # the bytes of a file, or a JSON string with the file in base64


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


class PredictionService:
    """Answers requests for predictions and explanations; `start` and `stop` are called in the event loop.

    Args:
        threads: Threads that read requests and prepare images, and decoder processes up to MAX_DECODERS.

    Attributes:
        runs: The served networks by key; requests that name no run get the first.
        decoders: The processes that decode images.
        bodies: The reader of request bodies.
    """

    def __init__(self, threads: int) -> None:
        self.runs: dict[str, ServedModel] = {}
        self.decoders = DecoderPool(min(threads, MAX_DECODERS))
        self.bodies = BodyReader()
        self._readers = ThreadPoolExecutor(threads, "read")
        self._network = ThreadPoolExecutor(1, "network")  # one batch at a time, on all cores
        # On a CPU no image is decoded while the network computes: its threads share the work equally, and all would
        # wait for the one whose core the decoder took.
        self._may_decode = asyncio.Event()
        self._may_decode.set()
        self.batchers: dict[str, Batcher[Answer]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._is_started = False

    def add(self, run: ServedModel) -> None:
        """Serve `run`."""
        shared = asyncio.Event() if run.device.type != "cpu" else self._may_decode
        self.runs[run.key] = run
        self.batchers[run.key] = Batcher(run.answer, self._network, shared)
        if self._is_started:
            self._tasks[run.key] = asyncio.create_task(self.batchers[run.key].run())

    async def remove(self, key: str) -> None:
        """Serve the run `key` no longer; its requests in progress fail."""
        del self.runs[key], self.batchers[key]
        task = self._tasks.pop(key, None)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def start(self) -> None:
        """Start the decoder processes and the batches."""
        self._is_started = True
        self.decoders.start()
        self._tasks = {key: asyncio.create_task(batcher.run()) for key, batcher in self.batchers.items()}

    async def stop(self) -> None:
        """Stop everything, once every request is answered."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self.decoders.stop()
        self._readers.shutdown(cancel_futures=True)
        self._network.shutdown(cancel_futures=True)

    @property
    def waiting(self) -> int:
        """Number of images in progress."""
        return sum(batcher.open for batcher in self.batchers.values())

    @property
    def answered(self) -> int:
        """Number of images answered since the start."""
        return sum(batcher.answered for batcher in self.batchers.values())

    async def predict(self, request: Request, options: PredictOptions) -> Response:
        """Answer the classes of the images in a request; see `schemas.ImageLabels`.

        Raises:
            HTTPError: The request or an image is wrong, or too much.
        """
        self._find_run(options.run)  # before the body is sent in vain
        content_type = _content_type(request)
        async with self.bodies.read(request) as body:
            wanted = await self._parse_body(request, body, options, content_type)
            run, usage = self._find_run(wanted.options.run), RequestDecoding()
            with self.batchers[run.key].reserve(len(wanted.images)) as places:
                predict = partial(self._predict_one, run, wanted, usage, places)
                if wanted.is_single:
                    return ASCIIJSONResponse([await cancel_on_disconnect(request, predict(0))])
                entries = [_predict_or_error(predict, wanted, number) for number in range(len(wanted.images))]
                return ASCIIJSONResponse(await cancel_on_disconnect(request, _gather(entries)))

    async def _predict_one(
        self,
        run: ServedModel,
        wanted: ImageRequest[PredictOptions],
        usage: RequestDecoding,
        places: Reservation,
        number: int,
    ) -> dict[str, Any]:
        """Return the entry of image `number`."""
        prepared = await self._decode(run, wanted.images[number], usage, run.prepared)
        row, score = await self.batchers[run.key].submit(prepared, places)
        with _convert_errors():
            probabilities = run.classifier.require_finite(row)
            described = run.classifier.describe(probabilities, wanted.options.top, unknown_score=score)
        return wanted.entry(number, described)

    async def explain(self, request: Request, options: ExplainOptions) -> Response:
        """Answer the evidence for a class in an image; see `schemas.Explanation`.

        Raises:
            HTTPError: The request or an image is wrong, or too much.
        """
        self._find_class(options)
        content_type = _content_type(request)
        if content_type == JSON_TYPE:
            raise HTTPError(415, "/explain takes the bytes of one image, not a JSON list")
        async with self.bodies.read(request) as body:
            wanted = await self._parse_body(request, body, options, content_type)
            if len(wanted.images) != 1:
                raise HTTPError(413, f"/explain takes one image, not {len(wanted.images)}")
            run, label = self._find_class(wanted.options)
            with self.batchers[run.key].reserve(1, submitted=False):
                explained = self._explain_one(run, wanted.images[0], label)
                return ASCIIJSONResponse(await cancel_on_disconnect(request, explained))

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

    def _find_run(self, key: str | None) -> ServedModel:
        key = next(iter(self.runs), "") if key is None else key
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


async def _predict_or_error(
    predict: Callable[[int], Coroutine[Any, Any, dict[str, Any]]], wanted: ImageRequest[PredictOptions], number: int
) -> dict[str, Any]:
    """Return the entry of image `number` that `predict` returns, with `error` where it has no labels."""
    try:
        return await predict(number)
    except HTTPError as error:
        return wanted.entry(number, {"labels": [], "error": error.reason})


async def _gather(answers: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
    return await asyncio.gather(*answers)


async def cancel_on_disconnect(request: Request, answer: Coroutine[Any, Any, Result]) -> Result:
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


def _merge_options(options: Options, query: Set[str], fields: dict[str, str]) -> Options:
    """Return the `options` that the `query` names together with those in the `fields` of a form."""
    if both := query & fields.keys():
        raise HTTPError(400, f"{min(both)} is in the query and in the form; give it once")
    try:
        return type(options).model_validate(options.model_dump(include=set(query)) | fields)
    except ValidationError as error:
        raise HTTPError(400, describe_fault(error.errors()[0])) from error


def describe_fault(fault: ErrorDetails) -> str:
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
