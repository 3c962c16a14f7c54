"""Checks that exercises share: numbers, and arrays against what is expected."""

from typing import Any

import numpy as np
import torch

TOLERANCE = 1e-4


def check_number(answer: Any, expected: float, hints: dict[float, str] | None = None) -> str | None:
    """Return why `answer` is not the number `expected`, with the hint for a known mistake; None if it is."""
    if isinstance(answer, torch.Tensor | np.ndarray) and answer.shape == ():
        answer = answer.item()
    if isinstance(answer, bool) or not isinstance(answer, int | float | np.number):
        return f"A number is asked for, and the answer is of type {type(answer).__name__}."
    if answer == expected:
        return None
    return (hints or {}).get(float(answer), f"{answer} is too {'large' if answer > expected else 'small'}.")


def check_array(answer: Any, expected: torch.Tensor, what: str) -> str | None:
    """Return why `answer` does not hold the values of `expected`; None if it does."""
    if answer is None:
        return f"{what} is None. The function has to return it."
    values = torch.as_tensor(np.asarray(answer, dtype=np.float64))
    if tuple(values.shape) != tuple(expected.shape):
        return f"{what} has the shape {tuple(values.shape)}; it should be {tuple(expected.shape)}."
    wrong = (values - expected.double()).abs() > TOLERANCE
    if not wrong.any():
        return None
    place = tuple(int(one) for one in wrong.nonzero()[0])
    found, right = float(values[place]), float(expected[place])
    return f"{what} has {found:g} at {place}; it should be {right:g}. {int(wrong.sum())} values are wrong."
