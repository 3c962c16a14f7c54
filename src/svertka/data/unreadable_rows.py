"""Images that turn out to be unreadable when their rows are read, long after a training began."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from svertka.data.dataset import Ints, Pixels
from svertka.errors import DataError


class UnreadableRowsError(DataError):
    """Some rows cannot be read, because their images cannot be decoded.

    Args:
        places: Places of the rows among those that were asked for, (n,) int64.
        images: Path of each image and why it cannot be read.
    """

    def __init__(self, places: Ints, images: Sequence[tuple[str, str]]) -> None:
        path, reason = images[0]
        super().__init__(f"{path} cannot be read: {reason}; fix or remove the file and start again")
        self.places, self.images = places, tuple(images)


class _Rows(Protocol):
    def __getitem__(self, indices: Ints, /) -> Pixels: ...


def read_readable_rows(rows: _Rows, indices: Ints) -> tuple[Pixels, Ints]:
    """Read rows, without those whose images cannot be decoded.

    Args:
        rows: The rows.
        indices: Indices of the wanted rows, (n,) int64.

    Returns:
        The rows (m, S, S, C) uint8, and their indices (m,) int64.

    Raises:
        UnreadableRowsError: None of them can be read.
    """
    try:
        return rows[indices], indices
    except UnreadableRowsError as error:
        kept = np.delete(indices, error.places)
        if not len(kept):
            raise
        return rows[kept], kept
