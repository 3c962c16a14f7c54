"""The data sets of the studio: which folders were renamed since the command line named them, and the archive."""

import threading
from pathlib import Path
from typing import Any

from svertka.curation.confirmed_labels import SUFFIX, find_confirmed_file
from svertka.errors import RunError, UsageError
from svertka.files import os_error_to_storage_error, read_json, write_json
from svertka.run import Run
from svertka.studio.collection import check_class_name
from svertka.studio.run_list import RunList
from svertka.studio.training_process import TrainingProcesses

FILE = ".studio/data_sets.json"


class DataSetList:
    """Names and the archive of data sets; a file in the folder of the runs, so that the next server knows them.

    Args:
        runs: The runs.
        processes: Their trainings.
    """

    def __init__(self, runs: RunList, processes: TrainingProcesses) -> None:
        self._runs, self._processes, self._file = runs, processes, runs.folder / FILE
        self._lock = threading.Lock()

    def place(self, folder: Path) -> Path:
        """Return where the data set is that was in `folder`, which may have been renamed since."""
        moved, seen = self._read()["moved"], {str(folder)}
        while not folder.exists() and (to := moved.get(str(folder), "")) and to not in seen:
            folder = Path(to)
            seen.add(to)
        return folder

    def former_places(self, folder: Path) -> list[Path]:
        """Return the folders that the data set in `folder` was in before it was renamed."""
        return [Path(old) for old, new in self._read()["moved"].items() if new == str(folder) != old]

    def is_archived(self, folder: Path) -> bool:
        """Return whether the data set in `folder` is in the archive."""
        return str(folder) in self._read()["archived"]

    def set_archived(self, folder: Path, is_archived: bool) -> None:
        """Put the data set in `folder` into the archive, or take it out; its files stay where they are.

        Raises:
            StorageError: The list cannot be written.
        """
        with self._lock:
            known = self._read()
            others = [one for one in known["archived"] if one != str(folder)]
            self._write(known | {"archived": [*others, str(folder)] if is_archived else others})

    def rename(self, folder: Path, name: str) -> Path:
        """Rename a data set with the decisions on its labels, tell its runs, and return its new folder.

        Raises:
            RunError: A training reads it. UsageError: The name is impossible or taken.
            StorageError: The folder cannot be renamed.
        """
        with self._lock:
            to = folder.with_name(check_class_name(name))
            if to == folder:
                return folder
            runs = [run for run in self._all_runs() if self._runs.is_of(run, folder)]
            if any(self._processes.state(run.folder.name) in ("preparing", "training") for run in runs):
                raise RunError(f"a training reads {folder.name}; stop it, or wait until it ends")
            if to.exists() and not to.samefile(folder):
                raise UsageError(f"{to} exists; choose another name")
            confirmed, carried = find_confirmed_file(folder), to.resolve().with_name(to.name + SUFFIX)
            if carried.exists() and not (confirmed and confirmed.exists() and carried.samefile(confirmed)):
                raise UsageError(f"{carried} holds decisions on other labels; choose another name, or remove this file")
            known = self._read()
            moved = {old: str(to) if new == str(folder) else new for old, new in known["moved"].items()}
            archived = [str(to) if one == str(folder) else one for one in known["archived"]]
            # Written first, so that a server that is killed between the two finds the folder by either name.
            self._write({"moved": moved | {str(folder): str(to)}, "archived": archived})
            with os_error_to_storage_error(to):
                folder.rename(to)
            if confirmed is not None and confirmed.exists():
                with os_error_to_storage_error(confirmed):
                    confirmed.replace(carried)
            for run in runs:
                write_json(run.training, run.settings() | {"source": str(to)})
            return to

    def _all_runs(self) -> list[Run]:
        return [self._runs.run(name) for name in self._runs.names()] + self._runs.archived_runs()

    def _read(self) -> dict[str, Any]:
        """Return the list; empty if there is none, or if it is damaged."""
        try:
            known = read_json(self._file)
        except (OSError, ValueError):
            known = {}
        known = known if isinstance(known, dict) else {}
        moved, archived = known.get("moved"), known.get("archived")
        return {
            "moved": moved if isinstance(moved, dict) else {},
            "archived": archived if isinstance(archived, list) else [],
        }

    def _write(self, known: dict[str, Any]) -> None:
        with os_error_to_storage_error(self._file):
            self._file.parent.mkdir(parents=True, exist_ok=True)
        write_json(self._file, known)
