"""The run folder: the paths of its files and their contents."""

import json
import math
from collections.abc import Iterator
from os import PathLike, fspath
from pathlib import Path
from typing import Any, BinaryIO

from svertka.classifier import CONFIG, WEIGHTS, Classifier, check_format_version, read_config
from svertka.data.box_annotations import find_annotation_files
from svertka.data.dataset import Dataset
from svertka.data.in_memory_sources import IN_MEMORY
from svertka.data.sharded_images import ClassNames
from svertka.data.source_opener import Source, is_path, is_same_source, open_source
from svertka.errors import RunError, SvertkaError
from svertka.escaping import format_command
from svertka.files import error_reason, is_url, open_regular_file, parse_path, read_json, resolve_path
from svertka.models.external_builder import BuilderRecord
from svertka.pages.notebook_block import Curve, NotebookBlock
from svertka.tensor_files import unreadable_file_error

FORMAT = 1  # of training.json
NUMBER, MAYBE = int | float, int | float | None
RESULT = {"val_error": MAYBE, "test_error": MAYBE, "epochs": NUMBER, "seconds": NUMBER, "images_per_second": NUMBER}
MAX_HISTORY_BYTES = 2**27  # about 500,000 lines of metrics.jsonl
MAX_LINE_BYTES = 2**20
MAX_NUMBER = 1e150  # the square is finite, too


