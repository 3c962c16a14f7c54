"""The exercises in docs/notebooks: `svertka.lessons.check("1.2", answer)` says right, or why not; and their data.

A check does not compare with one stored solution: it tests what the answer does, against PyTorch or svertka. Exercises
are numbered by notebook.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from svertka.errors import UsageError
from svertka.lessons import (
    algorithm_exercises,
    convolution_exercises,
    depth_exercises,
    gradient_exercises,
    judging_exercises,
    learning_exercises,
    lenet_exercises,
    patch_exercises,
    pooling_exercises,
    size_exercises,
    transfer_exercises,
    unit_exercises,
)
from svertka.lessons.faulty_trainings import run_five_trainings as run_five_trainings
from svertka.lessons.lesson_data import find_cats_and_dogs as find_cats_and_dogs
from svertka.lessons.lesson_data import load_digit_images as load_digit_images
from svertka.lessons.lesson_data import load_odd_scans as load_odd_scans
from svertka.lessons.lesson_data import load_photo_network as load_photo_network
from svertka.lessons.lesson_data import load_photographs as load_photographs
from svertka.lessons.shape_network import load_shape_network as load_shape_network
from svertka.text_width import shorten

LONGEST_MESSAGE = 200  # characters of an exception's message
Check = Callable[[Any], str | None]
_MODULES = (
    convolution_exercises,
    size_exercises,
    gradient_exercises,
    algorithm_exercises,
    pooling_exercises,
    lenet_exercises,
    learning_exercises,
    unit_exercises,
    transfer_exercises,
    patch_exercises,
    depth_exercises,
    judging_exercises,
)
EXERCISES: dict[str, Check] = {number: check for module in _MODULES for number, check in module.EXERCISES.items()}


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
        message = shorten(str(error).strip().partition("\n")[0], LONGEST_MESSAGE, is_prose=True).removesuffix(".")
        reason = f"It fails with {type(error).__name__}{': ' * bool(message)}{message}."
    return Verdict(number, reason is None, reason or "")
