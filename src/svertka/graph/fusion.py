"""A network's operations joined to few steps: batch norm folded, bias, sums and bounds taken into the convolutions."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from svertka.graph.operations import Constant, Operation, Recording, Shape, Size, Value, leaves, replaced
from svertka.graph.rules import RULES, Arguments
from svertka.graph.steps import Convolution, Step, inputs_of, results_of

# They give what they are given: in inference, or as values.
NOTHING = {"dropout.default", "feature_dropout.default", "alpha_dropout.default", "clone.default", "detach.default"}
NOTHING |= {"alias.default", "contiguous.default", "lift_fresh.default"}


@dataclass(frozen=True)
class Fused:
    """Steps, the shapes of their values, the tensors that they name, and the output, as in a Recording."""

    steps: tuple[Step, ...]
    shapes: Mapping[int, Shape]
    dtypes: Mapping[int, torch.dtype]
    tensors: Mapping[str, Tensor]
    output: Any


@torch.inference_mode()
def fused(recording: Recording) -> Fused:
    """The steps of a recording. Its tensors are left as they are; folded ones are new, computed in float64."""
    return Fusion(recording).fused()


class Fusion:
    """Steps while they are put together; the rules look at those that are there and change them."""

    def __init__(self, recording: Recording) -> None:
        self.shapes: Mapping[int, Any] = recording.shapes
        self.dtypes = recording.dtypes
        self.tensors: dict[str, Tensor] = {name: tensor.detach() for name, tensor in recording.constants.items()}
        self.same: dict[int, Any] = {}  # values that are another value or a constant
        self.steps: dict[int, Step] = {}  # by the (first) value that they give, in order
        operations = []
        for operation in recording.operations:
            arguments = replaced(dict(operation.arguments), self.resolved)
            operation = replace(operation, arguments=arguments)
            if not self._vanishes(operation):
                operations.append(operation)
        self.output = replaced(recording.output, self.resolved)
        read = [*leaves([operation.arguments for operation in operations]), *leaves(self.output)]
        self.uses = Counter(leaf.number for leaf in read if isinstance(leaf, Value))
        for operation in operations:
            operation = replace(operation, arguments=replaced(operation.arguments, self.resolved))  # what changed since
            if not self._joined(operation):
                first = next((result for result in operation.results if result is not None), -len(self.steps) - 1)
                self.steps[first] = operation

    def fused(self) -> Fused:
        """What is needed for the output, and nothing else."""
        needed = {leaf.number for leaf in leaves(self._out()) if isinstance(leaf, Value)}
        kept: list[Step] = []
        for step in reversed(self.steps.values()):
            if needed.intersection(results_of(step)):
                kept.append(step)
                needed.update(inputs_of(step))
        steps = tuple(reversed(kept))
        names = {leaf.name for leaf in leaves([self._out(), *map(_names, steps)]) if isinstance(leaf, Constant)}
        tensors = {name: self.tensors[name] for name in sorted(names)}
        return Fused(steps, self.shapes, self.dtypes, tensors, self._out())

    def _out(self) -> Any:
        return replaced(self.output, self.resolved)

    def resolved(self, leaf: Any) -> Any:
        """`leaf`, or what it is the same as."""
        while isinstance(leaf, Value) and leaf.number in self.same:
            leaf = self.same[leaf.number]
        return leaf

    def _vanishes(self, operation: Operation) -> bool:
        """Whether it gives what it is given, or can be computed once and for all."""
        given = list(leaves(operation.arguments))
        one = operation.results[0] if len(operation.results) == 1 else None
        if one is None:
            return False
        if operation.name in NOTHING and not operation.arguments.get("train"):
            self.same[one] = next(iter(operation.arguments.values()))
        elif any(isinstance(leaf, Constant) for leaf in given) and not any(
            isinstance(leaf, Value | Size) for leaf in given
        ):
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
        arguments = Arguments(operation, self)
        return arguments.x is not None and rule(self, arguments)

    def is_map(self, value: Any) -> bool:
        """Whether it is (N, C, H, W) float32."""
        return isinstance(value, Value) and len(self.shapes[value.number]) == 4 and self.is_float(value)

    def is_float(self, value: Value) -> bool:
        """Whether it is float32."""
        return self.dtypes[value.number] == torch.float32

    def producer(self, value: Any) -> Any:
        """The step that gives `value`, if nothing but the operation at hand reads it."""
        return self.steps.get(value.number) if isinstance(value, Value) and self.uses[value.number] == 1 else None

    def put(self, step: Step, result: int) -> bool:
        """`step` as the last one."""
        self.steps[result] = step
        return True

    def put_in_place_of(self, value: int, step: Step, result: int) -> bool:
        """`step` as the last one, without the one that gave `value`."""
        del self.steps[value]
        return self.put(step, result)

    def tensor(self, name: str, tensor: Tensor) -> str:
        """`name`, under which `tensor` now is."""
        self.tensors[name] = tensor.float().contiguous()
        return name

    def scaled(self, step: Convolution, result: int, scale: Tensor, shift: Tensor | None) -> Convolution:
        """`step` with its results times `scale`, (O) or a number, plus `shift`, (O)."""
        weight = self.tensors[step.weight].double()
        scale = scale.double().expand(len(weight))
        bias = torch.zeros(len(weight), dtype=torch.float64) if step.bias is None else self.tensors[step.bias].double()
        bias = bias * scale + (0 if shift is None else shift.double())
        names = f"{step.place}.folded.{result}.weight", f"{step.place}.folded.{result}.bias"
        return replace(
            step,
            result=result,
            weight=self.tensor(names[0], weight * scale[:, None, None, None]),
            bias=self.tensor(names[1], bias),
        )


def _names(step: Step) -> Any:
    if isinstance(step, Operation):
        return step.arguments
    if isinstance(step, Convolution):
        return [Constant(step.weight), *([Constant(step.bias)] if step.bias else [])]
    return []
