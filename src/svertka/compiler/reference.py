"""Execution of an optimized network with PyTorch's operations, for machines without kernels, export and tests."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from svertka.compiler.fusion import FusedNetwork
from svertka.compiler.ir import BatchDependentSize, Elementwise, FusedConvolution, Normalization
from svertka.compiler.output_structure import copy_for_caller
from svertka.graph.captured_operations import Constant, Operation, Value


def run_reference(fused: FusedNetwork, weight: Callable[[str], Tensor], x: Tensor) -> Any:
    """Return the output of the network.

    Args:
        fused: The network.
        weight: A function that returns the weights with a name, (O, C / groups, kh, kw).
        x: Images, (N, C, H, W).

    Raises:
        ValueError: A step's result has another shape than captured.
    """
    batch_size = x.shape[0]  # a symbol in torch.export
    values: dict[int, Tensor] = {0: x}

    def seen(leaf: Any) -> Any:
        if isinstance(leaf, Value):
            return values[leaf.number]
        if isinstance(leaf, Constant):
            tensor = fused.tensors[leaf.name]
            return tensor.to(x.dtype) if tensor.dtype == torch.float32 else tensor
        if isinstance(leaf, torch.device):
            return x.device
        return leaf.of(batch_size) if isinstance(leaf, BatchDependentSize) else leaf

    for step in fused.steps:
        if isinstance(step, Operation):
            for number, result in zip(step.results, step.run(seen), strict=True):
                if number is not None:
                    values[number] = _of_shape(result, [seen(side) for side in fused.shapes[number]])
            continue
        shape = [seen(side) for side in fused.shapes[step.result]]
        if isinstance(step, Elementwise):
            y = None if step.y is None else seen(Value(step.y) if isinstance(step.y, int) else step.y)
            values[step.result] = _of_shape(step.run(values[step.x], y), shape)
            continue
        if isinstance(step, Normalization):
            of_channels = [None if name is None else seen(Constant(name)) for name in (step.weight, step.bias)]
            values[step.result] = _of_shape(step.run(values[step.x], *of_channels), shape)
            continue
        given = [values[number][(...,) + (None,) * (4 - values[number].dim())] for number in step.inputs]
        if isinstance(step, FusedConvolution):
            bias = None if step.bias is None else fused.tensors[step.bias].to(x.dtype)
            size: Any = (*shape[2:], 1, 1)[:2]
            result = step.run(given, size, weight(step.weight).to(x.dtype), bias)
        else:
            result = step.run(given)
        values[step.result] = _of_shape(result.flatten(len(shape) - 1) if len(shape) < 4 else result, shape)
    return fused.output.rebuild(lambda leaf: copy_for_caller(seen(leaf)))


def _of_shape(result: Tensor, shape: list[int]) -> Tensor:
    if list(result.shape) != shape:
        raise ValueError(f"a step gives {tuple(result.shape)} and not {tuple(shape)}")
    return result
