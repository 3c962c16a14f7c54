"""The network of airbench94: small pictures learnt in few epochs.

Source: Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU", and the code published with it.
"""

import torch
from torch import nn

from svertka.errors import UsageError
from svertka.layers import Conv2d, Linear

WIDTHS = (64, 256, 256)  # §3.1
SCALE = 1 / 9  # of the logits, §3.1


def norm(channels: int) -> nn.BatchNorm2d:
    """Batch normalisation whose scale stays 1 and whose bias is learnt (§3.1).

    Its constants are the published code's: running statistics keep 0.6 of their old value a step, since there are few.
    """
    layer = nn.BatchNorm2d(channels, eps=1e-12, momentum=1 - 0.6)
    layer.weight.requires_grad_(False)
    return layer


class Block(nn.Sequential):
    """Two 3×3 convolutions, each normalised, with a max-pool of 2×2 after the first (§3.1).

    (B, in_channels, H, W) to (B, out_channels, ⌊H/2⌋, ⌊W/2⌋).
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.pool = nn.MaxPool2d(2)
        self.bn1 = norm(out_channels)
        self.gelu1 = nn.GELU()
        self.conv2 = Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = norm(out_channels)
        self.gelu2 = nn.GELU()


class AirBench(nn.Module):
    """Class scores (B, classes) for pictures (B, channels, H, W); `size` changes nothing.

    1,972,792 parameters, 1,971,352 of which learn. The first layer sees patches of 2×2 through fixed filters: random
    ones at first, and those that whiten the training pictures after `whiten`.
    """

    def __init__(self, classes: int = 10, channels: int = 3, size: int = 32) -> None:
        super().__init__()
        filters = 2 * (2 * 2 * channels)  # a basis of the patches, and its negative (§3.2)
        self.whitening = Conv2d(channels, filters, 2)
        self.gelu = nn.GELU()
        self.layer1 = Block(filters, WIDTHS[0])
        self.layer2 = Block(WIDTHS[0], WIDTHS[1])
        self.layer3 = Block(WIDTHS[1], WIDTHS[2])
        self.pool = nn.AdaptiveMaxPool2d(1)  # of the 3×3 that 32×32 pixels come to
        self.flatten = nn.Flatten()
        self.linear = Linear(WIDTHS[2], classes, bias=False)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                # PyTorch's customary values, which the paper keeps (§3.1)
                bound = layer.weight[0].numel() ** -0.5
                nn.init.uniform_(layer.weight, -bound, bound)
            if isinstance(layer, nn.Conv2d) and layer is not self.whitening:
                # As many filters as there are inputs hand them on as they are (§3.3).
                nn.init.dirac_(layer.weight.detach()[: layer.in_channels])
        if self.whitening.bias is not None:
            nn.init.zeros_(self.whitening.bias)
        self._set_filters(nn.init.orthogonal_(torch.empty(filters // 2, filters // 2)))
        self.whitening.weight.requires_grad_(False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logits."""
        maps = self.gelu(self.whitening(inputs))
        maps = self.layer3(self.layer2(self.layer1(maps)))
        logits: torch.Tensor = self.linear(self.flatten(self.pool(maps)))
        return logits * SCALE

    @torch.no_grad()
    def whiten(self, pictures: torch.Tensor, eps: float = 5e-4) -> None:
        """Set the first layer so that it gives uncorrelated values of variance 1, and their negatives (§3.2).

        `pictures`: (N, channels, H, W) float, of the training part, normalised; a few thousand are enough. `eps`: added
        to the variance of each direction, so that rare ones are not blown up. The filters are the eigenvectors of the
        second moments of all patches, the strongest first.

        Raises:
            UsageError: `pictures` has another shape, or pictures of less than 2×2 pixels, or none.
        """
        channels, half = self.whitening.in_channels, self.whitening.out_channels // 2
        shape = tuple(pictures.shape)
        if len(shape) != 4 or shape[1] != channels or min(shape[2:]) < 2 or shape[0] == 0:
            raise UsageError(
                f"pictures {shape} cannot whiten; they must be (N, {channels}, H, W) of at least 2×2 pixels"
            )
        moments = torch.zeros(half, half, dtype=torch.float64, device=pictures.device)
        for some in torch.split(pictures, 256):  # all patches at once would not fit into memory
            windows = some.double().unfold(2, 2, 1).unfold(3, 2, 1)  # (N, channels, H − 1, W − 1, 2, 2)
            patches = windows.permute(1, 4, 5, 0, 2, 3).reshape(half, -1)
            moments += patches @ patches.T
        count = len(pictures) * (pictures.shape[2] - 1) * (pictures.shape[3] - 1)
        variances, directions = torch.linalg.eigh(moments / count)  # ascending; a direction is a column
        self._set_filters((directions / (variances + eps).sqrt()).T.flip(0))

    @torch.no_grad()
    def _set_filters(self, rows: torch.Tensor) -> None:
        """Make `rows` (2 · 2 · channels, channels · 2 · 2) the first filters, and their negatives the others."""
        self.whitening.weight.copy_(torch.cat((rows, -rows)).view_as(self.whitening.weight))
