"""What the pages of one data set share."""

import re
from collections.abc import Collection as AnyCollection
from itertools import count
from os import PathLike
from typing import Any

from svertka.errors import RunError
from svertka.files import parse_path
from svertka.serving.http_error import HTTPError
from svertka.studio.background_jobs import BackgroundJobs
from svertka.studio.collection import Collection
from svertka.studio.data_set_list import DataSetList
from svertka.studio.image_marks import ImageMarks
from svertka.studio.run_list import RunList
from svertka.studio.thumbnails import Thumbnails
from svertka.studio.training_process import TrainingProcesses


class Workspace:
    """A data set with the marks of its images, and what all data sets share.

    Args:
        folder: The folder of the data set, which is created if missing.
        thumbnails: Thumbnails.
        runs: The runs.
        processes: Their trainings.
        jobs: Work in the background.
        data_sets: Names and the archive of data sets.
        taken: Keys of other data sets.

    Attributes:
        key: Its name in URLs.
        siblings: All data sets, set by the application.
        decided: Paths of images whose class was decided since the labels were checked.
    """

    def __init__(
        self,
        folder: str | PathLike[str],
        thumbnails: Thumbnails,
        runs: RunList,
        processes: TrainingProcesses,
        jobs: BackgroundJobs,
        data_sets: DataSetList,
        taken: AnyCollection[str] = (),
    ) -> None:
        self.data_sets = data_sets
        place = data_sets.place(parse_path(folder).absolute())
        self.collection = Collection(place, data_sets.former_places(place))
        self.marks = ImageMarks(self.collection)
        self.thumbnails, self.runs, self.processes, self.jobs = thumbnails, runs, processes, jobs
        self.decided: set[str] = set()
        self.siblings: list[Workspace] = [self]
        stem = re.sub(r"[^A-Za-z0-9_-]", "_", self.name)[:60] or "images"
        self.key = next(key for number in count(1) if (key := stem if number == 1 else f"{stem}-{number}") not in taken)

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.collection.name

    @property
    def is_archived(self) -> bool:
        """Whether the data set is in the archive."""
        return self.data_sets.is_archived(self.collection.folder)

    @property
    def listed(self) -> "list[Workspace]":
        """The data sets that are not in the archive, and this one."""
        return [one for one in self.siblings if one is self or not one.is_archived]

    def rename(self, name: str) -> None:
        """Rename the folder of the data set.

        Raises:
            RunError: A training or a job reads it. UsageError: The name is impossible or taken.
            StorageError: The folder cannot be renamed.
        """
        if self.jobs.has_running():
            raise RunError(f"work in the background may read {self.name}; stop it, or wait until it ends")
        self.collection.relocate(lambda folder: self.data_sets.rename(folder, name))

    @property
    def doubts_key(self) -> str:
        """The key of the job that checks the labels."""
        return f"{self.key}.labels"

    def doubts(self) -> list[dict[str, Any]]:
        """Return the doubtful labels that the last check found and nobody has decided on, the most doubtful first.

        Each has the keys of `LabelError.to_dict`, with `path` in the folder, and `stamp`.
        """
        result = self.jobs.state(self.doubts_key).result
        found = []
        for one in result.get("label_errors", []) if isinstance(result, dict) else []:
            path = self.collection.relative(one["path"])
            if path and path not in self.decided:
                found.append(one | {"path": path, "stamp": self.collection.stamp(path)})
        return found

    def trained_runs(self) -> list[str]:
        """Return the names of the finished runs, those on this data set first, the newest first."""
        names = [name for name in self.runs.names() if self.processes.state(name) == "finished"]
        is_other = {name: not self.runs.is_of(self.runs.run(name), self.collection.folder) for name in names}
        return sorted(names, key=lambda name: is_other[name])

    def choose_trained_run(self, wanted: str | None) -> tuple[list[str], str]:
        """Return the names of the finished runs, and the one to show: `wanted`, or else the first; "" if there is none.

        Raises:
            HTTPError: 404, there is no finished run `wanted`.
        """
        names = self.trained_runs()
        if wanted and wanted not in names:
            raise HTTPError(404, "there is no such trained run; go back and reload the page")
        return names, wanted or next(iter(names), "")
