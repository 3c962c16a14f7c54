"""A network compiled for images of one size: its steps, packed weights, and an execution plan for each batch size."""

import dataclasses
import math
import threading
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor

from svertka.compiler import reference
from svertka.compiler.capture_at_several_batch_sizes import CAPTURED_BATCH_SIZES, SameGraphChecker
from svertka.compiler.executor import ExecutionPlan
from svertka.compiler.fusion import FusedNetwork
from svertka.compiler.int8_packing import PackedInt8Weights
from svertka.compiler.ir import FusedConvolution
from svertka.compiler.packing import PackedWeights
from svertka.compiler.serialize import OptimizationRecord
from svertka.errors import UsageError
from svertka.pages.number_format import count_with_noun

MAX_PLANS = 8  # batch sizes for which memory is kept
CHECKED_BATCH_SIZES = 1, 3, 2  # compared besides the example's, until there are three
SAVED_BATCH_SIZES = 0, 1, 7, 16, 33, 100, 256, 1000  # checked before a network is saved for any batch size


@dataclasses.dataclass(frozen=True)
class OptimizedLayer:
    """A convolution or a dense layer of an optimized network.

    Attributes:
        name: Path of the module in the original network.
        kernel: How it is computed: "winograd", "direct", "depthwise", "grouped", "int8", "int8-depthwise", or "torch"
            without kernels.
        shape: Shape of its weights, (O, C / groups, kh, kw).
        precision: Precision of the stored weights, "fp32", "bf16" or "int8".
    """

    name: str
    kernel: str
    shape: tuple[int, ...]
    precision: str


