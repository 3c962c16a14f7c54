"""GoogLeNet, and its form with batch normalization for which PyTorch weights are published.

Source: Szegedy, Liu, Jia, Sermanet, Reed, Anguelov, Erhan, Vanhoucke & Rabinovich 2014, "Going deeper with
convolutions".
"""

from collections import OrderedDict
from functools import partial
from typing import ClassVar

import torch
from torch import nn

from svertka.conv_shape import SMALL
from svertka.layers import Conv2d, Linear, LocalResponseNorm
from svertka.models.initialization import init_weights


class ConvReLU(nn.Sequential):
    """A convolution and ReLU. `kernel` is odd; at stride 1 height and width are kept."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        conv = Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2)
        super().__init__(OrderedDict(conv=conv, relu=nn.ReLU(inplace=True)))


class ConvBNReLU(nn.Sequential):
    """A convolution without bias, batch normalization and ReLU.

    Args:
        kernel: Height and width, or one number for both; odd.
        padding: Zeros on each side of the input, one number or (vertical, horizontal); None keeps height and width
            at stride 1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] | None = None,
    ) -> None:
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        if padding is None:
            padding = height // 2, width // 2
        conv = Conv2d(in_channels, out_channels, (height, width), stride, padding, bias=False)
        # eps as in the published weights of all Inception networks
        super().__init__(OrderedDict(conv=conv, bn=nn.BatchNorm2d(out_channels, eps=1e-3), relu=nn.ReLU(inplace=True)))


ConvBlock = type[ConvReLU] | type[ConvBNReLU]


