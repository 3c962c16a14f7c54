"""Residual networks, and plain networks without shortcuts.

Source: He, Zhang, Ren & Sun 2015, "Deep residual learning for image recognition".
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from svertka.conv.accelerate import normalize_and_activate
from svertka.conv_shape import SMALL
from svertka.layers import Conv2d, Linear
from svertka.models.initialization import init_weights


class ZeroPadShortcut(nn.Module):
    """Subsampling by `stride`, with zeros for the added channels: the parameter-free shortcut of option A.

    Half of the zeros precede the input's channels and half follow, as in the widely published weights; the paper does
    not say where they go.
    """

    def __init__(self, added_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.padding = added_channels // 2, added_channels - added_channels // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, C, H, W) to (B, C + added_channels, ⌈H / stride⌉, ⌈W / stride⌉)."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *self.padding))


def make_zero_pad_shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Return the shortcut of option A, §3.3: the identity, padded with zeros where channels are added."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return ZeroPadShortcut(out_channels - in_channels, stride)


def make_projection_shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Return the shortcut of option B, §3.3: the identity, or a 1×1 convolution where channels or size change."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))


def make_no_shortcut(in_channels: int, out_channels: int, stride: int) -> None:
    """Return None: the blocks of the plain networks of §4.1 have no shortcut."""


# (in_channels, out_channels, stride) → the module on a block's shortcut; None: the block has none.
Shortcut = Callable[[int, int, int], nn.Module | None]


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with a shortcut around them (figure 5, left).

    (B, in_channels, H, W) to (B, width, ⌈H / stride⌉, ⌈W / stride⌉).
    """

    expansion = 1  # out_channels / width

    def __init__(self, in_channels: int, width: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = shortcut(in_channels, width, stride)
        self.relu2 = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """relu(residual + shortcut)."""
        residual = normalize_and_activate(self.bn1, self.relu1, self.conv1(x))
        shortcut = None if self.downsample is None else self.downsample(x)
        return normalize_and_activate(self.bn2, self.relu2, self.conv2(residual), shortcut)


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions, the 3×3 on a quarter of the channels (figure 5, right).

    (B, in_channels, H, W) to (B, 4 · width, ⌈H / stride⌉, ⌈W / stride⌉). The 3×3 convolution has the stride, as in the
    published PyTorch weights; in the paper it is the first 1×1.
    """

    expansion = 4  # out_channels / width

    def __init__(self, in_channels: int, width: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        out_channels = self.expansion * width
        self.conv1 = Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv3 = Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = shortcut(in_channels, out_channels, stride)
        self.relu3 = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """relu(residual + shortcut)."""
        residual = normalize_and_activate(self.bn1, self.relu1, self.conv1(x))
        residual = normalize_and_activate(self.bn2, self.relu2, self.conv2(residual))
        shortcut = None if self.downsample is None else self.downsample(x)
        return normalize_and_activate(self.bn3, self.relu3, self.conv3(residual), shortcut)


Block = type[BasicBlock] | type[Bottleneck]


def make_stage(
    block: Block, in_channels: int, width: int, depth: int, stride: int, shortcut: Shortcut
) -> nn.Sequential:
    """Return `depth` blocks with block.expansion · width channels; the first block has the stride."""
    out_channels = block.expansion * width
    return nn.Sequential(
        block(in_channels, width, stride, shortcut),
        *(block(out_channels, width, 1, shortcut) for _ in range(depth - 1)),
    )


# Table 1: layers with weights → the block, and the number of blocks in each stage.
RESNETS: dict[int, tuple[Block, tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}


class ResNet(nn.Module):
    """ResNet for ImageNet: images (B, channels, H, W) to logits (B, classes) (§4.1, table 1).

    Parameter names are those of the published PyTorch weights.

    Args:
        depths: Number of blocks in each stage.
        size: Height and width of the images. Below 64 the network is built for 32×32 images: the first convolution is
            3×3 with stride 1 and there is no max-pooling.
        shortcuts: False builds the plain network.
    """

    def __init__(
        self,
        block: Block,
        depths: tuple[int, int, int, int],
        classes: int = 1000,
        channels: int = 3,
        size: int = 224,
        *,
        shortcuts: bool = True,
    ) -> None:
        super().__init__()
        small = size < SMALL
        shortcut = make_projection_shortcut if shortcuts else make_no_shortcut
        kernel, stride, padding = (3, 1, 1) if small else (7, 2, 3)
        self.conv1 = Conv2d(channels, 64, kernel, stride, padding, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = make_stage(block, 64, 64, depths[0], 1, shortcut)
        self.layer2 = make_stage(block, 64 * block.expansion, 128, depths[1], 2, shortcut)
        self.layer3 = make_stage(block, 128 * block.expansion, 256, depths[2], 2, shortcut)
        self.layer4 = make_stage(block, 256 * block.expansion, 512, depths[3], 2, shortcut)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = Linear(512 * block.expansion, classes)
        init_weights(self, "he")  # §3.4

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        x = self.maxpool(normalize_and_activate(self.bn1, self.relu, self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: torch.Tensor = self.fc(self.flatten(self.avgpool(x)))
        return logits


class CIFARResNet(nn.Module):
    """ResNet for CIFAR-10: images (B, channels, H, W) to logits (B, classes); 6 · depth + 2 layers with weights (§4.2).

    Parameter names are those of the widely published CIFAR-10 weights.

    Args:
        depth: Number of blocks in each of the three stages.
        size: Changes nothing; the paper's is 32.
        shortcuts: False builds the plain network.
    """

    def __init__(
        self, depth: int, classes: int = 10, channels: int = 3, size: int = 32, *, shortcuts: bool = True
    ) -> None:
        super().__init__()
        shortcut = make_zero_pad_shortcut if shortcuts else make_no_shortcut
        self.conv1 = Conv2d(channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = make_stage(BasicBlock, 16, 16, depth, 1, shortcut)
        self.layer2 = make_stage(BasicBlock, 16, 32, depth, 2, shortcut)
        self.layer3 = make_stage(BasicBlock, 32, 64, depth, 2, shortcut)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = Linear(64, classes)
        init_weights(self, "he")  # §3.4

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        x = normalize_and_activate(self.bn1, self.relu, self.conv1(x))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: torch.Tensor = self.linear(self.flatten(self.avgpool(x)))
        return logits
