"""Copies of images in one folder, with a table of the labels or numbers that a run predicts, to be corrected."""

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path

from svertka.curation.class_folder_copies import check_copy_target, copy_into_class_folders
from svertka.data.dataset import Dataset
from svertka.data.label_tables import read_text_and_encoding
from svertka.errors import UsageError
from svertka.escaping import escape_csv_path, to_printable
from svertka.files import write_atomic
from svertka.tasks import AnyTask, MultiLabel

TABLE = "labels.csv"


class TableOfCopies:
    """A folder of copies with a table that lists them.

    Args:
        folder: The folder; it may have such a table already, whose rows are kept.
        source: The folder of the images; the copies must not be in it.
        task: What the run predicts: several labels, or a number.

    Attributes:
        path: The table.

    Raises:
        UsageError: The folder is a file or within `source`, or its table has other columns.
        DataError: Its table cannot be read.
    """

    def __init__(self, folder: str | os.PathLike[str], source: Path, task: AnyTask) -> None:
        self._target, self._task = check_copy_target(folder, source, ()), task
        self._columns = ["path", "label" if isinstance(task, MultiLabel) else "target"]
        self.path = self._target / TABLE
        self._read()

    def _read(self) -> tuple[str, set[str]]:
        """Return the text of the table, "" if there is none, and the paths that it lists."""
        if not os.path.lexists(self.path):
            return "", set()
        text, _ = read_text_and_encoding(self.path)
        rows = list(csv.reader(io.StringIO(text, newline="")))
        if not rows or rows[0] != self._columns:
            raise UsageError(
                f"{to_printable(str(self.path))} has other columns than {','.join(self._columns)}, to which rows would "
                "be added; name another folder"
            )
        return text, {row[0] for row in rows[1:] if row}

    def add(self, dataset: Dataset, indices: Sequence[int], texts: Sequence[str]) -> list[Path]:
        """Copy images into the folder, list those in the table that it does not list, and return the copies.

        Args:
            dataset: The images, in files.
            indices: Indices of the images to copy.
            texts: What is predicted of each: its labels joined by |, or its number.

        Raises:
            ImageError: An image cannot be read any more.
            StorageError: A file cannot be written.
        """
        copies = copy_into_class_folders(self._target, dataset, ((index, "") for index in indices))
        text, listed = self._read()
        added = io.StringIO()
        rows = csv.writer(added, lineterminator="\n")
        if not text:
            rows.writerow(self._columns)
        elif not text.endswith("\n"):
            added.write("\n")
        for copy, label in zip(copies, texts, strict=True):
            is_plain = to_printable(copy.name) == copy.name  # a table cannot hold other names
            if is_plain and (path := escape_csv_path(copy.name)) not in listed:
                rows.writerow((path, self._task.format_cell(label)))
        write_atomic(self.path, (text + added.getvalue()).encode())
        return copies
