"""What the pages of one data set share."""

import re
from collections.abc import Collection as AnyCollection
from itertools import count
from os import PathLike

from svertka.studio.collection import Collection
from svertka.studio.image_marks import ImageMarks
from svertka.studio.thumbnails import Thumbnails


class Workspace:
    """A data set, its images' marks and thumbnails; `key` is its name in URLs.

    Args:
        folder: The folder of the data set, which is created if missing.
        thumbnails: Shared by all data sets.
        taken: Keys of other data sets.
    """

    def __init__(self, folder: str | PathLike[str], thumbnails: Thumbnails, taken: AnyCollection[str] = ()) -> None:
        self.collection = Collection(folder)
        self.marks = ImageMarks(self.collection)
        self.thumbnails = thumbnails
        stem = re.sub(r"[^A-Za-z0-9_-]", "_", self.name)[:60] or "images"
        self.siblings: list[tuple[str, str]] = []  # keys and names of all data sets, set by the application
        self.key = next(key for number in count(1) if (key := stem if number == 1 else f"{stem}-{number}") not in taken)

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.collection.name
