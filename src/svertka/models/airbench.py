"""The network of airbench94: 94 % on CIFAR-10 in a few epochs.

Source: Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU", and the code published with it.
"""

import torch
from torch import nn

from svertka.conv.accelerate import normalize_and_activate
from svertka.errors import UsageError
from svertka.layers import Conv2d, Linear

WIDTHS = (64, 256, 256)  # §3.1
LOGIT_SCALE = 1 / 9  # §3.1


def make_batch_norm(channels: int) -> nn.BatchNorm2d:
    """Return batch normalization with a fixed scale of 1 and a trainable bias (§3.1), and the published constants.

    Running statistics keep 0.6 of their old value at each step, since training takes few steps.
    """
    layer = nn.BatchNorm2d(channels, eps=1e-12, momentum=1 - 0.6)
    layer.weight.requires_grad_(False)
    return layer


class ConvGroup(nn.Module):
    """Two 3×3 convolutions with batch normalization and GELU, and 2×2 max-pooling after the first (§3.1).

    (B, in_channels, H, W) to (B, out_channels, ⌊H/2⌋, ⌊W/2⌋).
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.pool = nn.MaxPool2d(2)
        self.bn1 = make_batch_norm(out_channels)
        self.gelu1 = nn.GELU()
        self.conv2 = Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = make_batch_norm(out_channels)
        self.gelu2 = nn.GELU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the feature maps at half the size."""
        x = normalize_and_activate(self.bn1, self.gelu1, self.pool(self.conv1(x)))
        return normalize_and_activate(self.bn2, self.gelu2, self.conv2(x))


class AirBench(nn.Module):
    """The network of airbench94: images (B, channels, H, W) to logits (B, classes).

    1,972,792 parameters, of which 1,971,352 are trained. The first layer applies fixed filters to 2×2 patches: random
    orthogonal ones, until `whiten` computes those that whiten the training images. `size` changes nothing.
    """

    def __init__(self, classes: int = 10, channels: int = 3, size: int = 32) -> None:
        super().__init__()
        filters = 2 * (2 * 2 * channels)  # a basis of the patches, and its negative (§3.2)
        self.whitening = Conv2d(channels, filters, 2)
        self.gelu = nn.GELU()
        self.layer1 = ConvGroup(filters, WIDTHS[0])
        self.layer2 = ConvGroup(WIDTHS[0], WIDTHS[1])
        self.layer3 = ConvGroup(WIDTHS[1], WIDTHS[2])
        self.maxpool = nn.AdaptiveMaxPool2d(1)  # of 3×3 positions, for 32×32 images
        self.flatten = nn.Flatten()
        self.linear = Linear(WIDTHS[2], classes, bias=False)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                # PyTorch's default initialization, which the paper keeps (§3.1)
                bound = layer.weight[0].numel() ** -0.5
                nn.init.uniform_(layer.weight, -bound, bound)
            if isinstance(layer, nn.Conv2d) and layer is not self.whitening:
                # The first in_channels filters are the identity (§3.3).
                nn.init.dirac_(layer.weight.detach()[: layer.in_channels])
        if self.whitening.bias is not None:
            nn.init.zeros_(self.whitening.bias)
        self._set_filters(nn.init.orthogonal_(torch.empty(filters // 2, filters // 2)))
        self.whitening.weight.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        x = self.gelu(self.whitening(x))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: torch.Tensor = self.linear(self.flatten(self.maxpool(x)))
        return logits * LOGIT_SCALE

    @torch.no_grad()
    def whiten(self, images: torch.Tensor, eps: float = 5e-4) -> None:
        """Set the first layer so that its outputs are uncorrelated with variance 1, followed by their negatives (§3.2).

        The filters are the eigenvectors of the second moments of all 2×2 patches, those of largest variance first.

        Args:
            images: (N, channels, H, W) float, normalized training images; a few thousand are enough.
            eps: Added to the variance in each direction, so that rare directions are not amplified too much.

        Raises:
            UsageError: `images` has another shape, is empty, or its images are smaller than 2×2 pixels.
        """
        channels, half = self.whitening.in_channels, self.whitening.out_channels // 2
        shape = tuple(images.shape)
        if len(shape) != 4 or shape[1] != channels or min(shape[2:]) < 2 or shape[0] == 0:
            raise UsageError(
                f"images of shape {shape} cannot be used for whitening; they must be (N, {channels}, H, W) with at "
                "least one image and 2×2 pixels"
            )
        moments = torch.zeros(half, half, dtype=torch.float64, device=images.device)
        for batch in torch.split(images, 256):  # all patches at once would not fit into memory
            windows = batch.double().unfold(2, 2, 1).unfold(3, 2, 1)  # (N, channels, H − 1, W − 1, 2, 2)
            patches = windows.permute(1, 4, 5, 0, 2, 3).reshape(half, -1)
            moments += patches @ patches.T
        count = len(images) * (images.shape[2] - 1) * (images.shape[3] - 1)
        variances, eigenvectors = torch.linalg.eigh(moments / count)  # ascending; each column is an eigenvector
        self._set_filters((eigenvectors / (variances + eps).sqrt()).T.flip(0))

    @torch.no_grad()
    def _set_filters(self, rows: torch.Tensor) -> None:
        """Set the first half of the filters to `rows` (channels · 2 · 2, channels · 2 · 2), the second to −`rows`."""
        self.whitening.weight.copy_(torch.cat((rows, -rows)).view_as(self.whitening.weight))
