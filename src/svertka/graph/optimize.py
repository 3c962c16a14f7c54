"""A network for inference on the CPU: folded, fused, its weights packed once, its memory planned."""

import dataclasses
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from svertka.arguments import check_types
from svertka.conv import native
from svertka.errors import UsageError
from svertka.graph import plain, written
from svertka.graph.fusion import Fused, fused
from svertka.graph.operations import leaves
from svertka.graph.packing import DTYPES, Packed, is_dense, narrowed
from svertka.graph.plan import Plan
from svertka.graph.steps import Convolution
from svertka.graph.tape import record
from svertka.graph.trace import sharing_twin
from svertka.graph.written import About

# Of the largest value. Networks of the zoo stay below 1e-5 of it in float32, and below 2.5 % in bfloat16, as they do
# under PyTorch's autocast; a network that is further off by much is one in which rounding grows.
TOLERANCES = {"fp32": 1e-3, "bf16": 0.1}
MANY = 64  # pictures that are worth the second that it takes
PLANS = 8  # for as many numbers of pictures memory is kept


@check_types
def optimize(network: nn.Module, example: Tensor, *, precision: str = "fp32", dense: str | None = None) -> "Optimized":
    """A module that returns what `network` returns in inference, on the CPU, as fast as it goes here.

    Any nn.Module of float32 whose steps do not depend on the values that it is given. Batch norm is folded; bias, sums
    and rectification are computed with the convolution before them; weights are packed once; maps are channels-last and
    share one piece of memory. What `network` has now is taken over: later changes to it have no effect, and it stays as
    it is. Only rounding differs, and that is checked on `example`, by no more than 1e-3 of the largest value, with
    bfloat16 in it by no more than a tenth.

    `example`: (N, C, H, W) float32, pictures such as there will be: of this size, and where the network allows it, in
    any number.
    `precision`: "fp32", or "bf16": weights are stored in bfloat16, half the bytes to read, and where the processor
    multiplies bfloat16, products are of such numbers, too; sums and all that lies between layers stay float32.
    `dense`: the same for dense layers alone, if other than `precision`; one picture at a time, they take as long as it
    takes to read their weights.

    Raises:
        UsageError: the network cannot be followed, with the place, or what comes out is not what it gives, or a
            precision is none of the two.
    """
    _need_pictures(example)
    dense = precision if dense is None else dense
    for one in (precision, dense):
        if one not in DTYPES:
            raise UsageError(f"there is no precision {one!r}; use one of {', '.join(DTYPES)}")
    steps = narrowed(fused(record(network, tuple(example.shape))), precision, dense)
    optimized = Optimized(steps, About(tuple(example.shape), precision, dense))
    tolerance = max(TOLERANCES[precision], TOLERANCES[dense])
    twin = sharing_twin(network)
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        expected = twin(example)
        error = _difference(optimized(example), expected)
    if not error <= tolerance:
        raise UsageError(
            f"optimized, {type(network).__name__} gives something else on the example: the largest difference is "
            f"{error:.1e} of the largest value, more than {tolerance:.0e}; run the network as it is"
        )
    optimized.about = dataclasses.replace(optimized.about, error=error)
    return optimized


def fastest(network: nn.Module, shape: tuple[int, ...], pictures: int) -> nn.Module:
    """`network`, or the same optimized, if so many `pictures` of `shape`, (C, H, W), pay for that; for inference alone.

    `network` itself where it does not compute float32 on the CPU, where there are no kernels, and where it cannot be
    followed.
    """
    tensors = [*network.parameters(), *network.buffers()]
    here = all(one.device.type == "cpu" and one.dtype in (torch.float32, torch.int64) for one in tensors)
    if pictures < MANY or isinstance(network, Optimized) or native.why_not() or not here:
        return network
    try:
        return optimize(network, torch.randn(1, *shape, generator=torch.Generator().manual_seed(0)))
    except UsageError:
        return network


class Optimized(nn.Module):
    """What `optimize` gives. It has no parameters, cannot learn, and stays on the CPU, whatever it is moved to.

    `about`: the example's shape, the precisions, and the error on the example.
    """

    def __init__(self, steps: Fused, about: About) -> None:
        super().__init__()
        self.about = about
        weights = {step.weight: step for step in steps.steps if isinstance(step, Convolution)}
        self._packed: Mapping[str, Packed] = {}
        if not native.why_not():
            self._packed = {
                name: Packed.of(step, steps.tensors[name], dense=is_dense(steps, step))
                for name, step in weights.items()
            }
        tensors = {name: tensor for name, tensor in steps.tensors.items() if name not in self._packed}
        self._steps = Fused(steps.steps, steps.shapes, steps.dtypes, tensors, steps.output)
        self._plans: dict[int, Plan] = {}
        self.eval()

    @property
    def error(self) -> float:
        """The largest difference to the original on the example, over the largest value."""
        return self.about.error

    def forward(self, x: Tensor) -> Any:
        """What the network returns for `x`, (N, C, H, W) float32; without gradients.

        Raises:
            UsageError: `x` is not such as the example was.
        """
        _need_pictures(x)
        if x.shape[1:] != self.about.example[1:]:
            sizes = ["×".join(map(str, shape[1:])) for shape in (x.shape, self.about.example)]
            raise UsageError(
                f"the pictures are {sizes[0]} and this network was optimized for {sizes[1]}; optimize it with an "
                "example of this size"
            )
        # Memory that is used again and again must not be of inference mode, whoever calls first.
        with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
            if not self._packed:
                return plain.run(self._steps, self._steps.tensors.__getitem__, x)
            return self._plan(len(x)).run(x.contiguous(memory_format=torch.channels_last))

    def save(self, path: str | PathLike[str]) -> None:
        """Write it to one file, which `load` reads on any machine.

        Raises:
            StorageError: the disk is full or the folder cannot be written.
        """
        whole = {name: packed.unpacked() for name, packed in self._packed.items()}
        steps = dataclasses.replace(self._steps, tensors={**self._steps.tensors, **whole})
        written.write(Path(path), steps, self.about)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """The network in a file that `save` wrote. No code is in it: steps of few kinds, and their tensors.

        Raises:
            RunError: the file is missing, damaged, or something else.
        """
        return cls(*written.read(Path(path)))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_plans": {}}  # they hold addresses

    def _plan(self, pictures: int) -> Plan:
        plan = self._plans.get(pictures)
        if plan is None:
            plan = Plan(self._steps, self._packed, pictures)
            if len(self._plans) >= PLANS:
                self._plans.pop(next(iter(self._plans)))
            self._plans[pictures] = plan
        return plan


def _need_pictures(x: Tensor) -> None:
    if x.dim() != 4 or x.dtype != torch.float32 or x.device.type != "cpu":
        raise UsageError(
            f"pictures are {tuple(x.shape)} {str(x.dtype).removeprefix('torch.')} on {x.device}; an optimized network "
            "takes (N, C, H, W) float32 on the CPU"
        )


def _difference(ours: Any, theirs: Any) -> float:
    """The largest between the tensors of two outputs, over the largest value; NaN where there is none."""
    pairs = [(a, b) for a, b in zip(leaves(ours), leaves(theirs), strict=True) if isinstance(b, Tensor) and b.numel()]
    worst = [float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1e-30)) for a, b in pairs]
    return max(worst, default=float("nan")) if all(error == error for error in worst) else float("nan")
