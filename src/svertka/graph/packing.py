"""The weights of an optimized network, in the order in which its kernels read them."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from svertka.conv import native
from svertka.graph.steps import Convolution

LEAST_CHANNELS = 16  # with fewer, to transform tiles takes longer than what it saves


@dataclass(frozen=True, eq=False)
class Packed:
    """Weights of `shape`, (O, C / groups, kh, kw), for one of the kernels "winograd", "direct" and "depthwise".

    Winograd's take 3×3 taps; 4×4 to 6×6, with zeros to 6×6, are four such kernels, whose results are summed up.

    `numbers`: of the two former (group or kernel, panel of outputs, …, output in its panel), in between (input, tap)
    for Winograd's and (tap, input) for direct ones; for each channel by itself (tap, channel).
    """

    kernel: str
    shape: tuple[int, ...]
    groups: int
    numbers: Tensor

    @classmethod
    def of(cls, step: Convolution, weight: Tensor, *, dense: bool) -> "Packed":
        """The weights of `step`, packed for the kernels that compute it; `dense`: its result is one pixel."""
        shape, groups = tuple(weight.shape), step.groups
        kernel = "direct" if dense else kernel_of(step, shape)
        if kernel == "depthwise":
            return cls(kernel, shape, groups, weight[:, 0].permute(1, 2, 0).contiguous())
        panel = native.kernels.panel()
        order = (1, 2, 3, 0) if kernel == "winograd" else (2, 3, 1, 0)
        parts = []
        for part in _thirds(weight) if kernel == "winograd" else weight.chunk(groups):
            matrix = F.pad(part.permute(order).reshape(-1, len(part)), (0, -len(part) % panel))
            parts.append(matrix.reshape(len(matrix), -1, panel).transpose(0, 1))
        return cls(kernel, shape, groups, torch.stack(parts).contiguous())

    def unpacked(self) -> Tensor:
        """The weights, (O, C / groups, kh, kw)."""
        out_channels, in_channels, height, width = self.shape
        if self.kernel == "depthwise":
            return self.numbers.permute(2, 0, 1)[:, None]
        matrix = self.numbers.permute(0, 1, 3, 2).flatten(1, 2)[:, : out_channels // self.groups]
        if self.kernel == "winograd":
            side = 3 if len(matrix) == 1 else 6
            parts = matrix.reshape(side // 3, side // 3, out_channels, in_channels, 3, 3).permute(2, 3, 0, 4, 1, 5)
            return parts.reshape(out_channels, in_channels, side, side)[:, :, :height, :width]
        matrix = matrix.flatten(0, 1)
        return matrix.reshape(out_channels, height, width, in_channels).permute(0, 3, 1, 2)


def kernel_of(step: Convolution, shape: tuple[int, ...]) -> str:
    """The kernels that compute it, whose weights have `shape`."""
    if step.groups == shape[0] > 1 and shape[1] == 1:
        return "depthwise"
    plain = step.stride == step.dilation == (1, 1) and step.groups == 1
    sides = shape[2] == shape[3] and shape[2] in (3, 5)
    if sides and plain and min(shape[:2]) >= LEAST_CHANNELS:
        return "winograd"
    return "direct"


def _thirds(weight: Tensor) -> list[Tensor]:
    """`weight` as kernels of 3×3, side by side, those below after those above."""
    if weight.shape[2:] == (3, 3):
        return [weight]
    whole = F.pad(weight, (0, 6 - weight.shape[3], 0, 6 - weight.shape[2]))
    return [whole[:, :, y : y + 3, x : x + 3] for y in (0, 3) for x in (0, 3)]
