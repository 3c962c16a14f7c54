"""The runs of the studio: a folder with one run folder each, an archive, and what trainings said."""

import os
import re
from itertools import count
from pathlib import Path

from svertka.data.source_opener import is_same_source
from svertka.errors import RunError, SvertkaError, UsageError
from svertka.escaping import to_printable
from svertka.files import os_error_to_storage_error
from svertka.run import Run
from svertka.text_width import shorten
from svertka.training.run_lock import find_training_process

ARCHIVE = ".archive"
LOGS = ".studio"  # what trainings said
JOBS = ".studio/jobs"  # outputs of other work in the background
NAME = re.compile(r"[^\W_](?:[\w. -]{0,78}\w)?")


class RunList:
    """The runs in a folder.

    Args:
        folder: The folder, which need not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self, *, archived: bool = False) -> list[str]:
        """Return the names of the runs, the newest first."""
        folder = self.folder / ARCHIVE if archived else self.folder
        try:
            found = [one for one in folder.iterdir() if NAME.fullmatch(one.name) and one.is_dir() and _is_run(one)]
        except OSError:
            return []
        return [one.name for one in sorted(found, key=lambda one: (-_time(one), one.name))]

    def archived_runs(self) -> list[Run]:
        """Return the runs in the archive."""
        return [Run(self.folder / ARCHIVE / name) for name in self.names(archived=True)]

    def failed_names(self) -> list[str]:
        """Return the names of the trainings that failed before they had a run folder, the newest first."""
        try:
            logs = [one for one in (self.folder / LOGS).iterdir() if one.suffix == ".log"]
        except OSError:
            return []
        logs = [one for one in logs if NAME.fullmatch(one.stem) and not (self.folder / one.stem).exists()]
        return [one.stem for one in sorted(logs, key=_time, reverse=True)]

    def run(self, name: str) -> Run:
        """Return the run called `name`.

        Raises:
            RunError: There is no such run.
        """
        folder = self.folder / name
        if not NAME.fullmatch(name) or folder.is_symlink() or not folder.is_dir() or not _is_run(folder):
            raise RunError(f"there is no run {shorten(to_printable(name))}; reload the page")
        return Run(folder)

    def is_of(self, run: Run, source: Path) -> bool:
        """Return whether a run was trained on the images in `source`."""
        try:
            return is_same_source(run.settings()["source"], source)
        except SvertkaError:
            return False

    def log_file(self, name: str) -> Path:
        """Return the file with what the training of `name` said."""
        return self.folder / LOGS / f"{name}.log"

    def free_name(self, stem: str) -> str:
        """Return a name for a new run, such as "photos-2"."""
        stem = re.sub(r"[^\w-]+", "-", stem).strip("-_")[:60] or "run"
        taken = {*self.names(), *self.names(archived=True), *self.failed_names()}
        numbered = (f"{stem}-{number}" for number in count(1))
        return next(name for name in numbered if name not in taken and not os.path.lexists(self.folder / name))

    def rename(self, name: str, to: str) -> str:
        """Rename a run and return its new name.

        Raises:
            RunError: There is no such run, or it is being trained.
            UsageError: The new name is impossible or taken.
        """
        to = to.strip()
        if not NAME.fullmatch(to):
            raise UsageError(f"{shorten(to_printable(to))} cannot be the name of a run; use letters, digits, - and _")
        if to in (*self.names(), *self.names(archived=True)) or os.path.lexists(self.folder / to):
            raise UsageError(f"there is a run {to} already; choose another name")
        self._move(self.run(name).folder, self.folder / to)
        if self.log_file(name).exists():
            self.log_file(name).replace(self.log_file(to))
        return to

    def archive(self, name: str) -> None:
        """Move a run out of the list.

        Raises:
            RunError: There is no such run, or it is being trained. UsageError: The archive has one of this name.
        """
        self._move(self.run(name).folder, self.folder / ARCHIVE / name)

    def restore(self, name: str) -> None:
        """Move a run back into the list; raises as `archive`."""
        if name not in self.names(archived=True):
            raise RunError(f"there is no archived run {shorten(to_printable(name))}; reload the page")
        self._move(self.folder / ARCHIVE / name, self.folder / name)

    def forget_failed(self, name: str) -> None:
        """Remove what a failed training said.

        Raises:
            RunError: There is no such training.
        """
        if name not in self.failed_names():
            raise RunError(f"there is no failed training {shorten(to_printable(name))}; reload the page")
        self.log_file(name).unlink(missing_ok=True)

    def _move(self, folder: Path, to: Path) -> None:
        if find_training_process(Run(folder)) is not None:
            raise RunError(f"{folder.name} is being trained; stop the training first")
        if os.path.lexists(to):
            raise UsageError(f"{to} exists; rename the run first")
        with os_error_to_storage_error(to):
            to.parent.mkdir(parents=True, exist_ok=True)
            folder.rename(to)


def _is_run(folder: Path) -> bool:
    run = Run(folder)
    return run.config.exists() or run.training.exists() or run.lock.exists()


def _time(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
