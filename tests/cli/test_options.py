"""The options of a command are those of its function: the same names, the same defaults."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest

import svertka
from svertka.cli import check, compare, evaluate, look, train
from svertka.training.pipeline import TrainingOptions
from svertka.training.recipe import Recipe
from svertka.training.train import RECIPE_SETTINGS

PAIRS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "check": (check.check, svertka.check),
    "compare": (compare.compare, svertka.compare),
    "evaluate": (evaluate.evaluate, svertka.evaluate),
    "look": (look.look, svertka.look),
    "train": (train.train, svertka.train),
}
DIFFERENT = {
    "compare": {"run", "runs", "source"},  # RUN RUN... [SOURCE] on the command line
    "train": {"resume", "source"},  # svertka.resume is a function of its own, so that train always needs a source
}


def options(function: Callable[..., Any]) -> dict[str, Any]:
    return {name: one.default for name, one in inspect.signature(function).parameters.items()}


@pytest.mark.parametrize("name", PAIRS)
def test_a_command_and_its_function_have_the_same_options(name: str) -> None:
    command, function = map(options, PAIRS[name])
    different = {one for one, _ in command.items() ^ function.items()}
    assert different == {"as_json"} | DIFFERENT.get(name, set())


def test_the_options_of_a_training_are_all_passed_on() -> None:
    public = set(options(svertka.train)) - {"repeats"}
    settings = set(RECIPE_SETTINGS)
    assert settings <= Recipe.model_fields.keys()
    assert {*inspect.signature(TrainingOptions).parameters} - {"changes", "is_repeated"} == public - settings
