"""Inception-v3.

Source: Szegedy, Vanhoucke, Ioffe, Shlens & Wojna 2015, "Rethinking the Inception architecture for computer vision".
"""

from collections import OrderedDict

from torch import nn

from svertka.layers import Linear
from svertka.models.googlenet import AuxiliaryPool, Branches, SideExits
from svertka.models.googlenet import NormedConvolution as Convolution
from svertka.models.initial import Initial, initialise

# The papers do not say. The authors' code (TF-Slim, `inception_arg_scope`) has He's variance, of numbers within two
# standard deviations. Here none is drawn again: cutting them off takes longer than drawing them, and the batch norm
# behind each convolution undoes any scale.
FIRST_WEIGHTS: Initial = "he"


def inception_a(in_channels: int, projected: int) -> Branches:
    """224 + `projected` channels: GoogLeNet's module with two 3×3 filters for some of its 5×5 ones (figure 5)."""
    return Branches(
        {"branch1x1": Convolution(in_channels, 64, 1)},
        {"branch5x5_1": Convolution(in_channels, 48, 1), "branch5x5_2": Convolution(48, 64, 5)},
        {
            "branch3x3dbl_1": Convolution(in_channels, 64, 1),
            "branch3x3dbl_2": Convolution(64, 96, 3),
            "branch3x3dbl_3": Convolution(96, 96, 3),
        },
        {"pool": averaged(), "branch_pool": Convolution(in_channels, projected, 1)},
    )


def reduction_a(in_channels: int) -> Branches:
    """480 + `in_channels` channels at half the size: convolved and pooled in parallel (§5, figure 10)."""
    return Branches(
        {"branch3x3": Convolution(in_channels, 384, 3, stride=2, padded=False)},
        {
            "branch3x3dbl_1": Convolution(in_channels, 64, 1),
            "branch3x3dbl_2": Convolution(64, 96, 3),
            "branch3x3dbl_3": Convolution(96, 96, 3, stride=2, padded=False),
        },
        {"pool": nn.MaxPool2d(3, stride=2)},
    )


def inception_b(in_channels: int, width: int) -> Branches:
    """768 channels: 7×7 filters as 1×7 and 7×1 ones, of `width` channels between (§3.2, figure 6)."""
    return Branches(
        {"branch1x1": Convolution(in_channels, 192, 1)},
        {
            "branch7x7_1": Convolution(in_channels, width, 1),
            "branch7x7_2": Convolution(width, width, (1, 7)),
            "branch7x7_3": Convolution(width, 192, (7, 1)),
        },
        {
            "branch7x7dbl_1": Convolution(in_channels, width, 1),
            "branch7x7dbl_2": Convolution(width, width, (7, 1)),
            "branch7x7dbl_3": Convolution(width, width, (1, 7)),
            "branch7x7dbl_4": Convolution(width, width, (7, 1)),
            "branch7x7dbl_5": Convolution(width, 192, (1, 7)),
        },
        {"pool": averaged(), "branch_pool": Convolution(in_channels, 192, 1)},
    )


def reduction_b(in_channels: int) -> Branches:
    """512 + `in_channels` channels at half the size (§5, figure 10)."""
    return Branches(
        {
            "branch3x3_1": Convolution(in_channels, 192, 1),
            "branch3x3_2": Convolution(192, 320, 3, stride=2, padded=False),
        },
        {
            "branch7x7x3_1": Convolution(in_channels, 192, 1),
            "branch7x7x3_2": Convolution(192, 192, (1, 7)),
            "branch7x7x3_3": Convolution(192, 192, (7, 1)),
            "branch7x7x3_4": Convolution(192, 192, 3, stride=2, padded=False),
        },
        {"pool": nn.MaxPool2d(3, stride=2)},
    )


