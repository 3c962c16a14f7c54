"""Axes: where a value lies between the ends, and at which values to draw a tick."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["linear", "log", "root"]

MAX_LINEAR_RANGE = 8  # largest over smallest value from which a linear axis hides the small ones
STEPS = (1, 2, 5)


@dataclass(frozen=True)
class Scale:
    """An axis from `low` to `high`; "root" spaces values by their square root, so that zero has a place on it."""

    kind: Kind
    low: float
    high: float

    def place(self, value: float) -> float:
        """Where `value` lies, 0 at `low` and 1 at `high`; values beyond an end are drawn on it."""
        bend = _BENDS[self.kind]
        value = min(max(value, self.low), self.high)
        return (bend(value) - bend(self.low)) / (bend(self.high) - bend(self.low))

    def ticks(self, count: int, *, whole: bool = False) -> list[float]:
        """At most about `count` round values, rising; `whole`: integers only."""
        if self.kind == "linear":
            step = _round_step((self.high - self.low) / count)
            step = max(1, step) if whole else step
            first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
            return [k * step for k in range(first, last + 1)]
        chosen = [0.0] if self.kind == "root" else []
        # From the top down: the largest values are the ones that a reader looks for first.
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


def fit_scale(values: Iterable[float], bent: Literal["log", "root"]) -> Scale:
    """An axis for `values` (those that are finite): linear from zero, or `bent` where the small ones would be lost."""
    finite = [value for value in values if math.isfinite(value) and value >= 0]
    positive = [value for value in finite if value > 0]
    high = max(positive, default=1.0)
    if len(positive) < 2 or high / min(positive) <= MAX_LINEAR_RANGE:
        return Scale("linear", 0.0, high)
    # Zero has no logarithm: it is drawn on the lower end.
    return Scale("log", min(positive), high) if bent == "log" else Scale("root", 0.0, high)


def _round_step(rough: float) -> float:
    """The smallest of 1, 2, 5 × a power of ten that is at least `rough`."""
    decade = 10.0 ** math.floor(math.log10(rough))
    return next(step * decade for step in (*STEPS, 10) if step * decade >= rough * (1 - 1e-9))


_BENDS: dict[Kind, Callable[[float], float]] = {"linear": float, "log": math.log, "root": math.sqrt}
