"""What is inside any nn.Module."""

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


@dataclass(frozen=True)
class Layer:
    """One layer of a network, as it was run.

    `name`: the module's path, such as "layer1.0.conv2"; for a function, such as an addition or a concatenation, that
    of the module which calls it and the function's: "layer1.0.add". What runs again is called "layer1.0.add:2".
    `kind`: the class, or the function. `shape`: of the output. `parameters`: of those it reads, the ones that no layer
    before it has read. `multiply_adds`: of convolutions and matrix products, without biases. `fields`: what its units
    see along each axis of the picture; one interval where all of them see the same. `inputs`: the names of the layers
    whose outputs it reads, two and more where branches join; `recorder.INPUT` is the picture. `call`: how to know it
    again when the network runs: its name without the number, and which call of that name it is, from 1, calls that make
    no layer included; None for what gives no tensor, and for an operation that no call in Python makes.
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
        """The same for a JSON file; of the fields their extents, and their grids or null."""
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
    """The layers of a network in the order in which they run in inference; what they need, in total."""

    layers: tuple[Layer, ...]

    @property
    def parameters(self) -> int:
        """Numbers that inference reads and training changes; those of auxiliary classifiers are not among them."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def multiply_adds(self) -> int:
        """Those of convolutions and matrix products, without biases, as papers count them."""
        return sum(layer.multiply_adds for layer in self.layers)


@dataclass(frozen=True)
class NetworkSize:
    """How large a network is: its `parameters`, the `trainable` ones among them, and its `multiply_adds`."""

    parameters: int
    trainable: int
    multiply_adds: int


def count_network(network: nn.Module, shape: tuple[int, ...]) -> NetworkSize:
    """The size of `network`, with all that it has for training, and what inference takes for an input of `shape`.

    Raises:
        UsageError: it cannot run on such an input.
    """
    parameters = list(network.parameters())
    return NetworkSize(
        parameters=sum(parameter.numel() for parameter in parameters),
        trainable=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        multiply_adds=trace(network, shape).multiply_adds,
    )


def trace(network: nn.Module, shape: tuple[int, ...]) -> Trace:
    """The layers of `network` in inference on an input of `shape`, (1, C, H, W) for one picture.

    Any network will do. It runs once without values, as a copy that has none, so that nothing is computed and nothing
    in `network` is touched, whatever its layers do and however the run ends. Layers are modules that have no others
    inside, and functions that are called between them, except those that only give another view of a tensor.

    Raises:
        UsageError: it cannot run on such an input, or needs values to decide what to do.
    """
    twin = copy_to_meta(network).eval()
    floating = (tensor.dtype for tensor in twin.parameters() if tensor.is_floating_point())
    try:
        picture = torch.empty(shape, device="meta", dtype=next(floating, None))
    except RuntimeError as error:  # more bytes than 64 bits can count, or a negative size
        raise UsageError(f"shape={shape} is no shape of an input; give (N, C, H, W) as it has them") from error
    recorder = OpRecorder(twin, picture)
    try:
        # In inference mode operations arrive whole, so that a dense layer over many positions is seen as one.
        with torch.inference_mode(), torch.device("meta"), FunctionRecorder(recorder), recorder:
            twin(picture)
    except SvertkaError:
        raise
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise UsageError(
            f"{type(network).__name__} cannot be traced with an input of {'×'.join(map(str, shape))}; "
            f"{recorder.where} says: {reason}"
        ) from error
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
    """A copy on the meta device, where tensors have shapes but no values; with PyTorch's own convolutions."""
    # A copy takes what it has copied already from its memo: so these are never copied.
    twin = copy.deepcopy(network, {id(tensor): _empty_like(tensor) for _, tensor in named_tensors(network)})
    for module in twin.modules():
        module._forward_hooks.clear()  # somebody watches the network, but not this run of it
    return restore(twin)


def named_tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors: parameters, buffers, and plain attributes of modules, in lists and dicts, too."""
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
