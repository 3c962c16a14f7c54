"""Capture of a network: the operations of one forward pass, recorded while a copy runs on the meta device.

`GraphCapture` is the base of everything that reads a network as operations: the summary, with its receptive fields and
convolutions, and the compiler.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from svertka.errors import SvertkaError, UsageError
from svertka.graph.layer_calls import LayerCallbacks, LayerCallKey
from svertka.graph.meta_shapes import run_on_meta
from svertka.graph.operation_and_value_types import (
    Constant,
    Operation,
    Value,
    find_operator_by_name,
    iter_leaves,
    map_leaves,
)
from svertka.graph.tensor_views import ViewWithScatter, make_view_with_scatter
from svertka.graph.trace_errors import (
    THE_NETWORK,
    TraceRunError,
    trace_failure_message,
    unknown_tensor_error,
    unknown_write_error,
    value_dependence_error,
    written_part_error,
)

VIEWS = {"view.default", "_unsafe_view.default"}
READS_VALUES = {"_local_scalar_dense", "item", "nonzero", "equal", "is_nonzero", "unique_dim", "masked_select"}
COPIES = {"contiguous.default", "clone.default"}  # they return equal values, and may not occur for every batch size
COMPARE = {"gt", "ge", "lt", "le", "eq", "ne", "logical_not", "logical_and", "logical_or", "logical_xor"}
DEPENDS_ON_VALUES = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
FROM_NUMBERS = {torch.tensor, torch.as_tensor, torch.asarray}  # functions that make tensors from Python numbers


class GraphCapture(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Captures the operations of one run of a network.

    Operations that write are recorded as ones that return a new value. A write into a view is propagated to its base,
    and from there to other views when these are read. Subclasses decide what they refuse (`check_operation`,
    `check_write`, `find_unknown_tensor`), what they decompose (`splits`) and what a layer returns (`leave_layer`).

    Args:
        network: The network, for its name in errors.
        twin: Its copy on the meta device, which runs.
        named: Tensors of `twin` by name.
        constants: Tensors of `network` by name, with values if decisions depend on them.

    Attributes:
        operations: The operations in the order in which they run.
        layers: The calls of layers in the order in which they begin, including functions that only return views or
            compute nothing.
        shapes, dtypes: Shape and dtype of each value, by its number.
        own: Tensors that belong to none of the network's modules, by names assigned here.
        looked_at: Names of the constants whose values decided what was captured.
    """

    def __init__(
        self, network: nn.Module, twin: nn.Module, named: Sequence[tuple[str, Tensor]], constants: Mapping[str, Tensor]
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.network, self.twin = network, twin
        self.operations: list[Operation] = []
        self.layers: list[LayerCallKey] = []
        self.shapes: dict[int, tuple[int, ...]] = {}
        self.dtypes: dict[int, torch.dtype] = {}
        self.constants = dict(constants)
        self.own: dict[str, Tensor] = {}
        self.looked_at: set[str] = set()
        self.numbers: dict[int, Value | Constant] = {}  # by the id of a tensor
        self._kept: list[Tensor] = []  # keeps ids unique
        self._in_memory: dict[int, set[int]] = {}  # ids of tensors by storage
        self.stale: dict[int, str] = {}  # id of a tensor modified through another -> module that modified it
        self._views: dict[int, ViewWithScatter] = {}  # id of a tensor -> the view that it is
        self._placeholders: dict[int, Tensor] = {}  # id of a tensor with values -> its meta tensor
        self.made: dict[int, Operation] = {}  # value -> operation that computed it
        self._of_images = {0}  # values computed from the input
        self._values: dict[int, Tensor] = {}  # tensors of values that do not depend on images, computed on demand
        self._originals = {id(tensor): name for name, tensor in constants.items()}
        for name, tensor in named:
            self.numbers[id(tensor)] = Constant(name)
            self._register_memory(tensor)
        self._tracker: LayerCallbacks | None = None

    def run(self, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Any:
        """Run the network on an input of `shape` and return its output, of meta tensors.

        Raises:
            UsageError: The network cannot be traced with such an input.
        """
        try:
            image = torch.empty(shape, device="meta", dtype=dtype)
        except RuntimeError as error:  # more bytes than 64 bits can count, or a negative size
            raise UsageError(f"shape={shape} is not the shape of an input; give (N, C, H, W)") from error
        self._add_value(image)
        self._tracker = tracker = _CaptureTracker(self.twin, self)
        try:
            with ExitStack() as active:
                # Otherwise TorchScript runs other operations after the first run.
                active.enter_context(torch.jit.optimized_execution(False))  # type: ignore[attr-defined]
                # In inference mode, PyTorch does not decompose operations such as a dense layer over many positions.
                for mode in (torch.inference_mode(), torch.device("meta"), tracker, self):
                    active.enter_context(mode)
                return self.twin(image)
        except SvertkaError:
            raise
        except Exception as error:
            raise TraceRunError(trace_failure_message(self.network, shape, error, tracker.where)) from error
        finally:
            tracker.remove_hooks()

    def splits(self, operation: Any) -> bool:
        """Return whether to record the operations that `operation` decomposes into, instead of itself."""
        return False

    def check_operation(self, operation: Any, arguments: Mapping[str, Any]) -> None:
        """Raise UsageError if the operation is not supported."""

    def check_write(self, constant: str, name: str) -> None:
        """Raise UsageError if the operation `name` must not write into the network's tensor `constant`."""

    def leave_layer(self, call: LayerCallKey, output: Any) -> Any:
        """Handle the output of a layer. Return it, or, for modules, its replacement."""
        return output

    def find_unknown_tensor(self, tensor: Tensor) -> Value | Constant:
        """Return the symbol of a meta tensor that no captured operation has made."""
        if tensor.untyped_storage()._cdata in self._in_memory:
            raise unknown_tensor_error(self.place)
        name = f"{self.place}.constant.{len(self.own)}"
        self.own[name], self.numbers[id(tensor)] = tensor, Constant(name)
        self._kept.append(tensor)
        self._register_memory(tensor)
        return Constant(name)

    def depends_on_images(self, value: Value) -> bool:
        """Return whether `value` was computed from the input."""
        return value.number in self._of_images

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False, so that PyTorch does not import its compiler, which takes longer than most captures."""
        return False

    @property
    def place(self) -> str:
        """The path of the running module, for errors and operations."""
        return (self._tracker.module if self._tracker else "") or THE_NETWORK

    def __torch_dispatch__(self, operation: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.splits(operation):
            with self:
                result = operation.decompose(*args, **(kwargs or {}))
            if result is not NotImplemented:
                return result
        name = operation.overloadpacket.__name__
        if operation.namespace != "aten":
            name = f"{operation.namespace}::{name}"
        schema = operation._schema.arguments
        given = dict(zip((argument.name for argument in schema), args, strict=False)) | (kwargs or {})
        given = {key: map_leaves(value, self.placeholder) for key, value in given.items()}
        arguments = {key: map_leaves(value, self.to_symbol) for key, value in given.items()}
        if _reads_values(operation, name, given):
            return self._compute_from_constants(operation, name, arguments)
        self.check_operation(operation, arguments)
        written = [argument.name for argument in schema if argument.is_write]
        before = _memory_layout(given[written[0]]) if written else ()
        result = self._run_on_meta(operation, given)
        if written:
            target = given[written[0]]
            self._mark_stale(target, name)
            outputs: tuple[Any, ...] = (target,)
            operation_name = self._find_functional_name(operation, name)
        else:
            outputs = tuple(result) if isinstance(result, tuple | list) else (result,)
            operation_name = f"{name}.{operation._overloadname}"
            if any(argument.name == "device" for argument in schema) and not any(
                isinstance(leaf, Value | Constant) for leaf in iter_leaves(arguments)
            ):  # a new tensor must not depend on later defaults of dtype and device
                arguments |= {"device": torch.device("cpu"), "dtype": outputs[0].dtype}
        if operation_name in VIEWS:  # these copy a feature map in some memory orders
            operation_name, (x, size) = "reshape.default", arguments.values()
            arguments = {"self": x, "shape": size}
        if operation_name in COPIES and isinstance(arguments["self"], Value):
            self._alias_to(outputs[0], arguments["self"])
            return result
        numbers = tuple(self._add_value(output) if isinstance(output, Tensor) else None for output in outputs)
        self._append(Operation(operation_name, arguments, numbers, self.place, self._find_layer(name)))
        if written:
            self._cast_back(target, operation_name, given)
        if not written:
            self._record_views(given.get("self"), operation_name, arguments, outputs)
        elif _memory_layout(target) == before:
            self._write_back(target)
        else:  # such as transpose_, which changes the view, not the values
            self._forget_views(target)
        return result

    def _run_on_meta(self, operation: Any, given: dict[str, Any]) -> Any:
        """Return the result of an operation on meta tensors."""
        named = {argument.name for argument in operation._schema.arguments if argument.kwarg_only}
        positional = []
        for argument in operation._schema.arguments:
            if argument.name in named:
                continue
            if argument.name not in given and not argument.has_default_value():
                break
            positional.append(given.get(argument.name, argument.default_value))
        named_only = {key: value for key, value in given.items() if key in named}
        tensors = [leaf for leaf in iter_leaves(given) if isinstance(leaf, Tensor)]
        # A view of a tensor from outside inference mode must be created outside, too.
        with torch.inference_mode(not tensors or any(tensor.is_inference() for tensor in tensors)):
            return run_on_meta(operation, *positional, **named_only)

    def _compute_from_constants(self, operation: Any, name: str, arguments: dict[str, Any]) -> Any:
        """Return the result of an operation that reads values, if they are all of tensors of the network."""
        if any(isinstance(leaf, Value) and self.depends_on_images(leaf) for leaf in iter_leaves(arguments)):
            raise value_dependence_error(self.place, name)
        results = self._compute(Operation(f"{name}.{operation._overloadname}", arguments, (), self.place))
        return results[0] if len(results) == 1 else results

    def _compute(self, operation: Operation) -> tuple[Any, ...]:
        """Return the results, with values, of an operation that does not depend on the input."""

        def value(leaf: Any) -> Any:
            if isinstance(leaf, Constant):
                self.looked_at.add(leaf.name)
                return self.own[leaf.name] if leaf.name in self.own else self.constants[leaf.name]
            return self._values[leaf.number] if isinstance(leaf, Value) else leaf

        waiting, needed = [*operation.inputs], set[int]()
        while waiting:
            number = waiting.pop()
            if number not in needed and number not in self._values:
                needed.add(number)
                waiting += self.made[number].inputs
        for number in sorted(needed):  # each depends on earlier ones only
            made = self.made[number]
            if number not in self._values:
                given = zip(made.results, made.run(value), strict=True)
                self._values |= {result: tensor for result, tensor in given if result is not None}
        return operation.run(value)

    def placeholder(self, leaf: Any) -> Any:
        """Return a meta tensor for a tensor with values that is not part of the copy; other objects unchanged."""
        if isinstance(leaf, torch.device):
            return torch.device("meta")
        if not isinstance(leaf, Tensor) or leaf.is_meta:
            return leaf
        if id(leaf) not in self._placeholders:
            with torch.inference_mode(leaf.is_inference()):
                empty = torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device="meta")
            name = self._originals.get(id(leaf))
            if name is None:
                name = f"{self.place}.constant.{len(self.own)}"
                self.own[name] = leaf.detach()
            self._placeholders[id(leaf)] = empty
            self.numbers[id(empty)] = Constant(name)
            self._register_memory(empty)
            self._kept += [leaf, empty]
        return self._placeholders[id(leaf)]

    def _find_functional_name(self, operation: Any, name: str) -> str:
        """Return the name of the operation that returns what this one writes into its first argument."""
        packet, overload = name.removesuffix("_"), operation._overloadname
        if name == "copy_":
            return "copy.default"
        if (
            name == packet
            or not hasattr(torch.ops.aten, packet)
            or (overload not in getattr(torch.ops.aten, packet).overloads())
        ):
            raise unknown_write_error(self.place, name)
        return f"{packet}.{overload}"

    def _mark_stale(self, target: Tensor, name: str) -> None:
        """Mark other tensors in the same memory as stale: they are recomputed before they are read."""
        same = self._in_memory.get(target.untyped_storage()._cdata, set())
        for one in same:
            number = self.numbers[one]
            if isinstance(number, Constant):
                self.check_write(number.name, name)
        self.stale |= dict.fromkeys(same - {id(target)}, self.place)

    def _cast_back(self, target: Tensor, name: str, given: dict[str, Any]) -> None:
        """Add a cast if the functional operation `name` does not return the dtype of `target`, its destination."""
        others = (leaf.dtype for leaf in iter_leaves(given) if isinstance(leaf, Tensor))
        if all(other == target.dtype for other in others) and name.split(".")[0] not in COMPARE:
            return
        number = self.numbers[id(target)]
        made = self._run_on_meta(find_operator_by_name(name), given)
        if isinstance(number, Value) and made.dtype != target.dtype:
            self.dtypes[number.number] = made.dtype
            self._record_new_value(target, "to.dtype", {"self": number, "dtype": target.dtype})

    def _record_views(self, base: Any, name: str, arguments: Mapping[str, Any], outputs: tuple[Any, ...]) -> None:
        """Record how `outputs` are views of `base`, if they are."""
        for index, output in enumerate(outputs):
            if not (isinstance(base, Tensor) and isinstance(output, Tensor)) or output is base:
                continue
            if output.untyped_storage()._cdata == base.untyped_storage()._cdata:
                view = make_view_with_scatter(base, name, arguments, outputs, index)
                if view is not None:
                    self._views[id(output)] = view

    def _write_back(self, written: Tensor) -> None:
        """Write a modified view back into its base, and so on up to the last base."""
        while id(written) in self._views:
            view = self._views[id(written)]
            name, settings = view.put_back
            tensors = {"self": self.numbers[id(written)]}
            if not view.is_whole:
                tensors = {"self": self.numbers[id(view.base)], "src": tensors["self"]}
            self._record_new_value(view.base, name, tensors | dict(settings))
            written = view.base

    def _forget_views(self, tensor: Tensor) -> None:
        same = self._in_memory[tensor.untyped_storage()._cdata]
        self._views = {one: view for one, view in self._views.items() if one not in same}

    def _record_new_value(self, tensor: Tensor, name: str, arguments: Mapping[str, Any]) -> None:
        """Record that `tensor` now holds the result of this operation."""
        self._append(Operation(name, arguments, (self._add_value(tensor),), self.place))

    def _find_layer(self, operation: str) -> LayerCallKey:
        """Return the layer of the running `operation`; a new one if no function called it."""
        assert self._tracker is not None
        if self._tracker.layer:
            return self._tracker.layer
        path, kind = self._tracker.module, operation.strip("_")
        self.layers.append(LayerCallKey(f"{path}.{kind}" if path else kind, kind, None, is_module=False))
        return self.layers[-1]

    def _append(self, operation: Operation) -> None:
        self.operations.append(operation)
        self.made |= dict.fromkeys((number for number in operation.results if number is not None), operation)
        if any(number in self._of_images for number in operation.inputs):
            self._of_images.update(number for number in operation.results if number is not None)

    def _add_value(self, tensor: Tensor) -> int:
        number = len(self.shapes)
        self.numbers[id(tensor)] = Value(number)
        self.stale.pop(id(tensor), None)
        self._kept.append(tensor)
        self._register_memory(tensor)
        self.shapes[number], self.dtypes[number] = tuple(tensor.shape), tensor.dtype
        return number

    def _alias_to(self, tensor: Tensor, value: Value) -> None:
        self.numbers[id(tensor)] = value
        self._kept.append(tensor)
        self._register_memory(tensor)

    def _register_memory(self, tensor: Tensor) -> None:
        self._in_memory.setdefault(tensor.untyped_storage()._cdata, set()).add(id(tensor))

    def to_symbol(self, leaf: Any) -> Any:
        """Return the Value or Constant for a tensor; other arguments unchanged."""
        if isinstance(leaf, torch.device):
            return torch.device("cpu")
        if not isinstance(leaf, Tensor):
            return leaf
        if id(leaf) in self.stale and id(leaf) in self._views:
            view = self._views[id(leaf)]
            name, settings = view.taken
            self._record_new_value(leaf, name, {"self": self.to_symbol(view.base), **settings})
        if id(leaf) in self.stale:
            raise written_part_error(self.stale[id(leaf)])
        if id(leaf) in self.numbers:
            return self.numbers[id(leaf)]
        return self.find_unknown_tensor(leaf)


def _memory_layout(tensor: Tensor) -> tuple[Any, ...]:
    """Return shape, strides and offset of a tensor in its storage."""
    return tuple(tensor.shape), tensor.stride(), tensor.storage_offset()


def _reads_values(operation: Any, name: str, given: Mapping[str, Any]) -> bool:
    """Return whether the shape of the result, or a Python number, depends on the values of tensors."""
    if name == "index":  # only a mask makes the result's size depend on values
        return any(isinstance(one, Tensor) and one.dtype in (torch.bool, torch.uint8) for one in given["indices"])
    return name in READS_VALUES or bool(DEPENDS_ON_VALUES.intersection(operation.tags))


class _CaptureTracker(LayerCallbacks):
    """Tells the capture which layer runs, and keeps tensors made from Python numbers on the CPU, with values.

    All other tensors are on the meta device.
    """

    def __init__(self, twin: nn.Module, capture: GraphCapture) -> None:
        super().__init__(twin)
        self._capture = capture

    def enter_layer(self, call: LayerCallKey) -> None:
        self._capture.layers.append(call)

    def leave_layer(self, call: LayerCallKey, output: Any) -> Any:
        return self._capture.leave_layer(call, output)

    def call_function(self, function: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        if function in (Tensor.__getitem__, Tensor.__setitem__):
            args = (args[0], _indices(args[1]), *args[2:])
        if function is Tensor.new_tensor:
            like, numbers = args[0], [*args[1:], *(value for key, value in kwargs.items() if key == "data")]
            given = {key: value for key, value in kwargs.items() if key != "data"}
            return _on_cpu(torch.tensor, numbers, {"dtype": like.dtype} | given)
        if function in FROM_NUMBERS:
            return _on_cpu(function, args, kwargs)
        return function(*args, **kwargs)


def _indices(index: Any) -> Any:
    """Return an index whose lists of integers are replaced with tensors."""
    if isinstance(index, tuple):
        return tuple(map(_indices, index))
    numbers = isinstance(index, list) and all(isinstance(leaf, int) for leaf in iter_leaves(index))
    return torch.tensor(index, device="cpu") if numbers and index else index


def _on_cpu(function: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
    holds_tensors = any(isinstance(leaf, Tensor) for leaf in iter_leaves([args, kwargs]))
    return function(*args, **(kwargs if holds_tensors else kwargs | {"device": "cpu"}))
