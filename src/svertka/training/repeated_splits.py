"""The same training on several divisions of the pictures: how much a result owes to which pictures were learnt from."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np

from svertka.data.sources import open_source
from svertka.data.split import VAL_SHARE
from svertka.errors import UsageError
from svertka.evaluation.confidence_intervals import wilson_interval
from svertka.evaluation.held_out import read_manifest
from svertka.files import shorten, write_json
from svertka.run import Run
from svertka.training.run_lock import claimed
from svertka.training.train import train

MOST_REPEATS = 1000

BOTH, TRAINED_ON = "trained and judged on", "trained on"  # images that vary


@dataclass(frozen=True)
class Repeats:
    """`runs`, one a division, and the error of each on its `part`, val or test: `errors`, 0 to 1.

    `interval`: 95 % confidence interval of the error that training on so many pictures leads to; `mean`: its middle.
    `varies`: "trained and judged on" where each run has other images for both, "trained on" where the source names the
    images that judge, so that the interval says nothing of what other images would judge.
    """

    folder: Path
    runs: tuple[Run, ...]
    part: str
    errors: tuple[float, ...]
    mean: float
    interval: tuple[float, float]
    varies: str

    @property
    def sentence(self) -> str:
        """The same for people."""
        low, high = self.interval
        judged = "" if self.varies == BOTH else f"; all are judged by the same {self.part} images, as the source has it"
        return (
            f"{self.part} error {self.mean:.2%} over {len(self.runs)} divisions, 95 % interval {low:.2%} to {high:.2%} "
            f"(what varies: the images {self.varies}{judged})"
        )

    def summary(self) -> dict[str, Any]:
        """All of it as JSON takes it."""
        return {
            "runs": [str(run.folder) for run in self.runs],
            "part": self.part,
            "errors": list(self.errors),
            "mean": self.mean,
            "interval": list(self.interval),
            "varies": self.varies,
        }


def repeat(
    source: str | PathLike[str], repeats: int, *, output: str | PathLike[str] | None = None, **options: Any
) -> Repeats:
    """What `train(source, **options)` comes to on `repeats` divisions of the pictures, each a run in `output`/0, 1, …

    What the source itself calls test stays test, and val val: only what is divided by shares changes. The summary is
    written to `output`/repeats.json.

    Raises:
        UsageError: fewer than two repeats, no pictures are left to judge by, or every division is the same. And what
            `train` raises.
    """
    if repeats > MOST_REPEATS:
        raise UsageError(f"repeats={shorten(str(repeats))} is more than anybody waits for; use 5 or 10")
    if repeats < 2:
        raise UsageError(f"repeats={repeats} gives no interval; use 5 or 10")
    varies = _what_varies(fspath(source), options)
    with claimed(fspath(source), "repeats", output) as folder:
        return _repeat_in(folder, source, repeats, varies, **options)


def _what_varies(source: str, options: Mapping[str, Any]) -> str:
    """What of the divisions differs, as `Repeats.varies` says.

    Raises:
        UsageError: nothing is left to judge by, or no part is drawn, so that every training would be the same.
    """
    named = set(open_source(source, columns=options.get("columns"), boxes=options.get("boxes")).parts.tolist()) & {
        "val",
        "test",
    }
    asked = {"val": options.get("val", VAL_SHARE), "test": options.get("test", 0.0)}
    drawn = {part for part, share in asked.items() if share and part not in named}
    judges = next((part for part in ("test", "val") if part in named | drawn), None)
    if judges is None:
        raise UsageError(f"no picture of {source} is left to judge by; set --test 0.3, or --val")
    if not drawn:
        if "test" not in named:
            advice = "give --test 0.3 to have a test part drawn anew each time"
        elif "val" not in named:
            advice = "give --val 0.1 to have other images trained on each time"
        else:
            advice = "put all images into one part to have them divided anew each time"
        parts = " and ".join(sorted(named, reverse=True))
        raise UsageError(f"{source} says which images are {parts}, so that all repeats would be the same; {advice}")
    return BOTH if judges in drawn else TRAINED_ON


def _repeat_in(folder: Path, source: str | PathLike[str], repeats: int, varies: str, **options: Any) -> Repeats:
    runs: list[Run] = []
    for turn in range(repeats):
        runs.append(train(source, output=folder / str(turn), turn=turn, **options))
        divisions = [run.settings()["fingerprint"] for run in runs]
        if divisions[-1] in divisions[:-1]:
            raise UsageError(
                f"{fspath(source)} has too few pictures for {repeats} divisions: those of {runs[-1].folder} and "
                f"{runs[divisions.index(divisions[-1])].folder} are the same; give fewer --repeats"
            )
    part = next((part for part in ("test", "val") if runs[0].result()[f"{part}_error"] is not None), None)
    if part is None:
        raise UsageError(f"no picture of {fspath(source)} is left to judge by; set --test 0.3, or --val")
    errors = tuple(float(run.result()[f"{part}_error"]) for run in runs)
    sizes = [run.settings()["parts"] for run in runs]
    judged_share = float(np.mean([size[part] / size["train"] for size in sizes]))
    reach = interval(errors, judged_share)
    if len(set(errors)) == 1:  # such a spread says nothing: what one division can tell at best
        judged = min(size[part] for size in sizes)
        reach = wilson_interval(round(errors[0] * judged), judged)
    if varies == TRAINED_ON and len({manifest.parts[part] for run in runs if (manifest := read_manifest(run))}) > 1:
        varies = BOTH  # the source's own part held nothing but copies
    made = Repeats(folder, tuple(runs), part, errors, float(np.mean(errors)), reach, varies)
    write_json(folder / "repeats.json", made.summary())
    return made


def interval(errors: tuple[float, ...], judged_share: float) -> tuple[float, float]:
    """The 95 % confidence interval of the mean of `errors`, within 0 to 1.

    `judged_share`: pictures judged for each one learnt from. The divisions share pictures, so their errors vary less
    than those of fresh pictures would: the variance is the corrected one.

    Source: Nadeau & Bengio 2003, "Inference for the generalization error", eq. 16.
    """
    from scipy.special import stdtrit

    count, mean = len(errors), float(np.mean(errors))
    variance = float(np.var(errors, ddof=1)) * (1 / count + judged_share)
    reach = float(stdtrit(count - 1, 0.975)) * math.sqrt(variance)
    return max(0.0, mean - reach), min(1.0, mean + reach)
