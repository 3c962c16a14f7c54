"""Types of arguments: checked against the annotations, refused in one sentence."""

from collections.abc import Sequence
from os import PathLike
from typing import Self

import numpy as np
import pytest
import torch

import svertka
from svertka.errors import UsageError
from svertka.type_checking import ArgumentTypeError, check_types


@check_types
def example(path: str | PathLike[str], *more: int, rate: float = 0.1, units: Sequence[int] | int = 1) -> str:
    return str(path)


class Example:
    @classmethod
    @check_types
    def load(cls, path: str) -> Self:
        return cls()

    @check_types
    def rank(self, x: torch.Tensor) -> None:
        pass


@pytest.mark.parametrize("units", [3, np.int64(3), [1, 2], (np.int32(1),), range(4)])
def test_numbers_of_python_and_numpy_pass(units: Sequence[int] | int) -> None:
    assert example("a", 1, np.int64(2), rate=1, units=units) == "a"
    assert example("a", rate=np.float32(0.5)) == "a"


@pytest.mark.parametrize("rate", [10**400, -(10**400)])
def test_an_integer_beyond_all_floats_is_no_float(rate: int) -> None:
    with pytest.raises(ArgumentTypeError, match=r"example\(\): rate=-?10000.* must be of type float"):
        example("a", rate=rate)


def test_what_a_function_returns_is_not_checked() -> None:
    @check_types
    def wrong() -> int:
        return "text"  # type: ignore[return-value]

    assert wrong() == "text"  # type: ignore[comparison-overlap]


def test_the_sentence_names_function_argument_value_and_type() -> None:
    for call, expected in (
        (lambda: example(3), "example(): path=3 must be of type str | PathLike[str]"),  # type: ignore[arg-type]
        (lambda: example("a", rate="b"), "example(): rate='b' must be of type float"),  # type: ignore[arg-type]
        (lambda: Example.load(None), "load(): path=None must be of type str"),  # type: ignore[arg-type]
        (lambda: Example().rank("a\nb"), r"rank(): x='a\nb' must be of type Tensor"),  # type: ignore[arg-type]
        (lambda: Example.load(len), "load(): path=<built-in function len> must be of type str"),
        (lambda: svertka.restore(3), "restore(): model=3 must be of type Module"),  # type: ignore[type-var]
    ):
        with pytest.raises(ArgumentTypeError) as caught:
            call()
        assert str(caught.value) == expected


def test_it_is_a_usage_error_and_a_type_error() -> None:
    for kind in (UsageError, TypeError, ValueError):
        with pytest.raises(kind):
            example(None)  # type: ignore[arg-type]
