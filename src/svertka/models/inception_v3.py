"""Inception-v3. Modules have the letters that torchvision gives them.

Source: Szegedy, Vanhoucke, Ioffe, Shlens & Wojna 2015, "Rethinking the Inception architecture for computer vision".
"""

from typing import ClassVar

import torch
from torch import nn

from svertka.layers import Linear
from svertka.models.googlenet import AuxAvgPool2d, ConvBNReLU
from svertka.models.initialization import InitScheme, init_weights

# The papers do not say. The authors' code (TF-Slim, `inception_arg_scope`) draws with He's variance from a normal
# distribution truncated at two standard deviations. Truncation is left out: it is slow, and the batch normalization
# after each convolution cancels any change of scale.
INIT_SCHEME: InitScheme = "he"


def make_avg_pool() -> nn.AvgPool2d:
    """3×3 average pooling that keeps the size and counts the zeros around the feature maps.

    The published weights were trained with it.
    """
    return nn.AvgPool2d(3, stride=1, padding=1)


class InceptionA(nn.Module):
    """GoogLeNet's module with two 3×3 convolutions in place of 5×5 in one branch (figure 5).

    (B, in_channels, H, W) to (B, 224 + pool_features, H, W).
    """

    def __init__(self, in_channels: int, pool_features: int) -> None:
        super().__init__()
        self.branch1x1 = ConvBNReLU(in_channels, 64, 1)
        self.branch5x5_1 = ConvBNReLU(in_channels, 48, 1)
        self.branch5x5_2 = ConvBNReLU(48, 64, 5)
        self.branch3x3dbl_1 = ConvBNReLU(in_channels, 64, 1)
        self.branch3x3dbl_2 = ConvBNReLU(64, 96, 3)
        self.branch3x3dbl_3 = ConvBNReLU(96, 96, 3)
        self.pool = make_avg_pool()
        self.branch_pool = ConvBNReLU(in_channels, pool_features, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the outputs of the four branches, concatenated along the channels."""
        branch1x1 = self.branch1x1(x)
        branch5x5 = self.branch5x5_2(self.branch5x5_1(x))
        branch3x3dbl = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        branch_pool = self.branch_pool(self.pool(x))
        return torch.cat([branch1x1, branch5x5, branch3x3dbl, branch_pool], dim=1)


class InceptionB(nn.Module):
    """Grid size reduction: convolutions and pooling with stride 2, in parallel (§5, figure 10).

    (B, in_channels, H, W) to (B, 480 + in_channels, ⌊(H − 1) / 2⌋, ⌊(W − 1) / 2⌋).
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.branch3x3 = ConvBNReLU(in_channels, 384, 3, stride=2, padding=0)
        self.branch3x3dbl_1 = ConvBNReLU(in_channels, 64, 1)
        self.branch3x3dbl_2 = ConvBNReLU(64, 96, 3)
        self.branch3x3dbl_3 = ConvBNReLU(96, 96, 3, stride=2, padding=0)
        self.pool = nn.MaxPool2d(3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the outputs of the three branches, concatenated along the channels."""
        branch3x3 = self.branch3x3(x)
        branch3x3dbl = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([branch3x3, branch3x3dbl, self.pool(x)], dim=1)


class InceptionC(nn.Module):
    """7×7 convolutions factorized into 1×7 and 7×1 (§3.2, figure 6).

    (B, in_channels, H, W) to (B, 768, H, W). `channels_7x7`: channels between the factors.
    """

    def __init__(self, in_channels: int, channels_7x7: int) -> None:
        super().__init__()
        c7 = channels_7x7
        self.branch1x1 = ConvBNReLU(in_channels, 192, 1)
        self.branch7x7_1 = ConvBNReLU(in_channels, c7, 1)
        self.branch7x7_2 = ConvBNReLU(c7, c7, (1, 7))
        self.branch7x7_3 = ConvBNReLU(c7, 192, (7, 1))
        self.branch7x7dbl_1 = ConvBNReLU(in_channels, c7, 1)
        self.branch7x7dbl_2 = ConvBNReLU(c7, c7, (7, 1))
        self.branch7x7dbl_3 = ConvBNReLU(c7, c7, (1, 7))
        self.branch7x7dbl_4 = ConvBNReLU(c7, c7, (7, 1))
        self.branch7x7dbl_5 = ConvBNReLU(c7, 192, (1, 7))
        self.pool = make_avg_pool()
        self.branch_pool = ConvBNReLU(in_channels, 192, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the outputs of the four branches, concatenated along the channels."""
        branch1x1 = self.branch1x1(x)
        branch7x7 = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        branch7x7dbl = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        branch7x7dbl = self.branch7x7dbl_5(self.branch7x7dbl_4(branch7x7dbl))
        branch_pool = self.branch_pool(self.pool(x))
        return torch.cat([branch1x1, branch7x7, branch7x7dbl, branch_pool], dim=1)


class InceptionD(nn.Module):
    """Grid size reduction with factorized 7×7 convolutions (§5, figure 10).

    (B, in_channels, H, W) to (B, 512 + in_channels, ⌊(H − 1) / 2⌋, ⌊(W − 1) / 2⌋).
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.branch3x3_1 = ConvBNReLU(in_channels, 192, 1)
        self.branch3x3_2 = ConvBNReLU(192, 320, 3, stride=2, padding=0)
        self.branch7x7x3_1 = ConvBNReLU(in_channels, 192, 1)
        self.branch7x7x3_2 = ConvBNReLU(192, 192, (1, 7))
        self.branch7x7x3_3 = ConvBNReLU(192, 192, (7, 1))
        self.branch7x7x3_4 = ConvBNReLU(192, 192, 3, stride=2, padding=0)
        self.pool = nn.MaxPool2d(3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the outputs of the three branches, concatenated along the channels."""
        branch3x3 = self.branch3x3_2(self.branch3x3_1(x))
        branch7x7x3 = self.branch7x7x3_2(self.branch7x7x3_1(x))
        branch7x7x3 = self.branch7x7x3_4(self.branch7x7x3_3(branch7x7x3))
        return torch.cat([branch3x3, branch7x7x3, self.pool(x)], dim=1)


class InceptionE(nn.Module):
    """1×3 and 3×1 convolutions in parallel: many features on the coarsest grid (figure 7).

    (B, in_channels, H, W) to (B, 2048, H, W).
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.branch1x1 = ConvBNReLU(in_channels, 320, 1)
        self.branch3x3_1 = ConvBNReLU(in_channels, 384, 1)
        self.branch3x3_2a = ConvBNReLU(384, 384, (1, 3))
        self.branch3x3_2b = ConvBNReLU(384, 384, (3, 1))
        self.branch3x3dbl_1 = ConvBNReLU(in_channels, 448, 1)
        self.branch3x3dbl_2 = ConvBNReLU(448, 384, 3)
        self.branch3x3dbl_3a = ConvBNReLU(384, 384, (1, 3))
        self.branch3x3dbl_3b = ConvBNReLU(384, 384, (3, 1))
        self.pool = make_avg_pool()
        self.branch_pool = ConvBNReLU(in_channels, 192, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the outputs of the four branches, concatenated along the channels."""
        branch1x1 = self.branch1x1(x)
        branch3x3 = self.branch3x3_1(x)
        branch3x3 = torch.cat([self.branch3x3_2a(branch3x3), self.branch3x3_2b(branch3x3)], dim=1)
        branch3x3dbl = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        branch3x3dbl = torch.cat([self.branch3x3dbl_3a(branch3x3dbl), self.branch3x3dbl_3b(branch3x3dbl)], dim=1)
        branch_pool = self.branch_pool(self.pool(x))
        return torch.cat([branch1x1, branch3x3, branch3x3dbl, branch_pool], dim=1)


class InceptionV3Aux(nn.Module):
    """An auxiliary classifier with batch normalization, used in training only (figure 8).

    (B, in_channels, H, W) to logits (B, classes); 17×17 feature maps at the paper's image size.
    """

    def __init__(self, in_channels: int, classes: int) -> None:
        super().__init__()
        self.pool = AuxAvgPool2d(5)
        self.conv0 = ConvBNReLU(in_channels, 128, 1)
        self.conv1 = ConvBNReLU(128, 768, 5, padding=0)
        self.flatten = nn.Flatten()
        self.fc = Linear(768, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        logits: torch.Tensor = self.fc(self.flatten(self.conv1(self.conv0(self.pool(x)))))
        return logits


class InceptionV3(nn.Module):
    """Inception-v3: images (B, channels, H, W) to logits (B, classes); in training (logits, those of AuxLogits).

    `size` changes nothing; the paper's is 299. Where the authors' published network departs from the paper, the
    network follows it and fits its weights: one branch of InceptionA keeps its 5×5 convolution, and the first fully
    connected layer of the auxiliary classifier is a 5×5 convolution. Parameter names are those of the published
    PyTorch weights.

    Source: Szegedy et al. 2015, §6 and table 1; 20 % dropout from the authors' code.
    """

    auxiliaries: ClassVar[tuple[str, ...]] = ("AuxLogits",)

    def __init__(self, classes: int = 1000, channels: int = 3, size: int = 299) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvBNReLU(channels, 32, 3, stride=2, padding=0)
        self.Conv2d_2a_3x3 = ConvBNReLU(32, 32, 3, padding=0)
        self.Conv2d_2b_3x3 = ConvBNReLU(32, 64, 3)
        self.maxpool1 = nn.MaxPool2d(3, stride=2)
        self.Conv2d_3b_1x1 = ConvBNReLU(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvBNReLU(80, 192, 3, padding=0)
        self.maxpool2 = nn.MaxPool2d(3, stride=2)
        self.Mixed_5b = InceptionA(192, pool_features=32)
        self.Mixed_5c = InceptionA(256, pool_features=64)
        self.Mixed_5d = InceptionA(288, pool_features=64)
        self.Mixed_6a = InceptionB(288)
        self.Mixed_6b = InceptionC(768, channels_7x7=128)
        self.Mixed_6c = InceptionC(768, channels_7x7=160)
        self.Mixed_6d = InceptionC(768, channels_7x7=160)
        self.Mixed_6e = InceptionC(768, channels_7x7=192)
        self.AuxLogits = InceptionV3Aux(768, classes)
        self.Mixed_7a = InceptionD(768)
        self.Mixed_7b = InceptionE(1280)
        self.Mixed_7c = InceptionE(2048)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(0.2)
        self.fc = Linear(2048, classes)
        init_weights(self, INIT_SCHEME)
        # The auxiliary classifier starts with nearly zero logits, as in the authors' code.
        nn.init.normal_(self.AuxLogits.conv1.get_parameter("conv.weight"), std=0.01)
        nn.init.normal_(self.AuxLogits.fc.weight, std=0.001)

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Logits; in training also those of the auxiliary classifier."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.maxpool1(x)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = self.maxpool2(x)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6a(x)
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(x))))
        aux = self.AuxLogits(x) if self.training else None
        x = self.Mixed_7a(x)
        x = self.Mixed_7c(self.Mixed_7b(x))
        logits: torch.Tensor = self.fc(self.dropout(self.flatten(self.avgpool(x))))
        return logits if aux is None else (logits, aux)
