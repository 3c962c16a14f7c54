"""The feature maps that are stored in bfloat16: those that are computed and read only by kernels for bfloat16.

Their source are convolutions with bfloat16 weights. Pools, concatenations, depthwise convolutions and elementwise
operations pass bfloat16 on. All other values are float32.
"""

from collections.abc import Container, Set
from dataclasses import replace

import torch

from svertka.compiler.fusion import FusedNetwork
from svertka.compiler.ir import Concatenation, Elementwise, FusedConvolution, Pool, Step, step_output_numbers
from svertka.compiler.packing import select_kernel_kind
from svertka.compiler.step_checks import has_int8_kernel
from svertka.graph.operation_and_value_types import Operation, Value


def store_maps_in_bfloat16(fused: FusedNetwork) -> FusedNetwork:
    """Return the network with dtype bfloat16 for each map that kernels can store so."""
    return _with_bfloat16_maps(fused, _kernel_results(fused))


def drop_unsupported_bfloat16(fused: FusedNetwork) -> FusedNetwork:
    """Return the network with dtype float32 for the bfloat16 maps that are not supported.

    A CPU without bfloat16 multiplication converts the weights of some layers to float32, and with them their maps.
    """
    return _with_bfloat16_maps(fused, list_bfloat16_maps(fused))


def list_bfloat16_maps(fused: FusedNetwork) -> set[int]:
    """Return the values that kernels store in bfloat16."""
    return {value for value in _kernel_results(fused) if fused.dtypes[value] == torch.bfloat16}


def _kernel_results(fused: FusedNetwork) -> set[int]:
    return {step.result for step in fused.steps if not isinstance(step, Operation)}


def _with_bfloat16_maps(fused: FusedNetwork, values: Set[int]) -> FusedNetwork:
    narrow = find_supported_bfloat16(fused, values)
    floats = list_bfloat16_maps(fused) - narrow
    dtypes = dict.fromkeys(narrow, torch.bfloat16) | dict.fromkeys(floats, torch.float32)
    return replace(fused, dtypes=dict(fused.dtypes) | dtypes)


def find_supported_bfloat16(fused: FusedNetwork, values: Set[int]) -> set[int]:
    """Return those of `values` that can be stored in bfloat16 if no others are."""
    returned = {leaf.number for leaf in fused.output.leaves if isinstance(leaf, Value)}
    narrow = {value for value in values - returned if _is_map(fused, value)}
    count = -1
    while count != len(narrow):  # a value that stays float32 may keep its neighbors from bfloat16
        count = len(narrow)
        for step in fused.steps:
            narrow -= _values_in_floats(fused, step, narrow)
    return narrow


def _is_map(fused: FusedNetwork, value: int) -> bool:
    """Return whether a value is a map or a vector of whole pairs of channels, and not of 8 bits."""
    shape = fused.shapes[value]
    if value in fused.quantizations or len(shape) not in (2, 4):
        return False
    return isinstance(shape[1], int) and shape[1] % 2 == 0


def _values_in_floats(fused: FusedNetwork, step: Step, narrow: Container[int]) -> set[int]:
    """Return the values that `step` must read or write in float32, given which others are bfloat16."""
    if isinstance(step, FusedConvolution) and step.weight_scale is None:
        return _floats_of_convolution(fused, step, narrow)
    if isinstance(step, Pool):
        return _unless_all_narrow({step.x, step.result}, narrow)
    if isinstance(step, Elementwise | Concatenation) and has_int8_kernel(step):
        if not any(value in narrow for value in step.inputs):
            return {step.result}
        # Parts of a concatenation are computed in place only if they have its dtype.
        return set(step.inputs) if isinstance(step, Concatenation) and step.result not in narrow else set()
    return {*step.inputs, *step_output_numbers(step)}


def _floats_of_convolution(fused: FusedNetwork, step: FusedConvolution, narrow: Container[int]) -> set[int]:
    weight = fused.tensors[step.weight]
    kernel, shape = select_kernel_kind(step, tuple(weight.shape)), weight.shape
    of_result = {step.result} if step.residual is None else {step.result, step.residual}
    if kernel in ("depthwise", "grouped"):
        return _unless_all_narrow({step.x, *of_result}, narrow)
    if weight.dtype != torch.bfloat16:
        return {step.x, *of_result}
    floats = set() if step.gate is None else {step.x, step.gate}
    if shape[1] % 2:
        floats.add(step.x)
    if kernel == "winograd" and shape[2] > 3:  # four kernels, whose sums are added in the result
        floats |= of_result
    return floats | _unless_all_narrow(of_result, narrow)


def _unless_all_narrow(values: set[int], narrow: Container[int]) -> set[int]:
    """Return `values`, which have one dtype, unless all are bfloat16."""
    return set() if all(value in narrow for value in values) else values
