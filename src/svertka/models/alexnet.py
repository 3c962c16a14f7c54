"""AlexNet: as it won the challenge of 2012, in two towers, and as its author rewrote it in 2014, in one.

Sources: Krizhevsky, Sutskever & Hinton 2012, "ImageNet classification with deep convolutional neural networks";
Krizhevsky 2014, "One weird trick for parallelizing convolutional neural networks" (arXiv 1404.5997).
"""

from collections import OrderedDict
from functools import partial

from torch import nn

from svertka.geometry import SMALL
from svertka.layers import Conv2d, Linear, LocalResponseNorm
from svertka.models.initial import initialise


class AlexNet(nn.Sequential):
    """Class scores (B, classes) for pictures (B, channels, H, W); 60,965,224 parameters as published.

    `groups=2` are the paper's two processors: a tower sees the other's maps in conv3 and in the dense layers only.
    The paper says 224×224, but 55×55 maps of windows 11 wide and 4 apart need 227. Pools round up: nothing changes at
    227, 224 gives the paper's maps from pool1 on, and 64 pixels are enough.

    Below 64 pixels the first convolution is 5×5 at stride 1, as in the author's networks for CIFAR-10, and the hidden
    dense layers have 1024 units, 7,561,610 parameters for ten classes; 8 pixels at least. Weights are drawn from
    N(0, 2 / fan-in) then (He et al. 2015, "Delving deep into rectifiers", eq. 10) and biases are zero: from the paper's
    first values, this form does not learn in the hundreds of steps in which it is otherwise done with small data.

    Source: Krizhevsky et al. 2012, §3 and figure 2.
    """

    def __init__(self, classes: int = 1000, channels: int = 3, size: int = 227) -> None:
        small = size < SMALL
        grid, width = (4, 1024) if small else (6, 4096)
        pool = partial(nn.MaxPool2d, 3, stride=2, ceil_mode=True)  # §3.4: windows overlap
        super().__init__(
            OrderedDict(
                conv1=Conv2d(channels, 96, 5, padding=2) if small else Conv2d(channels, 96, 11, stride=4),
                relu1=nn.ReLU(inplace=True),
                norm1=LocalResponseNorm(),
                pool1=pool(),
                conv2=Conv2d(96, 256, 5, padding=2, groups=2),
                relu2=nn.ReLU(inplace=True),
                norm2=LocalResponseNorm(),
                pool2=pool(),
                conv3=Conv2d(256, 384, 3, padding=1),
                relu3=nn.ReLU(inplace=True),
                conv4=Conv2d(384, 384, 3, padding=1, groups=2),
                relu4=nn.ReLU(inplace=True),
                conv5=Conv2d(384, 256, 3, padding=1, groups=2),
                relu5=nn.ReLU(inplace=True),
                pool5=pool(),
                grid=nn.AdaptiveAvgPool2d(grid),  # changes nothing at the native size
                flatten=nn.Flatten(),
                fc6=Linear(256 * grid * grid, width),
                relu6=nn.ReLU(inplace=True),
                dropout6=nn.Dropout(0.5),
                fc7=Linear(width, width),
                relu7=nn.ReLU(inplace=True),
                dropout7=nn.Dropout(0.5),
                fc8=Linear(width, classes),
            )
        )
        initialise(self, "he" if small else "gaussian")
        if not small:  # §5: they give the ReLUs positive inputs, which speeds up the first steps
            for name in ("conv2", "conv4", "conv5", "fc6", "fc7"):
                nn.init.ones_(self.get_parameter(f"{name}.bias"))


class AlexNetOWT(nn.Sequential):
    """Class scores (B, classes) for pictures (B, channels, H, W); one tower, no response norm, 61,100,840 parameters.

    In the form of the published PyTorch weights, whose names it bears. They depart from the paper in conv4: 256 maps
    where footnote 1 has 384; and each dropout stands before its dense layer.

    Below 64 pixels the first convolution is 5×5 at stride 1 and the hidden dense layers have 1024 units, 5,871,434
    parameters for ten classes; 15 pixels at least.

    Source: Krizhevsky 2014, §5.
    """

    def __init__(self, classes: int = 1000, channels: int = 3, size: int = 224) -> None:
        small = size < SMALL
        grid, width = (3, 1024) if small else (6, 4096)
        first = nn.Conv2d(channels, 64, 5, padding=2) if small else nn.Conv2d(channels, 64, 11, stride=4, padding=2)
        # PyTorch's own first values, with which the published weights were trained; the paper gives none.
        features = nn.Sequential(
            first,
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
        classifier = nn.Sequential(
            nn.Dropout(0.5),
            nn.Linear(256 * grid * grid, width),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(width, width),
            nn.ReLU(inplace=True),
            nn.Linear(width, classes),
        )
        super().__init__(
            OrderedDict(
                features=features,
                avgpool=nn.AdaptiveAvgPool2d(grid),
                flatten=nn.Flatten(),
                classifier=classifier,
            )
        )
