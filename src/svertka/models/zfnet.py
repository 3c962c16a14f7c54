"""ZFNet: AlexNet with the first layers mended after looking at what they had learned.

Source: Zeiler & Fergus 2013, "Visualizing and understanding convolutional networks" (arXiv 1311.2901), figure 3.
"""

from collections import OrderedDict
from functools import partial

from torch import nn

from svertka.layers import Conv2d, Linear, LocalResponseNorm
from svertka.models.initial import initialise


class ZFNet(nn.Sequential):
    """Class scores (B, classes) for pictures (B, channels, H, W), 47 pixels at least; 62,357,608 parameters.

    These are, with biases: conv1 96·(7²·3 + 1) = 14,208, conv2 256·(5²·96 + 1) = 614,656, conv3 384·(3²·256 + 1) =
    885,120, conv4 384·(3²·384 + 1) = 1,327,488, conv5 256·(3²·384 + 1) = 884,992, fc6 4096·(6²·256 + 1) = 37,752,832,
    fc7 4096·(4096 + 1) = 16,781,312, fc8 1000·(4096 + 1) = 4,097,000.

    Of 224 pixels figure 3 makes maps of 110, 55, 26, 13, 13, 13, 13 and 6. It leaves the padding to the reader: one
    pixel in conv1, none in conv2, and pools that round up. The contrast normalisation behind the first two pools has
    no constants there; AlexNet's are taken.
    """

    def __init__(self, classes: int = 1000, channels: int = 3, size: int = 224) -> None:
        pool = partial(nn.MaxPool2d, 3, stride=2, ceil_mode=True)
        super().__init__(
            OrderedDict(
                conv1=Conv2d(channels, 96, 7, stride=2, padding=1),
                relu1=nn.ReLU(inplace=True),
                pool1=pool(),
                norm1=LocalResponseNorm(),
                conv2=Conv2d(96, 256, 5, stride=2),
                relu2=nn.ReLU(inplace=True),
                pool2=pool(),
                norm2=LocalResponseNorm(),
                conv3=Conv2d(256, 384, 3, padding=1),
                relu3=nn.ReLU(inplace=True),
                conv4=Conv2d(384, 384, 3, padding=1),
                relu4=nn.ReLU(inplace=True),
                conv5=Conv2d(384, 256, 3, padding=1),
                relu5=nn.ReLU(inplace=True),
                pool5=pool(),
                grid=nn.AdaptiveAvgPool2d(6),  # changes nothing at the native size
                flatten=nn.Flatten(),
                fc6=Linear(256 * 6 * 6, 4096),
                relu6=nn.ReLU(inplace=True),
                dropout6=nn.Dropout(0.5),
                fc7=Linear(4096, 4096),
                relu7=nn.ReLU(inplace=True),
                dropout7=nn.Dropout(0.5),
                fc8=Linear(4096, classes),
            )
        )
        # §3: "all weights are initialized to 10⁻²": the deviation of a Gaussian, as in AlexNet, since equal
        # weights would stay equal. Biases are zero.
        initialise(self, "gaussian")
