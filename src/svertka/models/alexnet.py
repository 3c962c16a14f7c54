"""AlexNet: with two groups, as it won the challenge of 2012, and with one, as its author rewrote it in 2014.

Sources: Krizhevsky, Sutskever & Hinton 2012, "ImageNet classification with deep convolutional neural networks";
Krizhevsky 2014, "One weird trick for parallelizing convolutional neural networks" (arXiv 1404.5997).
"""

from functools import partial

import torch
from torch import nn

from svertka.conv_shape import SMALL
from svertka.layers import Conv2d, Linear, LocalResponseNorm
from svertka.models.initialization import init_weights


class AlexNet(nn.Module):
    """AlexNet of 2012: images (B, channels, H, W) to logits (B, classes); 60,965,224 parameters.

    `groups=2` stands for the paper's two GPUs: each half sees the other half's feature maps only in conv3 and in the
    fully connected layers. The paper says 224×224 pixels, but 55×55 positions of an 11×11 kernel with stride 4 need
    227. The poolings round up: this changes nothing at 227, gives the paper's sizes from pool1 on at 224, and allows
    images from 64×64.

    Args:
        size: Height and width of the images, at least 8. Below 64 the first convolution is 5×5 with stride 1, as in
            the author's networks for CIFAR-10, and the hidden fully connected layers have 1024 units (7,561,610
            parameters for ten classes). Weights are then drawn from N(0, 2 / fan-in) (He et al. 2015, "Delving deep
            into rectifiers", eq. 10) and biases are zero: with the paper's initialization this form does not learn
            within the hundreds of steps that small datasets take.

    Source: Krizhevsky et al. 2012, §3 and figure 2.
    """

    def __init__(self, classes: int = 1000, channels: int = 3, size: int = 227) -> None:
        super().__init__()
        small = size < SMALL
        grid, hidden = (4, 1024) if small else (6, 4096)
        maxpool = partial(nn.MaxPool2d, 3, stride=2, ceil_mode=True)  # overlapping, §3.4
        self.conv1 = Conv2d(channels, 96, 5, padding=2) if small else Conv2d(channels, 96, 11, stride=4)
        self.relu1 = nn.ReLU(inplace=True)
        self.norm1 = LocalResponseNorm()
        self.pool1 = maxpool()
        self.conv2 = Conv2d(96, 256, 5, padding=2, groups=2)
        self.relu2 = nn.ReLU(inplace=True)
        self.norm2 = LocalResponseNorm()
        self.pool2 = maxpool()
        self.conv3 = Conv2d(256, 384, 3, padding=1)
        self.relu3 = nn.ReLU(inplace=True)
        self.conv4 = Conv2d(384, 384, 3, padding=1, groups=2)
        self.relu4 = nn.ReLU(inplace=True)
        self.conv5 = Conv2d(384, 256, 3, padding=1, groups=2)
        self.relu5 = nn.ReLU(inplace=True)
        self.pool5 = maxpool()
        self.avgpool = nn.AdaptiveAvgPool2d(grid)  # changes nothing at the paper's size
        self.flatten = nn.Flatten()
        self.fc6 = Linear(256 * grid * grid, hidden)
        self.relu6 = nn.ReLU(inplace=True)
        self.dropout6 = nn.Dropout(0.5)
        self.fc7 = Linear(hidden, hidden)
        self.relu7 = nn.ReLU(inplace=True)
        self.dropout7 = nn.Dropout(0.5)
        self.fc8 = Linear(hidden, classes)
        init_weights(self, "he" if small else "gaussian")
        if not small:  # §5: positive inputs to the ReLUs speed up the first steps
            for name in ("conv2", "conv4", "conv5", "fc6", "fc7"):
                nn.init.ones_(self.get_parameter(f"{name}.bias"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        x = self.pool1(self.norm1(self.relu1(self.conv1(x))))
        x = self.pool2(self.norm2(self.relu2(self.conv2(x))))
        x = self.relu3(self.conv3(x))
        x = self.relu4(self.conv4(x))
        x = self.pool5(self.relu5(self.conv5(x)))
        x = self.flatten(self.avgpool(x))
        x = self.dropout6(self.relu6(self.fc6(x)))
        x = self.dropout7(self.relu7(self.fc7(x)))
        logits: torch.Tensor = self.fc8(x)
        return logits


class AlexNetOWT(nn.Module):
    """AlexNet of 2014: images (B, channels, H, W) to logits (B, classes); 61,100,840 parameters.

    Without groups and local response normalization. The architecture and the parameter names are those of the
    published PyTorch weights. They depart from the paper in the fourth convolution, with 256 feature maps where
    footnote 1 has 384, and apply dropout before each hidden fully connected layer.

    Args:
        size: Height and width of the images, at least 15. Below 64 the first convolution is 5×5 with stride 1 and the
            hidden fully connected layers have 1024 units (5,871,434 parameters for ten classes).

    Source: Krizhevsky 2014, §5.
    """

    def __init__(self, classes: int = 1000, channels: int = 3, size: int = 224) -> None:
        super().__init__()
        small = size < SMALL
        grid, hidden = (3, 1024) if small else (6, 4096)
        # PyTorch's default initialization, from which the published weights were trained; the paper gives none.
        self.features = nn.Sequential(
            nn.Conv2d(channels, 64, 5, padding=2) if small else nn.Conv2d(channels, 64, 11, stride=4, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(grid)
        self.flatten = nn.Flatten()
        self.classifier = nn.Sequential(
            nn.Dropout(0.5),
            nn.Linear(256 * grid * grid, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, classes),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        logits: torch.Tensor = self.classifier(self.flatten(self.avgpool(self.features(x))))
        return logits
