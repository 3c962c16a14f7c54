"""The page Understand: the mistakes of a run, doubtful labels, and the atlas."""

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from svertka.curation.confirmed_labels import change_confirmed
from svertka.run import Run
from svertka.serving.http_error import HTTPError
from svertka.serving.run_files import find_run_file
from svertka.studio.background_jobs import JobState, svertka_command
from svertka.studio.live_progress import describe_errors
from svertka.studio.request_fields import Fields, read_form, read_query
from svertka.studio.studio_page import add_routes, render_fragment, render_studio_page, said
from svertka.studio.train_page import OptionalRunField, RunField
from svertka.studio.workspace import Workspace

MAX_TABLE_CLASSES = 20  # of a confusion matrix with numbers; beyond, the most confused pairs
SHOWN_PAIRS = 20
SHOWN_DOUBTS = 40
ATLAS_LIMITS = ("--units=4", "--images=40")  # seconds


class CellFields(RunField):
    """A cell of the confusion matrix: indices of the true and the predicted class."""

    label: int = Field(ge=0)
    predicted: int = Field(ge=0)


class DecideFields(Fields):
    """An image, and the class that somebody decided it has."""

    path: str
    label: str


class UnderstandPage:
    """Routes of the page Understand of one workspace.

    Args:
        workspace: The data set and the runs.
        files: Path under which the server has the files of the runs.
    """

    def __init__(self, workspace: Workspace, files: str) -> None:
        self._workspace, self._files = workspace, files
        self._collection, self._runs, self._jobs = workspace.collection, workspace.runs, workspace.jobs

    def add_routes(self, app: FastAPI) -> None:
        """Add the routes to `app`."""
        pages: dict[str, Callable[..., Any]] = {
            "understand": self._page,
            "mistakes": self._mistakes,
            "cell": self._cell,
            "doubts": self._doubts,
            "atlas": self._atlas,
        }
        forms: dict[str, Callable[..., Any]] = {
            "evaluate": self._evaluate,
            "check-labels": self._check_labels,
            "decide": self._decide,
            "build-atlas": self._build_atlas,
        }
        add_routes(app, self._workspace, pages, forms)

    async def _page(self, request: Request) -> Response:
        wanted = read_query(request, OptionalRunField).run
        names, name = await run_in_threadpool(self._workspace.choose_trained_run, wanted)
        values: dict[str, Any] = {"runs": names, "run_name": name, "errors": [], "report": None}
        if name:
            run = self._runs.run(name)
            values["errors"] = await run_in_threadpool(describe_errors, run)
            values["report"] = self._link(run, "report.html")
            values |= self._describe_mistakes(name) | self._describe_doubts() | self._describe_atlas(name)
        return render_studio_page(self._workspace, "understand", **values)

    async def _evaluate(self, request: Request) -> Response:
        name = (await read_form(request, RunField)).run
        folder = self._runs.run(name).folder
        command = ["svertka.studio.held_out_mistakes", str(folder), str(self._collection.folder)]
        await run_in_threadpool(self._jobs.start, f"{name}.mistakes", command)
        return self._show_mistakes(name)

    async def _mistakes(self, request: Request) -> Response:
        return self._show_mistakes(read_query(request, RunField).run)

    def _show_mistakes(self, name: str) -> Response:
        self._runs.run(name)
        return render_fragment("studio_mistakes.html", run_name=name, **self._describe_mistakes(name))

    def _describe_mistakes(self, name: str) -> dict[str, Any]:
        job = self._jobs.state(f"{name}.mistakes")
        found = job.result if isinstance(job.result, dict) else {}
        confusion = found.get("confusion", [])
        names = found.get("names", [])
        cells = [
            (confusion[label][predicted], label, predicted)
            for label in range(len(names))
            for predicted in range(len(names))
            if label != predicted and confusion[label][predicted]
        ]
        pairs = sorted(cells, key=lambda cell: (-cell[0], cell[1:]))
        return {
            "mistakes_job": job,
            "found": found,
            "pairs": pairs[:SHOWN_PAIRS],
            "table": len(names) <= MAX_TABLE_CLASSES,
        }

    async def _cell(self, request: Request) -> Response:
        """Answer the images of one cell of the confusion matrix."""
        wanted = read_query(request, CellFields)
        self._runs.run(wanted.run)
        found = self._describe_mistakes(wanted.run)["found"]
        names = found.get("names", [])
        if max(wanted.label, wanted.predicted) >= len(names):
            raise HTTPError(404, "there is no such cell; reload the page")
        wrong = [
            one for one in found["mistakes"] if (one["label"], one["predicted"]) == (wanted.label, wanted.predicted)
        ]
        paths = [self._collection.relative(one["path"]) for one in wrong]
        images = [
            (path, self._collection.stamp(path) if path else "", one["probability"])
            for path, one in zip(paths, wrong, strict=True)
        ]
        return render_fragment(
            "studio_cell.html",
            label=names[wanted.label],
            predicted=names[wanted.predicted],
            images=images,
            shown=[{"path": path} for path, stamp, _ in images if stamp],
            count=found["confusion"][wanted.label][wanted.predicted],
        )

    async def _check_labels(self, _: Request) -> Response:
        command = svertka_command("check", str(self._collection.folder), "--labels")
        await run_in_threadpool(self._jobs.start, self._workspace.doubts_key, command)
        self._workspace.decided.clear()
        return self._show_doubts()

    async def _doubts(self) -> Response:
        return self._show_doubts()

    def _show_doubts(self, events: dict[str, Any] | None = None) -> Response:
        return render_fragment("studio_doubts.html", events, **self._describe_doubts())

    def _describe_doubts(self) -> dict[str, Any]:
        job = self._jobs.state(self._workspace.doubts_key)
        found = job.result if isinstance(job.result, dict) else {}
        labels = found.get("labels", {})
        doubts = self._workspace.doubts()
        for one in doubts:
            one["neighbors"] = [near for near in map(self._stamped, one["neighbors"]) if near["stamp"]]
        return {
            "doubts_job": job,
            "doubts": doubts[:SHOWN_DOUBTS],
            "doubts_count": len(doubts),
            "checked": labels.get("checked", 0),
            "notes": labels.get("notes", []),
            "decided": len(self._workspace.decided),
        }

    def _stamped(self, neighbor: dict[str, Any]) -> dict[str, Any]:
        path = self._collection.relative(neighbor["path"])
        return neighbor | {"path": path, "stamp": self._collection.stamp(path) if path else ""}

    async def _decide(self, request: Request) -> Response:
        """Move an image to the class that it has, or confirm its class."""
        wanted = await read_form(request, DecideFields)
        await run_in_threadpool(self._collection.file, wanted.path)
        sentence, path = f"{wanted.path} stays {wanted.label}", wanted.path
        if wanted.path.partition("/")[0] != wanted.label:
            change = await run_in_threadpool(self._collection.move, [wanted.path], wanted.label)
            sentence, path = change.sentence, change.moves[0][1]
        await run_in_threadpool(change_confirmed, self._collection.folder, [(path, wanted.label)])
        self._workspace.decided.add(wanted.path)
        return self._show_doubts(said(sentence))

    async def _build_atlas(self, request: Request) -> Response:
        name = (await read_form(request, RunField)).run
        command = svertka_command("look", str(self._runs.run(name).folder), *ATLAS_LIMITS)
        source = str(self._collection.folder)
        await run_in_threadpool(self._jobs.start, f"{name}.atlas", [*command, source])
        return self._show_atlas(name)

    async def _atlas(self, request: Request) -> Response:
        return self._show_atlas(read_query(request, RunField).run)

    def _show_atlas(self, name: str) -> Response:
        self._runs.run(name)
        return render_fragment("studio_atlas.html", run_name=name, **self._describe_atlas(name))

    def _describe_atlas(self, name: str) -> dict[str, Any]:
        state = self._jobs.state(f"{name}.atlas")
        link = self._link(self._runs.run(name), "atlas/index.html")
        if link and state.kind == "new":
            state = JobState(state.key, "done")
        return {"atlas_job": state, "atlas": link}

    def _link(self, run: Run, file: str) -> str | None:
        found = find_run_file(run.folder, file) is not None
        return f"..{self._files}/{quote(run.folder.name, safe='')}/{file}" if found else None
