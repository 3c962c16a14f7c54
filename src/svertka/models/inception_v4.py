"""Inception-v4 and Inception-ResNet-v2.

Source: Szegedy, Ioffe, Vanhoucke & Alemi 2016, "Inception-v4, Inception-ResNet and the impact of residual connections
on learning".
"""

from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import nn

from svertka.layers import Conv2d, Linear
from svertka.models.googlenet import Branches
from svertka.models.googlenet import NormedConvolution as Convolution
from svertka.models.inception import FIRST_WEIGHTS
from svertka.models.initial import initialise

# The published PyTorch weights (timm's) by stage, as named there: as named here. Within a stage names are the same.
TIMM_NAMES = {
    **{f"features.{number}": f"stem.{number}" for number in range(6)},
    **{f"features.{6 + number}": f"inception_a.{number}" for number in range(4)},
    "features.10": "reduction_a",
    **{f"features.{11 + number}": f"inception_b.{number}" for number in range(7)},
    "features.18": "reduction_b",
    **{f"features.{19 + number}": f"inception_c.{number}" for number in range(3)},
    "last_linear": "fc",
    # Inception-ResNet-v2
    "conv2d_1a": "stem.0",
    "conv2d_2a": "stem.1",
    "conv2d_2b": "stem.2",
    "conv2d_3b": "stem.4",
    "conv2d_4a": "stem.5",
    "mixed_5b": "stem.7",
    "repeat": "inception_a",
    "mixed_6a": "reduction_a",
    "repeat_1": "inception_b",
    "mixed_7a": "reduction_b",
    "repeat_2": "inception_c",
    "block8": "inception_c.9",
    "conv2d_7b": "conv",
    "classif": "fc",
}


def from_timm(name: str) -> str:
    """What the parameter or buffer that timm calls `name` is called in the networks of this file; others as they are.

    >>> from_timm("features.11.branch1.0.conv.weight")
    'inception_b.0.branch1.0.conv.weight'
    """
    parts = name.split(".")
    length = 2 if parts[0] == "features" else 1
    stage = ".".join(parts[:length])
    return ".".join([TIMM_NAMES.get(stage, stage), *parts[length:]])


def chain(in_channels: int, *steps: tuple[int, int | tuple[int, int]], halved: bool = False) -> nn.Sequential:
    """Convolutions in a row; each step is (out_channels, kernel). If `halved`, the last takes every second pixel."""
    layers: list[nn.Module] = []
    for place, (out_channels, kernel) in enumerate(steps):
        last = halved and place == len(steps) - 1
        layers.append(Convolution(in_channels, out_channels, kernel, 2 if last else 1, padded=not last))
        in_channels = out_channels
    return nn.Sequential(*layers)


def pooled(in_channels: int, out_channels: int) -> nn.Sequential:
    """Averages of the 3×3 pixels around each, of those that exist, then a 1×1 convolution."""
    average = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
    return nn.Sequential(average, Convolution(in_channels, out_channels, 1))


def stem(channels: int) -> nn.Sequential:
    """384 channels at an eighth of the size: Inception-v4's stem (figure 3)."""
    return nn.Sequential(
        Convolution(channels, 32, 3, stride=2, padded=False),
        Convolution(32, 32, 3, padded=False),
        Convolution(32, 64, 3),
        Branches({"pool": nn.MaxPool2d(3, stride=2)}, {"conv": Convolution(64, 96, 3, stride=2, padded=False)}),
        Branches(
            {"branch0": nn.Sequential(Convolution(160, 64, 1), Convolution(64, 96, 3, padded=False))},
            {"branch1": chain(160, (64, 1), (64, (1, 7)), (64, (7, 1))).append(Convolution(64, 96, 3, padded=False))},
        ),
        Branches({"conv": Convolution(192, 192, 3, stride=2, padded=False)}, {"pool": nn.MaxPool2d(3, stride=2)}),
    )


