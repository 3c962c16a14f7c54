"""Timing of several ways to do the same in turns, shared by the benchmarks."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Way = Callable[[], object]


def seconds(way: Way, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the duration of one run, measured with `clock`."""
    began = clock()
    way()
    return clock() - began


def finite(name: str, numbers: Tensor) -> Tensor:
    """Return `numbers`, which `name` has computed.

    Raises:
        SystemExit: Some are NaN or infinite.
    """
    bad = int((~torch.isfinite(numbers)).sum())
    if bad:
        raise SystemExit(f"{name}: {bad:,} of {numbers.numel():,} results are NaN or infinite; nothing was compared")
    return numbers


def in_turns(
    ways: Mapping[str, Way], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Return the seconds of `rounds` runs of each way, after a warm-up run; the first of a round alternates."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name in list(ways)[:: 1 if number % 2 else -1]:
            took = seconds(ways[name], clock)
            if number:
                times[name].append(took)
    return times


def ratios(theirs: list[float], ours: list[float]) -> dict[str, float]:
    """Return their time over svertka's: `ratio_of_best` runs, and `ratio_median` and `ratio_least` within rounds."""
    of_turns = [their / our for their, our in zip(theirs, ours, strict=True)]
    return {
        "ratio_of_best": min(theirs) / min(ours),
        "ratio_median": statistics.median(of_turns),
        "ratio_least": min(of_turns),
    }
