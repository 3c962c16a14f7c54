"""The page Train: start, watch, stop and continue trainings, and the list of runs."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import FastAPI
from pydantic import Field, field_validator
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from svertka.errors import SvertkaError
from svertka.models.registry import MODELS
from svertka.run import Run
from svertka.serving.http_error import HTTPError
from svertka.studio.live_progress import describe_errors, read_progress, stream_progress
from svertka.studio.request_fields import Fields, read_form, read_query
from svertka.studio.studio_page import add_routes, render_fragment, render_studio_page, said
from svertka.studio.workspace import Workspace

Option = Annotated[str, Field(max_length=40, pattern=r"^[A-Za-z0-9_.:-]*$")]


@dataclass(frozen=True)
class ShownOption:
    """An option of a training in the form: its name in `svertka train`, a label, an explanation, and suggestions."""

    name: str
    label: str
    explanation: str
    suggestions: tuple[str, ...] = ()


OPTIONS = (
    ShownOption("time", "Time limit", "Train for as many epochs as fit into this time, such as 90s, 10m or 1.5h."),
    ShownOption("epochs", "Epochs", "How often the network sees each picture."),
    ShownOption(
        "model",
        "Network",
        "Empty for the one that suits pictures of this size; auto tries the pretrained networks on this machine and "
        "takes the best.",
        ("auto", *MODELS),
    ),
    ShownOption(
        "unfreeze",
        "Layers to train",
        "head keeps what the network has learned from other pictures, and is fast; last also trains the last stage; "
        "all trains everything, and takes many pictures and much time.",
        ("head", "last", "all"),
    ),
    ShownOption(
        "head",
        "Last layer",
        "linear is trained step by step; logistic is computed in one step, in seconds.",
        ("linear", "logistic", "nearest-mean", "cosine"),
    ),
    ShownOption("size", "Input size", "Height and width in pixels at which the network sees a picture."),
    ShownOption("lr", "Learning rate", "How large the steps are; find determines it with a test.", ("find",)),
    ShownOption("val", "Validation share", "Share of the pictures that check the training instead of teaching: 0.1."),
    ShownOption("test", "Test share", "Share of the pictures that are kept for one honest check at the end: 0."),
    ShownOption("seed", "Seed", "Another number gives another shuffle of the same training."),
)


class StartFields(Fields):
    """Options of a training; "" for the default."""

    time: Option = ""
    epochs: Option = ""
    model: Option = ""
    unfreeze: Option = ""
    head: Option = ""
    size: Option = ""
    lr: Option = ""
    val: Option = ""
    test: Option = ""
    seed: Option = ""

    @field_validator("model")
    @classmethod
    def _is_known(cls, model: str) -> str:
        # Not package.module:function, which svertka train would import and call.
        if model and model not in (*MODELS, "auto") and not model.startswith(("timm:", "torchvision:")):
            raise ValueError("no network of svertka; see svertka models")
        return model


class RunField(Fields):
    """A run."""

    run: str = Field(max_length=200)


class OptionalRunField(Fields):
    """A run, or "" for the newest."""

    run: str = Field(default="", max_length=200)


class RenameRunFields(RunField):
    """A run and its new name."""

    to: str = Field(max_length=200)


class TrainPage:
    """Routes of the page Train of one workspace.

    Args:
        workspace: The data set and the runs.
        stopping: Set when the server stops.
    """

    def __init__(self, workspace: Workspace, stopping: asyncio.Event) -> None:
        self._workspace, self._stopping = workspace, stopping
        self._runs, self._processes = workspace.runs, workspace.processes

    def add_routes(self, app: FastAPI) -> None:
        """Add the routes to `app`."""
        pages: dict[str, Callable[..., Any]] = {
            "train": self._page,
            "progress": self._progress,
            "runs": self._list,
        }
        forms: dict[str, Callable[..., Any]] = {
            "start": self._start,
            "stop": self._stop,
            "continue": self._continue,
            "rename-run": self._rename,
            "archive-run": self._archive,
            "restore-run": self._restore,
            "forget-run": self._forget,
        }
        add_routes(app, self._workspace, pages, forms)

    async def _page(self, request: Request) -> Response:
        wanted = read_query(request, OptionalRunField).run
        listed = await run_in_threadpool(self._describe_runs)
        name = wanted or next((one["name"] for one in listed["runs"] if one["is_of_this"]), "")
        if name and name not in (*self._runs.names(), *self._runs.failed_names()):
            raise HTTPError(404, "there is no such run; go back and reload the page")
        counts = await run_in_threadpool(self._workspace.collection.counts)
        progress = await run_in_threadpool(read_progress, self._runs, self._processes, name) if name else None
        return render_studio_page(
            self._workspace,
            "train",
            progress=progress,
            options=OPTIONS,
            classes=sum(count > 0 for count in counts.values()),
            total=sum(counts.values()),
            is_busy=self._processes.is_running(),
            **listed,
        )

    async def _progress(self, request: Request) -> Response:
        name = read_query(request, RunField).run
        if name not in (*self._runs.names(), *self._runs.failed_names()):
            raise HTTPError(404, "there is no such run")
        seen = request.headers.get("last-event-id", "")
        events = stream_progress(self._runs, self._processes, name, seen, self._stopping)
        return StreamingResponse(events, media_type="text/event-stream")

    async def _start(self, request: Request) -> Response:
        options = await read_form(request, StartFields)
        start = self._processes.start
        name = await run_in_threadpool(start, self._workspace.collection.folder, options.model_dump())
        return _go_to(name)

    async def _stop(self, request: Request) -> Response:
        name = (await read_form(request, RunField)).run
        await run_in_threadpool(self._processes.stop, name)
        return render_fragment("studio_nothing.html", said(f"{name} writes a checkpoint and stops"))

    async def _continue(self, request: Request) -> Response:
        name = (await read_form(request, RunField)).run
        await run_in_threadpool(self._processes.resume, name)
        return _go_to(name)

    async def _rename(self, request: Request) -> Response:
        wanted = await read_form(request, RenameRunFields)
        name = await run_in_threadpool(self._runs.rename, wanted.run, wanted.to)
        return await self._list_after(f"{wanted.run} renamed to {name}")

    async def _archive(self, request: Request) -> Response:
        name = (await read_form(request, RunField)).run
        await run_in_threadpool(self._runs.archive, name)
        return await self._list_after(f"{name} archived")

    async def _restore(self, request: Request) -> Response:
        name = (await read_form(request, RunField)).run
        await run_in_threadpool(self._runs.restore, name)
        return await self._list_after(f"{name} restored")

    async def _forget(self, request: Request) -> Response:
        name = (await read_form(request, RunField)).run
        await run_in_threadpool(self._runs.forget_failed, name)
        return await self._list_after(f"{name} removed from the list")

    async def _list(self) -> Response:
        return render_fragment("studio_runs.html", **await run_in_threadpool(self._describe_runs))

    async def _list_after(self, sentence: str) -> Response:
        listed = await run_in_threadpool(self._describe_runs)
        return render_fragment("studio_runs.html", said(sentence), **listed)

    def _describe_runs(self) -> dict[str, Any]:
        """Return the runs as the list shows them, those on this data set first."""
        shown = [self._describe_run(name) for name in (*self._runs.names(), *self._runs.failed_names())]
        shown.sort(key=lambda one: (not one["is_of_this"], -one["time"]))
        return {"runs": shown, "archived": self._runs.names(archived=True)}

    def _describe_run(self, name: str) -> dict[str, Any]:
        run, state = Run(self._runs.folder / name), self._processes.state(name)
        try:
            settings = run.settings()
        except SvertkaError:
            settings = {}
        file = run.training if settings else self._runs.log_file(name)
        began = file.stat().st_mtime if file.exists() else 0.0
        return {
            "name": name,
            "state": state,
            "is_of_this": not settings or self._runs.is_of(run, self._workspace.collection.folder),
            "source": str(settings.get("source", "")),
            "model": str(settings.get("model", "")),
            "time": began,
            "date": f"{datetime.fromtimestamp(began):%Y-%m-%d %H:%M}" if began else "",
            "errors": describe_errors(run) if state == "finished" else [],
            "is_run": bool(settings),
        }


def _go_to(name: str) -> Response:
    return Response(headers={"HX-Redirect": f"train?run={quote(name)}"})
