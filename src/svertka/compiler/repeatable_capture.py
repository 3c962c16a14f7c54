"""Capture of a network for the compiler, with an error for operations whose results may differ in another run."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from svertka.compiler.ir import CapturedGraph
from svertka.compiler.output_structure import OutputStructure
from svertka.errors import UsageError
from svertka.graph.capture import GraphCapture
from svertka.graph.operation_and_value_types import Constant, Value
from svertka.graph.trace_errors import NEW_TENSOR, unknown_tensor_error

READS_MEMORY = {"as_strided", "as_strided_", "as_strided_copy", "set_", "data_ptr", "resize_", "resize_as_", "resize"}
KEEPS_NOTHING = "an optimized network must not keep state between runs"


class StaticGraphCapture(GraphCapture):  # type: ignore[no-untyped-call]
    """A capture of a run whose operations every later run repeats, for any images.

    Args:
        network: The network, for its name in errors.
        twin: Its copy on the meta device, which runs.
        named: Tensors of `twin` by name.
        shape: Shape of the input, (N, C, H, W).
        constants: Tensors of `network` by name, with values.
        earlier: The capture of the previous run of `twin`, if any. Tensors that it stored may be read unless they
            depend on the images.

    Raises:
        UsageError: The network makes decisions based on the values of images, writes through an unknown kind of view,
            draws random numbers, changes or stores what the next run reads, or cannot run on such an input.
    """

    def __init__(
        self,
        network: nn.Module,
        twin: nn.Module,
        named: Sequence[tuple[str, Tensor]],
        shape: tuple[int, ...],
        constants: Mapping[str, Tensor],
        earlier: "StaticGraphCapture | None" = None,
    ) -> None:
        super().__init__(network, twin, named, constants)
        self.batch = shape[0]
        self._earlier = earlier
        output = self.run(shape, torch.float32)
        self.output = OutputStructure.of(output, lambda leaf: self.to_symbol(self.placeholder(leaf)))
        self.recording = CapturedGraph(
            tuple(replace(operation, layer=None) for operation in self.operations),  # layers are not part of the graph
            self.shapes,
            self.dtypes,
            self.constants | self.own,
            self.output,
            self.batch,
            frozenset(self.looked_at),
        )

    def check_operation(self, operation: Any, arguments: Mapping[str, Any]) -> None:
        """Raise UsageError if the operation reads memory, draws random numbers, or is not one of ATen."""
        name = operation.overloadpacket.__name__
        if operation.namespace != "aten":
            raise UsageError(
                f"{self.place} calls {operation.namespace}::{name}, which optimized networks do not support; optimize "
                "the parts before and after"
            )
        if name in READS_MEMORY:
            raise UsageError(f"{self.place} reads memory directly ({name}), whose layout may change; use reshape")
        if torch.Tag.nondeterministic_seeded not in operation.tags:
            return
        settings = {one.name: one.default_value for one in operation._schema.arguments} | dict(arguments)
        trains = [settings[key] for key in ("train", "training") if key in settings]
        shares = [settings[key] for key in ("p", "dropout_p", "dropout") if key in settings]
        if not (False in trains or (shares and shares[0] == 0)):
            raise UsageError(
                f"{self.place} draws random numbers ({name}), so that results differ from run to run; for dropout "
                "pass training=self.training"
            )

    def check_write(self, constant: str, name: str) -> None:
        """Raise UsageError, because the next run would read what is written into a tensor of the network."""
        raise UsageError(f"{self.place} writes into {constant} ({name}), which the next run reads; {KEEPS_NOTHING}")

    def find_unknown_tensor(self, tensor: Tensor) -> Constant:
        """Return the Constant for a tensor that the previous run has stored, such as a mask."""
        made = None if self._earlier is None else self._earlier.numbers.get(id(tensor))
        if self._earlier is None or made is None:
            raise unknown_tensor_error(self.place)
        if id(tensor) in self._earlier.stale:
            raise UsageError(
                f"{self.place} reads a tensor that the previous run modified through another view, which cannot be "
                f"traced; {NEW_TENSOR}"
            )
        if isinstance(made, Value) and self._earlier.depends_on_images(made):
            raise UsageError(f"{self.place} reads what the previous run computed from its images; {KEEPS_NOTHING}")
        left = made if isinstance(made, Constant) else Constant(f"left behind {made.number}")
        self.numbers[id(tensor)] = left
        return left