class Inception(nn.Module):
    """An inception module with dimension reductions (figure 2b).

    (B, in_channels, H, W) to (B, ch1x1 + ch3x3 + ch5x5 + pool_proj, H, W).

    Args:
        ch1x1, ch3x3red, ch3x3, ch5x5red, ch5x5, pool_proj: Channels, in the order of table 1.
        conv: ConvReLU, or ConvBNReLU for the form with batch normalization.
        large_kernel: Kernel of the branch that is 5×5 in the paper.
    """

    def __init__(
        self,
        in_channels: int,
        ch1x1: int,
        ch3x3red: int,
        ch3x3: int,
        ch5x5red: int,
        ch5x5: int,
        pool_proj: int,
        *,
        conv: ConvBlock = ConvReLU,
        large_kernel: int = 5,
    ) -> None:
        super().__init__()
        self.branch1 = conv(in_channels, ch1x1, 1)
        self.branch2 = nn.Sequential(conv(in_channels, ch3x3red, 1), conv(ch3x3red, ch3x3, 3))
        self.branch3 = nn.Sequential(conv(in_channels, ch5x5red, 1), conv(ch5x5red, ch5x5, large_kernel))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), conv(in_channels, pool_proj, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the outputs of the four branches, concatenated along the channels."""
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], dim=1)


class AuxAvgPool2d(nn.Module):
    """5×5 average pooling with stride 3: (B, C, H, W) to (B, C, `output_size`, `output_size`).

    At the paper's input size the pooling gives that grid exactly. For other input sizes the result is averaged or
    repeated to fit; feature maps smaller than 5×5 skip the first step.
    """

    def __init__(self, output_size: int) -> None:
        super().__init__()
        self.avgpool = nn.AvgPool2d(5, stride=3)
        self.resize = nn.AdaptiveAvgPool2d(output_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the pooled feature maps."""
        if min(x.shape[-2:]) >= 5:
            x = self.avgpool(x)
        pooled: torch.Tensor = self.resize(x)
        return pooled


class InceptionAux(nn.Module):
    """An auxiliary classifier: (B, in_channels, H, W) to logits (B, classes); used in training only.

    Args:
        pool: Pooling to a 4×4 grid.

    Source: Szegedy et al. 2014, §5: average pooling to 4×4, 128 1×1 filters, 1024 units, 70 % dropout.
    """

    def __init__(self, in_channels: int, classes: int, conv: ConvBlock, pool: nn.Module) -> None:
        super().__init__()
        self.pool = pool
        self.conv = conv(in_channels, 128, 1)
        self.flatten = nn.Flatten()
        self.fc1 = Linear(128 * 4 * 4, 1024)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(0.7)
        self.fc2 = Linear(1024, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        x = self.flatten(self.conv(self.pool(x)))
        logits: torch.Tensor = self.fc2(self.dropout(self.relu(self.fc1(x))))
        return logits


class GoogLeNet(nn.Module):
    """GoogLeNet: images (B, channels, H, W) to logits (B, classes); in training (logits, aux1's, aux2's).

    22 layers with weights, and two auxiliary classifiers after modules 4a and 4d, whose losses the paper adds with
    weight 0.3. The paper does not give the constants of its local response normalization; AlexNet's are used.

    Args:
        size: Height and width of the images. Below 64 the network is built for 32×32 images: the first convolution is
            3×3 with stride 1 and the first two poolings are left out.
        batch_norm: Build the form that GoogLeNetBN describes.

    Source: Szegedy et al. 2014, §5, table 1 and figure 3.
    """

    auxiliaries: ClassVar[tuple[str, ...]] = ("aux1", "aux2")

    def __init__(self, classes: int = 1000, channels: int = 3, size: int = 224, *, batch_norm: bool = False) -> None:
        super().__init__()
        small = size < SMALL
        conv: ConvBlock = ConvBNReLU if batch_norm else ConvReLU
        inception = partial(Inception, conv=conv, large_kernel=3 if batch_norm else 5)
        # Rounded up, 112 rows become 56, 28, 14 and 7, as in table 1, without padding.
        maxpool = partial(nn.MaxPool2d, stride=2, ceil_mode=True)

        self.conv1 = conv(channels, 64, 3) if small else conv(channels, 64, 7, stride=2)
        self.maxpool1 = nn.Identity() if small else maxpool(3)
        self.norm1 = nn.Identity() if batch_norm else LocalResponseNorm()
        self.conv2 = conv(64, 64, 1)
        self.conv3 = conv(64, 192, 3)
        self.norm2 = nn.Identity() if batch_norm else LocalResponseNorm()
        self.maxpool2 = nn.Identity() if small else maxpool(3)
        self.inception3a = inception(192, 64, 96, 128, 16, 32, 32)
        self.inception3b = inception(256, 128, 128, 192, 32, 96, 64)
        self.maxpool3 = maxpool(3)
        self.inception4a = inception(480, 192, 96, 208, 16, 48, 64)
        self.aux1 = InceptionAux(512, classes, conv, nn.AdaptiveAvgPool2d(4) if batch_norm else AuxAvgPool2d(4))
        self.inception4b = inception(512, 160, 112, 224, 24, 64, 64)
        self.inception4c = inception(512, 128, 128, 256, 24, 64, 64)
        self.inception4d = inception(512, 112, 144, 288, 32, 64, 64)
        self.aux2 = InceptionAux(528, classes, conv, nn.AdaptiveAvgPool2d(4) if batch_norm else AuxAvgPool2d(4))
        self.inception4e = inception(528, 256, 160, 320, 32, 128, 128)
        self.maxpool4 = maxpool(2 if batch_norm else 3)
        self.inception5a = inception(832, 256, 160, 320, 32, 128, 128)
        self.inception5b = inception(832, 384, 192, 384, 48, 128, 128)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(0.2 if batch_norm else 0.4)
        self.fc = Linear(1024, classes)
        init_weights(self, "glorot")  # as in Caffe's reproduction; the paper does not say

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits; in training also those of both auxiliary classifiers."""
        x = self.norm1(self.maxpool1(self.conv1(x)))
        x = self.maxpool2(self.norm2(self.conv3(self.conv2(x))))
        x = self.maxpool3(self.inception3b(self.inception3a(x)))
        x = self.inception4a(x)
        aux1 = self.aux1(x) if self.training else None
        x = self.inception4d(self.inception4c(self.inception4b(x)))
        aux2 = self.aux2(x) if self.training else None
        x = self.maxpool4(self.inception4e(x))
        x = self.inception5b(self.inception5a(x))
        logits: torch.Tensor = self.fc(self.dropout(self.flatten(self.avgpool(x))))
        if aux1 is None or aux2 is None:
            return logits
        return logits, aux1, aux2


class GoogLeNetBN(GoogLeNet):
    """GoogLeNet with batch normalization after each convolution instead of local response normalization.

    The architecture and the parameter names are those of the published PyTorch weights. Besides the normalization it
    departs from the paper in the 3×3 kernels where table 1 has 5×5, 2×2 in the last max-pooling, auxiliary classifiers
    on 4×4 averages of the whole feature map, and 20 % dropout. In the published weights the auxiliary classifiers are
    untrained: training with auxiliary losses trains them from scratch.

    Source: Ioffe & Szegedy 2015, "Batch normalization", for the idea.
    """

    def __init__(self, classes: int = 1000, channels: int = 3, size: int = 224) -> None:
        super().__init__(classes, channels, size, batch_norm=True)
