"""The same training on several random splits of the images, and a confidence interval of its error."""

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from svertka.confidence_intervals import error_interval
from svertka.data.source_opener import is_path, open_source
from svertka.errors import UsageError
from svertka.evaluation.held_out import read_manifest
from svertka.files import write_json
from svertka.pages.notebook_block import NotebookBlock
from svertka.progress import format_duration, say
from svertka.run import Run
from svertka.text_width import shorten
from svertka.training.run_lock import claim_run_folder
from svertka.training.single_run import TrainingOptions, train_run

MAX_REPEATS = 1000

ERROR, MEAN_ABSOLUTE_ERROR = "error", "mean absolute error"
BOTH, TRAINED_ON = "trained and judged on", "trained on"


@dataclass(frozen=True, repr=False)
class Repeats:
    """The runs of one training on several random splits of the images; usable as the path of their folder.

    Attributes:
        folder: The folder that holds the runs and repeats.json.
        runs: The runs, one per split, N of them.
        part: The part on which each was evaluated, "val" or "test".
        errors: The error of each run on that part, 0 to 1, N of them; mAP if an image has several labels, and the mean
            absolute error of a number.
        mean: Mean of the errors, 0 to 1.
        interval: 95 % confidence interval of the error of a training on as many images.
        metric: What `errors` are: "error", "mAP" or "mean absolute error".
        varies: "trained and judged on" if each run was trained and evaluated on other images; "trained on" if the
            source names the images for evaluation, which are then the same for all runs.
    """

    folder: Path
    runs: tuple[Run, ...]
    part: str
    errors: tuple[float, ...]
    mean: float
    interval: tuple[float, float]
    varies: str
    metric: str = ERROR

    def __fspath__(self) -> str:
        return str(self.folder)

    def __repr__(self) -> str:
        return f"Repeats({str(self.folder)!r}: {self.sentence})"

    def _repr_html_(self) -> str:
        rows = [(run.name, self._text(error)) for run, error in zip(self.runs, self.errors, strict=True)]
        header = "run", f"{self.part} {self.metric}"
        return NotebookBlock(str(self.folder), (self.sentence,), header=header, rows=rows).render()

    def _text(self, value: float) -> str:
        return f"{value:.4g}" if self.metric == MEAN_ABSOLUTE_ERROR else f"{value:.2%}"

    @property
    def sentence(self) -> str:
        """The result in words."""
        low, high = map(self._text, self.interval)
        judged = "" if self.varies == BOTH else f"; the {self.part} images, which the source names, are the same"
        return (
            f"{self.part} {self.metric} {self._text(self.mean)} over {len(self.runs)} splits, 95 % interval {low} to "
            f"{high} (what varies: the images {self.varies}{judged})"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON values of repeats.json, which `svertka train --repeats N --json` prints.

        Returns:
            The keys runs, part, metric, errors, mean, interval and varies. Errors are 0 to 1.
        """
        return {
            "runs": [str(run.folder) for run in self.runs],
            "part": self.part,
            "metric": self.metric,
            "errors": list(self.errors),
            "mean": self.mean,
            "interval": list(self.interval),
            "varies": self.varies,
        }


def train_repeatedly(options: TrainingOptions, repeats: int) -> Repeats:
    """Train on `repeats` random splits of the images, each in a run folder OUTPUT/0, OUTPUT/1, …

    Val and test parts that the source names stay as they are. The result is also written to OUTPUT/repeats.json.

    Raises:
        UsageError: There are fewer than 2 repeats or more than 1000, no image is left for evaluation, or two splits
            are the same.
        DataError, TrainingError, Interrupted: As `train_run`.
    """
    if not 2 <= repeats <= MAX_REPEATS:
        raise UsageError(f"repeats={shorten(str(repeats))} must be from 2 to {MAX_REPEATS}; use 5 or 10")
    if options.split_seed is not None:
        raise UsageError(f"split_seed={options.split_seed} and repeats={repeats} exclude each other; leave one out")
    if not is_path(options.source):  # opened once, not once per split
        options = replace(options, source=open_source(options.source))
    source, varies = _find_what_varies(options)
    with claim_run_folder(source, "repeats", options.output) as folder:
        runs = _train_all(options, repeats, source, folder)
        made = _summarize(runs, source, folder, varies)
        write_json(folder / "repeats.json", made.to_dict())
        return made


def _find_what_varies(options: TrainingOptions) -> tuple[str, str]:
    """Return the name of the source and what differs between splits, as `Repeats.varies`.

    Raises:
        UsageError: No image is left for evaluation, or no part is drawn at random.
    """
    dataset = open_source(options.source, columns=options.columns, boxes=options.boxes, names=options.names)
    source, named = dataset.source, set(dataset.parts.tolist()) & {"val", "test"}
    drawn = {part for part, share in (("val", options.val), ("test", options.test)) if share and part not in named}
    judge = next((part for part in ("test", "val") if part in named | drawn), None)
    if judge is None:
        raise _nothing_to_evaluate_on(source)
    if not drawn:
        if "test" not in named:
            advice = "give --test 0.3 to draw another test set each time"
        elif "val" not in named:
            advice = "give --val 0.1 to train on other images each time"
        else:
            advice = "put all images into one part to have them split anew each time"
        parts = " and ".join(sorted(named, reverse=True))
        raise UsageError(f"{source} has its own {parts} images, so all repeats would be the same; {advice}")
    return source, BOTH if judge in drawn else TRAINED_ON


def _nothing_to_evaluate_on(source: str) -> UsageError:
    return UsageError(f"no image of {source} is left to evaluate on; set --test 0.3, or --val")


def _train_all(options: TrainingOptions, repeats: int, source: str, folder: Path) -> list[Run]:
    """Train on each split.

    Raises:
        UsageError: Two splits are the same.
    """
    runs: list[Run] = []
    seen: dict[str, Run] = {}
    began = time.monotonic()
    for number in range(repeats):
        mean = (time.monotonic() - began) / max(number, 1)
        left = f", about {format_duration(mean * (repeats - number))} left" if number else ""
        say(f"split {number + 1} of {repeats}{left}; the time below is that of one split")
        run = train_run(replace(options, output=folder / str(number), split_seed=number, is_repeated=True))
        first = seen.setdefault(run.settings()["fingerprint"], run)
        if first is not run:
            raise UsageError(
                f"{source} has too few images for {repeats} splits: those of {run.folder} and {first.folder} are the "
                "same; give fewer --repeats"
            )
        runs.append(run)
    return runs


def _summarize(runs: list[Run], source: str, folder: Path, varies: str) -> Repeats:
    results = [run.result() for run in runs]
    part = next((part for part in ("test", "val") if results[0][f"{part}_error"] is not None), None)
    if part is None:
        raise _nothing_to_evaluate_on(source)
    metric, errors = _read_errors(results, part)
    sizes = [run.settings()["parts"] for run in runs]
    highest = math.inf if metric == MEAN_ABSOLUTE_ERROR else 1.0
    limits = confidence_interval(errors, float(np.mean([size[part] / size["train"] for size in sizes])), highest)
    if len(set(errors)) == 1 and metric == ERROR:  # no spread to estimate from: the interval of a single split
        limits = error_interval(errors[0], min(size[part] for size in sizes))
    if varies == TRAINED_ON and len({manifest.parts[part] for run in runs if (manifest := read_manifest(run))}) > 1:
        varies = BOTH  # the part that the source names held only copies and was drawn anew
    return Repeats(folder, tuple(runs), part, errors, float(np.mean(errors)), limits, varies, metric)


def _read_errors(results: list[dict[str, Any]], part: str) -> tuple[str, tuple[float, ...]]:
    """Return the name of the metric of the runs, and its value in each of them.

    Raises:
        UsageError: No image of the part has a label, so that the mean average precision is unknown.
    """
    for name, key in (("mAP", "mean_average_precision"), (MEAN_ABSOLUTE_ERROR, "mean_absolute_error")):
        if key not in (results[0].get("metrics") or {}):
            continue
        values = [result["metrics"][key] for result in results]
        if None in values:
            raise UsageError(f"the {part} images of split {values.index(None)} have no label at all; give more of them")
        return name, tuple(map(float, values))
    return ERROR, tuple(float(result[f"{part}_error"]) for result in results)


def confidence_interval(
    errors: tuple[float, ...], test_to_train_ratio: float, highest: float = 1.0
) -> tuple[float, float]:
    """Return the 95 % confidence interval of the mean error over random splits, within 0 to `highest`.

    Splits share images, so that their errors vary less than those of independent samples: the variance is corrected.

    Args:
        errors: The errors on N splits, 0 to `highest`.
        test_to_train_ratio: Images evaluated per image trained on.
        highest: The largest value that the error can have.

    Source: Nadeau & Bengio 2003, "Inference for the generalization error", eq. 16.
    """
    from scipy.special import stdtrit

    count, mean = len(errors), float(np.mean(errors))
    variance = float(np.var(errors, ddof=1)) * (1 / count + test_to_train_ratio)
    half = float(stdtrit(count - 1, 0.975)) * math.sqrt(variance)
    return max(0.0, mean - half), min(highest, mean + half)