def inception_c(in_channels: int) -> Branches:
    """2048 channels: 1×3 and 3×1 filters side by side, for many features where maps are coarsest (figure 7)."""
    return Branches(
        {"branch1x1": Convolution(in_channels, 320, 1)},
        {
            "branch3x3_1": Convolution(in_channels, 384, 1),
            "branch3x3_2": (Convolution(384, 384, (1, 3)), Convolution(384, 384, (3, 1))),
        },
        {
            "branch3x3dbl_1": Convolution(in_channels, 448, 1),
            "branch3x3dbl_2": Convolution(448, 384, 3),
            "branch3x3dbl_3": (Convolution(384, 384, (1, 3)), Convolution(384, 384, (3, 1))),
        },
        {"pool": averaged(), "branch_pool": Convolution(in_channels, 192, 1)},
    )


def averaged() -> nn.AvgPool2d:
    """Averages over 3×3 pixels at the same size, with zeros around the maps, as the published weights had them."""
    return nn.AvgPool2d(3, stride=1, padding=1)


class Auxiliary(nn.Sequential):
    """A batch-normed classifier for 17×17 maps, used in training alone: to class scores (B, classes) (figure 8)."""

    def __init__(self, in_channels: int, classes: int) -> None:
        super().__init__(
            OrderedDict(
                pool=AuxiliaryPool(5),
                conv0=Convolution(in_channels, 128, 1),
                conv1=Convolution(128, 768, 5, padded=False),
                flatten=nn.Flatten(),
                fc=Linear(768, classes),
            )
        )


class InceptionV3(SideExits):
    """Class scores (B, classes) for pictures (B, channels, H, W); in training (logits, those of AuxLogits).

    `size` changes nothing; the paper's is 299. Where the authors' published network departs from the paper it is
    followed, so that its weights fit: 5×5 filters stay in one branch of the modules at 35×35, and the fully connected
    layer of the auxiliary classifier is a 5×5 convolution. Names are those of the published PyTorch weights.

    Source: Szegedy et al. 2015, §6 and table 1; dropout of 20 % from the authors' code.
    """

    auxiliaries = ("AuxLogits",)

    def __init__(self, classes: int = 1000, channels: int = 3, size: int = 299) -> None:
        super().__init__(
            {
                "Conv2d_1a_3x3": Convolution(channels, 32, 3, stride=2, padded=False),
                "Conv2d_2a_3x3": Convolution(32, 32, 3, padded=False),
                "Conv2d_2b_3x3": Convolution(32, 64, 3),
                "maxpool1": nn.MaxPool2d(3, stride=2),
                "Conv2d_3b_1x1": Convolution(64, 80, 1),
                "Conv2d_4a_3x3": Convolution(80, 192, 3, padded=False),
                "maxpool2": nn.MaxPool2d(3, stride=2),
                "Mixed_5b": inception_a(192, projected=32),
                "Mixed_5c": inception_a(256, projected=64),
                "Mixed_5d": inception_a(288, projected=64),
                "Mixed_6a": reduction_a(288),
                "Mixed_6b": inception_b(768, width=128),
                "Mixed_6c": inception_b(768, width=160),
                "Mixed_6d": inception_b(768, width=160),
                "Mixed_6e": inception_b(768, width=192),
                "AuxLogits": Auxiliary(768, classes),
                "Mixed_7a": reduction_b(768),
                "Mixed_7b": inception_c(1280),
                "Mixed_7c": inception_c(2048),
                "avgpool": nn.AdaptiveAvgPool2d(1),
                "flatten": nn.Flatten(),
                "dropout": nn.Dropout(0.2),
                "fc": Linear(2048, classes),
            }
        )
        initialise(self, FIRST_WEIGHTS)
        # The auxiliary classifier starts nearly silent, as in the authors' code.
        nn.init.normal_(self.get_parameter("AuxLogits.conv1.conv.weight"), std=0.01)
        nn.init.normal_(self.get_parameter("AuxLogits.fc.weight"), std=0.001)
