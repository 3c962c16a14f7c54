"""8-bit weights of convolutions, packed for the kernels of the selected instruction set."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from svertka.compiler.ir import LARGEST_BYTE, FusedConvolution
from svertka.conv import native_support
from svertka.large_pages import stack_on_large_pages

SPLIT = 64  # outputs whose weights are transformed at a time, to save memory


@dataclass(frozen=True, eq=False)
class PackedInt8Weights:
    """8-bit weights packed for one kind of kernel: "int8" for products of matrices, or "int8-depthwise".

    Attributes:
        kernel: The kind of kernel.
        shape: The shape of the weights before packing, (O, C / groups, kh, kw).
        groups: The groups of the convolution.
        numbers: The packed weights, int8 or int16 as the kernels multiply. "int8": (group, output panel, tap y and
            factor of consecutive (tap x, input), output in panel, summand in factor). "int8-depthwise": (block of
            channels, tap y, factor of taps in x, channel in block, tap in factor).
        sums: The sum of the weights of each output channel, (O) int32.
        winograd: Whether Winograd kernels, which read the same weights, can compute with them.
    """

    kernel: str
    shape: tuple[int, ...]
    groups: int
    numbers: Tensor
    sums: Tensor
    winograd: bool = False

    @classmethod
    def of(cls, step: FusedConvolution, weight: Tensor, *, strict: bool = False) -> "PackedInt8Weights":
        """Pack int8 weights, (O, C / groups, kh, kw); with `strict`, not for Winograd kernels."""
        shape, groups = tuple(weight.shape), step.groups
        per = native_support.kernels.int8_numbers_per_factor()
        dtype = torch.int8 if per == 4 else torch.int16
        sums = weight.to(torch.int32).flatten(1).sum(1, dtype=torch.int32)
        if groups == shape[0] and shape[1] == 1:
            block = native_support.kernels.int8_channel_width()
            padded = F.pad(weight[:, 0], (0, -shape[3] % per, 0, 0, 0, -shape[0] % block)).to(dtype)
            blocks = padded.reshape(len(padded) // block, block, shape[2], -1, per).permute(0, 2, 3, 1, 4)
            return cls("int8-depthwise", shape, groups, blocks.contiguous(), sums)
        panel, parts = native_support.kernels.int8_panel_width(), []
        for part in torch.split(weight, shape[0] // groups):
            matrix = part.permute(0, 2, 3, 1).flatten(2)  # (output, tap y, tap x and input)
            matrix = F.pad(matrix, (0, -matrix.shape[2] % per, 0, 0, 0, -len(part) % panel)).to(dtype)
            parts.append(matrix.reshape(len(matrix) // panel, panel, -1, per).permute(0, 2, 1, 3))
        winograd = not strict and _supports_winograd(step, weight)
        return cls("int8", shape, groups, stack_on_large_pages(parts), sums, winograd)

    def unpack(self) -> Tensor:
        """Return the int8 weights, (O, C / groups, kh, kw)."""
        out_channels, in_channels, height, width = self.shape
        if self.kernel == "int8-depthwise":
            weight = self.numbers.permute(0, 3, 1, 2, 4).flatten(3).flatten(0, 1)
            return weight[:out_channels, None, :, :width].to(torch.int8)
        matrix = self.numbers.permute(0, 1, 3, 2, 4).flatten(3).flatten(1, 2)  # (group, output, summand)
        matrix = matrix.reshape(*matrix.shape[:2], height, -1)
        matrix = matrix[:, : out_channels // self.groups, :, : width * in_channels].flatten(0, 1)
        return matrix.reshape(out_channels, height, width, in_channels).permute(0, 3, 1, 2).to(torch.int8)

    def choose_kernel(self, window: "native_support.kernels.Window") -> "native_support.kernels.Int8Kernel":
        """Return the faster of the kernels that compute products of matrices for maps of these sizes."""
        faster = self.winograd and native_support.kernels.int8_winograd_is_faster(window)
        return native_support.kernels.Int8Kernel["WINOGRAD" if faster else "DIRECT"]

    @property
    def padded_channels(self) -> int:
        """The output channels of a group, padded to whole vectors of its kernel."""
        if self.kernel == "int8-depthwise":
            return self.numbers.shape[0] * self.numbers.shape[3]
        return self.numbers.shape[1] * self.numbers.shape[3]


def _supports_winograd(step: FusedConvolution, weight: Tensor) -> bool:
    """Return whether Winograd kernels can compute a convolution: no sum of products exceeds 32 bits for any image."""
    window = (*weight.shape[2:], *step.stride, *step.dilation)
    if window != (3, 3, 1, 1, 1, 1) or weight.shape[1] % native_support.kernels.int8_numbers_per_factor():
        return False
    data, taps = (
        torch.tensor(matrix, dtype=torch.float64, device="cpu")
        for matrix in native_support.kernels.INT8_WINOGRAD_MATRICES
    )
    of_tile, of_kernel = (torch.kron(matrix, matrix) for matrix in (data, taps))  # (36, 36), (36, 9)
    largest = LARGEST_BYTE * torch.maximum(of_tile.clamp(min=0).sum(1), -of_tile.clamp(max=0).sum(1))
    inputs = native_support.kernels.int8_winograd_inputs()
    for outputs in torch.split(weight, SPLIT):
        transformed = (outputs.flatten(2).double() @ of_kernel.T).abs()  # (O, C, 36), exact integers
        padded = F.pad(transformed, (0, 0, 0, -weight.shape[1] % inputs))
        sums = padded.reshape(len(outputs), -1, inputs, transformed.shape[2]).sum(2)
        if (sums * largest).max() >= 2**31:
            return False
    return True
