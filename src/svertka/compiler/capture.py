"""Capture: the operations of a network, recorded while a copy of it runs on meta tensors."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from svertka.compiler.ir import (
    CapturedGraph,
    Constant,
    Operation,
    Shape,
    Value,
    find_overload,
    inputs_of,
    iter_leaves,
    map_leaves,
)
from svertka.compiler.output_structure import OutputStructure
from svertka.compiler.view_writes import View, describe_view
from svertka.errors import SvertkaError, UsageError
from svertka.graph.op_recorder import run_on_meta
from svertka.graph.trace_errors import THE_NETWORK, cannot_be_traced

VIEWS = {"view.default", "_unsafe_view.default"}
READS_MEMORY = {"as_strided", "as_strided_", "as_strided_copy", "set_", "data_ptr", "resize_", "resize_as_", "resize"}
READS_VALUES = {"_local_scalar_dense", "item", "nonzero", "equal", "is_nonzero", "unique_dim", "masked_select"}
COPIES = {"contiguous.default", "clone.default"}  # they return equal values, and may occur for some batch sizes only
COMPARE = {"gt", "ge", "lt", "le", "eq", "ne", "logical_not", "logical_and", "logical_or", "logical_xor"}
DEPENDS_ON_VALUES = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
FROM_NUMBERS = {torch.tensor, torch.as_tensor, torch.asarray}  # functions that make tensors of Python numbers


class CaptureRunError(UsageError):
    """The network raised an error of its own, or one of PyTorch's, while it was captured."""


