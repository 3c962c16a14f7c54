"""The layers of any network: shapes, parameters, multiply-adds, receptive fields and convolutions."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry

from svertka.conv_shape import ConvShape
from svertka.graph.capture import GraphCapture
from svertka.graph.layer_calls import LayerCallKey, first_tensor
from svertka.graph.map_layout import (
    Layout,
    MapLayout,
    input_layout,
    map_layout_of_tensor,
    propagate_layout,
    reads_image_tokens,
)
from svertka.graph.network_copy import copy_with_meta_tensors, named_tensors
from svertka.graph.operation_and_value_types import (
    Constant,
    Operation,
    Value,
    find_operator_by_name,
    iter_leaves,
    map_leaves,
)
from svertka.graph.receptive_field import ReceptiveField
from svertka.graph.receptive_field_rules import (
    ReceptiveFieldAxis,
    ShapeAndSymbol,
    has_field_rule,
    propagate_field,
    unite_field_axes,
)

INPUT = "input"  # name of the image among the inputs of layers
COPIES = ("clone", "_to_copy", "_unsafe_view")  # like views, they return their input


@dataclass(frozen=True)
class Layer:
    """One call of a layer in a forward pass.

    Attributes:
        name: The path of the module, such as "layer1.0.conv2"; for a function, the path of the calling module and the
            name of the function, such as "layer1.0.add". Repeated calls get the suffixes ":2", ":3".
        kind: The class, or the function.
        shape: Shape of the output.
        parameters: Number of parameters that it reads and no earlier layer has read.
        multiply_adds: Multiply-adds of convolutions and matrix products, without biases.
        fields: Receptive fields along each axis of the image; a single interval if all units have the same. Those of
            tokens with known positions are of the rows and of the columns of `maps`.
        inputs: Names of the layers whose outputs it reads; `INPUT` is the image.
        call: The name without suffix and the number of the call, from 1, which identify the call in another pass.
            None if the layer returns no tensor, or is an operation that is not called from Python.
        maps: How to read the output as feature maps; None if it holds none or their positions are unknown.
        conv_arguments: Arguments of its convolution for `ConvShape.of`; None without a convolution, or if it is
            transposed.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    multiply_adds: int
    fields: tuple[ReceptiveField, ...]
    inputs: tuple[str, ...]
    call: tuple[str, int] | None
    maps: MapLayout | None = field(default=None, repr=False)
    conv_arguments: tuple[Any, ...] | None = field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, with the extents of the receptive fields and their grids (None if irregular)."""
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

    @property
    def convolutions(self) -> dict[str, ConvShape]:
        """The shapes of the convolutions, by layer. Padding by a separate operation counts as part of the input."""
        return {layer.name: ConvShape.of(*layer.conv_arguments) for layer in self.layers if layer.conv_arguments}


@dataclass(frozen=True)
class NetworkSize:
    """The number of parameters of a network, those that are trainable, and the multiply-adds of inference."""

    parameters: int
    trainable: int
    multiply_adds: int


def measure_network_size(network: nn.Module, shape: tuple[int, ...]) -> NetworkSize:
    """Return the size of `network`, including layers that only run in training.

    Args:
        network: Any nn.Module.
        shape: Shape of the input, (1, C, H, W).

    Raises:
        UsageError: The network cannot be traced with such an input.
    """
    return sum_up_network_size(network, trace(network, shape))


def sum_up_network_size(network: nn.Module, traced: Trace) -> NetworkSize:
    """Return the size of `network`, whose layers in inference are those of `traced`."""
    parameters = list(network.parameters())
    return NetworkSize(
        parameters=sum(parameter.numel() for parameter in parameters),
        trainable=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        multiply_adds=traced.multiply_adds,
    )


def trace(network: nn.Module, shape: tuple[int, ...]) -> Trace:
    """Return the layers of `network` in inference.

    A copy of the network runs on the meta device: nothing is computed and `network` is not changed. Layers are modules
    without children, and functions called between them, except those that only return a view.

    Args:
        network: Any nn.Module.
        shape: Shape of the input, (1, C, H, W) for one image.

    Raises:
        UsageError: The network cannot run on such an input, or makes decisions based on values.
    """
    return Trace(tuple(_LayerAnalysis(capture_layers(network, shape), shape).layers()))


def capture_layers(network: nn.Module, shape: tuple[int, ...]) -> "LayerCapture":
    """Return the operations of `network` in inference, and the outputs of its layers.

    Args and errors are those of `trace`.
    """
    twin, named = copy_with_meta_tensors(network, hooks=False)
    capture = LayerCapture(network, twin, named, dict(named_tensors(network)))
    floating = (tensor.dtype for tensor in twin.parameters() if tensor.is_floating_point())
    capture.run(shape, next(floating, None))
    return capture


class LayerCapture(GraphCapture):  # type: ignore[no-untyped-call]
    """A capture in which every operation has a rule for receptive fields and every layer has its own output.

    Attributes:
        outputs: Shape and number of each layer's first output tensor; None for a tensor that does not depend on images.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.outputs: dict[LayerCallKey, tuple[tuple[int, ...], int | None]] = {}  # shape and number

    def splits(self, operation: Any) -> bool:
        """Return whether the operation has no rule."""
        return not has_field_rule(operation)

    def leave_layer(self, call: LayerCallKey, output: Any) -> Any:
        """Record the layer's first output tensor. A module that returns its input returns a view of it instead."""
        if call.is_module and isinstance(output, Tensor) and output.is_meta:
            value = self.to_symbol(output)
            made = self.made.get(value.number) if isinstance(value, Value) else None
            if made is None or made.layer is not call:
                output = torch.ops.aten.alias.default(output)
        tensor = self.placeholder(first_tensor(output))
        if tensor is not None:
            value = self.to_symbol(tensor) if id(tensor) in self.numbers else None
            self.outputs[call] = tuple(tensor.shape), value.number if isinstance(value, Value) else None
        return output