class Run:
    """A run folder and the paths of its files; usable as a path.

    Creating a Run does not touch the disk.

    Args:
        folder: The folder.

    Attributes:
        folder: The folder.
        config: config.json, the model, class names and preprocessing.
        weights: model.safetensors, the weights of the best epoch.
        training: training.json, the settings of the training.
        checkpoint: State of a training in progress.
        manifest: Content hashes of the images by part.
        metrics: metrics.jsonl, the training log.
        report: report.html, the report on the training.
        lock: Exists while a process trains the run.

    Raises:
        UsageError: `folder` is not a valid path.
    """

    def __init__(self, folder: str | PathLike[str]) -> None:
        self.folder = parse_path(folder)
        self.config = self.folder / CONFIG
        self.weights = self.folder / WEIGHTS
        self.training = self.folder / "training.json"
        self.checkpoint = self.folder / "checkpoint" / "state.safetensors"
        self.manifest = self.folder / "manifest.safetensors"
        self.metrics = self.folder / "metrics.jsonl"
        self.report = self.folder / "report.html"
        self.lock = self.folder / ".lock"

    def __fspath__(self) -> str:
        return str(self.folder)

    def __repr__(self) -> str:
        numbers = self._numbers()
        return f"Run({', '.join((repr(str(self.folder)), *(f'{name}={value}' for name, value in numbers.items())))})"

    def _numbers(self) -> dict[str, str]:
        """Return the errors and epochs of a finished training; nothing of any other."""
        try:
            result, validated = self.result(), self.cross_validation()
        except SvertkaError:
            return {}
        numbers = {name: f"{result[name]:.4f}" for name in ("val_error", "test_error") if result[name] is not None}
        if validated is not None:
            low, high = validated["interval"]
            name = f"cross_validated_{validated.get('metric', 'error').replace(' ', '_')}"
            numbers = {name: f"{validated['error']:.4f} ({low:.4f} to {high:.4f})"} | numbers
        return numbers | {"epochs": f"{result['epochs']:g}"}

    def _repr_html_(self) -> str:
        try:
            epochs = [entry for entry in self.history() if entry["kind"] == "epoch"]
            findings = [str(finding["sentence"]) for finding in self.findings()]
        except SvertkaError as error:
            return NotebookBlock(str(self.folder), (str(error),)).render()
        numbers = self._numbers()
        state = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in numbers.items())
        curves = [
            Curve(
                name, [_number(entry.get("epoch")) for entry in epochs], [_number(entry.get(key)) for entry in epochs]
            )
            for name, key in (("validation error", "val_error"), ("training error", "train_error"))
        ]
        sentences = (state or "not finished", *dict.fromkeys(findings))
        return NotebookBlock(str(self.folder), sentences, curves, ("epoch", "error")).render()

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON values that `svertka train --json` prints for a finished training.

        Returns:
            The keys run, cross_validation, findings and bad, and the keys of `result`.

        Raises:
            RunError: Training has not finished, or a file of the run is damaged.
        """
        settings = self.settings()
        account = settings.get("account")
        leading = {"run": str(self.folder), "cross_validation": self.cross_validation()}
        bad = [*settings.get("bad", []), *self.unreadable()]
        result: dict[str, Any] = leading | self.result() | {"findings": self.findings(), "bad": bad}
        return result | (account if isinstance(account, dict) else {})

    @property
    def name(self) -> str:
        """The name of the folder."""
        return resolve_path(self.folder).name

    def classifier(self, *, trust_builder: bool = False) -> Classifier:
        """Return the best network of the run with its class names and preprocessing.

        Args:
            trust_builder: As for `Classifier.load`.

        Returns:
            The classifier.

        Raises:
            RunError: A file of the run is missing or damaged.
            UsageError: The network is built by code that is neither svertka's nor trusted.
        """
        return Classifier.load(self.folder, trust_builder=trust_builder)

    def settings(self) -> dict[str, Any]:
        """Return the content of training.json: source, recipe, parts, versions.

        Returns:
            The JSON values of the file.

        Raises:
            RunError: The file is missing, damaged or made by a newer version.
        """
        try:
            content = read_json(self.training)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise RunError(f"{self.folder} holds no training.json, so it is not a run of `svertka train`") from error
        except (ValueError, OSError) as error:
            raise unreadable_file_error(self.training, error) from error
        check_format_version(self.training, content, FORMAT)
        if not isinstance(content, dict) or not isinstance(content.get("source"), str):
            raise RunError(f"{self.training} is damaged (it names no source); copy it back or train again")
        return content

    def cross_validation(self) -> dict[str, Any] | None:
        """Return the cross-validated error of a head on few images; None if there is none.

        Returns:
            `error` (0 to 1), `interval` (95 %, its two ends), `images`, `parts`, `folds` and `repeats`. With `metric`,
            "mAP" or "mean absolute error", `error` is that.

        Raises:
            RunError: training.json is missing or damaged.
        """
        found = self.settings().get("cross_validation")
        if found is None:
            return None
        limits = found.get("interval") if isinstance(found, dict) else None
        numbers = [found.get("error"), *limits] if isinstance(limits, list) and len(limits) == 2 else []
        if not numbers or not all(isinstance(number, int | float) for number in numbers):
            raise RunError(f"{self.training} is damaged (its cross_validation lacks numbers); copy it back")
        return dict(found)

    def history(self) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl, oldest first.

        A last line that a crash cut short is left out.

        Returns:
            Dicts with a `kind`. Values are text, finite numbers, None, and flat lists or dicts of these; anything
            else in the file becomes None.

        Raises:
            RunError: The file cannot be read or is larger than any training writes.
        """
        try:
            with open_regular_file(self.metrics, MAX_HISTORY_BYTES) as file:
                return [entry for line in _lines(file) if (entry := _entry(line)) is not None]
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            raise RunError(f"{self.metrics} cannot be read ({error_reason(error)}); fix or remove it") from error

    def unreadable(self) -> list[dict[str, str]]:
        """Return path and reason of each image that could not be read during training.

        Returns:
            A dict with the keys path and reason for each image.

        Raises:
            RunError: The log of the run cannot be read.
        """
        met = [entry for entry in self.history() if entry["kind"] == "unreadable"]
        return [{"path": str(entry.get("path")), "reason": str(entry.get("reason"))} for entry in met]

    def findings(self) -> list[dict[str, Any]]:
        """Return the problems found during training.

        Returns:
            Dicts with `kind`, `epoch` (None: before the end of the first) and `sentence`.

        Raises:
            RunError: metrics.jsonl cannot be read.
        """
        return [
            {"kind": entry.get("finding"), "epoch": entry.get("epoch"), "sentence": entry.get("sentence")}
            for entry in self.history()
            if entry["kind"] == "health" and entry.get("finding") != "source"  # a finding about the images
        ]

    def result(self) -> dict[str, Any]:
        """Return the result of the training.

        Returns:
            `run`, `val_error`, `test_error`, `part` and `images` (on which the finished network was evaluated),
            `epochs`, `seconds` and `images_per_second`.

        Raises:
            RunError: Training has not finished, or metrics.jsonl is damaged.
        """
        for entry in reversed(self.history()):
            if entry["kind"] == "result":
                lost = [name for name, kind in RESULT.items() if not isinstance(entry.get(name), kind)]
                if lost:
                    raise RunError(f"{self.metrics} is damaged (its result lacks {', '.join(lost)}); copy it back")
                return {"run": str(self.folder)} | {key: entry[key] for key in entry if key != "kind"}
        raise RunError(f"{self.folder} has not finished; continue it with: {self.resume_command}")

    @property
    def is_finished(self) -> bool:
        """Whether training has ended and written its report."""
        return self.report.exists() and any(entry["kind"] == "result" for entry in self.history())

    @property
    def resume_command(self) -> str:
        """The command line, or the call if it was trained on images in memory, that continues the training."""
        builder = self._builder()
        of_memory = self._is_of_memory()
        if of_memory or (builder is not None and builder.is_graph):
            source = ", source" if of_memory else ""
            model = ", model=…" if builder is not None and builder.is_graph else ""
            is_code = builder is not None and builder.needs_consent and not builder.is_graph
            consent = ", trust_builder=True" if is_code else ""
            return f"svertka.resume({str(self.folder)!r}{source}{model}{consent})"
        return format_command("train", "--resume", self.folder, *self.consent)

    @property
    def consent(self) -> list[str]:
        """The option that commands need for this run, if code that is not svertka's builds its network; or nothing."""
        builder = self._builder()
        return ["--trust-builder"] if builder is not None and builder.needs_consent else []

    def _builder(self) -> BuilderRecord | None:
        """Return what config.json says of the builder; None for a network of the registry or a damaged file."""
        try:
            return read_config(self.folder).builder
        except SvertkaError:
            return None

    def _is_of_memory(self) -> bool:
        """Return whether the run was trained on images in memory."""
        try:
            return self.settings()["source"] in IN_MEMORY
        except SvertkaError:
            return False