def inception_a() -> Branches:
    """384 channels from as many, at 35×35 (figure 4)."""
    return Branches(
        {"branch0": Convolution(384, 96, 1)},
        {"branch1": chain(384, (64, 1), (96, 3))},
        {"branch2": chain(384, (64, 1), (96, 3), (96, 3))},
        {"branch3": pooled(384, 96)},
    )


def inception_b() -> Branches:
    """1024 channels from as many, at 17×17 (figure 5)."""
    return Branches(
        {"branch0": Convolution(1024, 384, 1)},
        {"branch1": chain(1024, (192, 1), (224, (1, 7)), (256, (7, 1)))},
        {"branch2": chain(1024, (192, 1), (192, (7, 1)), (224, (1, 7)), (224, (7, 1)), (256, (1, 7)))},
        {"branch3": pooled(1024, 128)},
    )


def inception_c() -> Branches:
    """1536 channels from as many, at 8×8 (figure 6)."""
    return Branches(
        {"branch0": Convolution(1536, 256, 1)},
        {
            "branch1_0": Convolution(1536, 384, 1),
            "branch1_1": (Convolution(384, 256, (1, 3)), Convolution(384, 256, (3, 1))),
        },
        {
            "branch2_0": Convolution(1536, 384, 1),
            "branch2_1": Convolution(384, 448, (3, 1)),
            "branch2_2": Convolution(448, 512, (1, 3)),
            "branch2_3": (Convolution(512, 256, (1, 3)), Convolution(512, 256, (3, 1))),
        },
        {"branch3": pooled(1536, 256)},
    )


def reduction_a(in_channels: int, widths: tuple[int, int, int, int]) -> Branches:
    """n + m + `in_channels` channels at half the size; `widths`: k, l, m, n of table 1 (figure 7)."""
    k, l, m, n = widths  # noqa: E741 - the paper's letters
    return Branches(
        {"branch0": Convolution(in_channels, n, 3, stride=2, padded=False)},
        {"branch1": chain(in_channels, (k, 1), (l, 3), (m, 3), halved=True)},
        {"branch2": nn.MaxPool2d(3, stride=2)},
    )


class InceptionV4(nn.Sequential):
    """Class scores (B, classes) for pictures (B, channels, H, W); `size` changes nothing, the paper's is 299.

    Names of parameters become those of timm's published weights by TIMM_NAMES.

    Source: Szegedy et al. 2016, figure 9; in the 7×7 branches of Inception-B the order of 1×7 and 7×1 and the widths
    between are those of the authors' code.
    """

    def __init__(self, classes: int = 1000, channels: int = 3, size: int = 299) -> None:
        super().__init__(
            OrderedDict(
                stem=stem(channels),
                inception_a=nn.Sequential(*(inception_a() for _ in range(4))),
                reduction_a=reduction_a(384, (192, 224, 256, 384)),
                inception_b=nn.Sequential(*(inception_b() for _ in range(7))),
                reduction_b=Branches(  # figure 8
                    {"branch0": chain(1024, (192, 1), (192, 3), halved=True)},
                    {"branch1": chain(1024, (256, 1), (256, (1, 7)), (320, (7, 1)), (320, 3), halved=True)},
                    {"branch2": nn.MaxPool2d(3, stride=2)},
                ),
                inception_c=nn.Sequential(*(inception_c() for _ in range(3))),
                avgpool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
                dropout=nn.Dropout(0.2),
                fc=Linear(1536, classes),
            )
        )
        initialise(self, FIRST_WEIGHTS)


