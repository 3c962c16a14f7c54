"""What a network computes, as data: PyTorch's own operations one after the other, for any number of pictures."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Value:
    """What an operation gave, by its number; 0 is the network's input."""

    number: int


@dataclass(frozen=True)
class Constant:
    """A tensor of the network, by its name there, or one that is computed from such."""

    name: str


@dataclass(frozen=True)
class Size:
    """A whole number that depends on the number of pictures: `each` · pictures + `more`."""

    each: int
    more: int

    def of(self, pictures: int) -> int:
        """The number."""
        return self.each * pictures + self.more


Shape = tuple[int | Size, ...]


@dataclass(frozen=True)
class Operation:
    """One of torch.ops.aten, `name` as in "conv2d.default".

    `arguments`, by name: numbers, strings, dtypes, lists, with Value, Constant and Size in them. `results`: the numbers
    of the values that it gives, None where that is no tensor. `place`: the module that called it.
    """

    name: str
    arguments: Mapping[str, Any]
    results: tuple[int | None, ...]
    place: str

    def run(self, value: Callable[[Any], Any]) -> tuple[Any, ...]:
        """What it gives, with its arguments as `value` has them."""
        function = overload_of(self.name)
        positional, named = [], {}
        for argument in function._schema.arguments:
            if argument.name in self.arguments:
                given = replaced(self.arguments[argument.name], value)
                if argument.kwarg_only:
                    named[argument.name] = given
                else:
                    positional.append(given)
        result = function(*positional, **named)
        return tuple(result) if isinstance(result, tuple | list) else (result,)


@dataclass(frozen=True)
class Recording:
    """The operations of a network, the shapes and dtypes of their values, its tensors, and what it returns.

    `output`: an `outputs.Output`, with Value, Constant and Size in it. `pictures`: the only batch size that it is for,
    or None: any. `looked_at`: the constants whose values decided what was recorded.
    """

    operations: tuple[Operation, ...]
    shapes: Mapping[int, Shape]
    dtypes: Mapping[int, torch.dtype]
    constants: Mapping[str, Tensor]
    output: Any
    pictures: int | None = None
    looked_at: frozenset[str] = frozenset()


def overload_of(name: str) -> Any:
    """The operator of torch.ops.aten called `name`, as in "conv2d.default"."""
    packet, overload = name.split(".")
    return getattr(getattr(torch.ops.aten, packet), overload)


def replaced(structure: Any, one: Callable[[Any], Any]) -> Any:
    """`structure` with `one(leaf)` in place of each leaf of its lists, tuples and dicts."""
    if isinstance(structure, list | tuple):
        inner = [replaced(part, one) for part in structure]
        return inner if isinstance(structure, list) else tuple(inner)
    if isinstance(structure, dict):
        return {key: replaced(part, one) for key, part in structure.items()}
    return one(structure)


def leaves(structure: Any) -> Iterator[Any]:
    """Of lists, tuples and dicts."""
    if isinstance(structure, list | tuple):
        for part in structure:
            yield from leaves(part)
    elif isinstance(structure, Mapping):
        for part in structure.values():
            yield from leaves(part)
    else:
        yield structure