def columns_of_training(run: str | PathLike[str], source: Source) -> str | None:
    """Return how the training of `run` read the columns of the table `source`; None if it used other data.

    Raises:
        RunError: training.json is damaged.
    """
    if not is_path(source) or not Run(run).training.exists():
        return None
    settings = Run(run).settings()
    columns = settings.get("columns")
    return columns if is_same_source(settings["source"], fspath(source)) and isinstance(columns, str) else None


def names_of_training(run: str | PathLike[str], source: Source) -> list[str] | None:
    """Return the class names that the training of `run` was given for the shards `source`; None if there are none.

    Raises:
        RunError: training.json is damaged.
    """
    if not is_path(source) or not Run(run).training.exists():
        return None
    settings = Run(run).settings()
    names = settings.get("names")
    return names if is_same_source(settings["source"], fspath(source)) and isinstance(names, list) else None


def open_source_as_in_training(
    run: str | PathLike[str], source: Source, *, columns: str | None = None, names: ClassNames | None = None
) -> Dataset:
    """Open images with labels as the training of a run read them: columns of tables, boxes, and names of shards.

    Args:
        run: The run, or a network with weights, which was trained on nothing here.
        source: The images; need not suffice for training.
        columns, names: As for `open_source`. None: those of the training, if `source` is its source.

    Raises:
        SvertkaError: As `open_source`; or training.json is damaged.
    """
    return open_source(
        source,
        to_train=False,
        columns=columns or columns_of_training(run, source),
        boxes=read_training_boxes(run, source),
        names=names or names_of_training(run, source),
    )


def read_training_boxes(run: str | PathLike[str], source: Source) -> str | None:
    """Return the boxes that label the images of `source`, for a run that was trained with boxes.

    Returns:
        The boxes of the training if `source` is its source, else any in `source`; None without boxes.

    Raises:
        RunError: training.json is damaged.
    """
    if not is_path(source) or not Run(run).training.exists():
        return None
    settings = Run(run).settings()
    if not isinstance(boxes := settings.get("boxes"), str):
        return None
    if is_same_source(settings["source"], fspath(source)):
        return boxes
    if is_url(source):
        return None
    return fspath(source) if any(find_annotation_files(parse_path(source))) else None


def _number(value: Any) -> float:
    """Return `value` as a float; NaN where it is missing."""
    return float(value) if isinstance(value, int | float) else math.nan


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield the lines of `file`; lines longer than a training writes are left out."""
    while line := file.readline(MAX_LINE_BYTES):
        whole = line.endswith(b"\n") or len(line) < MAX_LINE_BYTES
        if whole:
            yield line
        while not whole:
            rest = file.readline(MAX_LINE_BYTES)
            whole = rest.endswith(b"\n") or not rest


def _entry(line: bytes) -> dict[str, Any] | None:
    """Return a line of metrics.jsonl; None if it is damaged."""
    try:
        value = json.loads(line.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not isinstance(value.get("kind"), str):
        return None
    return {name: _sanitize(inside) for name, inside in value.items()}


def _sanitize(value: Any) -> Any:
    """Return `value` with None in place of everything that a training does not write."""
    if isinstance(value, list):
        return [_scalar(inside) for inside in value]
    if isinstance(value, dict):
        return {name: _scalar(inside) for name, inside in value.items()}
    return _scalar(value)


def _scalar(value: Any) -> str | float | bool | None:
    """Return `value` if it is text or a finite number, else None."""
    if isinstance(value, int | float):
        return value if abs(value) < MAX_NUMBER else None  # neither NaN nor what is too large for a float
    return value if isinstance(value, str) else None


def display_name(run: str | PathLike[str]) -> str:
    """Return a short name of `run`: the folder name, or "model:weights" without the path of the file."""
    if parse_path(run).is_dir():
        return Run(run).name
    model, colon, weights = fspath(run).partition(":")
    return f"{model}{colon}{Path(weights).name}"
