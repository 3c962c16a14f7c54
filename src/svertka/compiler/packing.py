"""Packed weights of an optimized network, in the memory order and precision that its kernels read."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from svertka.compiler.fusion import FusedNetwork, list_step_operands
from svertka.compiler.ir import FusedConvolution
from svertka.conv import native_support
from svertka.graph.operation_and_value_types import Constant, iter_leaves
from svertka.large_pages import stack_on_large_pages

MIN_WINOGRAD_CHANNELS = 16  # with fewer, tile transforms cost more than they save
MIN_WINOGRAD_GROUP = 24  # the same for a group, compared with the grouped kernels
MAX_GROUPED_CHANNELS = 64  # of a group; with more, the weights of the grouped kernels do not stay in the cache
MIN_LARGE_TILE_SIDE = 24  # of maps; on smaller ones, few tiles share the transform of the weights
MAX_FLOAT32_INPUTS = 4  # kernels read images with so few channels in place, with float32 weights

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}  # of weights, by precision


@dataclass(frozen=True, eq=False)
class PackedWeights:
    """Weights packed for one kind of kernel: "winograd", "direct", "depthwise" or "grouped".

    Winograd kernels have 3×3 taps. Convolutions of 4×4 to 6×6 are padded with zeros to 6×6 and split into four of 3×3,
    whose results are added. Grouped convolutions are not split.

    Attributes:
        kernel: The kind of kernel.
        shape: Shape of the weights before packing, (O, C / groups, kh, kw).
        groups: Groups of the convolution.
        numbers: The packed weights. "winograd" and "direct": (group or 3×3 kernel, output panel, …, output in panel),
            the middle being (input, tap) for "winograd" and (tap, input) for "direct"; float32 or bfloat16. bfloat16
            numbers are stored in pairs: of two inputs for "winograd", of two consecutive numbers for "direct". An odd
            number of inputs is followed by zeros. "grouped" and "depthwise": (tap y, tap x, input in group, output),
            always float32.
        paired_lines: Whether the pairs of "direct" consist of two taps in y: (pair of taps in y, tap in x, input).
    """

    kernel: str
    shape: tuple[int, ...]
    groups: int
    numbers: Tensor
    paired_lines: bool = False

    @classmethod
    def of(cls, step: FusedConvolution, weight: Tensor, *, dense: bool, strict: bool = False) -> "PackedWeights":
        """Pack the weights of `step` for the kernel that computes it.

        Args:
            step: The convolution.
            weight: (O, C / groups, kh, kw), float32 or bfloat16.
            dense: Whether the step is a dense layer.
            strict: Whether to exclude Winograd kernels.
        """
        shape, groups = tuple(weight.shape), step.groups
        narrow = weight.dtype == torch.bfloat16
        kernel = "direct" if dense else select_kernel_kind(step, shape, strict=strict)
        paired_lines = False
        if narrow and kernel == "direct" and _has_lines_of_pairs(step, shape):
            if not native_support.multiplies_bfloat16():  # a file from another CPU
                weight, narrow = weight.float(), False
            elif shape[1] % 2 and shape[2] > 1:
                weight, paired_lines = F.pad(weight, (0, 0, 0, shape[2] % 2)), True
            else:
                weight = F.pad(weight, (0, 0, 0, 0, 0, shape[1] % 2))
        if kernel in ("depthwise", "grouped"):
            # A file from another CPU may contain bfloat16 weights. A copy, because the network may be trained further.
            numbers = weight.float().permute(2, 3, 1, 0).clone(memory_format=torch.contiguous_format)
            return cls(kernel, shape, groups, numbers)
        panel = native_support.kernels.panel_width()
        side_by_side = 2 if narrow else 1
        parts = []
        for part in _split_into_3x3(weight) if groups == 1 and kernel == "winograd" else weight.chunk(groups):
            if kernel == "winograd":  # (pair, tap, element), output
                inputs = F.pad(part, (0, 0, 0, 0, 0, -part.shape[1] % side_by_side)).flatten(2)
                rows = inputs.reshape(len(part), -1, side_by_side, 9).permute(1, 3, 2, 0)
            elif paired_lines:  # (pair of lines, column, input, element), output
                rows = part.reshape(*part.shape[:2], -1, 2, shape[3]).permute(2, 4, 1, 3, 0)
            else:
                rows = part.permute(2, 3, 1, 0)
            matrix = rows.reshape(-1, len(part))
            matrix = F.pad(matrix, (0, -len(part) % panel, 0, -len(matrix) % side_by_side))
            parts.append(matrix.reshape(-1, side_by_side, matrix.shape[1] // panel, panel).permute(2, 0, 3, 1))
        return cls(kernel, shape, groups, stack_on_large_pages(parts), paired_lines)

    def unpack(self) -> Tensor:
        """Return the weights, (O, C / groups, kh, kw)."""
        out_channels, in_channels, height, width = self.shape
        if self.kernel in ("depthwise", "grouped"):
            return self.numbers.permute(3, 2, 0, 1)
        # (group or kernel, output, summand)
        matrix = self.numbers.permute(0, 1, 3, 2, 4).flatten(3).flatten(1, 2)[:, : out_channels // self.groups]
        if self.kernel == "winograd":
            pairs = matrix.reshape(*matrix.shape[:2], -1, 9, self.numbers.shape[-1]).transpose(3, 4)
            matrix = pairs.flatten(2, 3)[:, :, :in_channels]
            if (height, width) == (3, 3):
                return matrix.reshape(self.shape)
            parts = matrix.reshape(2, 2, out_channels, in_channels, 3, 3).permute(2, 3, 0, 4, 1, 5)
            return parts.reshape(out_channels, in_channels, 6, 6)[:, :, :height, :width]
        matrix = matrix.flatten(0, 1)
        paired = in_channels + in_channels % 2
        if self.paired_lines:
            lines = matrix.reshape(out_channels, -1, width, in_channels, 2).movedim(-1, 2).flatten(1, 2)
            matrix = lines[:, :height].flatten(1)
        elif height * width > 1 and matrix.shape[1] == paired * height * width:
            matrix = matrix.reshape(-1, paired)[:, :in_channels].reshape(out_channels, -1)
        matrix = matrix[:, : in_channels * height * width]
        return matrix.reshape(out_channels, height, width, in_channels).permute(0, 3, 1, 2)

    @property
    def precision(self) -> "native_support.kernels.Precision":
        """The precision in which the current kernels compute with these weights."""
        if self.numbers.dtype == torch.float32:
            return native_support.kernels.Precision.FLOAT32
        return native_support.kernels.Precision["BFLOAT16" if native_support.multiplies_bfloat16() else "UPCAST"]


def choose_precisions(fused: FusedNetwork, precision: str, dense: str) -> dict[int, str]:
    """Return the precision of each convolution and dense layer, by the number of its result.

    Args:
        fused: The network.
        precision: Precision of convolutions, "fp32", "bf16" or "int8".
        dense: Precision of dense layers, the same.
    """
    layers = [step for step in fused.steps if isinstance(step, FusedConvolution)]
    return {step.result: dense if is_linear_layer(fused, step) else precision for step in layers}


def convert_weight_precision(fused: FusedNetwork, precisions: Mapping[int, str]) -> FusedNetwork:
    """Return the steps with the weights of their convolutions in the given precisions.

    Small groups of channels stay float32, and so do convolutions of few inputs on CPUs without bfloat16 multiplication,
    because they would not be faster. With "int8", layers that are not quantized stay float32, too.

    Args:
        fused: The network.
        precisions: The precision of each convolution, as `choose_precisions` returns them; the same for convolutions
            that share a weight.
    """
    tensors = dict(fused.tensors)
    for step in fused.steps:
        if isinstance(step, FusedConvolution) and step.weight_scale is None and precisions[step.result] != "int8":
            shape = tuple(tensors[step.weight].shape)
            few = shape[1] <= MAX_FLOAT32_INPUTS and not native_support.multiplies_bfloat16()
            if not few and select_kernel_kind(step, shape) not in ("depthwise", "grouped"):
                tensors[step.weight] = tensors[step.weight].to(DTYPES[precisions[step.result]])
    return replace(fused, tensors=tensors)


def is_linear_layer(fused: FusedNetwork, step: FusedConvolution) -> bool:
    """Return whether `step` is a dense layer, whose results are vectors."""
    return len(fused.shapes[step.result]) == 2


def separate_shared_weights(fused: FusedNetwork) -> FusedNetwork:
    """Return the steps with a separate name for each packed form of a shared weight.

    Convolutions that share a weight share its packed form only if the same kernel reads it with the same groups.
    PyTorch's operations read it unpacked.
    """
    read = [*fused.output.leaves, *iter_leaves([list_step_operands(step, packed=False) for step in fused.steps])]
    names = {leaf.name for leaf in read if isinstance(leaf, Constant)}
    tensors, steps = dict(fused.tensors), []
    ways: dict[str, Any] = dict.fromkeys(names, "as it is")
    for step in fused.steps:
        if isinstance(step, FusedConvolution):
            shape = tuple(tensors[step.weight].shape)
            way = (
                is_linear_layer(fused, step),
                select_kernel_kind(step, shape),
                select_kernel_kind(step, shape, strict=True),
                step.groups,
            )
            name = step.weight
            if ways.setdefault(name, way) != way:
                name = f"{step.weight} read as {way}"
                ways[name], tensors[name] = way, tensors[step.weight]
            step = replace(step, weight=name)
        steps.append(step)
    names |= {step.weight for step in steps if isinstance(step, FusedConvolution)}
    return replace(fused, steps=tuple(steps), tensors={name: tensors[name] for name in sorted(names)})


def select_kernel_kind(step: FusedConvolution, shape: tuple[int, ...], *, strict: bool = False) -> str:
    """Return the kind of kernel that computes `step`: "depthwise", "grouped", "winograd" or "direct".

    Args:
        step: The convolution.
        shape: Shape of its weights.
        strict: Whether to exclude Winograd, whose results depend on values outside of the receptive field.
    """
    if step.groups == shape[0] > 1 and shape[1] == 1:
        return "depthwise"
    channels = (shape[1], shape[0] // step.groups)
    sides = shape[2:] == (3, 3) or (shape[2:] == (5, 5) and step.groups == 1)
    fewest = MIN_WINOGRAD_CHANNELS if step.groups == 1 else MIN_WINOGRAD_GROUP
    if not strict and sides and step.stride == step.dilation == (1, 1) and min(channels) >= fewest:
        return "winograd"
    return "grouped" if step.groups > 1 and max(channels) <= MAX_GROUPED_CHANNELS else "direct"


def select_winograd_tile(side: int, precision: "native_support.kernels.Precision") -> int:
    """Return the number of results along an axis of the tiles of a Winograd kernel: 4 or 6.

    Tiles of 6×6 results take 64 products for 36 results instead of 36 for 16, and round four times as coarsely, so that
    they are only used in float32. The choice depends neither on the batch size nor on the CPU.

    Args:
        side: Height or width of the result, whichever is smaller.
        precision: The precision of the products.
    """
    is_float = precision == native_support.kernels.Precision.FLOAT32
    return 6 if is_float and side >= MIN_LARGE_TILE_SIDE else 4


def _has_lines_of_pairs(step: FusedConvolution, shape: tuple[int, ...]) -> bool:
    """Return whether kernels copy lines of images in pairs, of channels or of lines, because channels are few."""
    return shape[1] <= MAX_FLOAT32_INPUTS and shape[2] * shape[3] > 1 and step.dilation[1] == 1


def _split_into_3x3(weight: Tensor) -> list[Tensor]:
    """Return `weight` as 3×3 kernels in row-major order."""
    if weight.shape[2:] == (3, 3):
        return [weight]
    whole = F.pad(weight, (0, 6 - weight.shape[3], 0, 6 - weight.shape[2]))
    return [whole[:, :, y : y + 3, x : x + 3] for y in (0, 3) for x in (0, 3)]
