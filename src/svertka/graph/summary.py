"""The layers of any network: shapes, parameters, multiply-adds and receptive fields."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from svertka.conv.accelerate import restore
from svertka.conv_geometry import ReceptiveField
from svertka.errors import SvertkaError, UsageError
from svertka.graph.op_recorder import FunctionRecorder, LayerRecord, OpRecorder
from svertka.graph.trace_errors import cannot_be_traced


@dataclass(frozen=True)
class Layer:
    """One layer of a network, as it ran.

    Attributes:
        name: the path of the module, such as "layer1.0.conv2"; for a function, the path of the calling module and the
            name of the function, such as "layer1.0.add". Repeated calls get the suffixes ":2", ":3".
        kind: the class, or the function.
        shape: of the output.
        parameters: number of parameters it reads that no earlier layer has read.
        multiply_adds: of convolutions and matrix products, without biases.
        fields: receptive fields along each axis of the image; a single interval if all units see the same.
        inputs: names of the layers whose outputs it reads; `op_recorder.INPUT` is the image.
        call: identifies the call when the network runs: the name without suffix and the number of the call, from 1.
            None if the layer returns no tensor, or is an operation that is not called from Python.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    multiply_adds: int
    fields: tuple[ReceptiveField, ...]
    inputs: tuple[str, ...]
    call: tuple[str, int] | None

    def to_dict(self) -> dict[str, Any]:
        """Return the layer as JSON data, with the extents of its receptive fields and their grids, or null."""
        return {
            "name": self.name,
            "kind": self.kind,
            "shape": list(self.shape),
            "parameters": self.parameters,
            "multiply_adds": self.multiply_adds,
            "receptive_field": [field.extent for field in self.fields],
            "grid": [field.grid and field.grid._asdict() for field in self.fields],
            "inputs": list(self.inputs),
        }


@dataclass(frozen=True)
class Trace:
    """The layers of a network in the order in which they run in inference."""

    layers: tuple[Layer, ...]

    @property
    def parameters(self) -> int:
        """The number of parameters that inference reads, without auxiliary classifiers."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def multiply_adds(self) -> int:
        """The multiply-adds of convolutions and matrix products, without biases, as papers count them."""
        return sum(layer.multiply_adds for layer in self.layers)


@dataclass(frozen=True)
class NetworkSize:
    """The number of parameters of a network, those that are trainable, and the multiply-adds of inference."""

    parameters: int
    trainable: int
    multiply_adds: int


def count_network(network: nn.Module, shape: tuple[int, ...]) -> NetworkSize:
    """Return the size of `network`, including layers that only run in training.

    Args:
        network: any nn.Module.
        shape: of its input, (1, C, H, W).

    Raises:
        UsageError: the network cannot be traced with such an input.
    """
    parameters = list(network.parameters())
    return NetworkSize(
        parameters=sum(parameter.numel() for parameter in parameters),
        trainable=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        multiply_adds=trace(network, shape).multiply_adds,
    )


def trace(network: nn.Module, shape: tuple[int, ...]) -> Trace:
    """Return the layers of `network` in inference.

    A copy of the network runs on the meta device: nothing is computed and `network` is not changed. Layers are modules
    without children, and functions called between them, except those that only return a view.

    Args:
        network: any nn.Module.
        shape: of its input, (1, C, H, W) for one image.

    Raises:
        UsageError: the network cannot run on such an input, or makes decisions based on values.
    """
    twin = copy_to_meta(network).eval()
    floating = (tensor.dtype for tensor in twin.parameters() if tensor.is_floating_point())
    try:
        image = torch.empty(shape, device="meta", dtype=next(floating, None))
    except RuntimeError as error:  # more bytes than 64 bits can count, or a negative size
        raise UsageError(f"shape={shape} is no shape of an input; give (N, C, H, W)") from error
    recorder = OpRecorder(twin, image)
    try:
        # In inference mode, PyTorch does not decompose operations such as a dense layer over many positions.
        with torch.inference_mode(), torch.device("meta"), FunctionRecorder(recorder), recorder:
            twin(image)
    except SvertkaError:
        raise
    except Exception as error:
        raise UsageError(cannot_be_traced(network, shape, error, recorder.where)) from error
    return Trace(tuple(_finished(draft) for draft in recorder.drafts))


def _finished(draft: LayerRecord) -> Layer:
    return Layer(
        name=draft.name,
        kind=draft.kind,
        shape=draft.shape,
        parameters=draft.parameters,
        multiply_adds=draft.multiply_adds,
        fields=tuple(axis.field for axis in draft.axes),
        inputs=tuple(draft.inputs),
        call=draft.call,
    )


def copy_to_meta(network: nn.Module) -> nn.Module:
    """Return a copy on the meta device, without forward hooks and with PyTorch's own convolutions."""
    # Objects in the memo are not copied again.
    twin = copy.deepcopy(network, {id(tensor): _empty_like(tensor) for _, tensor in named_tensors(network)})
    for module in twin.modules():
        module._forward_hooks.clear()  # they are not meant for this run
    return restore(twin)


def named_tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield names and tensors: parameters, buffers, and tensors in attributes of modules, including lists and dicts."""
    yield from network.named_parameters()
    yield from network.named_buffers()
    for path, module in network.named_modules():
        for name, value in vars(module).items():
            if name not in ("_parameters", "_buffers", "_modules"):
                yield from _nested(f"{path}.{name}" if path else name, value)


def _nested(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, list | tuple | dict):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _nested(f"{name}.{key}", part)


def _empty_like(tensor: Tensor) -> Tensor:
    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty
