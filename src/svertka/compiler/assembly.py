"""Steps while they are put together: those that are there already, and what the rules need to know of them."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from svertka.compiler.ir import Recording, Value
from svertka.compiler.steps import Convolution, Step


def plain_tensor(tensor: Tensor) -> Tensor:
    """The numbers of a tensor, whatever subclass it is of, and not as a negative view."""
    return tensor.detach().as_subclass(Tensor).resolve_conj().resolve_neg()


class Assembly:
    """The steps that a recording's operations have become so far; rules look at them and change them."""

    def __init__(self, recording: Recording) -> None:
        self.shapes: Mapping[int, Any] = recording.shapes
        self.dtypes = recording.dtypes
        self.tensors: dict[str, Tensor] = {name: plain_tensor(one) for name, one in recording.constants.items()}
        self.same: dict[int, Any] = {}  # values that are another value or a constant
        self.steps: dict[int, Step] = {}  # by the (first) value that they give, in order
        self.uses: Counter[int] = Counter()  # by operations and by the output

    def resolved(self, leaf: Any) -> Any:
        """`leaf`, or what it is the same as."""
        while isinstance(leaf, Value) and leaf.number in self.same:
            leaf = self.same[leaf.number]
        return leaf

    def is_map(self, value: Any) -> bool:
        """Whether it is (N, C, H, W) float32, with something in it, and of one size whatever N is."""
        return self._is_of_rank(value, 4)

    def is_rows(self, value: Any) -> bool:
        """Whether it is (N, C) float32, with something in it, and C is one number whatever N is."""
        return self._is_of_rank(value, 2)

    def _is_of_rank(self, value: Any, rank: int) -> bool:
        if not isinstance(value, Value) or not self.is_float(value):
            return False
        shape = self.shapes[value.number]
        return len(shape) == rank and 0 not in shape and all(isinstance(side, int) for side in shape[1:])

    def is_float(self, value: Value) -> bool:
        """Whether it is float32."""
        return self.dtypes[value.number] == torch.float32

    def are_float(self, *names: str | None) -> bool:
        """Whether tensors of these names are float32, where there is a name."""
        return all(self.tensors[name].dtype == torch.float32 for name in names if name is not None)

    def producer(self, value: Any) -> Any:
        """The step that gives `value`, if nothing but the operation at hand reads it."""
        return self.steps.get(value.number) if isinstance(value, Value) and self.uses[value.number] == 1 else None

    def put(self, step: Step, result: int) -> bool:
        """`step` as the last one."""
        self.steps[result] = step
        return True

    def put_in_place_of(self, value: int, step: Step, result: int) -> bool:
        """`step` as the last one, without the one that gave `value`."""
        del self.steps[value]
        return self.put(step, result)

    def tensor(self, name: str, tensor: Tensor) -> str:
        """`name`, under which `tensor` now is."""
        self.tensors[name] = tensor.float().contiguous()
        return name

    def bias(self, name: str | None, place: str, result: int) -> str | None:
        """The name of a bias as kernels read it, numbers that follow each other."""
        if name is None or self.tensors[name].is_contiguous():
            return name
        return self.tensor(f"{place}.bias.{result}", self.tensors[name])

    def scaled(self, step: Convolution, result: int, scale: Tensor, shift: Tensor | None) -> Convolution:
        """`step` with its results times `scale`, (O) or a number, plus `shift`, (O)."""
        weight = self.tensors[step.weight].double()
        scale = scale.double().expand(len(weight))
        bias = weight.new_zeros(len(weight)) if step.bias is None else self.tensors[step.bias].double()
        bias = bias * scale + (0 if shift is None else shift.double())
        names = f"{step.place}.folded.{result}.weight", f"{step.place}.folded.{result}.bias"
        return replace(
            step,
            result=result,
            weight=self.tensor(names[0], weight * scale[:, None, None, None]),
            bias=self.tensor(names[1], bias),
        )
