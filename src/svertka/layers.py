"""Layers that PyTorch lacks."""

import torch
import torch.nn.functional as F
from torch import nn


class ScaledTanh(nn.Module):
    """1.7159 · tanh(2/3 · a), elementwise: it gives ±1 for ±1, where its curvature is largest.

    Source: LeCun et al. 1998, eq. 6 and appendix A.
    """

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The same shape, values within ±1.7159."""
        return torch.tanh(inputs * (2 / 3)) * 1.7159


class Subsampling(nn.Module):
    """Sums over 2×2 neighbours, each map times its own coefficient plus its own bias, both trainable.

    (B, C, H, W) to (B, C, ⌊H/2⌋, ⌊W/2⌋).

    Source: LeCun et al. 1998, §II.B, layers S2 and S4.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.coefficient = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))
        # ±2.4 / fan-in, as all weights of that network (appendix A)
        nn.init.uniform_(self.coefficient, -2.4 / 4, 2.4 / 4)
        nn.init.uniform_(self.bias, -2.4 / 4, 2.4 / 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The sub-sampled maps; the squashing function that follows in the paper is a layer of its own."""
        sums = F.avg_pool2d(inputs, kernel_size=2, divisor_override=1)
        return sums * self.coefficient[:, None, None] + self.bias[:, None, None]
