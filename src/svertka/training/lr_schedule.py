"""Learning rate schedules: the learning rate as a function of the step."""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Schedule(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Constant(_Schedule):
    """A constant learning rate."""

    kind: Literal["constant"] = "constant"


class Step(_Schedule):
    """Multiply by `factor` at each of the fractions `at` of the training.

    Source: He et al. 2015, "Deep residual learning", §4.2: ÷10 at 1/2 and 3/4.
    """

    kind: Literal["step"] = "step"
    at: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.5, 0.75)
    factor: float = Field(default=0.1, gt=0, lt=1)


class Plateau(_Schedule):
    """Multiply by `factor` when the validation error has not improved for `patience` epochs.

    Source: Krizhevsky et al. 2012, "ImageNet classification", §5.
    """

    kind: Literal["plateau"] = "plateau"
    patience: int = Field(default=5, ge=1)
    factor: float = Field(default=0.1, gt=0, lt=1)


class Cosine(_Schedule):
    """Half a period of a cosine, from the full learning rate to zero.

    Source: Loshchilov & Hutter 2017, "SGDR", eq. 5, without restarts.
    """

    kind: Literal["cosine"] = "cosine"


class Polynomial(_Schedule):
    """Fall from the full learning rate to `end` times it, as the remaining share of the training to the `power`.

    Source: Caffe's GoogLeNet (BVLC 2014), whose power of 1/2 trained faster than the paper's steps.
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
    """Return the learning rate of one step.

    Args:
        schedule: The schedule.
        base: The highest learning rate.
        step: Number of the step, from 0.
        total: Number of steps of the training.
        warmup: Number of steps of the warm-up.
        warmup_rate: Learning rate during the warm-up. None: it rises linearly.
        val_errors: Validation error after each epoch so far; only used by `Plateau`.
    """
    if step < warmup:
        return base * warmup_factor(step, warmup) if warmup_rate is None else warmup_rate
    progress = (step - warmup) / max(1, total - warmup)
    match schedule:
        case Constant():
            return base
        case Step():
            return base * step_factor(step / total, schedule.at, schedule.factor)
        case Plateau():
            return base * schedule.factor ** count_plateaus(val_errors, schedule.patience)
        case Cosine():
            return base * cosine_factor(progress)
        case Polynomial():
            return base * polynomial_factor(progress, schedule.power, schedule.end)


def warmup_factor(step: int, steps: int) -> float:
    """Return a factor that rises from 1/steps at step 0 to 1 at the last of `steps`.

    Source: Goyal et al. 2017, "Accurate, large minibatch SGD", §2.2.
    """
    return (step + 1) / steps


def step_factor(progress: float, at: Sequence[float], factor: float) -> float:
    """Return `factor` to the power of the number of fractions `at` that `progress` has reached."""
    return float(factor ** sum(progress >= fraction for fraction in at))


def cosine_factor(progress: float) -> float:
    """Return 1 at progress 0, falling to 0 at progress 1."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def polynomial_factor(progress: float, power: float, end: float) -> float:
    """Return 1 at progress 0, falling to `end` at progress 1."""
    return float(end + (1 - end) * (1 - progress) ** power)


def count_plateaus(val_errors: Sequence[float], patience: int) -> int:
    """Return how often the error did not improve for `patience` epochs in a row."""
    best, stale, count = math.inf, 0, 0
    for error in val_errors:
        stale = 0 if error < best else stale + 1
        best = min(best, error)
        if stale == patience:
            count, stale = count + 1, 0
    return count
