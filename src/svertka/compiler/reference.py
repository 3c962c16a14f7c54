"""Execution of an optimized network with PyTorch's operations, for machines without kernels, export and tests."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from svertka.compiler.fusion import FusedNetwork
from svertka.compiler.ir import BatchDependentSize, Elementwise, FusedConvolution, KernelStep, TensorStep
from svertka.compiler.output_structure import copy_output_tensor
from svertka.graph.operation_and_value_types import Constant, Operation, Value


def run_reference(
    fused: FusedNetwork,
    weight: Callable[[str], Tensor],
    x: Tensor,
    observe: Callable[[int, Tensor], None] | None = None,
) -> Any:
    """Return the output of the network. Values of 8 bits and of bfloat16 are rounded to numbers that can be stored.

    Args:
        fused: The network.
        weight: A function that returns the weights with a name, (O, C / groups, kh, kw).
        x: Images, (N, C, H, W).
        observe: A function that is called with the number and the value of each value that a step other than an
            operation of PyTorch reads or computes.

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
        result = _run_step(step, values, [seen(side) for side in fused.shapes[step.result]], seen, weight)
        if step.result in fused.quantizations:
            result = fused.quantizations[step.result].round(result)
        elif fused.dtypes[step.result] == torch.bfloat16:
            result = result.to(torch.bfloat16).to(result.dtype)
        values[step.result] = result
        if observe is not None:
            for number in (*step.inputs, step.result):
                observe(number, values[number])
    return fused.output.rebuild(lambda leaf: copy_output_tensor(seen(leaf)))


def _run_step(
    step: KernelStep,
    values: Mapping[int, Tensor],
    shape: list[int],
    seen: Callable[[Any], Any],
    weight: Callable[[str], Tensor],
) -> Tensor:
    """Return the result of a step, of this shape."""
    if isinstance(step, TensorStep):
        operands = [seen(Value(one) if isinstance(one, int) else one) for one in step.operands]
        result = step.run(*operands)
        if isinstance(step, Elementwise) and isinstance(step.x, Constant) and step.y is None:
            result = result.expand(shape)
        return _of_shape(result, shape)
    given = [values[number][(...,) + (None,) * (4 - values[number].dim())] for number in step.inputs]
    if isinstance(step, FusedConvolution):
        bias, scale = (None if name is None else seen(Constant(name)) for name in (step.bias, step.weight_scale))
        factors = weight(step.weight).to(given[0].dtype)
        if scale is not None:
            factors = factors * scale[:, None, None, None]
        size: Any = (*shape[2:], 1, 1)[:2]
        result = step.run(given, size, factors, bias)
    else:
        result = step.run(given)
    return _of_shape(result.flatten(len(shape) - 1) if len(shape) < 4 else result, shape)


def _of_shape(result: Tensor, shape: list[int]) -> Tensor:
    if list(result.shape) != shape:
        raise ValueError(f"a step gives {tuple(result.shape)} and not {tuple(shape)}")
    return result
