"""Weights that networks compiled for several image sizes share, so that memory and files contain them once."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from svertka.compiler.fusion import FusedNetwork
from svertka.compiler.int8_packing import PackedInt8Weights
from svertka.compiler.ir import FusedConvolution
from svertka.compiler.packing import PackedWeights, is_linear_layer, select_kernel_kind
from svertka.conv import native_support

SAMPLES = 16  # bytes of a tensor that tell most tensors of the same shape apart


class SharedTensors:
    """The tensors of several networks, each stored once however many networks have it."""

    def __init__(self) -> None:
        self._known: dict[Any, list[Tensor]] = {}

    def share(self, fused: FusedNetwork) -> FusedNetwork:
        """Return the network with the tensors of earlier networks wherever its own are equal to them."""
        return replace(fused, tensors={name: self._find_equal(tensor) for name, tensor in fused.tensors.items()})

    def _find_equal(self, tensor: Tensor) -> Tensor:
        data = _bytes(tensor)
        samples = data[:: max(1, len(data) // SAMPLES)].tolist()
        known = self._known.setdefault((tensor.dtype, tensor.shape, tensor.stride(), *samples), [])
        for other in known:
            if other is tensor or torch.equal(_bytes(other), data):
                return other
        known.append(tensor)
        return tensor


def pack_networks(
    networks: Sequence[FusedNetwork], *, strict: bool
) -> Sequence[tuple[FusedNetwork, Mapping[str, PackedWeights | PackedInt8Weights]]]:
    """Return each network with the packed weights of its convolutions; the same objects where networks share tensors.

    The returned networks have copies of all other tensors, so that the original network may be trained further.

    Args:
        networks: The networks, whose equal tensors are the same object.
        strict: As for `optimize`.
    """
    packed: dict[Any, PackedWeights | PackedInt8Weights] = {}
    copies: dict[int, Tensor] = {}
    found = []
    for fused in networks:
        of_network = {}
        for step in fused.steps:
            if isinstance(step, FusedConvolution) and not native_support.why_not():
                tensor, dense = fused.tensors[step.weight], is_linear_layer(fused, step)
                kernel = "direct" if dense else select_kernel_kind(step, tuple(tensor.shape), strict=strict)
                key = id(tensor), step.groups, kernel
                if key not in packed:
                    packed[key] = pack_layer(step, tensor, dense=dense, strict=strict)
                of_network[step.weight] = packed[key]
        with torch.inference_mode(False), torch.no_grad():  # never inference tensors
            for name, tensor in fused.tensors.items():
                if name not in of_network and id(tensor) not in copies:
                    copies[id(tensor)] = tensor.clone()
        others = {name: copies[id(tensor)] for name, tensor in fused.tensors.items() if name not in of_network}
        found.append((replace(fused, tensors=others), of_network))
    return found


def pack_layer(
    step: FusedConvolution, weight: Tensor, *, dense: bool, strict: bool
) -> PackedWeights | PackedInt8Weights:
    """Return the packed weights of one layer.

    Args:
        step: The layer.
        weight: Its weights, (O, C / groups, kh, kw), in their precision.
        dense: Whether it is a dense layer.
        strict: Whether to exclude Winograd kernels.
    """
    if step.weight_scale is not None:
        return PackedInt8Weights.of(step, weight, strict=strict)
    return PackedWeights.of(step, weight, dense=dense, strict=strict)


def _bytes(tensor: Tensor) -> Tensor:
    """Return the bytes of a tensor, in which NaN equals NaN and 0 differs from -0."""
    return tensor.contiguous().flatten().view(torch.uint8)
