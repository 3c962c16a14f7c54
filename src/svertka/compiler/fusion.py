"""Fusion of captured operations into fewer steps.

Batch norm and channel-wise factors are folded into weights. Bias, residual, activation function and clamp become the
epilogue of the preceding convolution. A dense layer of any rank is a 1×1 convolution of the feature map with the same
numbers in memory: (N, H, W, C) and (N, L, C) are channels-last maps.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from svertka.compiler.decompositions import decompose
from svertka.compiler.feature_map_fusion_rules import FLATTENS, MAP_RULES
from svertka.compiler.fusion_state import FusionState, UnaryOperationArguments
from svertka.compiler.ir import (
    BatchDependentSize,
    CapturedGraph,
    FusedConvolution,
    Quantization,
    Shape,
    Step,
    TensorStep,
    step_output_numbers,
)
from svertka.compiler.output_structure import OutputStructure
from svertka.compiler.tensor_fusion_rules import TENSOR_RULES, lower_expanded_constant
from svertka.graph.operation_and_value_types import Constant, Operation, Value, iter_leaves, map_leaves

# Operations that return their input in inference.
NO_OPS = {"dropout.default", "feature_dropout.default", "alpha_dropout.default", "clone.default", "detach.default"}
NO_OPS |= {"alias.default", "contiguous.default", "lift_fresh.default"}
CASTS = {"to.dtype", "to.device", "to.dtype_layout", "_to_copy.default"}
# Operations that read only the shape and dtype of their input.
FILLS = {"new_zeros.default", "new_ones.default", "new_full.default", "zeros_like.default", "ones_like.default"}
FILLS |= {"full_like.default"}


@dataclass(frozen=True)
class FusedNetwork:
    """The steps of a network, with their tensors and the output; `batch_size` as in `CapturedGraph`.

    Attributes:
        quantizations: of the values of dtype uint8. A step computes with the real numbers that its inputs stand for.
    """

    steps: tuple[Step, ...]
    shapes: Mapping[int, Shape]
    dtypes: Mapping[int, torch.dtype]
    tensors: Mapping[str, Tensor]
    output: OutputStructure
    batch_size: int | None = None
    quantizations: Mapping[int, Quantization] = field(default_factory=dict)

    @property
    def image_size(self) -> tuple[int, int]:
        """The height and width of the images."""
        _, _, height, width = self.shapes[0]
        assert isinstance(height, int)
        assert isinstance(width, int)
        return height, width


@torch.inference_mode()
def fuse(recording: CapturedGraph) -> FusedNetwork:
    """Return the steps of a captured graph. Its tensors are not changed; folded ones are new, computed in float64."""
    return GraphFuser(decompose(recording)).build()


class GraphFuser(FusionState):
    """Applies the rules to a captured graph; operations without a matching rule remain."""

    def __init__(self, recording: CapturedGraph) -> None:
        super().__init__(recording)
        self.batch_size = recording.batch_size
        operations = []
        for operation in recording.operations:
            arguments = map_leaves(dict(operation.arguments), self.resolve)
            operation = replace(operation, arguments=arguments)
            if not self._try_remove(operation):
                operations.append(operation)
        self.output = recording.output.map_leaves(self.resolve)
        operations = _keep_needed(operations, self.output)
        read = [*iter_leaves([operation.arguments for operation in operations]), *self.output.leaves]
        self.uses = Counter(leaf.number for leaf in read if isinstance(leaf, Value))
        for operation in operations:
            operation = replace(
                operation, arguments=map_leaves(operation.arguments, self.resolve)
            )  # rules of what changed since
            if not self._try_fuse(operation):
                first = next((result for result in operation.results if result is not None), -len(self.steps) - 1)
                self.steps[first] = operation

    def build(self) -> FusedNetwork:
        """Return the steps that the output depends on."""
        steps = tuple(_keep_needed(list(self.steps.values()), self._out()))
        tensors = select_read_tensors(self.tensors, steps, self._out())
        return FusedNetwork(steps, self.shapes, self.dtypes, tensors, self._out(), self.batch_size)

    def _out(self) -> OutputStructure:
        output: OutputStructure = self.output.map_leaves(self.resolve)
        return output

    def _try_remove(self, operation: Operation) -> bool:
        """Remove an operation that returns its input, or compute a constant; return whether it was either."""
        given = list(iter_leaves(operation.arguments))
        one = operation.results[0] if len(operation.results) == 1 else None
        if one is None:
            return False
        if operation.name in NO_OPS and not operation.arguments.get("train"):
            self.same[one] = next(iter(operation.arguments.values()))
            return True
        if operation.name in CASTS and isinstance(operation.arguments["self"], Value):
            x = operation.arguments["self"]
            if self.dtypes[x.number] == self.dtypes[one] and "memory_format" not in operation.arguments:
                self.same[one] = x
                return True
        fills = operation.name in FILLS and all(isinstance(side, int) for side in self.shapes[one])
        if fills or not any(isinstance(leaf, Value | BatchDependentSize) for leaf in given):
            self._compute(operation, one)
            return True
        return False

    def _compute(self, operation: Operation, result: int) -> None:
        """Make `result` a constant, because it depends on no value, or only on the shape and dtype of one."""

        def value(leaf: Any) -> Any:
            if isinstance(leaf, Value):
                sides = [side if isinstance(side, int) else 1 for side in self.shapes[leaf.number]]
                return torch.empty(sides, dtype=self.dtypes[leaf.number], device="cpu")
            return self.tensors[leaf.name] if isinstance(leaf, Constant) else leaf

        name = f"{operation.place}:{result}"
        (self.tensors[name],) = operation.run(value)
        self.same[result] = Constant(name)

    def _try_fuse(self, operation: Operation) -> bool:
        """Apply a rule that turns the operation into a step or a part of one; return whether there is one."""
        result, *others = operation.results
        if result is None or any(self.uses[number] for number in others if number is not None):
            return False
        arguments = UnaryOperationArguments(operation, self)
        if operation.name == "expand.default":
            return lower_expanded_constant(self, arguments)
        if operation.name not in FLATTENS and any(
            isinstance(leaf, BatchDependentSize) for leaf in iter_leaves(operation.arguments)
        ):
            return False  # kernels need settings that do not depend on the batch size
        rules = [rules[operation.name] for rules in (MAP_RULES, TENSOR_RULES) if operation.name in rules]
        return arguments.x is not None and any(rule(self, arguments) for rule in rules)


def _keep_needed(steps: Sequence[Any], output: OutputStructure) -> list[Any]:
    """Return those of `steps` that `output` depends on."""
    needed = {leaf.number for leaf in output.leaves if isinstance(leaf, Value)}
    kept = []
    for step in reversed(steps):
        if needed.intersection(step_output_numbers(step)):
            kept.append(step)
            needed.update(step.inputs)
    return kept[::-1]


def select_read_tensors(
    tensors: Mapping[str, Tensor], steps: Sequence[Step], output: OutputStructure
) -> dict[str, Tensor]:
    """Return those of `tensors` that steps read or that are part of the output."""
    leaves = iter_leaves([output.leaves, *map(list_step_operands, steps)])
    names = {leaf.name for leaf in leaves if isinstance(leaf, Constant)}
    return {name: tensors[name] for name in sorted(names)}


def list_step_operands(step: Step, *, packed: bool = True) -> Any:
    """Return what a step reads, including constants, but not weights that kernels pack unless `packed`."""
    if isinstance(step, Operation):
        return step.arguments
    if isinstance(step, TensorStep):
        return [operand for operand in step.operands if isinstance(operand, Constant)]
    if isinstance(step, FusedConvolution):
        names = [step.weight, step.bias] if packed else [step.bias]
        names += [step.weight_scale]
        return [Constant(name) for name in names if name]
    return []
