"""The page Collect: the classes of a data set and their images."""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

from fastapi import FastAPI
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from svertka.errors import ImageError
from svertka.files import format_bytes, os_error_to_storage_error
from svertka.serving.http_error import HTTPError
from svertka.serving.prediction_service import cancel_on_disconnect
from svertka.serving.request_body_limits import BodyReader
from svertka.studio.collection import TRASH, Change, CollectedImage
from svertka.studio.image_marks import ImageMark
from svertka.studio.request_fields import Fields, read_form, read_query
from svertka.studio.studio_page import add_routes, render_fragment, render_studio_page, said
from svertka.studio.thumbnails import SIDES
from svertka.studio.workspace import Workspace
from svertka.studio.zip_additions import AddedImage, ZipAdditions

MAX_ZIP_BYTES = 4 << 30


class ClassField(Fields):
    """A class."""

    label: str


class AddFields(Fields):
    """Where an image is added, and what it is called."""

    label: str = ""
    name: str = Field(default="image", max_length=1000)


class RenameFields(Fields):
    """A class and its new name."""

    label: str
    to: str


class NameField(Fields):
    """The new name of a data set."""

    to: str


class KeyField(Fields):
    """A data set, by its name in URLs."""

    data_set: str = Field(max_length=200)


class ZipField(Fields):
    """A zip file whose images are added."""

    zip: str = Field(max_length=80)


class PathsField(Fields):
    """Images."""

    path: tuple[str, ...] = Field(min_length=1)


class MoveFields(PathsField):
    """Images, and the class to move them to."""

    label: str


class UndoField(Fields):
    """The change to undo."""

    key: str


class CountField(Fields):
    """The number that was agreed to."""

    count: int


class ThumbnailFields(Fields):
    """An image, its stamp, and the side of the thumbnail in pixels."""

    path: str
    v: str = Field(max_length=80)
    side: Literal["192", "1024"] = "192"


