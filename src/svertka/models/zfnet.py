"""ZFNet: AlexNet with a smaller kernel and stride in the first layers, chosen by looking at what they had learned.

Source: Zeiler & Fergus 2013, "Visualizing and understanding convolutional networks" (arXiv 1311.2901), figure 3.
"""

from functools import partial

import torch
from torch import nn

from svertka.layers import Conv2d, Linear, LocalResponseNorm
from svertka.models.initialization import init_weights


class ZFNet(nn.Module):
    """ZFNet: images (B, channels, H, W), at least 47×47, to logits (B, classes); 62,357,608 parameters.

    From 224×224 pixels figure 3 makes feature maps of 110, 55, 26, 13, 13, 13, 13 and 6. It does not give the padding
    that this takes: one pixel in conv1, none in conv2, and poolings that round up. Nor does it give the constants of
    the contrast normalization after the first two poolings; AlexNet's are used. `size` changes nothing.
    """

    def __init__(self, classes: int = 1000, channels: int = 3, size: int = 224) -> None:
        super().__init__()
        maxpool = partial(nn.MaxPool2d, 3, stride=2, ceil_mode=True)
        self.conv1 = Conv2d(channels, 96, 7, stride=2, padding=1)
        self.relu1 = nn.ReLU(inplace=True)
        self.pool1 = maxpool()
        self.norm1 = LocalResponseNorm()
        self.conv2 = Conv2d(96, 256, 5, stride=2)
        self.relu2 = nn.ReLU(inplace=True)
        self.pool2 = maxpool()
        self.norm2 = LocalResponseNorm()
        self.conv3 = Conv2d(256, 384, 3, padding=1)
        self.relu3 = nn.ReLU(inplace=True)
        self.conv4 = Conv2d(384, 384, 3, padding=1)
        self.relu4 = nn.ReLU(inplace=True)
        self.conv5 = Conv2d(384, 256, 3, padding=1)
        self.relu5 = nn.ReLU(inplace=True)
        self.pool5 = maxpool()
        self.avgpool = nn.AdaptiveAvgPool2d(6)  # changes nothing at 224×224 pixels
        self.flatten = nn.Flatten()
        self.fc6 = Linear(256 * 6 * 6, 4096)
        self.relu6 = nn.ReLU(inplace=True)
        self.dropout6 = nn.Dropout(0.5)
        self.fc7 = Linear(4096, 4096)
        self.relu7 = nn.ReLU(inplace=True)
        self.dropout7 = nn.Dropout(0.5)
        self.fc8 = Linear(4096, classes)
        # §3: "all weights are initialized to 10⁻²". Equal weights would stay equal, so it is read as the standard
        # deviation of a Gaussian, as in AlexNet.
        init_weights(self, "gaussian")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        x = self.norm1(self.pool1(self.relu1(self.conv1(x))))
        x = self.norm2(self.pool2(self.relu2(self.conv2(x))))
        x = self.relu3(self.conv3(x))
        x = self.relu4(self.conv4(x))
        x = self.pool5(self.relu5(self.conv5(x)))
        x = self.flatten(self.avgpool(x))
        x = self.dropout6(self.relu6(self.fc6(x)))
        x = self.dropout7(self.relu7(self.fc7(x)))
        logits: torch.Tensor = self.fc8(x)
        return logits
