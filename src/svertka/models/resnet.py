"""Residual networks, and the same without shortcuts.

Source: He, Zhang, Ren & Sun 2015, "Deep residual learning for image recognition".
"""

from collections import OrderedDict
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from svertka.geometry import SMALL
from svertka.layers import Conv2d, Linear
from svertka.models.initial import initialise

# (in_channels, out_channels, stride) to what is added to a block's residual; None: nothing is.
Shortcut = Callable[[int, int, int], nn.Module | None]


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


def padded(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Option A of §3.3: the identity, padded with zeros where channels are added."""
    same = stride == 1 and in_channels == out_channels
    return nn.Identity() if same else PaddedShortcut(out_channels - in_channels, stride)


def projected(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Option B of §3.3: the identity, and a 1×1 convolution where channels or size change."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))


def absent(in_channels: int, out_channels: int, stride: int) -> None:
    """No shortcut: the plain networks of §4.1."""


class BasicBlock(nn.Module):
    """Two 3×3 convolutions around which the input is carried (figure 5, left)."""

    def __init__(self, in_channels: int, width: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.out_channels = width
        self.conv1 = Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = shortcut(in_channels, width, stride)
        self.relu2 = nn.ReLU(inplace=True)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(B, in_channels, H, W) to (B, width, ⌈H / stride⌉, ⌈W / stride⌉)."""
        outputs = self.relu1(self.bn1(self.conv1(inputs)))
        outputs = self.bn2(self.conv2(outputs))
        if self.downsample is not None:
            outputs += self.downsample(inputs)
        result: torch.Tensor = self.relu2(outputs)
        return result


class Bottleneck(nn.Module):
    """A 3×3 convolution between two of 1×1, on a quarter of the channels (figure 5, right).

    `stride_first`: the first 1×1 takes the stride, as in the paper, and three pixels of four are not looked at;
    otherwise the 3×3 takes it, as in the published PyTorch weights.
    """

    def __init__(
        self, in_channels: int, width: int, stride: int, shortcut: Shortcut, *, stride_first: bool = False
    ) -> None:
        super().__init__()
        self.out_channels = 4 * width
        first, second = (stride, 1) if stride_first else (1, stride)
        self.conv1 = Conv2d(in_channels, width, 1, first, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = Conv2d(width, width, 3, second, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv3 = Conv2d(width, self.out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(self.out_channels)
        self.downsample = shortcut(in_channels, self.out_channels, stride)
        self.relu3 = nn.ReLU(inplace=True)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(B, in_channels, H, W) to (B, 4 · width, ⌈H / stride⌉, ⌈W / stride⌉)."""
        outputs = self.relu1(self.bn1(self.conv1(inputs)))
        outputs = self.relu2(self.bn2(self.conv2(outputs)))
        outputs = self.bn3(self.conv3(outputs))
        if self.downsample is not None:
            outputs += self.downsample(inputs)
        result: torch.Tensor = self.relu3(outputs)
        return result


# (in_channels, width, stride, shortcut) to a block.
Block = Callable[[int, int, int, Shortcut], BasicBlock | Bottleneck]


def stages(block: Block, width: int, blocks: tuple[int, ...], shortcut: Shortcut) -> tuple[dict[str, nn.Module], int]:
    """Stages layer1, layer2, … of as many blocks as `blocks` says, and how many channels the last one gives.

    The first takes `width` channels. Each further one halves the size in its first block, at twice the width.
    """
    named: dict[str, nn.Module] = {}
    channels = width
    for number, count in enumerate(blocks):
        stage: list[nn.Module] = []
        for place in range(count):
            stride = 2 if number > 0 and place == 0 else 1
            made = block(channels, width * 2**number, stride, shortcut)
            channels = made.out_channels
            stage.append(made)
        named[f"layer{number + 1}"] = nn.Sequential(*stage)
    return named, channels


# Table 1: layers with weights → the block, and how many of it each stage has.
RESNETS: dict[int, tuple[Block, tuple[int, ...]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}


class ResNet(nn.Sequential):
    """Class scores (B, classes) for pictures (B, channels, H, W) of at least 64 pixels a side (§4.1, table 1).

    `blocks`: how many each stage has. `size`: below 64 the network is built for pictures of 32×32, with a first
    convolution of 3×3 without stride and without max-pooling. Without `shortcuts` it is the plain network. Parameter
    names are those of the published PyTorch weights; the paper's own bottleneck, which differs from theirs, is
    `block=partial(Bottleneck, stride_first=True)`.
    """

    def __init__(
        self,
        block: Block,
        blocks: tuple[int, ...],
        classes: int = 1000,
        channels: int = 3,
        size: int = 224,
        *,
        shortcuts: bool = True,
    ) -> None:
        small = size < SMALL
        kernel, stride, padding = (3, 1, 1) if small else (7, 2, 3)
        layers: dict[str, nn.Module] = {
            "conv1": Conv2d(channels, 64, kernel, stride, padding, bias=False),
            "bn1": nn.BatchNorm2d(64),
            "relu": nn.ReLU(inplace=True),
        }
        if not small:
            layers["maxpool"] = nn.MaxPool2d(3, stride=2, padding=1)
        named, features = stages(block, 64, blocks, projected if shortcuts else absent)
        layers |= named
        layers["avgpool"] = nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = nn.Flatten()
        layers["fc"] = Linear(features, classes)
        super().__init__(OrderedDict(layers))
        initialise(self, "he")  # §3.4


class SmallResNet(nn.Sequential):
    """Class scores (B, classes) for small pictures (B, channels, H, W); 6 · `blocks` + 2 layers with weights (§4.2).

    Three stages of 16, 32 and 64 channels, each at half the size of the one before; `size` changes nothing. Without
    `shortcuts` it is the plain network. Parameter names are those of the widely published CIFAR-10 weights.
    """

    def __init__(
        self, blocks: int, classes: int = 10, channels: int = 3, size: int = 32, *, shortcuts: bool = True
    ) -> None:
        named, features = stages(BasicBlock, 16, (blocks,) * 3, padded if shortcuts else absent)
        layers: dict[str, nn.Module] = {
            "conv1": Conv2d(channels, 16, 3, padding=1, bias=False),
            "bn1": nn.BatchNorm2d(16),
            "relu": nn.ReLU(inplace=True),
            **named,
            "pool": nn.AdaptiveAvgPool2d(1),
            "flatten": nn.Flatten(),
            "linear": Linear(features, classes),
        }
        super().__init__(OrderedDict(layers))
        initialise(self, "he")  # §3.4
