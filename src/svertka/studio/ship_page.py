"""The page Ship: a run as files to take home, as a server with a token, and beside another run."""

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from svertka.files import format_bytes, os_error_to_storage_error, write_atomic
from svertka.run import Run
from svertka.serving.http_error import HTTPError
from svertka.serving.run_files import respond_with_run_file
from svertka.studio.background_jobs import svertka_command
from svertka.studio.request_fields import Fields, read_form, read_query
from svertka.studio.studio_page import add_routes, render_fragment, render_studio_page, said
from svertka.studio.train_page import OptionalRunField, RunField
from svertka.studio.workspace import Workspace

LEFT_OUT = {"checkpoint", "tensorboard"}  # folders of a run that only a training needs


@dataclass(frozen=True)
class ExportFormat:
    """A form in which `svertka export` writes a run.

    Attributes:
        key: Its name in requests.
        title: Its name on the page.
        explanation: What it is for.
        file: Name of the file, or of the folder with a slash at the end.
        options: Options of the command.
    """

    key: str
    title: str
    explanation: str
    file: str
    options: tuple[str, ...] = ()


FORMATS = (
    ExportFormat(
        "page",
        "A page",
        "One file that classifies pictures and what the camera sees in any browser, without a server and offline.",
        "page.html",
    ),
    ExportFormat(
        "onnx",
        "ONNX file",
        "For other programs and languages. It takes pictures of any size and returns probabilities, and was compared "
        "with the network.",
        "model.onnx",
        ("--preprocessing",),
    ),
    ExportFormat(
        "hub", "Folder to publish", "Weights, settings and a model card, as the Hugging Face Hub expects.", "hub/"
    ),
)


class FormatFields(RunField):
    """A run and a format."""

    what: str = Field(max_length=40)


class JobField(Fields):
    """A job in the background."""

    job: str = Field(max_length=500)


class CompareFields(RunField):
    """Two runs."""

    other: str = Field(max_length=200)


