"""Checks of the exercises in docs/notebooks: `svertka.lessons.check("1.2", answer)` says right, or why not.

A check does not compare with one stored solution: it tests what the answer does, against PyTorch or svertka. Exercises
are numbered by notebook.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from svertka.errors import UsageError
from svertka.lessons import convolution_exercises, size_exercises

Check = Callable[[Any], str | None]
EXERCISES: dict[str, Check] = {**convolution_exercises.EXERCISES, **size_exercises.EXERCISES}


@dataclass(frozen=True)
class Verdict:
    """What a check found.

    Attributes:
        exercise: Number of the exercise.
        is_right: Whether the answer is right.
        reason: Why it is not; empty if it is.
    """

    exercise: str
    is_right: bool
    reason: str

    def __repr__(self) -> str:
        return f"Exercise {self.exercise}: {'right' if self.is_right else f'not yet. {self.reason}'}"


def check(exercise: str | float, answer: Any) -> Verdict:
    """Check the answer to an exercise of a notebook.

    Args:
        exercise: Its number, such as "1.2".
        answer: A number, an array or a function, as the exercise asks.

    Returns:
        The verdict, whose repr is a sentence.

    Raises:
        UsageError: There is no such exercise.
    """
    number = str(exercise)
    if number not in EXERCISES:
        raise UsageError(f"exercise {number} does not exist; there are {', '.join(EXERCISES)}")
    if answer is ...:
        return Verdict(number, is_right=False, reason="Replace the ... by your answer.")
    try:
        reason = EXERCISES[number](answer)
    except Exception as error:  # an answer may fail in any way, and the student should read how
        reason = f"It fails with {type(error).__name__}: {error}"
    return Verdict(number, reason is None, reason or "")
