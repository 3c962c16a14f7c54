"""Right answers are right, known mistakes get their hint, and anything else gets a reason."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from tests.lessons.answers import RIGHT, WRONG

from svertka import lessons
from svertka.errors import UsageError


def test_every_exercise_has_a_right_and_a_wrong_answer() -> None:
    assert list(RIGHT) == list(lessons.EXERCISES)
    assert {exercise for exercise, _, _ in WRONG} == set(lessons.EXERCISES)


@pytest.mark.parametrize("exercise", RIGHT)
def test_the_right_answer_is_right(exercise: str) -> None:
    verdict = lessons.check(exercise, RIGHT[exercise])
    assert verdict.is_right, verdict
    assert repr(verdict) == f"Exercise {exercise}: right"
    assert repr(lessons.check(float(exercise), ...)).endswith("not yet. Replace the ... by your answer.")


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64, torch.tensor, np.array, Fraction])
def test_numbers_are_taken_in_any_form(kind: Any) -> None:
    assert lessons.check("12.5", kind(59)).is_right
    assert lessons.check("1.3", kind(26 * 26 * 9)).is_right


def test_arrays_may_have_gradients() -> None:
    assert lessons.check("5.4", torch.ones(6, requires_grad=True)).is_right
    assert lessons.check("5.4", [torch.ones((), requires_grad=True)] * 6).is_right


@pytest.mark.parametrize(("exercise", "answer", "reason"), WRONG)
def test_a_wrong_answer_is_told_why(exercise: str, answer: Any, reason: str) -> None:
    verdict = lessons.check(exercise, answer)
    assert not verdict.is_right
    with pytest.raises(ValueError, match=reason):
        raise ValueError(verdict.reason)


def test_an_exercise_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UsageError, match="exercise 99.9 does not exist; there are 1.1, 1.2"):
        lessons.check("99.9", 1)