@dataclass
class _Origin:
    """The layers, receptive fields and parameters that a tensor depends on.

    Attributes:
        makers: The layers that computed it; empty if it does not depend on the image.
        axes: Its receptive fields.
        parameters: Ids of the parameters that it was computed from and that no layer has counted yet.
    """

    makers: tuple[LayerCallKey, ...] = ()
    axes: tuple[ReceptiveFieldAxis, ...] = ()
    parameters: frozenset[int] = frozenset()

    def joined(self, other: "_Origin") -> "_Origin":
        """Return the origin of a tensor computed from both."""
        axes = self.axes or other.axes
        if self.axes and other.axes:
            axes = tuple(unite_field_axes(one, another) for one, another in zip(self.axes, other.axes, strict=True))
        return _Origin(tuple(dict.fromkeys(self.makers + other.makers)), axes, self.parameters | other.parameters)


@dataclass
class _Draft:
    """A layer whose operations are still being read; the keys of `inputs` are an ordered set."""

    output: int | None = None
    parameters: int = 0
    multiply_adds: int = 0
    convolution: tuple[Any, ...] | None = None
    inputs: dict[LayerCallKey, None] = field(default_factory=dict)


class _LayerAnalysis:
    """Derives the layers of a capture from its operations."""

    def __init__(self, capture: LayerCapture, shape: tuple[int, ...]) -> None:
        self._capture = capture
        self._image = LayerCallKey(INPUT, INPUT, None, is_module=False)
        self._drafts = {call: _Draft() for call in capture.layers if call.is_module}
        parameters = list(capture.network.parameters())
        self._unread = {id(tensor): tensor.numel() for tensor in parameters}
        self._parameters = {name: id(one) for name, one in capture.constants.items() if id(one) in self._unread}
        pixels = {size: ReceptiveField.of_pixels(size) for size in shape[2:]}
        axes = tuple(ReceptiveFieldAxis(pixels[size], dim) for dim, size in enumerate(shape) if dim >= 2)
        self._origins = {0: _Origin((self._image,), axes)}
        self._layouts: dict[int, Layout | None] = {0: input_layout(shape)}
        self._reads: list[
            tuple[Any, dict[str, Any], ShapeAndSymbol, int]
        ] = []  # an operation, its operand and its result
        self._unused: set[int] = set()  # further results of operations, such as the means of a norm
        for operation in capture.operations:
            self._read(operation)
        self._read_positions = self._find_read_positions()

    def layers(self) -> Iterator[Layer]:
        """Yield the layers in the order in which they run."""
        names, uses = {self._image: INPUT}, Counter([INPUT])
        for call in self._capture.layers:
            draft = self._drafts.get(call)
            if draft is None:
                continue
            uses[call.name] += 1
            names[call] = call.name if uses[call.name] == 1 else f"{call.name}:{uses[call.name]}"
            shape, number = self._capture.outputs.get(call, ((), None))
            if call not in self._capture.outputs and draft.output is not None:  # it returns nothing: `maps[0] = 1`
                shape, number = self._capture.shapes[draft.output], draft.output
            axes = () if number is None else self._origins[number].axes
            maps = self._find_maps(number, axes)
            yield Layer(
                name=names[call],
                kind=call.kind,
                shape=shape,
                parameters=draft.parameters,
                multiply_adds=draft.multiply_adds,
                fields=_fields_of_maps(axes, maps),
                inputs=tuple(names[maker] for maker in draft.inputs),
                call=call.key if call in self._capture.outputs else None,
                maps=maps,
                conv_arguments=draft.convolution,
            )

    def _read(self, operation: Operation) -> None:
        """Add an operation to its layer and derive the origins of its results."""
        call, overload = operation.layer, find_operator_by_name(operation.name)
        defaults = {argument.name: argument.default_value for argument in overload._schema.arguments}
        arguments = defaults | map_leaves(dict(operation.arguments), self._operand)
        operands = [leaf for leaf in iter_leaves(arguments) if isinstance(leaf, ShapeAndSymbol)]
        self._unused |= {number for number in operation.results[1:] if number is not None}
        self._unused -= set(operation.inputs)
        origins = [self._origin(operand) for operand in operands]
        is_copy = overload.is_view or operation.name.partition(".")[0] in COPIES
        if call and not is_copy and any(origin.makers for origin in origins):
            self._drafts.setdefault(call, _Draft())
        draft = self._drafts.get(call) if call else None
        for number in operation.results:
            if number is not None:
                shape = self._capture.shapes[number]
                origin = self._combine(overload, arguments, list(zip(operands, origins, strict=True)), shape)
                self._layouts[number] = propagate_layout(
                    overload, arguments, [(one, self._layout(one)) for one in operands], shape
                )
                self._reads += [(overload, arguments, one, number) for one in operands if self._layout(one)]
                if call and draft:
                    origin = _Origin((call,) if origin.makers else (), origin.axes)
                self._origins[number] = origin
        if draft:
            draft.output = next((one for one in operation.results if one is not None), draft.output)
            for origin in origins:
                draft.inputs |= dict.fromkeys(maker for maker in origin.makers if maker is not call)
                draft.parameters += sum(self._unread.pop(parameter, 0) for parameter in origin.parameters)
            draft.multiply_adds += self._multiply_adds(operation, overload)
            draft.convolution = _conv_arguments(overload, arguments) or draft.convolution

    def _combine(
        self,
        overload: Any,
        arguments: dict[str, Any],
        inputs: list[tuple["ShapeAndSymbol", _Origin]],
        shape: tuple[int, ...],
    ) -> _Origin:
        """Return the origin of a result of `shape`, given those of the operands."""
        whole = _Origin()
        for operand, origin in inputs:
            axes = tuple(
                propagate_field(overload, arguments, operand, axis, ShapeAndSymbol(shape)) for axis in origin.axes
            )
            whole = whole.joined(_Origin(origin.makers, axes, origin.parameters))
        return whole

    def _layout(self, operand: ShapeAndSymbol) -> Layout | None:
        symbol = operand.symbol
        return self._layouts.get(symbol.number) if isinstance(symbol, Value) else None

    def _find_maps(self, number: int | None, axes: tuple[ReceptiveFieldAxis, ...]) -> MapLayout | None:
        """Return how to read a value with receptive fields `axes` as feature maps."""
        if number is None:
            return None
        shape, layout = self._capture.shapes[number], self._layouts.get(number)
        maps = layout and map_layout_of_tensor(layout, shape, is_read=number in self._read_positions)
        # Otherwise the first dimension counts windows of the images, too.
        return maps if maps and axes and shape[maps.dims[0]] == self._capture.shapes[0][0] else None

    def _find_read_positions(self) -> set[int]:
        """Return the numbers of the values whose positions the network reads."""
        found: set[int] = set()
        for overload, arguments, operand, result in reversed(self._reads):
            layout = self._layout(operand)
            if layout is None or result in self._unused:
                continue
            if reads_image_tokens(overload, arguments, operand, layout, self._layouts.get(result), result in found):
                found.add(operand.symbol.number)
        return found

    def _operand(self, leaf: Any) -> Any:
        """Return the ShapeAndSymbol of a Value or Constant; other arguments unchanged."""
        return ShapeAndSymbol(self._shape(leaf), leaf) if isinstance(leaf, Value | Constant) else leaf

    def _shape(self, leaf: Value | Constant) -> tuple[int, ...]:
        if isinstance(leaf, Value):
            return self._capture.shapes[leaf.number]
        own = self._capture.own.get(leaf.name)
        return tuple((self._capture.constants[leaf.name] if own is None else own).shape)

    def _origin(self, operand: ShapeAndSymbol) -> _Origin:
        symbol = operand.symbol
        if isinstance(symbol, Constant):
            parameter = self._parameters.get(symbol.name)
            return _Origin() if parameter is None else _Origin(parameters=frozenset([parameter]))
        return self._origins[symbol.number]

    def _multiply_adds(self, operation: Operation, overload: Any) -> int:
        """Return the multiply-adds of a convolution or matrix product, otherwise 0."""

        def shape(leaf: Any) -> Any:
            return torch.Size(self._shape(leaf)) if isinstance(leaf, Value | Constant) else leaf

        positional, named = operation.bind(shape)
        results = [torch.Size(self._capture.shapes[one]) for one in operation.results if one is not None]
        if overload.overloadpacket is torch.ops.aten.linear:
            return math.prod(results[0]) * int(positional[0][-1])
        formula = flop_registry.get(overload.overloadpacket)
        if formula is None:
            return 0
        return int(formula(*positional, **named, out_val=results[0] if len(results) == 1 else results)) // 2


def _fields_of_maps(axes: Sequence[ReceptiveFieldAxis], maps: MapLayout | None) -> tuple[ReceptiveField, ...]:
    """Return the receptive fields of a value; those of tokens become those of the rows and columns of its maps."""
    fields = tuple(axis.field for axis in axes)
    if maps is None or len(fields) != 2 or maps.dims[2] != maps.dims[3] or any(len(f.intervals) == 1 for f in fields):
        return fields
    rows, columns = maps.size
    taps = [[maps.start + row * columns + column for column in range(columns)] for row in range(rows)]
    return fields[0].reading(taps), fields[1].reading([list(column) for column in zip(*taps, strict=True)])


def _conv_arguments(overload: Any, arguments: dict[str, Any]) -> tuple[Any, ...] | None:
    """Return the arguments of `ConvShape.of` if the operation is a convolution of images, otherwise None."""
    if overload.overloadpacket is not torch.ops.aten.convolution or arguments["transposed"]:
        return None
    weight = arguments["weight"].shape
    settings = [tuple(arguments[name]) for name in ("stride", "padding", "dilation")]
    return (arguments["input"].shape, weight, *settings, arguments["groups"]) if len(weight) == 4 else None
