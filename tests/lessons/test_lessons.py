"""Right answers are right, known mistakes get their hint, and anything else gets a reason."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from svertka import lessons
from svertka.errors import UsageError


def convolve(image: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    rows, columns = kernel.shape
    result = torch.zeros(image.shape[0] - rows + 1, image.shape[1] - columns + 1)
    for i in range(result.shape[0]):
        for j in range(result.shape[1]):
            result[i, j] = (image[i : i + rows, j : j + columns] * kernel).sum()
    return result


def output_size(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


MATRIX = [
    [1, 2, 0, 3, 4, 0, 0, 0, 0],
    [0, 1, 2, 0, 3, 4, 0, 0, 0],
    [0, 0, 0, 1, 2, 0, 3, 4, 0],
    [0, 0, 0, 0, 1, 2, 0, 3, 4],
]
RIGHT: dict[str, Any] = {
    "1.1": convolve,
    "1.2": MATRIX,
    "1.3": 26 * 26 * 9,
    "1.4": [[0, 0, 0], [1, 0, 0], [0, 0, 0]],
    "2.1": output_size,
    "2.2": 6,
    "2.3": torch.tensor(4),
    "2.4": 15.0,
    "2.5": nn.Conv2d(3, 8, 3, stride=2, padding=1),
}
WRONG: list[tuple[str, Any, str]] = [
    ("1.1", lambda image, kernel: convolve(image, kernel.flip(0, 1)), "turns the kernel by 180°"),
    ("1.1", lambda image, kernel: F.conv2d(image[None, None], kernel[None, None]), r"has the shape \(1, 1, 3, 3\)"),
    ("1.1", lambda image, kernel: None, "is None. The function has to return it"),
    ("1.1", 3, "A function of an image and a kernel"),
    ("1.1", lambda image, kernel: image.nothing, "It fails with AttributeError"),
    ("1.2", torch.tensor(MATRIX).T, "This is the transposed matrix"),
    ("1.2", [[1, 2, 3, 4, 0, 0, 0, 0, 0], *MATRIX[1:]], r"has 3 at \(0, 2\); it should be 0. 3 values are wrong"),
    ("1.3", 28 * 28 * 9, "fewer outputs than pixels"),
    ("1.3", 5, "5 is too small"),
    ("1.3", "many", "of type str"),
    ("1.4", [[0, 0, 0], [0, 0, 1], [0, 0, 0]], "moves the image to the left"),
    ("1.4", [[1.0]], r"has the shape \(1, 1\)"),
    ("2.1", lambda size, kernel, stride, padding, dilation: size, "there are"),
    ("2.2", 3, "seven weights span 13 pixels"),
    ("2.3", 1, "behind the last window"),
    ("2.4", 7, "without dilation"),
    ("2.4", True, "of type bool"),
    ("2.5", nn.Conv2d(3, 8, 3, stride=2), "list of output sizes"),
    ("2.5", nn.Conv2d(3, 8, 2, stride=2), "Its kernel is 2×2"),
    ("2.5", nn.Linear(3, 8), "An nn.Conv2d is asked for"),
]


def test_every_exercise_has_a_right_answer() -> None:
    assert list(RIGHT) == list(lessons.EXERCISES)


@pytest.mark.parametrize("exercise", RIGHT)
def test_the_right_answer_is_right(exercise: str) -> None:
    verdict = lessons.check(exercise, RIGHT[exercise])
    assert verdict.is_right, verdict
    assert repr(verdict) == f"Exercise {exercise}: right"
    assert repr(lessons.check(float(exercise), ...)).endswith("not yet. Replace the ... by your answer.")


@pytest.mark.parametrize(("exercise", "answer", "reason"), WRONG)
def test_a_wrong_answer_is_told_why(exercise: str, answer: Any, reason: str) -> None:
    verdict = lessons.check(exercise, answer)
    assert not verdict.is_right
    with pytest.raises(ValueError, match=reason):
        raise ValueError(verdict.reason)


def test_an_exercise_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UsageError, match="exercise 9.9 does not exist; there are 1.1, 1.2"):
        lessons.check("9.9", 1)
