"""Wrong answers made from the right one of each exercise: each is refused with a sentence, none with an exception."""

import math
import random
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from tests.lessons.answers import RIGHT
from torch import Tensor, nn

from svertka import lessons

Named = Iterator[tuple[str, Any]]
SAME = {"2.3": {"2.3", "4.4"}, "4.4": {"2.3", "4.4"}, "12.5": {"12.5", "9.3"}}  # answers that are equal, or close
BY_EFFECT = {"7.5", "9.4"}  # functions whose result does not matter


def wrong_kinds() -> Named:
    """Yield values that answer no exercise."""
    yield "None", None
    yield "a text", "about half"
    yield "an empty text", ""
    yield "NaN", math.nan
    yield "infinity", -math.inf
    yield "an empty list", []
    yield "an empty tuple", ()
    yield "a ragged list", [[1, 2], [3]]
    yield "a list of None", [None, None]
    yield "a nested list", [[[[7]]]]
    yield "a dict", {"A": 1}
    yield "a set", {1, "b"}
    yield "a complex number", 1 + 2j
    yield "a type", int
    yield "an object", object()
    yield "a module", nn.ReLU()
    yield "bytes", b"12"
    yield "a boolean", True
    yield "a tensor with gradients", torch.full((2, 5), 0.123, requires_grad=True)
    yield "an empty tensor", torch.zeros(0)
    yield "a sparse tensor", torch.eye(3).to_sparse()
    yield "a meta tensor", torch.zeros(3, 3, device="meta")
    yield "texts in an array", np.array(["x", "y"])
    yield "objects in an array", np.array([None, "y"], dtype=object)
    yield "an array of dates", np.array(["2020-01-01"], dtype="datetime64[D]")
    yield "a huge number", 10**400
    yield "an iterator", iter([1])


def wrong_numbers(right: float) -> Named:
    """Yield mistakes with a number."""
    yield "wrong sign", -right - (right == 0)
    yield "two more", 1.1 * right + 2
    yield "two less", 0.9 * right - 2
    yield "as a text", str(right)
    yield "in a list", [right]
    yield "with gradients, more", torch.tensor(1.1 * right + 2, requires_grad=True)
    yield "imaginary", right * 1j
    yield "of NumPy, ten times", np.float64(10 * right + 7)


def wrong_arrays(right: Any) -> Named:
    """Yield mistakes with an array of numbers."""
    values = torch.as_tensor(right, dtype=torch.float64)
    last = torch.zeros_like(values)
    last.view(-1)[-1] = 1
    yield "wrong signs", -values
    yield "last one too large", values + last
    yield "as tuples, one too small", tuple((values - last).tolist())
    yield "one dimension more", values[None]
    yield "one row less", values[:-1]
    yield "NaN at the end", torch.where(last.bool(), math.nan, values)
    yield "with gradients, one too large", (values + last).requires_grad_()
    yield "as texts", str(values.tolist())
    yield "complex", values + 1j
    yield "one number", float(values.sum()) + 0.5
    yield "flattened, and one more", [*values.flatten().tolist(), 0.0]


def wrong_words(right: Any) -> Named:
    """Yield mistakes with a list or a dict of words."""
    words = list(right.values() if isinstance(right, dict) else right)
    yield "turned around", words[::-1] if not isinstance(right, dict) else dict(zip(right, words[::-1], strict=True))
    yield "the first alone", words[:1]
    yield "the first everywhere", [words[0]] * len(words)
    yield "in one text", ", ".join(words)
    yield "one number", 1
    yield "numbers", list(range(len(words)))
    yield "lists in a list", [[one] for one in words]
    yield "another word", [*words[:-1], "luck"] if not isinstance(right, dict) else right | {"A": "luck"}
    yield "other keys", dict(enumerate(words))
    yield "a list as a value", {key: ["right"] for key in "ABCDE"}


def changed(value: Any, added: float) -> Any:
    """Return a result of a function with something added to its numbers, and gradients where they can be."""
    if isinstance(value, list | tuple):
        return type(value)(changed(one, added) for one in value)
    if isinstance(value, nn.Module):
        return None
    if isinstance(value, Tensor):
        return value.double().requires_grad_() + added
    return value + added


def wrong_functions(exercise: str, right: Callable[..., Any]) -> Named:
    """Yield functions that return something else than the right one."""

    def returns(name: str, change: Callable[[Any], Any]) -> tuple[str, Any]:
        return f"a function that returns {name}", lambda *arguments: change(right(*arguments))

    def fail(*_: Any) -> None:
        raise RuntimeError("a message\nof two lines")

    yield "the result of a call", 12.5
    yield "no arguments", lambda: 0
    yield "an exception of two lines", fail
    if exercise in BY_EFFECT:
        return
    yield returns("a text", lambda _: "result")
    yield returns("an object", lambda _: object())
    yield returns("NaN", lambda _: math.nan)
    yield returns("a complex number", lambda _: 1j)
    yield returns("a function", lambda _: right)
    yield returns("an empty list", lambda _: [])
    yield returns("a nested list of texts", lambda _: [["a"], ["b", "c"]])
    yield returns("an array of texts", lambda _: np.array(["a", "b"]))
    yield returns("a large tensor", lambda _: torch.zeros(2, 3, 4, 5, 6))
    yield returns("an empty tensor", lambda _: torch.zeros(0))
    yield returns("five times in a list", lambda found: [found] * 5)
    yield returns("one more", lambda found: changed(found, 1.0))
    yield returns("NaN everywhere", lambda found: changed(found, math.nan))


def wrong_answers(exercise: str) -> Named:
    """Yield wrong answers to an exercise by name."""
    right = RIGHT[exercise]
    yield from wrong_kinds()
    if is_function(right):
        yield from wrong_functions(exercise, right)
    elif isinstance(right, dict) or (isinstance(right, list) and isinstance(right[0], str)):
        yield from wrong_words(right)
    elif isinstance(right, list) or (isinstance(right, Tensor) and right.ndim):
        yield from wrong_arrays(right)
    elif not isinstance(right, nn.Module):
        yield from wrong_numbers(float(right))
    for other, answer in RIGHT.items():
        if other not in SAME.get(exercise, {exercise}):
            yield f"the answer to {other}", answer


def is_function(answer: Any) -> bool:
    return callable(answer) and not isinstance(answer, nn.Module)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("exercise", RIGHT)
def test_wrong_answers_are_refused_with_a_sentence(exercise: str, large_count: Callable[[int, int], int]) -> None:
    named = list(wrong_answers(exercise))
    random.Random(exercise).shuffle(named)
    for name, answer in named[: large_count(5, len(named))]:
        verdict = lessons.check(exercise, answer)
        assert not verdict.is_right, name
        assert re.fullmatch(r".{8,260}[.?]", verdict.reason), f"{name}: {verdict}"  # one line
        failed = verdict.reason.startswith("It fails with")
        assert not failed or (is_function(RIGHT[exercise]) and callable(answer)), f"{name}: {verdict}"
        assert not failed or not name.startswith("a function that returns"), f"{name}: {verdict}"
