"""Recording of the operations of a network by layer: inputs, shapes, parameters, multiply-adds and receptive fields."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from svertka.conv_geometry import ReceptiveField
from svertka.graph.receptive_field import FieldAxis, has_field_rule, propagate_field, unite_axes
from svertka.graph.trace_errors import THE_NETWORK

INPUT = "input"  # the name of the image among the inputs of layers
COPIES = ("clone", "_to_copy", "_unsafe_view")  # they return their input, as views do


@dataclass(eq=False)
class LayerRecord:
    """A layer while it runs; the fields are those of `summary.Layer`."""

    name: str
    kind: str
    call: tuple[str, int] | None = None
    shape: tuple[int, ...] = ()
    parameters: int = 0
    multiply_adds: int = 0
    axes: tuple[FieldAxis, ...] = ()
    inputs: dict[str, None] = field(default_factory=dict)  # an ordered set


@dataclass(frozen=True)
class Origin:
    """The dependencies of a tensor.

    Attributes:
        makers: the layers that computed it; empty if it does not depend on the image.
        axes: its receptive fields.
        parameters: ids of the parameters that it was computed from and that no layer has counted yet.
    """

    makers: tuple[str, ...] = ()
    axes: tuple[FieldAxis, ...] = ()
    parameters: frozenset[int] = frozenset()

    def joined(self, other: "Origin") -> "Origin":
        """Return the dependencies of a tensor computed from both."""
        axes = self.axes or other.axes
        if self.axes and other.axes:
            axes = tuple(unite_axes(one, another) for one, another in zip(self.axes, other.axes, strict=True))
        makers = tuple(dict.fromkeys(self.makers + other.makers))
        return Origin(makers, axes, self.parameters | other.parameters)


def layer_name_of_function(function: str, around: str) -> str:
    """Return the layer name of a function called by the module at `around`; in-place variants have the same name."""
    return f"{around}.{function.strip('_')}" if around else function.strip("_")


class FunctionRecorder(TorchFunctionMode):
    """Reports calls of PyTorch functions to the recorder; nested calls are not reported."""

    def __init__(self, recorder: "OpRecorder") -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        with self._recorder.calling(function.__name__) as layer:
            inside = layer.call is not None
            layer.call = layer.call or self._recorder.counted(layer.name)
            result = function(*args, **(kwargs or {}))
            self._recorder.ending(layer, result)
            if result is None and not inside:
                layer.call = None  # it modified a tensor, such as `maps[0] = 1`
            return result


class OpRecorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records every tensor operation while active. `drafts` are the layers of `network` that have run.

    It registers hooks on `network` and does not remove them.
    """

    def __init__(self, network: nn.Module, image: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.drafts: list[LayerRecord] = []
        self._running: list[LayerRecord | str] = []  # paths of the enclosing modules, then the layer
        self._uses = {INPUT: 1}  # how often each name was used
        self._calls: Counter[str] = Counter()
        self._unread = {id(tensor): tensor.numel() for tensor in network.parameters()}
        self._origins: dict[int, Origin] = {}
        self._memory: dict[int, list[Tensor]] = {}  # tensors by storage; kept alive so that ids stay unique
        for tensor in network.parameters():
            self._remember(tensor, Origin(parameters=frozenset([id(tensor)])))
        pixels = {size: ReceptiveField.of_pixels(size) for size in image.shape[2:]}
        axes = tuple(FieldAxis(pixels[size], dim) for dim, size in enumerate(image.shape) if dim >= 2)
        self._remember(image, Origin((INPUT,), axes))
        for path, module in network.named_modules():
            module.register_forward_pre_hook(self._enterer(path))
            module.register_forward_hook(self._leave)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False: otherwise PyTorch would import its compiler, which takes longer than most runs."""
        return False

    @property
    def where(self) -> str:
        """The name of the running layer, or of the module that runs between layers."""
        around = self._running[-1] if self._running else ""
        return around.name if isinstance(around, LayerRecord) else around or THE_NETWORK

    @contextmanager
    def calling(self, function: str) -> Iterator[LayerRecord]:
        """Yield the layer that the function `function` belongs to.

        A function called between layers is a layer of its own, unless it only returns a view.
        """
        around = self._running[-1] if self._running else ""
        if isinstance(around, LayerRecord):
            yield around
            return
        layer = LayerRecord(layer_name_of_function(function, around), function.strip("_"))
        self._running.append(layer)
        yield layer  # an exception ends the run, so this needs no finally
        self._running.pop()

    def counted(self, name: str) -> tuple[str, int]:
        """Count a call of `name`. Return the name and the number of calls so far."""
        self._calls[name] += 1
        return name, self._calls[name]

    def ending(self, layer: LayerRecord, output: Any) -> None:
        """Store the shape and receptive fields of a layer's output; of several tensors, the first."""
        first = next((leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)), None)
        if first is not None:
            layer.shape, layer.axes = tuple(first.shape), self._origin(first).axes

    def _enterer(self, path: str) -> Callable[[nn.Module, Any], None]:
        def enter(module: nn.Module, _: Any) -> None:
            around = self._running[-1] if self._running else ""
            if isinstance(around, LayerRecord):
                self._running.append(around)  # a module inside a layer
            elif next(module.children(), None) is None:
                kind = type(module).__name__
                name = path or kind
                self._running.append(self._listed(LayerRecord(name, kind, self.counted(name))))
            else:
                self._running.append(path)

        return enter

    def _leave(self, _: nn.Module, __: Any, output: Any) -> Any:
        layer = self._running.pop()
        if isinstance(layer, LayerRecord) and layer not in self._running:
            if isinstance(output, Tensor) and self._origin(output).makers != (layer.name,):
                self._running.append(layer)
                output = output.view_as(output)  # a layer that returns its input still gets an output of its own
                self._running.pop()
            self.ending(layer, output)
        return output

    def __torch_dispatch__(self, operation: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not has_field_rule(operation):
            with self:
                result = operation.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = run_on_meta(operation, *args, **kwargs)
        with self.calling(operation.overloadpacket.__name__) as layer:  # if no function called it
            self._record(layer, operation, args, kwargs, result)
            self.ending(layer, result)
        return result

    def _record(self, layer: LayerRecord, operation: Any, args: Any, kwargs: Any, result: Any) -> None:
        arguments = _defaults(operation) | dict(zip(_defaults(operation), args, strict=False)) | kwargs
        inputs = {id(tensor): tensor for tensor in _tensors(arguments.values())}
        origins = {number: self._origins[number] for number in inputs if number in self._origins}
        does_something = not (operation.is_view or operation.overloadpacket.__name__ in COPIES)
        if does_something and any(origin.makers for origin in origins.values()):
            self._listed(layer)
        listed = bool(self.drafts) and self.drafts[-1] is layer
        for output in _tensors([result]):
            whole = Origin()
            for number, origin in origins.items():
                axes = tuple(
                    propagate_field(operation, arguments, inputs[number], axis, output) for axis in origin.axes
                )
                whole = whole.joined(Origin(origin.makers, axes, origin.parameters))
            if listed:
                whole = Origin((layer.name,) if whole.makers else (), whole.axes)
            if id(output) in inputs:
                self._overwrite(output, whole)
            else:
                self._remember(output, whole)
        if listed:
            for origin in origins.values():
                layer.inputs |= dict.fromkeys(maker for maker in origin.makers if maker != layer.name)
                layer.parameters += sum(self._unread.pop(parameter, 0) for parameter in origin.parameters)
            layer.multiply_adds += _multiply_adds(operation, args, kwargs, result)

    def _listed(self, layer: LayerRecord) -> LayerRecord:
        """Append `layer` to `drafts` with a unique name, unless it is there already."""
        if not self.drafts or self.drafts[-1] is not layer:
            use = self._uses[layer.name] = self._uses.get(layer.name, 0) + 1
            layer.name += f":{use}" if use > 1 else ""
            self.drafts.append(layer)
        return layer

    def _origin(self, tensor: Tensor) -> Origin:
        return self._origins.get(id(tensor), Origin())

    def _remember(self, tensor: Tensor, origin: Origin) -> None:
        self._origins[id(tensor)] = origin
        self._memory.setdefault(tensor.untyped_storage()._cdata, []).append(tensor)

    def _overwrite(self, tensor: Tensor, origin: Origin) -> None:
        """Update the origin of `tensor` and of every tensor in the same memory."""
        scattered = Origin(origin.makers, tuple(axis.gathered() for axis in origin.axes), origin.parameters)
        for other in self._memory.get(tensor.untyped_storage()._cdata, []):
            places = [(one.shape, one.stride(), one.storage_offset()) for one in (tensor, other)]
            same = places[0] == places[1]
            self._origins[id(other)] = origin if same else self._origin(other).joined(scattered)
        self._origins[id(tensor)] = origin


def run_on_meta(operation: Any, *args: Any, **kwargs: Any) -> Any:
    """Return the result of an operation on meta tensors.

    Common operations are handled here: PyTorch implements them in Python for meta tensors, which is slower and imports
    its compiler, a second or two.
    """
    name, inputs = operation.overloadpacket.__name__, args[0]
    if name == "relu_":
        return inputs
    if name == "relu":
        return inputs.new_empty(inputs.shape)
    if name == "linear" and inputs.shape[-1:] == args[1].shape[-1:]:
        return inputs.new_empty((*inputs.shape[:-1], args[1].shape[0]))
    if name == "native_batch_norm" and not args[5]:
        return inputs.new_empty(inputs.shape), inputs.new_empty(0), inputs.new_empty(0)
    return operation(*args, **kwargs)


def _multiply_adds(operation: Any, args: Any, kwargs: Any, result: Any) -> int:
    """Return the multiply-adds of a convolution or matrix product, otherwise 0."""
    if operation.overloadpacket is torch.ops.aten.linear:
        return int(result.numel() * args[0].shape[-1])
    formula = flop_registry.get(operation.overloadpacket)
    return int(formula(*args, **kwargs, out_val=result)) // 2 if formula else 0


@cache
def _defaults(operation: Any) -> dict[str, Any]:
    """Return the arguments of an operation in order, with their default values."""
    return {argument.name: argument.default_value for argument in operation._schema.arguments}


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    """Return the tensors among values and in their lists."""
    flat = [one for value in values for one in (value if isinstance(value, list | tuple) else (value,))]
    return [one for one in flat if isinstance(one, Tensor)]
