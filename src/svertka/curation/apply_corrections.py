"""Apply corrections of labels: move files to the folders of their classes, or write a corrected copy of a table."""

import csv
import io
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from svertka.curation.confirmed_labels import change_confirmed
from svertka.curation.corrections import (
    DESTINATION,
    HEADER,
    Correction,
    Move,
    labels_by_path,
    list_correctable_source,
    number_until_free,
    plan_moves,
    read_corrections,
)
from svertka.data.folder_and_table_sources import FolderListing
from svertka.data.label_tables import replace_labels
from svertka.escaping import escape_csv_cell, escape_csv_path, format_command
from svertka.files import os_error_to_storage_error, parse_path, rename_to_new, write_atomic


@dataclass(frozen=True)
class AppliedCorrections:
    """What a file of corrections changes.

    Attributes:
        source: The source.
        moves: The files that are moved; empty for tables.
        relabeled: Path -> new class of the images of a table whose label changes.
        confirmed: Number of images whose label is confirmed.
        written: Whether the changes were made.
        undo: File that reverts the moves; None if nothing was moved.
        tables: Corrected copies of tables.
        command: The command that makes the changes.
        decisions: Files that keep what was decided, for the next check.
    """

    source: Path
    moves: tuple[Move, ...]
    relabeled: dict[str, str]
    confirmed: int
    written: bool
    undo: Path | None
    tables: tuple[Path, ...]
    command: str
    decisions: tuple[Path, ...] = ()

    def sentences(self) -> list[str]:
        """Return what was changed, or would be."""
        changes = len(self.moves) or len(self.relabeled)
        kind = "moved" if self.moves else "relabeled" if self.relabeled else "changed"
        images = "1 image" if changes == 1 else f"{changes:,} images"
        done = "" if self.written or not changes else " would be"
        found = [f"{images}{done} {kind}, {self.confirmed:,} confirmed"]
        if (changes or self.confirmed) and not self.written:
            found.append(f"nothing is changed yet: {self.command}")
        if self.undo is not None:
            found.append(f"to undo: {format_command('check', self.source, '--apply', self.undo, '--write')}")
        found += [f"corrected copy: {path}" for path in self.tables]
        return found + [f"what was decided is not doubted again: {path}" for path in self.decisions]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "source": str(self.source),
            "moves": [{"from": one.path, "to": one.destination} for one in self.moves],
            "relabeled": self.relabeled,
            "confirmed": self.confirmed,
            "written": self.written,
            "undo": None if self.undo is None else str(self.undo),
            "tables": [str(path) for path in self.tables],
            "decisions": [str(path) for path in self.decisions],
        }


def apply_corrections(
    source: str | os.PathLike[str], file: str | os.PathLike[str], *, write: bool = False, columns: str | None = None
) -> AppliedCorrections:
    """Apply a file of corrections, as the page of check saves it, to a folder or a table.

    In a folder, images are moved to the folders of their classes, all or none; a table is not changed, but a corrected
    copy is written. What was decided, confirmed labels included, is kept beside the source, so that the next check does
    not doubt it again.

    Args:
        source: The folder or the table.
        file: CSV with the columns path, label and corrected; or a file that an earlier call wrote, to undo it.
        write: Whether to make the changes; else they are only returned.
        columns: Columns of a table that contain paths and labels, such as "path=file,label=class".

    Raises:
        UsageError: There is no such source or file.
        DataError: A row cannot be applied; nothing is changed then.
        StorageError: A file cannot be moved; what was moved before is moved back.
    """
    listing, fixes = list_correctable_source(source, columns), parse_path(file)
    corrections = read_corrections(fixes, listing)
    relabeled = dict(labels_by_path(corrections)) if listing.tables else {}
    moves = [] if listing.tables else plan_moves(listing, corrections)
    tables, undo = [], None
    decisions: tuple[Path, ...] = ()
    if write and relabeled:
        tables = _write_tables(listing, fixes, relabeled)
    if write and moves:
        undo = number_until_free(fixes.with_name(f"{fixes.stem}.undo.csv"), os.path.lexists)
        _move_all(listing.root, moves, undo)
    if write:
        decisions = _keep_decisions(listing, corrections, moves, tables)
    changes = len(moves) or len(relabeled)
    command = format_command("check", parse_path(source), "--apply", fixes, "--write")
    return AppliedCorrections(
        source=listing.source,
        moves=tuple(moves),
        relabeled=relabeled,
        confirmed=len(corrections) - changes,
        written=write,
        undo=undo,
        tables=tuple(tables),
        command=command,
        decisions=decisions,
    )


def _keep_decisions(
    listing: FolderListing, corrections: Sequence[Correction], moves: Sequence[Move], tables: Sequence[Path]
) -> tuple[Path, ...]:
    """Add what was decided to the decisions on the source, and on the corrected copy of it; return their files.

    A file that undoes moves decides nothing, and what was decided on the images that it moves back is dropped.
    """
    decided = [one for one in corrections if one.destination is None]
    confirmed = [(one.path, one.label) for one in decided if one.corrected == one.label]
    moved = {one.path: one.destination for one in moves}
    if not listing.tables:
        confirmed += [(moved[one.path], one.corrected) for one in decided if one.path in moved]
    undone = [one.path for one in corrections if one.destination is not None and one.path in moved]
    files = [change_confirmed(listing.source, confirmed, undone)]
    if listing.tables and listing.tables[0][0].file == listing.source:
        files += [change_confirmed(copy, [(one.path, one.corrected) for one in decided]) for copy in tables]
    return tuple(file for file in files if file is not None)


def _write_tables(listing: FolderListing, fixes: Path, labels: dict[str, str]) -> list[Path]:
    """Write a corrected copy of each table that has one of the images, and return their paths."""
    written = []
    for table, folder in listing.tables:
        of_table = {path: PurePosixPath(folder, path).as_posix() for path in table.paths.values()}
        own = {path: labels[full] for path, full in of_table.items() if full in labels}
        if not own:
            continue
        # A second table in a folder would make its labels ambiguous; the copy of one that is the source replaces it.
        beside = table.file.parent if table.file == listing.source else fixes.parent
        copy = number_until_free(beside / f"{table.file.stem}.corrected{table.file.suffix}", os.path.lexists)
        write_atomic(copy, replace_labels(table, own).encode())
        written.append(copy)
    return written


def _move_all(root: Path, moves: Sequence[Move], undo: Path) -> None:
    """Move all files, after writing the file that undoes it; move them back if one fails.

    Raises:
        StorageError: A file cannot be moved or written.
    """
    write_atomic(undo, _undo_rows(moves).encode())
    done: list[Move] = []
    try:
        for one in moves:
            target = root / one.destination
            with os_error_to_storage_error(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                rename_to_new(root / one.path, target)
            done.append(one)
    except BaseException:
        for one in reversed(done):
            rename_to_new(root / one.destination, root / one.path)
        with suppress(OSError):
            undo.unlink()
        raise


def _undo_rows(moves: Sequence[Move]) -> str:
    """Return a file of corrections that moves every file back to its path."""
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow([*HEADER, DESTINATION])
    for one in moves:
        labels = escape_csv_cell(one.corrected), escape_csv_cell(one.label)
        rows.writerow([escape_csv_path(one.destination), *labels, escape_csv_path(one.path)])
    return text.getvalue()
