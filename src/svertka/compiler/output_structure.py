"""Nested outputs of networks: tensors in lists, tuples, dicts and dataclasses, flattened and rebuilt."""

import copy
import dataclasses
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from svertka.compiler.ir import BatchDependentSize
from svertka.errors import UsageError
from svertka.graph.operation_and_value_types import Value

ATOMS = int, float, complex, bool, str, bytes, type(None), torch.dtype, torch.device, Value, BatchDependentSize


@dataclass(frozen=True)
class OutputStructure:
    """A nested output, flattened.

    Attributes:
        template: An object of the same types, without tensors.
        leaves: The tensors, numbers and strings, in order.
    """

    template: Any
    leaves: tuple[Any, ...]

    @classmethod
    def of(cls, structure: Any, leaf: Callable[[Any], Any]) -> "OutputStructure":
        """Flatten `structure`, with `leaf(part)` for each tensor, number or string in it.

        Raises:
            UsageError: It contains an object that cannot be flattened.
        """
        parts: list[Any] = []
        template = _rebuild(structure, lambda part: parts.append(_atom(part)))
        return cls(template, tuple(leaf(part) for part in parts))

    def map_leaves(self, leaf: Callable[[Any], Any]) -> "OutputStructure":
        """Return the same structure with `leaf(part)` in place of each leaf."""
        return replace(self, leaves=tuple(map(leaf, self.leaves)))

    def rebuild(self, leaf: Callable[[Any], Any]) -> Any:
        """Return an output of the original types, with `leaf(part)` for each leaf."""
        parts = iter(self.leaves)
        return _rebuild(self.template, lambda _: leaf(next(parts)))


def iter_output_tensors(structure: Any) -> Iterator[Tensor]:
    """Return an iterator over the tensors of a nested output, in order."""
    found: list[Tensor] = []
    _rebuild(structure, lambda part: found.append(part) if isinstance(part, Tensor) else None)
    return iter(found)


def copy_output_tensor(part: Any, memory_format: torch.memory_format = torch.contiguous_format) -> Any:
    """Return a copy of a tensor in an output, so that callers cannot change the network or its input through it.

    Args:
        part: A tensor, or another object, which is returned unchanged.
        memory_format: Memory format of the copy of a tensor with four axes; other tensors become contiguous.
    """
    if not isinstance(part, Tensor):
        return part
    return part.clone(memory_format=memory_format if part.dim() == 4 else torch.contiguous_format)


def _atom(part: Any) -> Any:
    if not isinstance(part, (*ATOMS, Tensor)):
        raise UsageError(
            f"the network returns an object of type {type(part).__name__}, whose tensors cannot be found; return "
            "tensors, or tuples, lists, dicts or dataclasses of them"
        )
    return part


def _rebuild(structure: Any, leaf: Callable[[Any], Any]) -> Any:
    """Return a new object of the types of `structure`, with `leaf(part)` for each leaf (torch.Size: integer or 0)."""
    if isinstance(structure, torch.Size):
        parts = [leaf(part) for part in structure]
        return torch.Size(part if isinstance(part, int) else 0 for part in parts)
    if isinstance(structure, list | tuple | deque):
        parts = [_rebuild(part, leaf) for part in structure]
        kind: Any = type(structure)
        return kind(*parts) if hasattr(structure, "_fields") else kind(parts)
    if isinstance(structure, dict):
        items = [(key, _rebuild(part, leaf)) for key, part in structure.items()]
        new: Any = copy.copy(structure)
        for key, part in items:
            new[key] = part
        return new
    if dataclasses.is_dataclass(structure) and not isinstance(structure, (type, Value, BatchDependentSize)):
        new = copy.copy(structure)
        for field in dataclasses.fields(structure):  # without __init__, which may have side effects
            if hasattr(structure, field.name):
                object.__setattr__(new, field.name, _rebuild(getattr(structure, field.name), leaf))
        return new
    return leaf(structure)
