"""What a network returns: tensors in lists, tuples, dicts and dataclasses, taken apart and put together again."""

import copy
import dataclasses
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from svertka.compiler.ir import BatchDependentSize, Value
from svertka.errors import UsageError

ATOMS = int, float, complex, bool, str, bytes, type(None), torch.dtype, torch.device, Value, BatchDependentSize


@dataclass(frozen=True)
class OutputStructure:
    """A nested output: `template` has its types, without tensors, and `leaves` what belongs into it, in order."""

    template: Any
    leaves: tuple[Any, ...]

    @classmethod
    def of(cls, structure: Any, leaf: Callable[[Any], Any]) -> "OutputStructure":
        """The parts of `structure`, with `leaf(part)` for each tensor, number or string in it.

        Raises:
            UsageError: it holds an object that cannot be taken apart.
        """
        parts: list[Any] = []
        template = _rebuilt(structure, lambda part: parts.append(_atom(part)))
        return cls(template, tuple(leaf(part) for part in parts))

    def with_leaves(self, leaf: Callable[[Any], Any]) -> "OutputStructure":
        """The same with `leaf(part)` in place of each part."""
        return replace(self, leaves=tuple(map(leaf, self.leaves)))

    def filled(self, leaf: Callable[[Any], Any]) -> Any:
        """The output itself, of the types that the network returns, with `leaf(part)` for each part."""
        parts = iter(self.leaves)
        return _rebuilt(self.template, lambda _: leaf(next(parts)))


def find_tensors(structure: Any) -> Iterator[Tensor]:
    """The tensors of a nested output, in order."""
    found: list[Tensor] = []
    _rebuilt(structure, lambda part: found.append(part) if isinstance(part, Tensor) else None)
    return iter(found)


def copy_for_caller(part: Any) -> Any:
    """A part of an output as the caller's own: never a tensor of the network, or the input itself.

    In the usual memory order, whichever it is computed in: what is done with it next may be `view`.
    """
    return part.clone(memory_format=torch.contiguous_format) if isinstance(part, Tensor) else part


def _atom(part: Any) -> Any:
    if not isinstance(part, (*ATOMS, Tensor)):
        raise UsageError(
            f"the network returns an object of type {type(part).__name__}, whose tensors cannot be found; return "
            "tensors, or tuples, lists, dicts or dataclasses of them"
        )
    return part


def _rebuilt(structure: Any, leaf: Callable[[Any], Any]) -> Any:
    """A new object of the same types as `structure`, with `leaf(part)` for each part, in a torch.Size a number or 0."""
    if isinstance(structure, torch.Size):
        parts = [leaf(part) for part in structure]
        return torch.Size(part if isinstance(part, int) else 0 for part in parts)
    if isinstance(structure, list | tuple | deque):
        parts = [_rebuilt(part, leaf) for part in structure]
        kind: Any = type(structure)
        return kind(*parts) if hasattr(structure, "_fields") else kind(parts)
    if isinstance(structure, dict):
        items = [(key, _rebuilt(part, leaf)) for key, part in structure.items()]
        new: Any = copy.copy(structure)
        for key, part in items:
            new[key] = part
        return new
    if dataclasses.is_dataclass(structure) and not isinstance(structure, (type, Value, BatchDependentSize)):
        new = copy.copy(structure)
        for field in dataclasses.fields(structure):  # not through __init__, which may check or compute
            if hasattr(structure, field.name):
                object.__setattr__(new, field.name, _rebuilt(getattr(structure, field.name), leaf))
        return new
    return leaf(structure)
