"""Zip files whose images are added to a data set while the page asks how far it is.

A request that waited for all images could take longer than the server lets one.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from starlette.concurrency import run_in_threadpool

from svertka.errors import DataError, ImageError, SvertkaError, UsageError
from svertka.studio.zip_images import read_zip_images

MAX_KNOWN = 100  # results; older ones are dropped
SHOWN_REASONS = 20  # images that were left out, by name

AddImage = Callable[[str, str, bytes], Awaitable["AddedImage"]]  # of a class, a name and bytes


@dataclass(frozen=True)
class AddedImage:
    """What became of an image that was sent: its path, "" if it was not added; and a reason or remark."""

    path: str
    note: str


@dataclass
class ZipAddition:
    """The images of one zip file so far.

    Attributes:
        paths: Of the images that were added.
        left_out: Number of the images that were not.
        notes: Why, for the first of them.
        error: Why the rest was not read; "" if it was.
        is_done: Whether no more images follow.
    """

    paths: list[str] = field(default_factory=list)
    left_out: int = 0
    notes: list[str] = field(default_factory=list)
    error: str = ""
    is_done: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values; the paths only at the end."""
        return {
            "count": len(self.paths) + self.left_out,
            "paths": self.paths if self.is_done else [],
            "left_out": self.left_out,
            "notes": self.notes,
            "error": self.error,
            "done": self.is_done,
        }


class ZipAdditions:
    """Zip files by key."""

    def __init__(self) -> None:
        self._known: dict[str, ZipAddition] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, file: BinaryIO, size: int, label: str, add: AddImage) -> str:
        """Add the images of `file`, of `size` bytes, with `add`, and return the key to ask with.

        Those in folders are of the class with the folder's name, the others of the class `label`. The file is closed.
        """
        key, addition = secrets.token_urlsafe(12), ZipAddition()
        self._known[key] = addition
        for old in list(self._known)[:-MAX_KNOWN]:
            del self._known[old]
        task = asyncio.get_running_loop().create_task(_add_all(addition, file, size, label, add))
        self._tasks.add(task)  # or it could be collected
        task.add_done_callback(self._tasks.discard)
        return key

    def find(self, key: str) -> ZipAddition | None:
        """Return the addition with `key`; None if there is none."""
        return self._known.get(key)


async def _add_all(addition: ZipAddition, file: BinaryIO, size: int, label: str, add: AddImage) -> None:
    with file:
        members = read_zip_images(file, size)
        try:
            while (one := await run_in_threadpool(next, members, None)) is not None:
                try:
                    if one.data is None:
                        raise ImageError(one.reason)
                    result = await add(one.label or label, one.name, one.data)
                except (DataError, UsageError) as error:  # of one image, or of the name of its folder
                    result = AddedImage("", str(error))
                if result.path:
                    addition.paths.append(result.path)
                else:
                    addition.left_out += 1
                    if addition.left_out <= SHOWN_REASONS:
                        addition.notes.append(f"{one.name}: {result.note}")
        except SvertkaError as error:  # of the archive, or of a full disk
            addition.error = str(error)
        finally:
            addition.is_done = True