class GraphCapture(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Captures the operations of one run of a network.

    Writes into a view are propagated to its base, and from there to other views when these are read.

    Args:
        network: the network, named in errors.
        twin: its copy on the meta device, which runs.
        named: names and tensors of `twin`.
        shape: of the input, (N, C, H, W).
        constants: names and tensors of `network`, with values.
        earlier: the capture of the previous run of `twin`, if any. What that run has stored may be read unless it
            depends on the images.

    Raises:
        UsageError: the network makes decisions based on the values of images, writes through an unknown kind of view,
            draws random numbers, changes or stores what the next run reads, or cannot run on such an input.
    """

    def __init__(
        self,
        network: nn.Module,
        twin: nn.Module,
        named: Sequence[tuple[str, Tensor]],
        shape: tuple[int, ...],
        constants: Mapping[str, Tensor],
        earlier: "GraphCapture | None" = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.batch = shape[0]
        self.operations: list[Operation] = []
        self.shapes: dict[int, Shape] = {}
        self.dtypes: dict[int, torch.dtype] = {}
        self.constants = dict(constants)
        self.own: dict[str, Tensor] = {}  # tensors outside of modules, by names assigned here
        self._around: list[str] = []
        self._numbers: dict[int, Value | Constant] = {}  # by the id of a tensor
        self._kept: list[Tensor] = []  # keeps ids unique
        self._in_memory: dict[int, set[int]] = {}  # ids of tensors by storage
        self._stale: dict[int, str] = {}  # id of a tensor modified through another -> module that did it
        self._views: dict[int, View] = {}  # id of a tensor -> how it is a view
        self._placeholders: dict[int, Tensor] = {}  # id of a tensor with values -> meta tensor
        self._made: dict[int, Operation] = {}  # value -> operation that computed it
        self._of_images = {0}  # values computed from the input
        self._values: dict[int, Tensor] = {}  # tensors of values that do not depend on images, computed on demand
        self._looked_at: set[str] = set()
        self._earlier = earlier
        self._originals = {id(tensor): name for name, tensor in constants.items()}
        for name, tensor in named:
            self._numbers[id(tensor)] = Constant(name)
            self._register_memory(tensor)
        image = torch.empty(shape, device="meta", dtype=torch.float32)
        self._add_value(image)
        output = self._run(network, twin, image)
        self.output = OutputStructure.of(output, lambda leaf: self._to_symbol(self._placeholder(leaf)))
        self.recording = CapturedGraph(
            tuple(self.operations),
            self.shapes,
            self.dtypes,
            self.constants | self.own,
            self.output,
            self.batch,
            frozenset(self._looked_at),
        )

    def _run(self, network: nn.Module, twin: nn.Module, image: Tensor) -> Any:
        handles = []
        for path, module in twin.named_modules():
            if isinstance(module, torch.jit.ScriptModule):  # does not accept hooks
                continue
            handles.append(module.register_forward_pre_hook(self._make_enter_hook(path), prepend=True))
            handles.append(module.register_forward_hook(self._leave))
        try:
            # Otherwise TorchScript runs other operations from its second run on.
            with (
                torch.jit.optimized_execution(False),  # type: ignore[attr-defined]
                torch.inference_mode(),
                torch.device("meta"),
                _KeepNumbers(),
                self,
            ):
                return twin(image)
        except SvertkaError:
            raise
        except Exception as error:
            where = self._around[-1] if self._around else ""
            raise CaptureRunError(cannot_be_traced(network, tuple(image.shape), error, where)) from error
        finally:
            for handle in handles:
                handle.remove()

    def depends_on_images(self, value: Value) -> bool:
        """Whether `value` was computed from the input."""
        return value.number in self._of_images

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False: otherwise PyTorch would import its compiler, which takes longer than most captures."""
        return False

    def _make_enter_hook(self, path: str) -> Callable[[nn.Module, Any], None]:
        def enter(_: nn.Module, __: Any) -> None:
            self._around.append(path)

        return enter

    def _leave(self, _: nn.Module, __: Any, ___: Any) -> None:
        self._around.pop()

    @property
    def _place(self) -> str:
        return (self._around[-1] if self._around else "") or THE_NETWORK

    def __torch_dispatch__(self, operation: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = operation.overloadpacket.__name__
        if operation.namespace != "aten":
            raise UsageError(
                f"{self._place} calls {operation.namespace}::{name}, which optimized networks do not support; optimize "
                "the parts before and after"
            )
        if name in READS_MEMORY:
            raise UsageError(f"{self._place} reads memory directly ({name}), whose layout may change; use reshape")
        schema = operation._schema.arguments
        given = dict(zip((argument.name for argument in schema), args, strict=False)) | (kwargs or {})
        given = {key: map_leaves(value, self._placeholder) for key, value in given.items()}
        arguments = {key: map_leaves(value, self._to_symbol) for key, value in given.items()}
        if _reads_values(operation, name, given):
            return self._compute_from_constants(operation, name, arguments)
        self._check_not_random(operation, name, arguments)
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
        if operation_name in VIEWS:  # a feature map in another memory order may need a copy
            operation_name, (x, size) = "reshape.default", arguments.values()
            arguments = {"self": x, "shape": size}
        if operation_name in COPIES and isinstance(arguments["self"], Value):
            self._alias_to(outputs[0], arguments["self"])
            return result
        numbers = tuple(self._add_value(output) if isinstance(output, Tensor) else None for output in outputs)
        self._append(Operation(operation_name, arguments, numbers, self._place))
        if written:
            self._cast_back(target, operation_name, given)
        if not written:
            self._record_views(given.get("self"), operation_name, arguments, outputs)
        elif _memory_layout(target) == before:
            self._write_back(target)
        else:  # such as transpose_, which changes the view itself
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
        """Return the result of an operation that reads values, if it depends only on tensors of the network."""
        if any(isinstance(leaf, Value) and self.depends_on_images(leaf) for leaf in iter_leaves(arguments)):
            raise UsageError(
                f"{self._place} depends on the values of a tensor ({name}), which may differ for each image; "
                "write that part of the network without it, or optimize the parts before and after"
            )
        results = self._compute(Operation(f"{name}.{operation._overloadname}", arguments, (), self._place))
        return results[0] if len(results) == 1 else results

    def _compute(self, operation: Operation) -> tuple[Any, ...]:
        """Return the results of an operation that depends on no image, with values."""

        def value(leaf: Any) -> Any:
            if isinstance(leaf, Constant):
                self._looked_at.add(leaf.name)
                return self.own[leaf.name] if leaf.name in self.own else self.constants[leaf.name]
            return self._values[leaf.number] if isinstance(leaf, Value) else leaf

        waiting, needed = [*inputs_of(operation)], set[int]()
        while waiting:
            number = waiting.pop()
            if number not in needed and number not in self._values:
                needed.add(number)
                waiting += inputs_of(self._made[number])
        for number in sorted(needed):  # each depends on earlier ones only
            made = self._made[number]
            if number not in self._values:
                given = zip(made.results, made.run(value), strict=True)
                self._values |= {result: tensor for result, tensor in given if result is not None}
        return operation.run(value)

    def _check_not_random(self, operation: Any, name: str, arguments: dict[str, Any]) -> None:
        """Raise UsageError if the operation draws random numbers."""
        if torch.Tag.nondeterministic_seeded not in operation.tags:
            return
        settings = {one.name: one.default_value for one in operation._schema.arguments} | arguments
        trains = [settings[key] for key in ("train", "training") if key in settings]
        shares = [settings[key] for key in ("p", "dropout_p", "dropout") if key in settings]
        if not (False in trains or (shares and shares[0] == 0)):
            raise UsageError(
                f"{self._place} draws random numbers ({name}), so that results differ from run to run; for dropout "
                "pass training=self.training"
            )

    def _placeholder(self, leaf: Any) -> Any:
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
                name = f"{self._place}.constant.{len(self.own)}"
                self.own[name] = leaf.detach()
            self._placeholders[id(leaf)] = empty
            self._numbers[id(empty)] = Constant(name)
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
            raise UsageError(
                f"{self._place} writes into a tensor ({name}) in a way that cannot be traced; "
                "use an operation that returns a new tensor"
            )
        return f"{packet}.{overload}"

    def _mark_stale(self, target: Tensor, name: str) -> None:
        """Mark other tensors in the same memory as stale: they are recomputed before they are read."""
        same = self._in_memory.get(target.untyped_storage()._cdata, set())
        for one in same:
            number = self._numbers[one]
            if isinstance(number, Constant):
                raise UsageError(
                    f"{self._place} writes into {number.name} ({name}), which the next run reads; an optimized network "
                    "keeps nothing from one run to the next"
                )
        self._stale |= dict.fromkeys(same - {id(target)}, self._place)

    def _cast_back(self, target: Tensor, name: str, given: dict[str, Any]) -> None:
        """Add a cast if the functional operation `name` does not return the dtype of `target`, its destination."""
        others = (leaf.dtype for leaf in iter_leaves(given) if isinstance(leaf, Tensor))
        if all(other == target.dtype for other in others) and name.split(".")[0] not in COMPARE:
            return
        number = self._numbers[id(target)]
        made = self._run_on_meta(find_overload(name), given)
        if isinstance(number, Value) and made.dtype != target.dtype:
            self.dtypes[number.number] = made.dtype
            self._record_new_value(target, "to.dtype", {"self": number, "dtype": target.dtype})

    def _record_views(self, base: Any, name: str, arguments: Mapping[str, Any], outputs: tuple[Any, ...]) -> None:
        """Remember how `outputs` are views of `base`, if they are."""
        for index, output in enumerate(outputs):
            if not (isinstance(base, Tensor) and isinstance(output, Tensor)) or output is base:
                continue
            if output.untyped_storage()._cdata == base.untyped_storage()._cdata:
                view = describe_view(base, name, arguments, outputs, index)
                if view is not None:
                    self._views[id(output)] = view

    def _write_back(self, written: Tensor) -> None:
        """Write a modified view back into its base, and so on up to the last base."""
        while id(written) in self._views:
            view = self._views[id(written)]
            name, settings = view.put_back
            tensors = {"self": self._numbers[id(written)]}
            if not view.is_whole:
                tensors = {"self": self._numbers[id(view.base)], "src": tensors["self"]}
            self._record_new_value(view.base, name, tensors | dict(settings))
            written = view.base

    def _forget_views(self, tensor: Tensor) -> None:
        same = self._in_memory[tensor.untyped_storage()._cdata]
        self._views = {one: view for one, view in self._views.items() if one not in same}

    def _record_new_value(self, tensor: Tensor, name: str, arguments: Mapping[str, Any]) -> None:
        """Record that `tensor` now holds the result of this operation."""
        self._append(Operation(name, arguments, (self._add_value(tensor),), self._place))

    def _append(self, operation: Operation) -> None:
        self.operations.append(operation)
        self._made |= dict.fromkeys((number for number in operation.results if number is not None), operation)
        if any(number in self._of_images for number in inputs_of(operation)):
            self._of_images.update(number for number in operation.results if number is not None)

    def _add_value(self, tensor: Tensor) -> int:
        number = len(self.shapes)
        self._numbers[id(tensor)] = Value(number)
        self._stale.pop(id(tensor), None)
        self._kept.append(tensor)
        self._register_memory(tensor)
        self.shapes[number], self.dtypes[number] = tuple(tensor.shape), tensor.dtype
        return number

    def _alias_to(self, tensor: Tensor, value: Value) -> None:
        self._numbers[id(tensor)] = value
        self._kept.append(tensor)
        self._register_memory(tensor)

    def _register_memory(self, tensor: Tensor) -> None:
        self._in_memory.setdefault(tensor.untyped_storage()._cdata, set()).add(id(tensor))

    def _to_symbol(self, leaf: Any) -> Any:
        """Return the Value or Constant for a tensor; other arguments unchanged."""
        if isinstance(leaf, torch.device):
            return torch.device("cpu")
        if not isinstance(leaf, Tensor):
            return leaf
        if id(leaf) in self._stale and id(leaf) in self._views:
            view = self._views[id(leaf)]
            name, settings = view.taken
            self._record_new_value(leaf, name, {"self": self._to_symbol(view.base), **settings})
        if id(leaf) in self._stale:
            raise UsageError(
                f"{self._stale[id(leaf)]} writes into a part or another view of a tensor that is read later, which "
                "cannot be traced; make a new tensor there, as torch.where and torch.cat do"
            )
        if id(leaf) in self._numbers:
            return self._numbers[id(leaf)]
        return self._find_stored_tensor(leaf)

    def _find_stored_tensor(self, tensor: Tensor) -> Constant:
        """Return the Constant for a tensor that the previous run has stored, such as a mask."""
        made = None if self._earlier is None else self._earlier._numbers.get(id(tensor))
        if self._earlier is None or made is None:
            raise UsageError(
                f"{self._place} reads a tensor that was made in a way that cannot be traced, such as .data; write it "
                "with operations of PyTorch, or make it a buffer"
            )
        if id(tensor) in self._earlier._stale:
            raise UsageError(
                f"{self._place} reads a tensor that the previous run modified through another view, which "
                "cannot be traced; make a new tensor there, as torch.where and torch.cat do"
            )
        if isinstance(made, Value) and self._earlier.depends_on_images(made):
            raise UsageError(
                f"{self._place} reads what the previous run computed from its images; an optimized network keeps "
                "nothing from one run to the next"
            )
        left = made if isinstance(made, Constant) else Constant(f"left behind {made.number}")
        self._numbers[id(tensor)] = left
        return left


def _memory_layout(tensor: Tensor) -> tuple[Any, ...]:
    """Return shape, strides and offset of a tensor in its storage."""
    return tuple(tensor.shape), tensor.stride(), tensor.storage_offset()


def _reads_values(operation: Any, name: str, given: Mapping[str, Any]) -> bool:
    """Whether the size of the result, or a Python number, depends on the values of tensors."""
    if name == "index":  # only a mask makes the result's size depend on values
        return any(isinstance(one, Tensor) and one.dtype in (torch.bool, torch.uint8) for one in given["indices"])
    return name in READS_VALUES or bool(DEPENDS_ON_VALUES.intersection(operation.tags))


class _KeepNumbers(TorchFunctionMode):
    """Creates tensors of Python numbers on the CPU, with values, while all others are on the meta device."""

    def __torch_function__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
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
    """Return an index with tensors in place of lists of integers."""
    if isinstance(index, tuple):
        return tuple(map(_indices, index))
    numbers = isinstance(index, list) and all(isinstance(leaf, int) for leaf in iter_leaves(index))
    return torch.tensor(index, device="cpu") if numbers and index else index


def _on_cpu(function: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
    holds_tensors = any(isinstance(leaf, Tensor) for leaf in iter_leaves([args, kwargs]))
    return function(*args, **(kwargs if holds_tensors else kwargs | {"device": "cpu"}))
