"""Residual networks for small pictures.

Source: He, Zhang, Ren & Sun 2015, "Deep residual learning for image recognition", §4.2.
"""

import torch
import torch.nn.functional as F
from torch import nn


class PaddedShortcut(nn.Module):
    """Every `stride`-th pixel, and zeros for the channels that are added: option A, without parameters.

    Half of the zeros go before the old channels and half behind, as in the widely published weights; the paper does
    not say where.
    """

    def __init__(self, added_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = added_channels // 2
        self.behind = added_channels - self.before

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to (B, C + added_channels, ⌈H / stride⌉, ⌈W / stride⌉)."""
        return F.pad(inputs[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.behind))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions around which the input is carried (figure 5, left)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        same = stride == 1 and in_channels == out_channels
        self.shortcut = nn.Identity() if same else PaddedShortcut(out_channels - in_channels, stride)
        self.relu2 = nn.ReLU()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(B, in_channels, H, W) to (B, out_channels, ⌈H / stride⌉, ⌈W / stride⌉)."""
        residual = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(inputs)))))
        outputs: torch.Tensor = self.relu2(residual + self.shortcut(inputs))
        return outputs


def stage(in_channels: int, out_channels: int, stride: int, blocks: int) -> nn.Sequential:
    """`blocks` blocks, of which the first changes channels and size."""
    first = BasicBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)))


class SmallResNet(nn.Module):
    """Class scores (B, classes) for pictures (B, channels, H, W); 6 · `blocks` + 2 layers with weights.

    Three stages of 16, 32 and 64 channels, each at half the size of the one before. Parameter names are those of the
    widely published CIFAR-10 weights.
    """

    def __init__(self, blocks: int, classes: int = 10, channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = stage(16, 16, stride=1, blocks=blocks)
        self.layer2 = stage(16, 32, stride=2, blocks=blocks)
        self.layer3 = stage(32, 64, stride=2, blocks=blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(64, classes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")  # He et al. 2015, "Delving deep", eq. 10

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logits."""
        maps = self.relu(self.bn1(self.conv1(inputs)))
        maps = self.layer3(self.layer2(self.layer1(maps)))
        logits: torch.Tensor = self.linear(self.flatten(self.pool(maps)))
        return logits


def resnet20(classes: int = 10, channels: int = 3) -> SmallResNet:
    """ResNet-20; 269,722 parameters for ten classes."""
    return SmallResNet(3, classes, channels)
