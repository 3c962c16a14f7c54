"""The run folder: where its files are, and what is in them. Training writes it, every other verb reads it."""

import json
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from svertka.classifier import CONFIG, WEIGHTS, Classifier, refuse_newer
from svertka.errors import RunError
from svertka.files import read_json
from svertka.quoting import command

FORMAT = 1  # of training.json


class Run:
    """A run folder and its paths, a path itself; making one of these touches no file."""

    def __init__(self, folder: str | PathLike[str]) -> None:
        self.folder = Path(folder)
        self.config = self.folder / CONFIG
        self.weights = self.folder / WEIGHTS
        self.training = self.folder / "training.json"
        self.checkpoint = self.folder / "checkpoint" / "state.safetensors"
        self.metrics = self.folder / "metrics.jsonl"
        self.report = self.folder / "report.html"
        self.lock = self.folder / ".lock"  # there while a process trains it

    def __fspath__(self) -> str:
        return str(self.folder)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.folder.resolve().name

    def classifier(self) -> Classifier:
        """The best network of the run, with its names and preprocessing."""
        return Classifier.load(self.folder)

    def settings(self) -> dict[str, Any]:
        """What training.json says: source, recipe, parts, versions.

        Raises:
            RunError: it is missing, damaged or made by a newer version.
        """
        try:
            content = read_json(self.training)
        except FileNotFoundError as error:
            raise RunError(f"{self.folder} holds no training.json, so it is not a run of `svertka train`") from error
        except (ValueError, OSError) as error:
            raise RunError(f"{self.training} is damaged ({error}); copy it back or train again") from error
        refuse_newer(self.training, content, FORMAT)
        if not isinstance(content, dict):
            raise RunError(f"{self.training} is damaged (not a JSON object); copy it back or train again")
        return content

    def history(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, oldest first; a last line cut short by a crash is left out."""
        if not self.metrics.exists():
            return []
        lines = []
        for line in self.metrics.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                lines.append(entry)
        return lines

    def result(self) -> dict[str, Any]:
        """What training came to: `run`, `val_error`, `test_error`, `epochs`, `seconds`, `images_per_second`.

        Raises:
            RunError: training has not finished.
        """
        for entry in reversed(self.history()):
            if entry.get("kind") == "result":
                return {"run": str(self.folder)} | {key: entry[key] for key in entry if key != "kind"}
        raise RunError(f"{self.folder} has not finished; continue it with: {self.resume_command}")

    @property
    def is_finished(self) -> bool:
        """Whether training has ended and left its report."""
        return self.report.exists() and any(entry.get("kind") == "result" for entry in self.history())

    @property
    def resume_command(self) -> str:
        """The command line that continues the training."""
        return command("train", "--resume", self.folder)


def called(run: str | PathLike[str]) -> str:
    """What people call `run`: a folder's own name, or a network with its weights, of a file without the way there."""
    if Path(run).is_dir():
        return Run(run).name
    model, colon, weights = fspath(run).partition(":")
    return f"{model}{colon}{Path(weights).name}"