class ResidualBranches(Branches):
    """What branches find, brought to the input's channels, scaled and added to the input: (B, C, H, W) to the same.

    `width`: channels of all branches together. `scale`: without it deep and wide ones die early in training (§3.3).
    """

    def __init__(
        self, channels: int, width: int, scale: float, *branches: Mapping[str, nn.Module], rectified: bool = True
    ) -> None:
        super().__init__(*branches)
        self.scale = scale
        self.conv2d = Conv2d(width, channels, 1)
        self.relu = nn.ReLU(inplace=True) if rectified else nn.Identity()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The input with what was found added."""
        outputs: torch.Tensor = self.relu(inputs + self.scale * self.conv2d(super().forward(inputs)))
        return outputs


def residual_a() -> ResidualBranches:
    """320 channels from as many, at 35×35 (figure 16)."""
    return ResidualBranches(
        320, 128, 0.17,
        {"branch0": Convolution(320, 32, 1)},
        {"branch1": chain(320, (32, 1), (32, 3))},
        {"branch2": chain(320, (32, 1), (48, 3), (64, 3))},
    )  # fmt: skip


def residual_b() -> ResidualBranches:
    """1088 channels from as many, at 17×17 (figure 17)."""
    return ResidualBranches(
        1088, 384, 0.10,
        {"branch0": Convolution(1088, 192, 1)},
        {"branch1": chain(1088, (128, 1), (160, (1, 7)), (192, (7, 1)))},
    )  # fmt: skip


def residual_c(scale: float, *, rectified: bool) -> ResidualBranches:
    """2080 channels from as many, at 8×8 (figure 19)."""
    return ResidualBranches(
        2080, 448, scale,
        {"branch0": Convolution(2080, 192, 1)},
        {"branch1": chain(2080, (192, 1), (224, (1, 3)), (256, (3, 1)))},
        rectified=rectified,
    )  # fmt: skip


class InceptionResNetV2(nn.Sequential):
    """Class scores (B, classes) for pictures (B, channels, H, W); `size` changes nothing, the paper's is 299.

    It is the authors' published network, which departs from figures 15 to 19: its stem is Inception-v3's with one more
    inception module, there are 10, 20 and 10 residual modules instead of 5, 10 and 5, and the maps have 320, 1088 and
    2080 channels instead of 384, 1152 and 2144. The last module is neither scaled nor rectified. Names of parameters
    become those of timm's published weights by TIMM_NAMES.

    Source: Szegedy et al. 2016, §3.2, §3.3; the authors' code in TF-Slim.
    """

    def __init__(self, classes: int = 1000, channels: int = 3, size: int = 299) -> None:
        super().__init__(
            OrderedDict(
                stem=nn.Sequential(
                    Convolution(channels, 32, 3, stride=2, padded=False),
                    Convolution(32, 32, 3, padded=False),
                    Convolution(32, 64, 3),
                    nn.MaxPool2d(3, stride=2),
                    Convolution(64, 80, 1),
                    Convolution(80, 192, 3, padded=False),
                    nn.MaxPool2d(3, stride=2),
                    Branches(
                        {"branch0": Convolution(192, 96, 1)},
                        {"branch1": chain(192, (48, 1), (64, 5))},
                        {"branch2": chain(192, (64, 1), (96, 3), (96, 3))},
                        {"branch3": pooled(192, 64)},
                    ),
                ),
                inception_a=nn.Sequential(*(residual_a() for _ in range(10))),
                reduction_a=reduction_a(320, (256, 256, 384, 384)),
                inception_b=nn.Sequential(*(residual_b() for _ in range(20))),
                reduction_b=Branches(  # figure 18
                    {"branch0": chain(1088, (256, 1), (384, 3), halved=True)},
                    {"branch1": chain(1088, (256, 1), (288, 3), halved=True)},
                    {"branch2": chain(1088, (256, 1), (288, 3), (320, 3), halved=True)},
                    {"branch3": nn.MaxPool2d(3, stride=2)},
                ),
                inception_c=nn.Sequential(
                    *(residual_c(0.20, rectified=True) for _ in range(9)), residual_c(1.0, rectified=False)
                ),
                conv=Convolution(2080, 1536, 1),
                avgpool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
                dropout=nn.Dropout(0.2),
                fc=Linear(1536, classes),
            )
        )
        initialise(self, FIRST_WEIGHTS)
