"""Chart axes: linear, logarithmic or square-root scales and their ticks."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["linear", "log", "root"]

MAX_LINEAR_RANGE = 8  # ratio of largest to smallest value above which a linear axis hides the small ones
STEPS = (1, 2, 5)


@dataclass(frozen=True)
class Scale:
    """A scale from `low` to `high`. "root" places values by their square root, which includes zero."""

    kind: Kind
    low: float
    high: float

    def place(self, value: float) -> float:
        """Return the position of `value`, 0 at `low` and 1 at `high`; values outside are moved to the nearer end."""
        transform = _TRANSFORMS[self.kind]
        value = min(max(value, self.low), self.high)
        return (transform(value) - transform(self.low)) / (transform(self.high) - transform(self.low))

    def ticks(self, count: int, *, whole: bool = False) -> list[float]:
        """Return at most about `count` round values in rising order; with `whole`, only integers."""
        if self.kind == "linear":
            step = _round_step((self.high - self.low) / count)
            step = max(1, step) if whole else step
            first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
            return [k * step for k in range(first, last + 1)]
        chosen = [0.0] if self.kind == "root" else []
        # From the top down, so that the largest values get ticks first.
        for value in reversed(list(self._round_values())):
            if all(abs(self.place(other) - self.place(value)) >= 0.9 / count for other in chosen):
                chosen.append(value)
        return sorted(chosen)

    def _round_values(self) -> Iterable[float]:
        bottom = self.low if self.kind == "log" else self.high / 1e4
        top_decade, low_decade = math.floor(math.log10(self.high)), math.floor(math.log10(bottom))
        decades_only = self.kind == "log" and math.log10(self.high / self.low) > 2.5
        for decade in range(low_decade, top_decade + 1):
            for step in (1,) if decades_only else STEPS:
                value = step * 10.0**decade
                if bottom * (1 - 1e-9) <= value <= self.high * (1 + 1e-9):
                    yield value


def fit_scale(values: Iterable[float], nonlinear: Literal["log", "root"]) -> Scale:
    """Return a scale for the finite `values`: linear from zero, or `nonlinear` if they span too wide a range."""
    finite = [value for value in values if math.isfinite(value) and value >= 0]
    positive = [value for value in finite if value > 0]
    high = max(positive, default=1.0)
    if len(positive) < 2 or high / min(positive) <= MAX_LINEAR_RANGE:
        return Scale("linear", 0.0, high)
    # Zero has no logarithm; it is drawn at the lower end.
    return Scale("log", min(positive), high) if nonlinear == "log" else Scale("root", 0.0, high)


def _round_step(rough: float) -> float:
    """Return the smallest of 1, 2, 5 × a power of ten that is at least `rough`."""
    decade = 10.0 ** math.floor(math.log10(rough))
    return next(step * decade for step in (*STEPS, 10) if step * decade >= rough * (1 - 1e-9))


_TRANSFORMS: dict[Kind, Callable[[float], float]] = {"linear": float, "log": math.log, "root": math.sqrt}
