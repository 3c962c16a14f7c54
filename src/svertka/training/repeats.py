"""The same training on several divisions of the pictures: how much a result owes to which pictures were learnt from."""

import math
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np

from svertka.errors import UsageError
from svertka.files import write_json
from svertka.run import Run
from svertka.training.claim import claimed
from svertka.training.job import train


@dataclass(frozen=True)
class Repeats:
    """`runs`, one a division, and the error of each on its `part`, val or test: `errors`, 0 to 1.

    `interval`: 95 % confidence interval of the error that training on so many pictures leads to; `mean`: its middle.
    """

    folder: Path
    runs: tuple[Run, ...]
    part: str
    errors: tuple[float, ...]
    mean: float
    interval: tuple[float, float]

    def summary(self) -> dict[str, Any]:
        """All of it as JSON takes it."""
        return {
            "runs": [str(run.folder) for run in self.runs],
            "part": self.part,
            "errors": list(self.errors),
            "mean": self.mean,
            "interval": list(self.interval),
        }


def repeat(
    source: str | PathLike[str], repeats: int, *, output: str | PathLike[str] | None = None, **options: Any
) -> Repeats:
    """What `train(source, **options)` comes to on `repeats` divisions of the pictures, each a run in `output`/0, 1, …

    What the source itself calls test stays test, and val val: only what is divided by shares changes. The summary is
    written to `output`/repeats.json.

    Raises:
        UsageError: fewer than two repeats, or no pictures are left to judge by. And what `train` raises.
    """
    if repeats < 2:
        raise UsageError(f"repeats={repeats} gives no interval; use 5 or 10")
    with claimed(fspath(source), "repeats", output) as folder:
        return _repeat_in(folder, source, repeats, **options)


def _repeat_in(folder: Path, source: str | PathLike[str], repeats: int, **options: Any) -> Repeats:
    runs = [train(source, output=folder / "0", **options)]
    part = next((part for part in ("test", "val") if runs[0].result()[f"{part}_error"] is not None), None)
    if part is None:
        raise UsageError(f"no picture of {fspath(source)} is left to judge by; set --test 0.3, or --val")
    runs += [train(source, output=folder / str(turn), turn=turn, **options) for turn in range(1, repeats)]
    errors = tuple(float(run.result()[f"{part}_error"]) for run in runs)
    sizes = [run.settings()["parts"] for run in runs]
    judged_share = float(np.mean([size[part] / size["train"] for size in sizes]))
    made = Repeats(folder, tuple(runs), part, errors, float(np.mean(errors)), interval(errors, judged_share))
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