class CompiledNetwork:
    """A network compiled for images of one size. It may run in several threads at once.

    Args:
        fused: The steps, and the tensors that are not packed.
        packed: Packed weights by name; empty without kernels.
        info: As below.
        repeats: Returns whether the original network computes the same graph for a batch size. None: it always does.

    Attributes:
        info: The shape of the example, the settings, and the error on the example.
    """

    def __init__(
        self,
        fused: FusedNetwork,
        packed: Mapping[str, PackedWeights | PackedInt8Weights],
        info: OptimizationRecord,
        repeats: SameGraphChecker | None,
    ) -> None:
        self.fused, self.packed, self.info, self._repeats = fused, packed, info, repeats
        self._same = {*CAPTURED_BATCH_SIZES, info.example[0]}  # batch sizes that were captured
        self._plans: dict[int, ExecutionPlan] = {}
        self._lock = threading.Lock()

    @property
    def layers(self) -> tuple[OptimizedLayer, ...]:
        """The convolutions and dense layers, in the order in which they run."""
        return tuple(self._describe_layer(step) for step in self.fused.steps if isinstance(step, FusedConvolution))

    def run(self, x: Tensor) -> Any:
        """Return what the network returns for `x`, images of its size, (N, C, H, W) float32.

        Raises:
            UsageError: The network computes something else for this batch size; or layers are int8 and `x` contains NaN
                or infinity.
        """
        self._check_batch_size(len(x))
        # The sum is finite unless a number is not, or it overflows, and costs far less than `isfinite`.
        if self.fused.quantizations and not math.isfinite(float(x.sum())) and not bool(x.isfinite().all()):
            raise UsageError(
                "some images contain NaN or infinity, which 8 bits cannot represent; correct these images, or optimize "
                "with precision='fp32'"
            )
        # The memory is reused by all callers, so it must not consist of inference tensors.
        try:
            with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
                if not self.packed or len(x) == 0:
                    return self.run_reference(x)
                return self.plan(len(x)).run(x.contiguous(memory_format=torch.channels_last), _memory_format(x))
        except (RuntimeError, ValueError, MemoryError, IndexError) as error:
            reason = " ".join(str(error).split())
            raise UsageError(f"this network cannot run on {len(x)} images: {reason}") from error

    def run_reference(self, x: Tensor) -> Any:
        """Return what the network returns for `x`, by PyTorch's operations, which callers can trace or transform."""
        return reference.run_reference(self.fused, self.read_weight, x)

    def read_weight(self, name: str) -> Tensor:
        """Return the weights called `name`, (O, C / groups, kh, kw)."""
        return self.packed[name].unpack() if name in self.packed else self.fused.tensors[name]

    def plan(self, batch_size: int) -> ExecutionPlan:
        """Return the execution plan for a batch size; it is made when it is first needed."""
        with self._lock:
            plan = self._plans.get(batch_size)
        if plan is None:
            plan = ExecutionPlan(self.fused, self.packed, batch_size)
            with self._lock:
                while len(self._plans) >= MAX_PLANS:
                    self._plans.pop(next(iter(self._plans)))
                self._plans[batch_size] = plan
        return plan

    def select_check_sizes(self, batch_size: int) -> set[int]:
        """Return `batch_size`, that of the example, and up to two other batch sizes that the network can run."""
        if self.fused.batch_size is not None:
            return {batch_size}
        others = [size for size in CHECKED_BATCH_SIZES if size != batch_size]
        return {batch_size, *[size for size in others if self._supports_batch_size(size)][:2]}

    def info_for_saving(self) -> OptimizationRecord:
        """Return the info for a copy without the original network.

        Raises:
            UsageError: The original computes something else for some larger batches.
        """
        if self._repeats is None or self.fused.batch_size is not None:
            return self.info
        others = [size for size in SAVED_BATCH_SIZES if not self._can_run(size)]
        if max(others, default=0) > 1:
            raise UsageError(
                f"this network computes something else for {max(others)} images than for {self.info.example[0]}, which "
                "cannot be stored in a file or pickle; keep the original network and optimize it where it runs"
            )
        return dataclasses.replace(self.info, least=max(others, default=-1) + 1)

    def __copy__(self) -> Self:
        return type(self)(self.fused, self.packed, self.info, self._repeats)

    def __getstate__(self) -> dict[str, Any]:
        alone = {"info": self.info_for_saving(), "_plans": {}, "_repeats": None, "_lock": None}
        return {**self.__dict__, **alone}  # execution plans contain memory addresses

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= {**state, "_lock": threading.Lock()}

    def _describe_layer(self, step: FusedConvolution) -> OptimizedLayer:
        packed = self.packed.get(step.weight)
        weight = self.fused.tensors[step.weight] if packed is None else packed.numbers
        precision = "int8" if step.weight_scale else "bf16" if weight.dtype == torch.bfloat16 else "fp32"
        shape = tuple(weight.shape) if packed is None else packed.shape
        return OptimizedLayer(step.place, "torch" if packed is None else packed.kernel, shape, precision)

    def _check_batch_size(self, batch_size: int) -> None:
        """Raise UsageError unless the network can run `batch_size` images at a time."""
        wanted = self.fused.batch_size
        known = self._supports_batch_size(batch_size) if wanted is None else batch_size == wanted
        if batch_size < self.info.least or not known:
            made = "does something else" if wanted is None else f"was optimized for {wanted} at a time"
            given = count_with_noun(batch_size, "image")
            raise UsageError(f"the batch has {given}, and this network {made}; optimize it with an example of {given}")

    def _supports_batch_size(self, batch_size: int) -> bool:
        """Return whether the network computes the captured graph for batches of this size.

        Raises:
            UsageError: It cannot run on batches of this size.
        """
        return self._repeats is None or batch_size in self._same or self._repeats(batch_size)

    def _can_run(self, batch_size: int) -> bool:
        try:
            return self._supports_batch_size(batch_size)
        except UsageError:
            return False


def _memory_format(x: Tensor) -> torch.memory_format:
    """Return the memory format of `x`, in which PyTorch also returns maps; contiguous if `x` has both or neither."""
    if x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        return torch.channels_last
    return torch.contiguous_format
