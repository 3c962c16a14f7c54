"""Checks that exercises share: numbers, and arrays against what is expected."""

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch

TOLERANCE = 1e-4
ROUNDED = 0.005  # share by which a rounded answer may differ from a mistake of every exercise


def to_number(answer: Any) -> float | None:
    """Return an answer as a float, infinity if it is too large for one; None if it is not a real number."""
    if isinstance(answer, torch.Tensor | np.ndarray) and answer.shape == ():
        answer = None if isinstance(answer, torch.Tensor) and answer.is_meta else answer.item()
    if isinstance(answer, bool) or not isinstance(answer, Real):
        return None
    try:
        return float(answer)
    except OverflowError:
        return math.inf


def check_number(
    answer: Any, expected: float, hints: dict[float, str] | None = None, tolerance: float = 0
) -> str | None:
    """Return why `answer` is not the number `expected`, with the hint for a known mistake; None if it is.

    `tolerance` is a share of the number that an answer may differ by, for numbers that are rounded.
    """
    value = to_number(answer)
    if value is None:
        return f"A number is asked for, and the answer is of type {type(answer).__name__}."
    if not math.isfinite(value):
        return f"{value} is not a finite number."
    if abs(value - expected) <= tolerance * abs(expected):
        return None
    for mistake, hint in (hints or {}).items():
        if abs(value - mistake) <= tolerance * abs(mistake):
            return hint
    if expected and abs(value / expected + 1) <= ROUNDED:
        return "The sign is wrong."
    if 0 < expected < 1 and abs(value / expected / 100 - 1) <= ROUNDED:
        return "This is in per cent; a number from 0 to 1 is asked for."
    if abs(value * expected - 1) <= ROUNDED:
        return "This is 1 divided by the number that is asked for: the other way round."
    return f"{answer} is too {'large' if value > expected else 'small'}."


def check_array(
    answer: Any,
    expected: torch.Tensor,
    what: str,
    hints: Sequence[tuple[Any, str]] = (),
    *,
    shows_expected: bool = True,
) -> str | None:
    """Return why `answer` does not hold the values of `expected`, with the hint for a known mistake; None if it does.

    `what` names the answer in the reason. `hints` are mistakes, the values of an answer, each with its hint.
    `shows_expected` tells whether the reason may quote a right value: not where the array itself is the solution.
    """
    if answer is None:
        return f"{what} is None. The function has to return it."
    values = to_values(answer)
    if values is None:
        return f"{what} is not an array of numbers."
    for mistake, hint in hints:
        if check_array(values, torch.as_tensor(mistake), what) is None:
            return hint
    if tuple(values.shape) != tuple(expected.shape):
        return f"{what} has the shape {tuple(values.shape)}; it should be {tuple(expected.shape)}."
    wrong = ~((values - expected.double()).abs() <= TOLERANCE)  # NaN is wrong, too
    if not wrong.any():
        return None
    place = tuple(int(one) for one in wrong.nonzero()[0])
    found, right = float(values[place]), float(expected[place])
    count = f"{int(wrong.sum())} of {wrong.numel()} values {'is' if wrong.sum() == 1 else 'are'} wrong"
    if shows_expected:
        return f"{what} has {found:g} at {place}; it should be {right:g}. {count}."
    where = int(place[0]) if len(place) == 1 else place
    return f"{what} has {found:g} at {where}, counted from 0, which is not right. {count}."


def to_values(answer: Any) -> torch.Tensor | None:
    """Return an array as float64; None if it is not an array of real numbers."""
    values = list(answer) if isinstance(answer, list | tuple) else [answer]
    if any(isinstance(one, torch.Tensor) and (one.is_meta or one.layout != torch.strided) for one in values):
        return None
    values = [one.detach().cpu() if isinstance(one, torch.Tensor) else one for one in values]  # may have gradients
    try:
        array = np.asarray(values if isinstance(answer, list | tuple) else values[0])
        if array.dtype.kind not in "biufO" or any(isinstance(one, str | bytes) for one in array.flat):
            return None
        return torch.from_numpy(array.astype(np.float64))
    except (TypeError, ValueError, OverflowError):
        return None


def check_function(answer: Any, arguments: str) -> str | None:
    """Return why `answer` is not a function of `arguments`; None if it is one."""
    return None if callable(answer) else f"A function of {arguments} is asked for."


def check_set(answer: Any, expected: tuple[Any, ...], hints: dict[tuple[Any, ...], str] | None = None) -> str | None:
    """Return why `answer` is not a list of what is `expected`, in any order, with the hint for a known mistake."""
    if isinstance(answer, str) or not hasattr(answer, "__iter__"):
        return f"A list is asked for, and the answer is of type {type(answer).__name__}."
    try:
        found = {one.item() if hasattr(one, "item") else one for one in answer}
    except (TypeError, ValueError, RuntimeError):  # such as lists in a list
        return "A list of single values is asked for."
    if found == set(expected):
        return None
    for mistake, hint in (hints or {}).items():
        if found == set(mistake):
            return hint
    surplus, missing = found - set(expected), set(expected) - found
    if surplus:
        return f"{sorted(surplus, key=str)[0]} does not belong to it."
    return f"{'One is' if len(missing) == 1 else f'{len(missing)} are'} missing."
