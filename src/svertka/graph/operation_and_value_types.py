"""Calls of PyTorch's operators in a forward pass, with numbers in place of the tensors that they compute."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from svertka.graph.layer_calls import LayerCallKey


@dataclass(frozen=True)
class Value:
    """The output of an operation, identified by its number; 0 is the network's input."""

    number: int


@dataclass(frozen=True)
class Constant:
    """A tensor of the network, or one computed from such tensors, identified by its name."""

    name: str


@dataclass(frozen=True)
class Operation:
    """A call of an operator.

    Attributes:
        name: Name of the operator in torch.ops.aten, such as "conv2d.default"; elsewhere with its library, such as
            "torchvision::nms.default".
        arguments: Numbers, strings, dtypes or lists by argument name; `Value` and `Constant` stand for tensors.
        results: The numbers of the returned values; None for each result that is not a tensor.
        place: The path of the module that calls it.
        layer: The layer that it belongs to; None if it updates a view after its base was written.
    """

    name: str
    arguments: Mapping[str, Any]
    results: tuple[int | None, ...]
    place: str
    layer: LayerCallKey | None = field(default=None, compare=False, repr=False)

    @property
    def inputs(self) -> tuple[int, ...]:
        """The numbers of the values that the operation reads."""
        return tuple(leaf.number for leaf in iter_leaves(self.arguments) if isinstance(leaf, Value))

    def run(self, value: Callable[[Any], Any]) -> tuple[Any, ...]:
        """Return the results of the operator, with each leaf of its arguments replaced by `value(leaf)`."""
        positional, named = self.bind(value)
        result = find_operator_by_name(self.name)(*positional, **named)
        return tuple(result) if isinstance(result, tuple | list) else (result,)

    def bind(self, value: Callable[[Any], Any]) -> tuple[list[Any], dict[str, Any]]:
        """Return the positional and keyword arguments, with each leaf replaced by `value(leaf)`."""
        positional, named = [], {}
        for argument in find_operator_by_name(self.name)._schema.arguments:
            if argument.name in self.arguments:
                given = map_leaves(self.arguments[argument.name], value)
                if argument.kwarg_only:
                    named[argument.name] = given
                else:
                    positional.append(given)
        return positional, named


def find_operator_by_name(name: str) -> Any:
    """Return the operator called `name`, as in `Operation.name`."""
    library, _, called = name.rpartition("::")
    packet, overload = called.split(".")
    return getattr(getattr(getattr(torch.ops, library or "aten"), packet), overload)


def map_leaves(structure: Any, one: Callable[[Any], Any]) -> Any:
    """Return `structure` with `one(leaf)` in place of each leaf of its lists, tuples and dicts."""
    if isinstance(structure, list | tuple):
        inner = [map_leaves(part, one) for part in structure]
        return inner if isinstance(structure, list) else tuple(inner)
    if isinstance(structure, dict):
        return {key: map_leaves(part, one) for key, part in structure.items()}
    return one(structure)


def iter_leaves(structure: Any) -> Iterator[Any]:
    """Yield the leaves of nested lists, tuples and dicts."""
    if isinstance(structure, list | tuple):
        for part in structure:
            yield from iter_leaves(part)
    elif isinstance(structure, Mapping):
        for part in structure.values():
            yield from iter_leaves(part)
    else:
        yield structure
