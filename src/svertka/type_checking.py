"""Checks of the arguments of public functions against their annotations, at each call."""

import re
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import numpy as np
from beartype import BeartypeConf, BeartypeViolationVerbosity, FrozenDict, beartype
from beartype.vale import Is

from svertka.errors import UsageError

Function = TypeVar("Function", bound=Callable[..., Any])

_VIOLATION = re.compile(
    r"^[A-Z][a-z ]* (?P<function>\S+?)\(\) parameter (?P<argument>.*) violates type hint (?P<hint>.*)\.$", re.DOTALL
)
_QUOTED_REPR = re.compile(r"=\"([^'\"]*)\"$")  # beartype quotes what is no string; strings have single quotes
_MODULES = re.compile(r"\b(?:\w+\.)+(?=\w)")


class ArgumentTypeError(UsageError, TypeError):
    """An argument is of another type than the signature says."""

    def __init__(self, violation: str) -> None:
        found = _VIOLATION.match(violation)
        if found is not None:
            function, argument, hint = found.group("function", "argument", "hint")
            hint = _MODULES.sub("", re.sub(r"^<class '(.*)'>$", r"\1", hint))
            argument = _QUOTED_REPR.sub(r"=\1", " ".join(argument.split()))
            hint = hint.replace("Indexable", "sequence of (image, label)")
            violation = f"{function.rpartition('.')[2]}(): {argument} must be of type {hint}"
        super().__init__(violation)


# Python raises OverflowError for larger integers wherever a float is needed, even in messages.
_IntegerInFloatRange = Annotated[int, Is[lambda number: abs(number) < 2**1023]]
_CONFIGURATION = BeartypeConf(
    violation_param_type=ArgumentTypeError,
    violation_verbosity=BeartypeViolationVerbosity.MINIMAL,
    # NumPy's numbers count as Python's, and so do integers as floats.
    hint_overrides=FrozenDict({int: int | np.integer, float: float | _IntegerInFloatRange | np.number}),
)


def _plain_hint(hint: Any) -> Any:
    """Return the bound of a type variable, whose name means nothing to users, and other annotations as they are."""
    return (hint.__bound__ or hint) if isinstance(hint, TypeVar) else hint


def check_types(function: Function) -> Function:
    """Make `function` raise ArgumentTypeError, a UsageError and a TypeError, for an argument of another type."""
    annotations = dict(function.__annotations__)
    function.__annotations__ = {name: _plain_hint(hint) for name, hint in annotations.items() if name != "return"}
    decorate: Callable[[Function], Function] = beartype(conf=_CONFIGURATION)
    checked = decorate(function)
    function.__annotations__ = checked.__annotations__ = annotations
    return checked