class CollectPage:
    """Routes of the page Collect of one workspace.

    Args:
        workspace: The data set.
        bodies: Reader of bodies, which limits those of all requests together.
    """

    def __init__(self, workspace: Workspace, bodies: BodyReader) -> None:
        self._workspace, self._bodies = workspace, bodies
        self._collection, self._marks = workspace.collection, workspace.marks
        self._zips = ZipAdditions()

    def add_routes(self, app: FastAPI) -> None:
        """Add the routes to `app`."""
        pages: dict[str, Callable[..., Any]] = {
            "collect": self._page,
            "classes": self._classes,
            "images": self._images,
            "thumbnail": self._thumbnail,
            "zip-progress": self._zip_progress,
        }
        forms: dict[str, Callable[..., Any]] = {
            "add": self._add,
            "add-zip": self._add_zip,
            "added": self._added,
            "add-class": self._add_class,
            "rename-class": self._rename_class,
            "delete-class": self._delete_class,
            "move": self._move,
            "delete": self._delete,
            "undo": self._undo,
            "empty-trash": self._empty_trash,
            "rename-data-set": self._rename_data_set,
            "archive-data-set": self._archive_data_set,
            "restore-data-set": self._restore_data_set,
        }
        add_routes(app, self._workspace, pages, forms)

    async def _page(self) -> Response:
        return render_studio_page(view="collect", **await run_in_threadpool(self._describe_classes))

    async def _classes(self) -> Response:
        return await self._classes_after()

    async def _classes_after(self, **events: Any) -> Response:
        """Return the list of classes, which replaces that of the page."""
        shown = await run_in_threadpool(self._describe_classes)
        return render_fragment("studio_classes.html", events, **shown)

    def _describe_classes(self) -> dict[str, Any]:
        counts = self._collection.counts()
        return {
            "counts": counts,
            "total": sum(counts.values()),
            "change": self._collection.last_change(),
            "trash": self._collection.trash_count(),
            "deeper": self._collection.deeper_images(),
            "workspace": self._workspace,
        }

    async def _images(self, request: Request) -> Response:
        """Answer the images of a class as rows of name, stamp, kind of mark and reason."""
        label = read_query(request, ClassField).label
        await run_in_threadpool(self._marks.read_unknown)
        is_reading = self._marks.is_reading  # asked first: marks that come while the rows are made are asked for again
        return JSONResponse({"images": await run_in_threadpool(self._rows, label), "reading": is_reading})

    def _rows(self, label: str) -> list[list[str]]:
        images = self._collection.images(label)
        doubts = {one["path"]: ImageMark("doubt", f"perhaps {one['suggested']}") for one in self._workspace.doubts()}
        marks = doubts | self._marks.of(images)
        rows = []
        for one in images:
            mark = marks.get(one.path)
            rows.append([one.name, one.stamp, *((mark.kind, mark.reason) if mark else ())])
        return rows

    async def _thumbnail(self, request: Request) -> Response:
        wanted = read_query(request, ThumbnailFields)
        file = await run_in_threadpool(self._collection.file, wanted.path)
        try:
            made = self._workspace.thumbnails.of_file(file, wanted.v, int(wanted.side))
            content = await cancel_on_disconnect(request, made)  # the page has been scrolled on
        except ImageError as error:
            self._marks.add_problem(wanted.path, str(error))
            raise
        # The address has the stamp of the file, so that it names these bytes for ever.
        headers = {"Cache-Control": "private, max-age=31536000, immutable"}
        return Response(content, media_type="image/webp", headers=headers)

    async def _add(self, request: Request) -> Response:
        wanted = read_query(request, AddFields)
        async with self._bodies.read(request, may_be_slow=True) as body:
            try:
                added = await self._add_one(wanted.label, wanted.name, body)
            except ImageError as error:
                added = AddedImage("", str(error))
        return JSONResponse({"path": added.path, "note": added.note})

    async def _add_one(self, label: str, name: str, data: bytes | bytearray) -> AddedImage:
        """Add an image that can be decoded; its thumbnail is then ready.

        Raises:
            ImageError: It cannot be decoded; it is not added. UsageError: The class name is impossible.
            StorageError: The disk is full.
        """
        copies = await run_in_threadpool(self._marks.copies, data)
        known = next((path for path in copies if path.partition("/")[0] == label), None)
        if known is not None:
            return AddedImage("", f"already there as {known}")
        thumbnail = await self._workspace.thumbnails.encode(data, SIDES[0])
        path = await run_in_threadpool(self._collection.add_image, label, name, data)
        stamp = self._collection.stamp(path)
        self._workspace.thumbnails.keep(self._collection.folder / path, stamp, SIDES[0], thumbnail)
        self._marks.add(CollectedImage(path, stamp), data)
        return AddedImage(path, f"the same file as {copies[0]}" if copies else "")

    async def _add_zip(self, request: Request) -> Response:
        """Take a zip file, and answer the key with which to ask how many of its images are added."""
        wanted = read_query(request, AddFields)
        trash = self._collection.folder / TRASH
        with os_error_to_storage_error(trash):
            trash.mkdir(exist_ok=True)
            file = tempfile.TemporaryFile(dir=trash)  # noqa: SIM115 - closed below, or by the addition
        try:
            size = await _write_body(request, file, trash)
        except BaseException:
            file.close()
            raise
        return JSONResponse({"zip": self._zips.start(file, size, wanted.label, self._add_one)})

    async def _zip_progress(self, request: Request) -> Response:
        found = self._zips.find(read_query(request, ZipField).zip)
        if found is None:
            raise HTTPError(404, "there is no such zip file; the server may have been started again")
        return JSONResponse(found.to_dict())

    async def _added(self, request: Request) -> Response:
        """Make the images that a page has sent one change that can be undone."""
        paths = (await read_form(request, PathsField)).path
        for path in paths:
            await run_in_threadpool(self._collection.file, path)
        return await self._changed(partial(self._collection.record_added, paths))

    async def _add_class(self, request: Request) -> Response:
        label = (await read_form(request, ClassField)).label
        made = await run_in_threadpool(self._collection.add_class, label)
        return await self._classes_after(chosen=made, **said(f"class {made} added"))

    async def _rename_class(self, request: Request) -> Response:
        wanted = await read_form(request, RenameFields)
        change = await run_in_threadpool(self._collection.rename_class, wanted.label, wanted.to)
        return await self._classes_after(chosen=change.moves[0][1], **said(change.sentence))

    async def _delete_class(self, request: Request) -> Response:
        label = (await read_form(request, ClassField)).label
        change = await run_in_threadpool(self._collection.delete_class, label)
        return await self._classes_after(chosen="", **said(change.sentence))

    async def _move(self, request: Request) -> Response:
        wanted = await read_form(request, MoveFields)
        return await self._changed(partial(self._collection.move, wanted.path, wanted.label))

    async def _delete(self, request: Request) -> Response:
        wanted = await read_form(request, PathsField)
        return await self._changed(partial(self._collection.delete, wanted.path))

    async def _changed(self, make: Callable[[], Change | None]) -> Response:
        """Make a change, and return the list of classes, which says what was done."""
        change = await run_in_threadpool(make)
        await run_in_threadpool(self._marks.read_unknown)
        return await self._classes_after(changed="", **said(change.sentence if change else "nothing was added"))

    async def _undo(self, request: Request) -> Response:
        key = (await read_form(request, UndoField)).key
        sentence = await run_in_threadpool(self._collection.undo, key)
        await run_in_threadpool(self._marks.read_unknown)
        return await self._classes_after(changed="", **said(sentence))

    async def _empty_trash(self, request: Request) -> Response:
        count = (await read_form(request, CountField)).count
        sentence = await run_in_threadpool(self._collection.empty_trash, count)
        return await self._classes_after(**said(sentence))

    async def _rename_data_set(self, request: Request) -> Response:
        await run_in_threadpool(self._workspace.rename, (await read_form(request, NameField)).to)
        return Response(headers={"HX-Refresh": "true"})

    async def _archive_data_set(self, _: Request) -> Response:
        others = [one for one in self._workspace.listed if one is not self._workspace]
        if not others:
            raise HTTPError(409, "this is the only data set; name another one when you start svertka studio")
        await run_in_threadpool(self._workspace.data_sets.set_archived, self._collection.folder, True)
        return Response(headers={"HX-Redirect": f"../{others[0].key}/collect"})

    async def _restore_data_set(self, request: Request) -> Response:
        key = (await read_form(request, KeyField)).data_set
        found = next((one for one in self._workspace.siblings if one.key == key), None)
        if found is None:
            raise HTTPError(404, "there is no such data set; reload the page")
        await run_in_threadpool(found.data_sets.set_archived, found.collection.folder, False)
        return Response(headers={"HX-Refresh": "true"})


async def _write_body(request: Request, file: Any, folder: Path) -> int:
    """Write the body of a request to `file`, in `folder`, as it arrives, and return its size in bytes.

    Raises:
        HTTPError: 413, it is too large; 400, the client disconnected. StorageError: The disk is full.
    """
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > MAX_ZIP_BYTES:
                raise HTTPError(413, f"a zip file may have at most {format_bytes(MAX_ZIP_BYTES)}")
            with os_error_to_storage_error(folder):
                await run_in_threadpool(file.write, chunk)
    except ClientDisconnect as error:
        raise HTTPError(400, "the client disconnected") from error
    return size
