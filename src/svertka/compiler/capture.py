"""A network's operations written down while a copy of it runs without values."""

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

VIEWS = {"view.default", "_unsafe_view.default"}
READS_MEMORY = {"as_strided", "as_strided_", "as_strided_copy", "set_", "data_ptr", "resize_", "resize_as_", "resize"}
READS_VALUES = {"_local_scalar_dense", "item", "nonzero", "equal", "is_nonzero", "unique_dim", "masked_select"}
COPIES = {"contiguous.default", "clone.default"}  # as values the same; made for some batch sizes only
COMPARE = {"gt", "ge", "lt", "le", "eq", "ne", "logical_not", "logical_and", "logical_or", "logical_xor"}
DEPENDS_ON_VALUES = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
FROM_NUMBERS = {torch.tensor, torch.as_tensor, torch.asarray}  # tensors of numbers that Python has


class CaptureRunError(UsageError):
    """A network that is followed raises an error of its own, or one of PyTorch's."""


class GraphCapture(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The operations of one run of `twin`, a copy of `network` without values, on an input of `shape`.

    What is written into a view gets into what it is a view of, and from there into other views where these are read.

    `named`: names and tensors of `twin`; `constants`: the same of `network`, with values. `earlier`: the tape of the
    run before, if this is not the first of this twin: what that run has left behind may be read, but not if it depends
    on the images.

    Raises:
        UsageError: it decides by values what to do, writes through a view of a kind that is not known, draws random
            numbers, changes or keeps what the next run reads, or cannot run on such an input.
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
        self.own: dict[str, Tensor] = {}  # tensors that no module holds, by the names that they get here
        self._around: list[str] = []
        self._numbers: dict[int, Value | Constant] = {}  # by the id of a tensor
        self._kept: list[Tensor] = []  # so that no other tensor gets their id
        self._in_memory: dict[int, set[int]] = {}  # ids of tensors by where they lie
        self._stale: dict[int, str] = {}  # ids of tensors that were written into through others, and by whom
        self._views: dict[int, View] = {}  # how tensors lie in others, by their ids
        self._placeholders: dict[int, Tensor] = {}  # of tensors with values, by their id
        self._made: dict[int, Operation] = {}  # what gave each value
        self._of_images = {0}  # values that are computed from the input
        self._values: dict[int, Tensor] = {}  # of values that do not, where they decide something
        self._looked_at: set[str] = set()
        self._earlier = earlier
        self._originals = {id(tensor): name for name, tensor in constants.items()}
        for name, tensor in named:
            self._numbers[id(tensor)] = Constant(name)
            self._lies(tensor)
        picture = torch.empty(shape, device="meta", dtype=torch.float32)
        self._new(picture)
        output = self._run(network, twin, picture)
        self.output = OutputStructure.of(output, lambda leaf: self._seen(self._placeholder(leaf)))
        self.recording = CapturedGraph(
            tuple(self.operations),
            self.shapes,
            self.dtypes,
            self.constants | self.own,
            self.output,
            self.batch,
            frozenset(self._looked_at),
        )

    def _run(self, network: nn.Module, twin: nn.Module, picture: Tensor) -> Any:
        handles = []
        for path, module in twin.named_modules():
            if isinstance(module, torch.jit.ScriptModule):  # takes no hooks
                continue
            handles.append(module.register_forward_pre_hook(self._enterer(path), prepend=True))
            handles.append(module.register_forward_hook(self._leave))
        try:
            # TorchScript would do something else from the second run on.
            with (
                torch.jit.optimized_execution(False),  # type: ignore[attr-defined]
                torch.inference_mode(),
                torch.device("meta"),
                _NumbersStay(),
                self,
            ):
                return twin(picture)
        except SvertkaError:
            raise
        except Exception as error:
            reason = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
            where = self._around[-1] if self._around else ""
            raise CaptureRunError(
                f"{type(network).__name__} cannot be followed with an input of {'×'.join(map(str, picture.shape))}; "
                f"{where or 'the network itself'} says: {reason}"
            ) from error
        finally:
            for handle in handles:
                handle.remove()

    def depends_on_images(self, value: Value) -> bool:
        """Whether `value` was computed from the input."""
        return value.number in self._of_images

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: PyTorch would import its compiler for that, which takes longer than most runs."""
        return False

    def _enterer(self, path: str) -> Callable[[nn.Module, Any], None]:
        def enter(_: nn.Module, __: Any) -> None:
            self._around.append(path)

        return enter

    def _leave(self, _: nn.Module, __: Any, ___: Any) -> None:
        self._around.pop()

    @property
    def _place(self) -> str:
        return (self._around[-1] if self._around else "") or "the network itself"

    def __torch_dispatch__(self, operation: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = operation.overloadpacket.__name__
        if operation.namespace != "aten":
            raise UsageError(
                f"{self._place} calls {operation.namespace}::{name}, which optimized networks do not know; optimize "
                "the parts before and after"
            )
        if name in READS_MEMORY:
            raise UsageError(
                f"{self._place} reads memory as it lies ({name}), which can lie otherwise; reshape instead"
            )
        schema = operation._schema.arguments
        given = dict(zip((argument.name for argument in schema), args, strict=False)) | (kwargs or {})
        given = {key: map_leaves(value, self._placeholder) for key, value in given.items()}
        arguments = {key: map_leaves(value, self._seen) for key, value in given.items()}
        if _looks_at_values(operation, name, given):
            return self._of_constants(operation, name, arguments)
        self._need_no_chance(operation, name, arguments)
        written = [argument.name for argument in schema if argument.is_write]
        before = _lies_in(given[written[0]]) if written else ()
        result = self._result(operation, given)
        if written:
            target = given[written[0]]
            self._overwritten(target, name)
            outputs: tuple[Any, ...] = (target,)
            operation_name = self._functional(operation, name)
        else:
            outputs = tuple(result) if isinstance(result, tuple | list) else (result,)
            operation_name = f"{name}.{operation._overloadname}"
            if any(argument.name == "device" for argument in schema) and not any(
                isinstance(leaf, Value | Constant) for leaf in iter_leaves(arguments)
            ):  # a new tensor: what it is must not depend on the defaults of the time when it is computed
                arguments |= {"device": torch.device("cpu"), "dtype": outputs[0].dtype}
        if operation_name in VIEWS:  # of a map that lies in another order it may have to be a copy
            operation_name, (x, size) = "reshape.default", arguments.values()
            arguments = {"self": x, "shape": size}
        if operation_name in COPIES and isinstance(arguments["self"], Value):
            self._same_as(outputs[0], arguments["self"])
            return result
        numbers = tuple(self._new(output) if isinstance(output, Tensor) else None for output in outputs)
        self._put(Operation(operation_name, arguments, numbers, self._place))
        if written:
            self._cast_back(target, operation_name, given)
        if not written:
            self._viewed(given.get("self"), operation_name, arguments, outputs)
        elif _lies_in(target) == before:
            self._put_back(target)
        else:  # such as transpose_: of what it is a view, and what of it, is another matter now
            self._forgotten(target)
        return result

    def _result(self, operation: Any, given: dict[str, Any]) -> Any:
        """What it gives, without values."""
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
        # PyTorch wants a view of a tensor from outside of inference mode to be such a tensor, too.
        with torch.inference_mode(not tensors or any(tensor.is_inference() for tensor in tensors)):
            return run_on_meta(operation, *positional, **named_only)

    def _of_constants(self, operation: Any, name: str, arguments: dict[str, Any]) -> Any:
        """What an operation that looks at values gives, if it looks at nothing but tensors of the network."""
        if any(isinstance(leaf, Value) and self.depends_on_images(leaf) for leaf in iter_leaves(arguments)):
            raise UsageError(
                f"{self._place} decides by the values of a tensor ({name}), which can be different for each picture; "
                "write that part of the network without it, or optimize the parts before and after"
            )
        results = self._computed(Operation(f"{name}.{operation._overloadname}", arguments, (), self._place))
        return results[0] if len(results) == 1 else results

    def _computed(self, operation: Operation) -> tuple[Any, ...]:
        """What an operation gives that depends on no image."""

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
        for number in sorted(needed):  # each is made of earlier ones
            made = self._made[number]
            if number not in self._values:
                given = zip(made.results, made.run(value), strict=True)
                self._values |= {result: tensor for result, tensor in given if result is not None}
        return operation.run(value)

    def _need_no_chance(self, operation: Any, name: str, arguments: dict[str, Any]) -> None:
        """Raise UsageError if the operation draws random numbers."""
        if torch.Tag.nondeterministic_seeded not in operation.tags:
            return
        settings = {one.name: one.default_value for one in operation._schema.arguments} | arguments
        trains = [settings[key] for key in ("train", "training") if key in settings]
        shares = [settings[key] for key in ("p", "dropout_p", "dropout") if key in settings]
        if not (False in trains or (shares and shares[0] == 0)):
            raise UsageError(
                f"{self._place} draws random numbers ({name}), so that no two runs give the same; for dropout pass "
                "training=self.training"
            )

    def _placeholder(self, leaf: Any) -> Any:
        """For a tensor with values, which does not belong to the copy that runs, one without; others as they are."""
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
            self._lies(empty)
            self._kept += [leaf, empty]
        return self._placeholders[id(leaf)]

    def _functional(self, operation: Any, name: str) -> str:
        """The operation that gives what this one writes into its first argument."""
        packet, overload = name.removesuffix("_"), operation._overloadname
        if name == "copy_":
            return "copy.default"
        if (
            name == packet
            or not hasattr(torch.ops.aten, packet)
            or (overload not in getattr(torch.ops.aten, packet).overloads())
        ):
            raise UsageError(f"{self._place} writes into a tensor ({name}) in a way that cannot be followed")
        return f"{packet}.{overload}"

    def _overwritten(self, target: Tensor, name: str) -> None:
        """Other tensors over the same memory hold something else now, and must be made anew before they are read."""
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
        """What was written into `target` has its dtype, whatever the operation `name` gives elsewhere."""
        others = (leaf.dtype for leaf in iter_leaves(given) if isinstance(leaf, Tensor))
        if all(other == target.dtype for other in others) and name.split(".")[0] not in COMPARE:
            return
        number = self._numbers[id(target)]
        made = self._result(find_overload(name), given)
        if isinstance(number, Value) and made.dtype != target.dtype:
            self.dtypes[number.number] = made.dtype
            self._again(target, "to.dtype", {"self": number, "dtype": target.dtype})

    def _viewed(self, base: Any, name: str, arguments: Mapping[str, Any], outputs: tuple[Any, ...]) -> None:
        """Keep how `outputs` lie in `base`, if they are views of it."""
        for index, output in enumerate(outputs):
            if not (isinstance(base, Tensor) and isinstance(output, Tensor)) or output is base:
                continue
            if output.untyped_storage()._cdata == base.untyped_storage()._cdata:
                view = describe_view(base, name, arguments, outputs, index)
                if view is not None:
                    self._views[id(output)] = view

    def _put_back(self, written: Tensor) -> None:
        """The tensors that `written` is a view of hold what was written into it."""
        while id(written) in self._views:
            view = self._views[id(written)]
            name, settings = view.put_back
            tensors = {"self": self._numbers[id(written)]}
            if not view.is_whole:
                tensors = {"self": self._numbers[id(view.base)], "src": tensors["self"]}
            self._again(view.base, name, tensors | dict(settings))
            written = view.base

    def _forgotten(self, tensor: Tensor) -> None:
        same = self._in_memory[tensor.untyped_storage()._cdata]
        self._views = {one: view for one, view in self._views.items() if one not in same}

    def _again(self, tensor: Tensor, name: str, arguments: Mapping[str, Any]) -> None:
        """What `tensor` holds is now what this operation gives."""
        self._put(Operation(name, arguments, (self._new(tensor),), self._place))

    def _put(self, operation: Operation) -> None:
        self.operations.append(operation)
        self._made |= dict.fromkeys((number for number in operation.results if number is not None), operation)
        if any(number in self._of_images for number in inputs_of(operation)):
            self._of_images.update(number for number in operation.results if number is not None)

    def _new(self, tensor: Tensor) -> int:
        number = len(self.shapes)
        self._numbers[id(tensor)] = Value(number)
        self._stale.pop(id(tensor), None)
        self._kept.append(tensor)
        self._lies(tensor)
        self.shapes[number], self.dtypes[number] = tuple(tensor.shape), tensor.dtype
        return number

    def _same_as(self, tensor: Tensor, value: Value) -> None:
        self._numbers[id(tensor)] = value
        self._kept.append(tensor)
        self._lies(tensor)

    def _lies(self, tensor: Tensor) -> None:
        self._in_memory.setdefault(tensor.untyped_storage()._cdata, set()).add(id(tensor))

    def _seen(self, leaf: Any) -> Any:
        """What stands for an argument: for tensors their Value or Constant."""
        if isinstance(leaf, torch.device):
            return torch.device("cpu")
        if not isinstance(leaf, Tensor):
            return leaf
        if id(leaf) in self._stale and id(leaf) in self._views:
            view = self._views[id(leaf)]
            name, settings = view.taken
            self._again(leaf, name, {"self": self._seen(view.base), **settings})
        if id(leaf) in self._stale:
            raise UsageError(
                f"{self._stale[id(leaf)]} writes into a part or another view of a tensor that is read later, which "
                "cannot be followed; make a new tensor there, as torch.where and torch.cat do"
            )
        if id(leaf) in self._numbers:
            return self._numbers[id(leaf)]
        return self._left_behind(leaf)

    def _left_behind(self, tensor: Tensor) -> Constant:
        """What stands for a tensor that the run before has made: a mask or positions, made once for all runs."""
        made = None if self._earlier is None else self._earlier._numbers.get(id(tensor))
        if self._earlier is None or made is None:
            raise UsageError(
                f"{self._place} reads a tensor that was made in a way that cannot be followed, such as .data; write it "
                "with operations of PyTorch, or make it a buffer"
            )
        if id(tensor) in self._earlier._stale:
            raise UsageError(
                f"{self._place} reads a tensor that the run before has written into through another view of it, which "
                "cannot be followed; make a new tensor there, as torch.where and torch.cat do"
            )
        if isinstance(made, Value) and self._earlier.depends_on_images(made):
            raise UsageError(
                f"{self._place} reads what the run before has computed from its images; an optimized network keeps "
                "nothing from one run to the next"
            )
        left = made if isinstance(made, Constant) else Constant(f"left behind {made.number}")
        self._numbers[id(tensor)] = left
        return left


def _lies_in(tensor: Tensor) -> tuple[Any, ...]:
    """Where a tensor lies in its memory."""
    return tuple(tensor.shape), tensor.stride(), tensor.storage_offset()


def _looks_at_values(operation: Any, name: str, given: Mapping[str, Any]) -> bool:
    """Whether the size of what an operation gives, or a number in Python, depends on the values of tensors."""
    if name == "index":  # by numbers of rows it does not, by a mask it does
        return any(isinstance(one, Tensor) and one.dtype in (torch.bool, torch.uint8) for one in given["indices"])
    return name in READS_VALUES or bool(DEPENDS_ON_VALUES.intersection(operation.tags))


class _NumbersStay(TorchFunctionMode):
    """Tensors that are made of numbers in Python keep them, although all others have no values."""

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
    """An index with tensors in place of lists of numbers."""
    if isinstance(index, tuple):
        return tuple(map(_indices, index))
    numbers = isinstance(index, list) and all(isinstance(leaf, int) for leaf in iter_leaves(index))
    return torch.tensor(index, device="cpu") if numbers and index else index


def _on_cpu(function: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
    holds_tensors = any(isinstance(leaf, Tensor) for leaf in iter_leaves([args, kwargs]))
    return function(*args, **(kwargs if holds_tensors else kwargs | {"device": "cpu"}))
