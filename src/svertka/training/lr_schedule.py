"""The learning rate as a function of the step: pure functions, and the settings that choose among them."""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Schedule(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Constant(_Schedule):
    """The same rate throughout."""

    kind: Literal["constant"] = "constant"


class Step(_Schedule):
    """Multiplied by `factor` at each of the fractions `at` of the training (He et al. 2015: ÷10 at 1/2 and 3/4)."""

    kind: Literal["step"] = "step"
    at: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.5, 0.75)
    factor: float = Field(default=0.1, gt=0, lt=1)


class Plateau(_Schedule):
    """Multiplied by `factor` when the val error has not improved for `patience` epochs (Krizhevsky et al. 2012 §5)."""

    kind: Literal["plateau"] = "plateau"
    patience: int = Field(default=5, ge=1)
    factor: float = Field(default=0.1, gt=0, lt=1)


class Cosine(_Schedule):
    """Half a cosine from the full rate to zero (Loshchilov & Hutter 2017, eq. 5, without restarts)."""

    kind: Literal["cosine"] = "cosine"


class Polynomial(_Schedule):
    """From the full rate to `end` times it, as the `power` of what is left of the training; 1 is a straight line.

    Source: the ½ of the GoogLeNet that Caffe's makers published, which trained it faster than the paper's steps.
    """

    kind: Literal["polynomial"] = "polynomial"
    power: float = Field(default=1.0, gt=0)
    end: float = Field(default=0.0, ge=0, lt=1)


Schedule = Annotated[Constant | Step | Plateau | Cosine | Polynomial, Field(discriminator="kind")]


def learning_rate(
    schedule: Constant | Step | Plateau | Cosine | Polynomial,
    base: float,
    *,
    step: int,
    total: int,
    warmup: int,
    warmup_rate: float | None = None,
    val_errors: Sequence[float] = (),
) -> float:
    """The rate of step `step` (from 0) of `total`: `base` times a factor.

    During the first `warmup` steps it is `warmup_rate`, or rises linearly where that is None.
    `val_errors`: one an epoch so far; only `Plateau` looks at them.
    """
    if step < warmup:
        return base * linear_warmup(step, warmup) if warmup_rate is None else warmup_rate
    progress = (step - warmup) / max(1, total - warmup)
    match schedule:
        case Constant():
            return base
        case Step():
            return base * stepped(step / total, schedule.at, schedule.factor)
        case Plateau():
            return base * schedule.factor ** drops(val_errors, schedule.patience)
        case Cosine():
            return base * cosine(progress)
        case Polynomial():
            return base * polynomial(progress, schedule.power, schedule.end)


def linear_warmup(step: int, steps: int) -> float:
    """1/steps at step 0, rising to 1 at the last of `steps` (Goyal et al. 2017 §2.2)."""
    return (step + 1) / steps


def stepped(progress: float, at: Sequence[float], factor: float) -> float:
    """`factor` to the power of how many of the fractions `at` lie behind `progress`."""
    return float(factor ** sum(progress >= fraction for fraction in at))


def cosine(progress: float) -> float:
    """1 at progress 0, 0 at progress 1."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def polynomial(progress: float, power: float, end: float) -> float:
    """1 at progress 0, `end` at progress 1."""
    return float(end + (1 - end) * (1 - progress) ** power)


def drops(val_errors: Sequence[float], patience: int) -> int:
    """How often the error has stalled: each run of `patience` epochs without a new best counts once."""
    best, stale, count = math.inf, 0, 0
    for error in val_errors:
        stale = 0 if error < best else stale + 1
        best = min(best, error)
        if stale == patience:
            count, stale = count + 1, 0
    return count