class ShipPage:
    """Routes of the page Ship of one workspace.

    Args:
        workspace: The data set and the runs.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace, self._runs, self._jobs = workspace, workspace.runs, workspace.jobs

    def add_routes(self, app: FastAPI) -> None:
        """Add the routes to `app`."""
        pages: dict[str, Callable[..., Any]] = {
            "ship": self._page,
            "ways": self._ways,
            "download": self._download,
            "comparison": self._comparison,
        }
        forms: dict[str, Callable[..., Any]] = {
            "export": self._export,
            "serve": self._serve,
            "stop-job": self._stop_job,
            "compare": self._compare,
        }
        add_routes(app, self._workspace, pages, forms)

    async def _page(self, request: Request) -> Response:
        wanted = read_query(request, OptionalRunField).run
        names, name = await run_in_threadpool(self._workspace.choose_trained_run, wanted)
        values = await run_in_threadpool(self._describe, name) if name else {}
        return render_studio_page(self._workspace, "ship", runs=names, **values)

    async def _ways(self, request: Request) -> Response:
        return await self._show(read_query(request, RunField).run)

    async def _show(self, name: str) -> Response:
        return render_fragment("studio_ways.html", **await run_in_threadpool(self._describe, name))

    def _describe(self, name: str) -> dict[str, Any]:
        run = self._runs.run(name)
        others = [other for other in self._workspace.trained_runs() if other != name]
        compared = [(other, self._jobs.state(_compare_key(name, other))) for other in others]
        return {
            "run_name": name,
            "run_size": format_bytes(sum(file.stat().st_size for file in _files_of(run))),
            "formats": [self._describe_format(name, one) for one in FORMATS],
            "serve_job": self._jobs.state(f"{name}.serve"),
            "others": others,
            "compared": [(other, job) for other, job in compared if job.kind != "new"],
            "is_working": any(self._jobs.is_running(f"{name}.{one.key}") for one in FORMATS)
            or any(job.kind == "running" for _, job in compared)
            or (self._jobs.is_running(f"{name}.serve") and self._jobs.state(f"{name}.serve").result is None),
        }

    def _describe_format(self, name: str, form: ExportFormat) -> dict[str, Any]:
        place, job = self._place(name, form), self._jobs.state(f"{name}.{form.key}")
        size = place.stat().st_size if job.kind == "done" and place.is_file() else 0
        is_made = job.kind == "done" and place.exists()
        return {"form": form, "job": job, "is_made": is_made, "size": format_bytes(size) if size else ""}

    def _place(self, name: str, form: ExportFormat) -> Path:
        """Return where the export of a run is written."""
        return self._jobs.folder / f"{name}.{form.key}" / form.file

    async def _export(self, request: Request) -> Response:
        wanted = await read_form(request, FormatFields)
        form, run = _find_format(wanted.what), self._runs.run(wanted.run)
        place = self._place(wanted.run, form)
        with os_error_to_storage_error(place):
            await run_in_threadpool(place.parent.mkdir, parents=True, exist_ok=True)
        to = f"{place}/" if form.file.endswith("/") else str(place)
        command = svertka_command("export", str(run.folder), f"--to={to}", "--overwrite", *form.options)
        await run_in_threadpool(self._jobs.start, f"{wanted.run}.{form.key}", command)
        return await self._show(wanted.run)

    async def _download(self, request: Request) -> Response:
        wanted = read_query(request, FormatFields)
        run = await run_in_threadpool(self._runs.run, wanted.run)
        if wanted.what == "run":
            file = self._jobs.folder / f"{wanted.run}.zip"
            files = {path.relative_to(run.folder).as_posix(): path for path in _files_of(run)}
            await run_in_threadpool(_write_zip, file, wanted.run, files)
            return FileResponse(file, filename=f"{wanted.run}.zip")
        place = self._place(wanted.run, _find_format(wanted.what))
        if not place.exists():
            raise HTTPError(404, "it has not been made yet")
        if place.is_dir():
            file = place.with_suffix(".zip")
            files = {path.relative_to(place).as_posix(): path for path in sorted(place.rglob("*")) if path.is_file()}
            await run_in_threadpool(_write_zip, file, wanted.run, files)
            place = file
        return FileResponse(place, filename=f"{wanted.run}-{place.name}")

    async def _serve(self, request: Request) -> Response:
        name = (await read_form(request, RunField)).run
        folder = str(self._runs.run(name).folder)
        command = svertka_command("serve", folder, "--host=0.0.0.0", "--port=0")
        await run_in_threadpool(self._jobs.start, f"{name}.serve", command)
        return await self._show(name)

    async def _stop_job(self, request: Request) -> Response:
        """Stop a job of any page, which then shows what is left of it."""
        await run_in_threadpool(self._jobs.stop, (await read_form(request, JobField)).job)
        return render_fragment("studio_nothing.html", said("stopped", stale=""))

    async def _compare(self, request: Request) -> Response:
        wanted = await read_form(request, CompareFields)
        runs = [str(self._runs.run(name).folder) for name in (wanted.run, wanted.other)]
        page = self._comparison_file(wanted)
        source = str(self._workspace.collection.folder)
        command = svertka_command("compare", *runs, source, f"--output={page}", "--overwrite")
        await run_in_threadpool(self._jobs.start, _compare_key(wanted.run, wanted.other), command)
        return await self._show(wanted.run)

    async def _comparison(self, request: Request) -> Response:
        wanted = read_query(request, CompareFields)
        for name in (wanted.run, wanted.other):
            self._runs.run(name)
        file = self._comparison_file(wanted)
        return respond_with_run_file(file if file.is_file() else None)

    def _comparison_file(self, wanted: CompareFields) -> Path:
        return self._jobs.folder / f"{_compare_key(wanted.run, wanted.other)}.html"


def _compare_key(name: str, other: str) -> str:
    return f"{name}.compare.{other}"


def _find_format(key: str) -> ExportFormat:
    found = next((one for one in FORMATS if one.key == key), None)
    if found is None:
        raise HTTPError(404, "there is no such format; reload the page")
    return found


def _files_of(run: Run) -> list[Path]:
    """Return the files of a run that are of use elsewhere."""
    return [
        path
        for path in sorted(run.folder.rglob("*"))
        if path.is_file()
        and not path.is_symlink()
        and path != run.lock
        and not LEFT_OUT & set(path.relative_to(run.folder).parts)
    ]


def _write_zip(file: Path, folder: str, files: dict[str, Path]) -> None:
    """Write a zip file with `files`, by their names, in one folder.

    Raises:
        StorageError: The disk is full.
    """

    def write(stream: Any) -> None:
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:  # weights hardly compress
            for name, path in files.items():
                archive.write(path, f"{folder}/{name}")

    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, write)
