"""A network's operations written down while a copy of it runs without values."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from svertka.errors import SvertkaError, UsageError
from svertka.graph.operations import Constant, Operation, Recording, Shape, Size, Value, replaced
from svertka.graph.recorder import result_of
from svertka.graph.trace import tensors_of, without_values

BATCHES = 2, 3, 5  # recorded with each: from the first two is told what depends on the batch, the third proves it
VIEWS = {"view.default", "_unsafe_view.default"}
READS_MEMORY = {"as_strided", "as_strided_copy", "set_", "data_ptr"}
READS_VALUES = {"_local_scalar_dense", "item", "nonzero", "equal", "is_nonzero", "unique_dim", "masked_select"}


def record(network: nn.Module, shape: tuple[int, ...]) -> Recording:
    """What `network` does in inference with inputs of `shape`, for any number of pictures where that can be told.

    Nothing is computed, and nothing in `network` is touched. What it decides by an input's shape is decided for good.

    Raises:
        UsageError: it decides by values what to do, writes through a view of a tensor, or cannot run on such an input.
    """
    try:
        recorded = [_Tape(network, (batch, *shape[1:])) for batch in BATCHES]
        merged = _merged(recorded[0], recorded[1])
    except UsageError:  # this network may want the number of pictures that it was given
        merged = recorded = None
    if merged is None or recorded is None or not _is_for(merged, recorded[2], BATCHES[2]):
        merged = _Tape(network, shape).recording
    return merged


class _Tape(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs a copy of a network that has no values, and writes down every operation."""

    def __init__(self, network: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        twin = without_values(network).eval()
        self.batch = shape[0]
        self.operations: list[Operation] = []
        self.shapes: dict[int, Shape] = {}
        self.dtypes: dict[int, torch.dtype] = {}
        self._around: list[str] = []
        self._numbers: dict[int, Value | Constant] = {}  # by the id of a tensor
        self._kept: list[Tensor] = []  # so that no other tensor gets their id
        self._in_memory: dict[int, set[int]] = {}  # ids of tensors by where they lie
        self._stale: dict[int, str] = {}  # ids of tensors that were written into through others, and by whom
        self.constants = dict(tensors_of(network))
        for name, tensor in tensors_of(twin):
            self._numbers[id(tensor)] = Constant(name)
        for path, module in twin.named_modules():
            module.register_forward_pre_hook(self._enterer(path))
            module.register_forward_hook(self._leave)
        floating = (tensor.dtype for tensor in twin.parameters() if tensor.is_floating_point())
        picture = torch.empty(shape, device="meta", dtype=next(floating, None))
        self._new(picture)
        try:
            with torch.inference_mode(), torch.device("meta"), self:
                output = twin(picture)
        except SvertkaError:
            raise
        except Exception as error:
            reason = str(error).strip().split("\n")[0]
            where = self._around[-1] if self._around else ""
            raise UsageError(
                f"{type(network).__name__} cannot be followed with an input of {'×'.join(map(str, shape))}; "
                f"{where or 'the network itself'} says: {reason}"
            ) from error
        self.output = replaced(output, self._seen)
        self.recording = Recording(tuple(self.operations), self.shapes, self.dtypes, self.constants, self.output)

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
        if name in READS_VALUES:
            raise UsageError(
                f"{self._place} decides by the values of a tensor ({name}), which can be different for each picture; "
                "write that part of the network without it, or optimize the parts before and after"
            )
        if name in READS_MEMORY:
            raise UsageError(
                f"{self._place} reads memory as it lies ({name}), which can lie otherwise; reshape instead"
            )
        result = result_of(operation, *args, **(kwargs or {}))
        written = [argument.name for argument in operation._schema.arguments if argument.is_write]
        schema = operation._schema.arguments
        given = dict(zip((argument.name for argument in schema), args, strict=False)) | (kwargs or {})
        arguments = {key: replaced(value, self._seen) for key, value in given.items()}
        if written:
            functional = self._functional(operation, name)
            target = given[written[0]]
            self._overwritten(target)
            outputs: tuple[Any, ...] = (target,)
            operation_name = functional
        else:
            outputs = tuple(result) if isinstance(result, tuple | list) else (result,)
            operation_name = f"{name}.{operation._overloadname}"
        if operation_name in VIEWS:  # of a map that lies in another order it may have to be a copy
            operation_name, (x, size) = "reshape.default", arguments.values()
            arguments = {"self": x, "shape": size}
        numbers = tuple(self._new(output) if isinstance(output, Tensor) else None for output in outputs)
        self.operations.append(Operation(operation_name, arguments, numbers, self._place))
        return result

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

    def _overwritten(self, target: Tensor) -> None:
        """Other tensors over the same memory hold something else now, and must not be read again."""
        same = self._in_memory.get(target.untyped_storage()._cdata, set())
        self._stale |= dict.fromkeys(same - {id(target)}, self._place)

    def _new(self, tensor: Tensor) -> int:
        number = len(self.shapes)
        self._numbers[id(tensor)] = Value(number)
        self._stale.pop(id(tensor), None)
        self._kept.append(tensor)
        self._in_memory.setdefault(tensor.untyped_storage()._cdata, set()).add(id(tensor))
        self.shapes[number], self.dtypes[number] = tuple(tensor.shape), tensor.dtype
        return number

    def _seen(self, leaf: Any) -> Any:
        """What stands for an argument: for tensors their Value or Constant."""
        if isinstance(leaf, torch.device):
            return torch.device("cpu")
        if not isinstance(leaf, Tensor):
            return leaf
        if id(leaf) in self._stale:
            raise UsageError(
                f"{self._stale[id(leaf)]} writes into a part or another view of a tensor that is read later, which "
                "cannot be followed; make a new tensor there, as torch.where and torch.cat do"
            )
        if id(leaf) not in self._numbers:
            raise UsageError(f"{self._place} reads a tensor that belongs to no module; make it a buffer of one")
        return self._numbers[id(leaf)]


def _merged(one: _Tape, other: _Tape) -> Recording | None:
    """What both did, with Size where they differ as their batches do; None where they differ otherwise."""
    step = other.batch - one.batch

    def both(a: Any, b: Any) -> Any:
        if type(a) is int and type(b) is int and a != b:
            if (b - a) % step:
                raise _DifferentError
            each = (b - a) // step
            return Size(each, a - each * one.batch)
        if isinstance(a, list | tuple) and type(a) is type(b) and len(a) == len(b):
            return type(a)([both(x, y) for x, y in zip(a, b, strict=True)])
        if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
            return {key: both(a[key], b[key]) for key in a}
        if a != b:
            raise _DifferentError
        return a

    if len(one.operations) != len(other.operations):
        return None
    try:
        operations = []
        for a, b in zip(one.operations, other.operations, strict=True):
            if (a.name, a.results) != (b.name, b.results):
                return None
            operations.append(Operation(a.name, both(a.arguments, b.arguments), a.results, a.place))
        shapes = both(one.shapes, other.shapes)
    except _DifferentError:
        return None
    return Recording(tuple(operations), shapes, one.dtypes, one.constants, one.output)


class _DifferentError(Exception):
    """Two recordings are not the same network."""


def _is_for(recording: Recording, tape: _Tape, batch: int) -> bool:
    """Whether `tape` did what `recording` says for so many pictures."""

    def sized(leaf: Any) -> Any:
        return leaf.of(batch) if isinstance(leaf, Size) else leaf

    if len(recording.operations) != len(tape.operations):
        return False
    same = all(
        replaced(dict(a.arguments), sized) == b.arguments and a.name == b.name
        for a, b in zip(recording.operations, tape.operations, strict=True)
    )
    return same and replaced(dict(recording.shapes), sized) == tape.shapes
