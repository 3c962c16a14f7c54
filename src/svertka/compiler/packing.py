"""The weights of an optimized network, in the order in which its kernels read them, and in which precision."""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from svertka.compiler.fusion import FusedNetwork
from svertka.compiler.ir import Constant, FusedConvolution, Operation, iter_leaves
from svertka.conv import native

MIN_WINOGRAD_CHANNELS = 16  # with fewer, to transform tiles takes longer than what it saves
MAX_FLOAT32_INPUTS = 4  # inputs; kernels read pictures of no more in place, with weights of float32

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}  # of weights, by the name of a precision


@dataclass(frozen=True, eq=False)
class PackedWeights:
    """Weights of `shape`, (O, C / groups, kh, kw), for the kernels "winograd", "direct", "depthwise" or "grouped".

    Winograd's take 3×3 taps; 4×4 to 6×6, with zeros to 6×6, are four such kernels, whose results are summed up.

    `numbers`: of the two former (group or kernel, panel of outputs, …, output in its panel), in between (input, tap)
    for Winograd's and (tap, input) for direct ones; for small groups, down to each channel by itself, (tap in y, tap in
    x, input in its group, output), always float32. Else float32 or bfloat16, as the weights are; for direct kernels two
    of bfloat16 that follow each other in (tap, input) lie side by side.
    """

    kernel: str
    shape: tuple[int, ...]
    groups: int
    numbers: Tensor

    @classmethod
    def of(cls, step: FusedConvolution, weight: Tensor, *, dense: bool, strict: bool = False) -> "PackedWeights":
        """The weights of `step`, packed for the kernels that compute it; `dense`: it is a dense layer."""
        shape, groups = tuple(weight.shape), step.groups
        narrow = weight.dtype == torch.bfloat16
        kernel = "direct" if dense else select_kernel(step, shape, strict=strict)
        if kernel in ("depthwise", "grouped"):
            # float32: a file may have been written where other kernels compute these groups, in bfloat16
            return cls(kernel, shape, groups, weight.float().permute(2, 3, 1, 0).contiguous())
        panel = native.kernels.panel()
        order = (1, 2, 3, 0) if kernel == "winograd" else (2, 3, 1, 0)
        parts = []
        for part in _thirds(weight) if kernel == "winograd" else weight.chunk(groups):
            matrix = part.permute(order).reshape(-1, len(part))
            side_by_side = 2 if narrow and kernel == "direct" else 1
            matrix = F.pad(matrix, (0, -len(part) % panel, 0, -len(matrix) % side_by_side))
            parts.append(matrix.reshape(-1, side_by_side, matrix.shape[1] // panel, panel).permute(2, 0, 3, 1))
        return cls(kernel, shape, groups, torch.stack(parts).contiguous())

    def unpacked(self) -> Tensor:
        """The weights, (O, C / groups, kh, kw)."""
        out_channels, in_channels, height, width = self.shape
        if self.kernel in ("depthwise", "grouped"):
            return self.numbers.permute(3, 2, 0, 1)
        # (group or kernel, output, number of the sum)
        matrix = self.numbers.permute(0, 1, 3, 2, 4).flatten(3).flatten(1, 2)[:, : out_channels // self.groups]
        if self.kernel == "winograd":
            side = 3 if len(matrix) == 1 else 6
            parts = matrix.reshape(side // 3, side // 3, out_channels, in_channels, 3, 3).permute(2, 3, 0, 4, 1, 5)
            return parts.reshape(out_channels, in_channels, side, side)[:, :, :height, :width]
        matrix = matrix.flatten(0, 1)[:, : in_channels * height * width]
        return matrix.reshape(out_channels, height, width, in_channels).permute(0, 3, 1, 2)

    @property
    def precision(self) -> "native.kernels.Precision":
        """What the kernels that are in use now do with them."""
        if self.numbers.dtype == torch.float32:
            return native.kernels.Precision.FLOAT32
        return native.kernels.Precision["BFLOAT16" if native.multiplies_bfloat16() else "WIDENED"]


def convert_weights(fused: FusedNetwork, precision: str, dense: str) -> FusedNetwork:
    """The steps with the weights of their convolutions in `precision`, of dense layers in `dense`: "fp32" or "bf16".

    What it would not make faster stays float32: small groups of channels, and where kernels do not multiply bfloat16,
    few inputs.
    """
    tensors = dict(fused.tensors)
    for step in fused.steps:
        if isinstance(step, FusedConvolution):
            shape = tuple(tensors[step.weight].shape)
            few = shape[1] <= MAX_FLOAT32_INPUTS and not native.multiplies_bfloat16()
            if not few and select_kernel(step, shape) not in ("depthwise", "grouped"):
                wanted = DTYPES[dense if is_dense(fused, step) else precision]
                tensors[step.weight] = tensors[step.weight].to(wanted)
    return replace(fused, tensors=tensors)


def is_dense(fused: FusedNetwork, step: FusedConvolution) -> bool:
    """Whether it is a dense layer: its results are vectors."""
    return len(fused.shapes[step.result]) == 2


def separate_shared_weights(fused: FusedNetwork) -> FusedNetwork:
    """The steps with a name of its own for a weight for each way in which it is read.

    Convolutions that share a weight share its packed form only if the same kernels read it in the same groups; an
    operation of PyTorch reads it as it is.
    """
    names = {leaf.name for leaf in iter_leaves([step.arguments for step in fused.steps if isinstance(step, Operation)])
             if isinstance(leaf, Constant)}  # fmt: skip
    names |= {leaf.name for leaf in fused.output.leaves if isinstance(leaf, Constant)}
    names |= {step.bias for step in fused.steps if isinstance(step, FusedConvolution) and step.bias is not None}
    tensors, steps = dict(fused.tensors), []
    ways: dict[str, Any] = dict.fromkeys(names, "as it is")
    for step in fused.steps:
        if isinstance(step, FusedConvolution):
            shape = tuple(tensors[step.weight].shape)
            way = (
                is_dense(fused, step),
                select_kernel(step, shape),
                select_kernel(step, shape, strict=True),
                step.groups,
            )
            name = step.weight
            if ways.setdefault(name, way) != way:
                name = f"{step.weight} read as {way}"
                ways[name], tensors[name] = way, tensors[step.weight]
            step = replace(step, weight=name)
        steps.append(step)
    read = names | {step.weight for step in steps if isinstance(step, FusedConvolution)}
    return replace(fused, steps=tuple(steps), tensors={name: tensors[name] for name in sorted(read)})


def select_kernel(step: FusedConvolution, shape: tuple[int, ...], *, strict: bool = False) -> str:
    """The kernels that compute it, whose weights have `shape`.

    `strict`: only such as give at each position what the values that its window sees give.
    """
    if step.groups == shape[0] > 1 and shape[1] == 1:
        return "depthwise"
    if step.groups > 1 and native.kernels.computes_groups(shape[1], shape[0] // step.groups):
        return "grouped"
    plain = step.stride == step.dilation == (1, 1) and step.groups == 1
    sides = shape[2] == shape[3] and shape[2] in (3, 5)
    if not strict and sides and plain and min(shape[:2]) >= MIN_WINOGRAD_CHANNELS:
        return "winograd"
    return "direct"


def _thirds(weight: Tensor) -> list[Tensor]:
    """`weight` as kernels of 3×3, side by side, those below after those above."""
    if weight.shape[2:] == (3, 3):
        return [weight]
    whole = F.pad(weight, (0, 6 - weight.shape[3], 0, 6 - weight.shape[2]))
    return [whole[:, :, y : y + 3, x : x + 3] for y in (0, 3) for x in (0, 3)]
