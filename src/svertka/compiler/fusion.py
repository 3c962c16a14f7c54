"""A network's operations joined to few steps: batch norm folded, bias, sums and bounds taken into the convolutions."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from svertka.compiler.assembly import Assembly
from svertka.compiler.ir import Constant, Operation, Recording, Shape, Size, Value, leaves, replaced
from svertka.compiler.output_structure import Output
from svertka.compiler.rules import FLATTENS, RULES, Arguments
from svertka.compiler.steps import Convolution, Step, inputs_of, results_of

# They give what they are given: in inference, or as values.
NOTHING = {"dropout.default", "feature_dropout.default", "alpha_dropout.default", "clone.default", "detach.default"}
NOTHING |= {"alias.default", "contiguous.default", "lift_fresh.default"}


@dataclass(frozen=True)
class Fused:
    """Steps, the shapes of their values, the tensors that they name, the output and `pictures`, as in a Recording."""

    steps: tuple[Step, ...]
    shapes: Mapping[int, Shape]
    dtypes: Mapping[int, torch.dtype]
    tensors: Mapping[str, Tensor]
    output: Output
    pictures: int | None = None


@torch.inference_mode()
def fused(recording: Recording) -> Fused:
    """The steps of a recording. Its tensors are left as they are; folded ones are new, computed in float64."""
    return Fusion(recording).fused()


class Fusion(Assembly):
    """A recording's operations, one after the other, made steps by the rules, or left as they are."""

    def __init__(self, recording: Recording) -> None:
        super().__init__(recording)
        self.pictures = recording.pictures
        operations = []
        for operation in recording.operations:
            arguments = replaced(dict(operation.arguments), self.resolved)
            operation = replace(operation, arguments=arguments)
            if not self._vanishes(operation):
                operations.append(operation)
        self.output = recording.output.with_leaves(self.resolved)
        operations = _needed(operations, self.output)
        read = [*leaves([operation.arguments for operation in operations]), *self.output.leaves]
        self.uses = Counter(leaf.number for leaf in read if isinstance(leaf, Value))
        for operation in operations:
            operation = replace(operation, arguments=replaced(operation.arguments, self.resolved))  # what changed since
            if not self._joined(operation):
                first = next((result for result in operation.results if result is not None), -len(self.steps) - 1)
                self.steps[first] = operation

    def fused(self) -> Fused:
        """What is needed for the output, and nothing else."""
        steps = tuple(_needed(list(self.steps.values()), self._out()))
        names = {leaf.name for leaf in leaves([self._out().leaves, *map(_names, steps)]) if isinstance(leaf, Constant)}
        tensors = {name: self.tensors[name] for name in sorted(names)}
        return Fused(steps, self.shapes, self.dtypes, tensors, self._out(), self.pictures)

    def _out(self) -> Output:
        resolved: Output = self.output.with_leaves(self.resolved)
        return resolved

    def _vanishes(self, operation: Operation) -> bool:
        """Whether it gives what it is given, or can be computed once and for all."""
        given = list(leaves(operation.arguments))
        one = operation.results[0] if len(operation.results) == 1 else None
        if one is None:
            return False
        if operation.name in NOTHING and not operation.arguments.get("train"):
            self.same[one] = next(iter(operation.arguments.values()))
        elif not any(isinstance(leaf, Value | Size) for leaf in given):
            name = f"{operation.place}:{one}"
            (self.tensors[name],) = operation.run(lambda x: self.tensors[x.name] if isinstance(x, Constant) else x)
            self.same[one] = Constant(name)
        else:
            return False
        return True

    def _joined(self, operation: Operation) -> bool:
        """Whether the operation became a step of ours or part of one."""
        rule = RULES.get(operation.name)
        if rule is None or len(operation.results) != 1 or operation.results[0] is None:
            return False
        if operation.name not in FLATTENS and any(isinstance(leaf, Size) for leaf in leaves(operation.arguments)):
            return False  # kernels have the same settings for any number of pictures
        arguments = Arguments(operation, self)
        return arguments.x is not None and rule(self, arguments)


def _needed(steps: Sequence[Any], output: Output) -> list[Any]:
    """Of `steps` those that `output` depends on."""
    needed = {leaf.number for leaf in output.leaves if isinstance(leaf, Value)}
    kept = []
    for step in reversed(steps):
        if needed.intersection(results_of(step)):
            kept.append(step)
            needed.update(inputs_of(step))
    return kept[::-1]


def _names(step: Step) -> Any:
    if isinstance(step, Operation):
        return step.arguments
    if isinstance(step, Convolution):
        return [Constant(step.weight), *([Constant(step.bias)] if step.bias else [])]
    return []
