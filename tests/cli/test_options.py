"""The options of every command are those of its function: same names, same defaults, all documented."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import typer
from typer.core import TyperOption

import svertka
from svertka.cli.app import app
from svertka.studio.studio import run_studio
from svertka.training.recipe import Recipe
from svertka.training.single_run import TrainingOptions
from svertka.training.train import RECIPE_SETTINGS

COMMANDS = {str(command.callback.__name__): command.callback for command in app.registered_commands if command.callback}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    name: getattr(svertka, {"models": "list_models", "optimize": "optimize_run"}.get(name, name))
    for name in COMMANDS
    if name != "studio"
} | {"studio": run_studio}  # for browsers alone, and so not a function of svertka itself
PRINTING = {"as_json", "as_csv"}  # how the command line prints a result
DIFFERENT = {
    "check": {"apply", "write"},  # curation.apply_corrections, so that svertka.check changes nothing
    "compare": {"source"},  # the last of RUN RUN... [SOURCE]
    "evaluate": {"size"},  # of an nn.Module
    "serve": {"ready"},  # a callback; the command line prints the address
    "studio": {"ready"},
    "train": {"resume"},  # svertka.resume, so that svertka.train always needs a source
}
OPTIONAL = {("train", "source"), ("studio", "folders")}  # not needed with --resume; photos/
SPELLED = {"as_json": "--json", "as_csv": "--csv"}

every_command = pytest.mark.parametrize("name", COMMANDS)


def defaults(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the default of each parameter; None where it is an empty tuple, which no option has."""
    return {
        name: None if one.default == () else one.default for name, one in inspect.signature(function).parameters.items()
    }


@every_command
def test_a_command_and_its_function_have_the_same_options(name: str) -> None:
    command, function = defaults(COMMANDS[name]), defaults(FUNCTIONS[name])
    assert (command.keys() ^ function.keys()) - PRINTING == DIFFERENT.get(name, set())


@every_command
def test_a_command_and_its_function_have_the_same_defaults(name: str) -> None:
    command, function = defaults(COMMANDS[name]), defaults(FUNCTIONS[name])
    shared = {one for one in command.keys() & function.keys() if (name, one) not in OPTIONAL}
    assert {one: command[one] for one in shared} == {one: function[one] for one in shared}


@every_command
def test_an_option_is_spelled_as_its_argument_and_has_a_help_text(name: str) -> None:
    command = typer.main.get_command(app).commands[name.replace("_", "-")]  # type: ignore[attr-defined]
    for parameter in command.params:
        assert parameter.help, parameter.name
        if isinstance(parameter, TyperOption):
            spelling = SPELLED.get(str(parameter.name), f"--{str(parameter.name).replace('_', '-')}")
            assert spelling in parameter.opts, parameter.name


@every_command
def test_every_argument_of_a_function_has_a_type_and_is_documented(name: str) -> None:
    documented = inspect.getdoc(FUNCTIONS[name]) or ""
    for parameter in inspect.signature(FUNCTIONS[name]).parameters.values():
        assert parameter.annotation is not parameter.empty, parameter.name
        assert f"{parameter.name}: " in documented, parameter.name


def test_every_command_is_compared() -> None:
    assert set(COMMANDS) == {
        "check", "train", "evaluate", "compare", "predict", "look", "locate", "export", "serve", "models", "tune",
        "calibrate", "studio", "optimize", "suggest", "similar", "extend", "shard",
        "ablate", "compare_units",
    }  # fmt: skip


def test_the_options_of_a_training_are_all_passed_on() -> None:
    public = set(defaults(svertka.train)) - {"repeats"}
    settings = set(RECIPE_SETTINGS)
    assert settings <= Recipe.model_fields.keys()
    assert {*inspect.signature(TrainingOptions).parameters} - {"changes", "is_repeated"} == public - settings
