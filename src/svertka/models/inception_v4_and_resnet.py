"""Inception-v4 and Inception-ResNet-v2.

Source: Szegedy, Ioffe, Vanhoucke & Alemi 2016, "Inception-v4, Inception-ResNet and the impact of residual connections
on learning".
"""

import torch
from torch import nn

from svertka.layers import Conv2d, Linear
from svertka.models.googlenet import ConvBNReLU
from svertka.models.inception_v3 import INIT_SCHEME
from svertka.models.initialization import init_weights

# Name of a stage in timm's published weights → name here. Names inside a stage are the same.
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


def convert_timm_state_dict(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return timm's state_dict of either network under the parameter names used here; other names are kept.

    >>> list(convert_timm_state_dict({"features.11.branch1.0.conv.weight": torch.empty(0)}))
    ['inception_b.0.branch1.0.conv.weight']
    """
    return {_from_timm_name(name): tensor for name, tensor in tensors.items()}


def _from_timm_name(name: str) -> str:
    parts = name.split(".")
    length = 2 if parts[0] == "features" else 1
    stage = ".".join(parts[:length])
    return ".".join([TIMM_NAMES.get(stage, stage), *parts[length:]])


def make_conv_chain(
    in_channels: int, *layers: tuple[int, int | tuple[int, int]], downsample: bool = False
) -> nn.Sequential:
    """Return consecutive convolutions; each of `layers` is (out_channels, kernel).

    With `downsample`, the last has stride 2 and no padding.
    """
    convs: list[nn.Module] = []
    for index, (out_channels, kernel) in enumerate(layers):
        if downsample and index == len(layers) - 1:
            convs.append(ConvBNReLU(in_channels, out_channels, kernel, stride=2, padding=0))
        else:
            convs.append(ConvBNReLU(in_channels, out_channels, kernel))
        in_channels = out_channels
    return nn.Sequential(*convs)


def make_avg_pool_conv(in_channels: int, out_channels: int) -> nn.Sequential:
    """Return 3×3 average pooling that keeps the size and ignores the padding, then a 1×1 convolution."""
    pool = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
    return nn.Sequential(pool, ConvBNReLU(in_channels, out_channels, 1))


class Branches(nn.Module):
    """Parallel branches, by name, whose outputs are concatenated along the channels.

    (B, C, H, W) to (B, sum of the branches' channels, H′, W′). The branches must agree in height and width.
    """

    def __init__(self, **branches: nn.Module) -> None:
        super().__init__()
        self.branches = tuple(branches)
        for name, branch in branches.items():
            self.add_module(name, branch)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the concatenated feature maps."""
        return torch.cat([self.get_submodule(name)(x) for name in self.branches], dim=1)


class ReductionA(Branches):
    """Reduction-A: (B, in_channels, H, W) to (B, n + m + in_channels, ⌊(H − 1) / 2⌋, ⌊(W − 1) / 2⌋) (figure 7).

    k, l, m, n: channels as in table 1.
    """

    def __init__(self, in_channels: int, k: int, l: int, m: int, n: int) -> None:  # noqa: E741 - the paper's letter
        super().__init__(
            branch0=ConvBNReLU(in_channels, n, 3, stride=2, padding=0),
            branch1=make_conv_chain(in_channels, (k, 1), (l, 3), (m, 3), downsample=True),
            branch2=nn.MaxPool2d(3, stride=2),
        )


def make_stem(channels: int) -> nn.Sequential:
    """Return the stem of Inception-v4: (B, channels, H, W) to 384 feature maps at an eighth of the size (figure 3)."""
    return nn.Sequential(
        ConvBNReLU(channels, 32, 3, stride=2, padding=0),
        ConvBNReLU(32, 32, 3, padding=0),
        ConvBNReLU(32, 64, 3),
        Branches(pool=nn.MaxPool2d(3, stride=2), conv=ConvBNReLU(64, 96, 3, stride=2, padding=0)),
        Branches(
            branch0=nn.Sequential(ConvBNReLU(160, 64, 1), ConvBNReLU(64, 96, 3, padding=0)),
            branch1=nn.Sequential(
                ConvBNReLU(160, 64, 1),
                ConvBNReLU(64, 64, (1, 7)),
                ConvBNReLU(64, 64, (7, 1)),
                ConvBNReLU(64, 96, 3, padding=0),
            ),
        ),
        Branches(conv=ConvBNReLU(192, 192, 3, stride=2, padding=0), pool=nn.MaxPool2d(3, stride=2)),
    )


class InceptionV4A(Branches):
    """Inception-A of Inception-v4, for 35×35 feature maps: (B, 384, H, W) to the same shape (figure 4)."""

    def __init__(self) -> None:
        super().__init__(
            branch0=ConvBNReLU(384, 96, 1),
            branch1=make_conv_chain(384, (64, 1), (96, 3)),
            branch2=make_conv_chain(384, (64, 1), (96, 3), (96, 3)),
            branch3=make_avg_pool_conv(384, 96),
        )


class InceptionV4B(Branches):
    """Inception-B of Inception-v4, for 17×17 feature maps: (B, 1024, H, W) to the same shape (figure 5)."""

    def __init__(self) -> None:
        super().__init__(
            branch0=ConvBNReLU(1024, 384, 1),
            branch1=make_conv_chain(1024, (192, 1), (224, (1, 7)), (256, (7, 1))),
            branch2=make_conv_chain(1024, (192, 1), (192, (7, 1)), (224, (1, 7)), (224, (7, 1)), (256, (1, 7))),
            branch3=make_avg_pool_conv(1024, 128),
        )


class InceptionV4ReductionB(Branches):
    """Reduction-B of Inception-v4: (B, 1024, H, W) to (B, 1536, ⌊(H − 1) / 2⌋, ⌊(W − 1) / 2⌋) (figure 8)."""

    def __init__(self) -> None:
        super().__init__(
            branch0=make_conv_chain(1024, (192, 1), (192, 3), downsample=True),
            branch1=make_conv_chain(1024, (256, 1), (256, (1, 7)), (320, (7, 1)), (320, 3), downsample=True),
            branch2=nn.MaxPool2d(3, stride=2),
        )


class InceptionV4C(nn.Module):
    """Inception-C of Inception-v4, for 8×8 feature maps: (B, 1536, H, W) to the same shape (figure 6)."""

    def __init__(self) -> None:
        super().__init__()
        self.branch0 = ConvBNReLU(1536, 256, 1)
        self.branch1_0 = ConvBNReLU(1536, 384, 1)
        self.branch1_1a = ConvBNReLU(384, 256, (1, 3))
        self.branch1_1b = ConvBNReLU(384, 256, (3, 1))
        self.branch2_0 = ConvBNReLU(1536, 384, 1)
        self.branch2_1 = ConvBNReLU(384, 448, (3, 1))
        self.branch2_2 = ConvBNReLU(448, 512, (1, 3))
        self.branch2_3a = ConvBNReLU(512, 256, (1, 3))
        self.branch2_3b = ConvBNReLU(512, 256, (3, 1))
        self.branch3 = make_avg_pool_conv(1536, 256)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the outputs of the four branches, concatenated along the channels."""
        branch0 = self.branch0(x)
        branch1 = self.branch1_0(x)
        branch1 = torch.cat([self.branch1_1a(branch1), self.branch1_1b(branch1)], dim=1)
        branch2 = self.branch2_2(self.branch2_1(self.branch2_0(x)))
        branch2 = torch.cat([self.branch2_3a(branch2), self.branch2_3b(branch2)], dim=1)
        return torch.cat([branch0, branch1, branch2, self.branch3(x)], dim=1)


class InceptionV4(nn.Module):
    """Inception-v4: images (B, channels, H, W) to logits (B, classes).

    `size` changes nothing; the paper's is 299. `convert_timm_state_dict` renames timm's published weights.

    Source: Szegedy et al. 2016, figure 9. In the 7×7 branches of Inception-B the order of 1×7 and 7×1 and the channels
    between them are those of the authors' code.
    """

    def __init__(self, classes: int = 1000, channels: int = 3, size: int = 299) -> None:
        super().__init__()
        self.stem = make_stem(channels)
        self.inception_a = nn.Sequential(*(InceptionV4A() for _ in range(4)))
        self.reduction_a = ReductionA(384, k=192, l=224, m=256, n=384)
        self.inception_b = nn.Sequential(*(InceptionV4B() for _ in range(7)))
        self.reduction_b = InceptionV4ReductionB()
        self.inception_c = nn.Sequential(*(InceptionV4C() for _ in range(3)))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(0.2)
        self.fc = Linear(1536, classes)
        init_weights(self, INIT_SCHEME)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        x = self.stem(x)
        x = self.reduction_a(self.inception_a(x))
        x = self.reduction_b(self.inception_b(x))
        x = self.inception_c(x)
        logits: torch.Tensor = self.fc(self.dropout(self.flatten(self.avgpool(x))))
        return logits


class ScaledResidualBranches(Branches):
    """A residual block: relu(x + scale · conv1×1(branches(x))), (B, channels, H, W) to the same shape.

    Args:
        channels: Channels of the input and the output.
        width: Channels of all branches together.
        scale: Scale of the residual; without scaling, wide residual blocks die early in training (§3.3).
        activation: Apply the final ReLU.
    """

    def __init__(
        self, channels: int, width: int, scale: float, *, activation: bool = True, **branches: nn.Module
    ) -> None:
        super().__init__(**branches)
        self.scale = scale
        self.conv2d = Conv2d(width, channels, 1)
        self.relu = nn.ReLU(inplace=True) if activation else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the input plus the scaled residual."""
        residual = self.conv2d(super().forward(x))
        outputs: torch.Tensor = self.relu(x + self.scale * residual)
        return outputs


class InceptionResNetA(ScaledResidualBranches):
    """Inception-ResNet-A, for 35×35 feature maps: (B, 320, H, W) to the same shape (figure 16)."""

    def __init__(self) -> None:
        super().__init__(
            channels=320,
            width=32 + 32 + 64,
            scale=0.17,
            branch0=ConvBNReLU(320, 32, 1),
            branch1=make_conv_chain(320, (32, 1), (32, 3)),
            branch2=make_conv_chain(320, (32, 1), (48, 3), (64, 3)),
        )


class InceptionResNetB(ScaledResidualBranches):
    """Inception-ResNet-B, for 17×17 feature maps: (B, 1088, H, W) to the same shape (figure 17)."""

    def __init__(self) -> None:
        super().__init__(
            channels=1088,
            width=192 + 192,
            scale=0.10,
            branch0=ConvBNReLU(1088, 192, 1),
            branch1=make_conv_chain(1088, (128, 1), (160, (1, 7)), (192, (7, 1))),
        )


class InceptionResNetReductionB(Branches):
    """Reduction-B of Inception-ResNet-v2: (B, 1088, H, W) to (B, 2080, ⌊(H − 1) / 2⌋, ⌊(W − 1) / 2⌋) (figure 18)."""

    def __init__(self) -> None:
        super().__init__(
            branch0=make_conv_chain(1088, (256, 1), (384, 3), downsample=True),
            branch1=make_conv_chain(1088, (256, 1), (288, 3), downsample=True),
            branch2=make_conv_chain(1088, (256, 1), (288, 3), (320, 3), downsample=True),
            branch3=nn.MaxPool2d(3, stride=2),
        )


class InceptionResNetC(ScaledResidualBranches):
    """Inception-ResNet-C, for 8×8 feature maps: (B, 2080, H, W) to the same shape (figure 19)."""

    def __init__(self, scale: float = 0.20, *, activation: bool = True) -> None:
        super().__init__(
            channels=2080,
            width=192 + 256,
            scale=scale,
            activation=activation,
            branch0=ConvBNReLU(2080, 192, 1),
            branch1=make_conv_chain(2080, (192, 1), (224, (1, 3)), (256, (3, 1))),
        )


class InceptionResNetV2(nn.Module):
    """Inception-ResNet-v2: images (B, channels, H, W) to logits (B, classes).

    It is the network that the authors published, which departs from figures 15 to 19: the stem is Inception-v3's with
    one more inception module; there are 10, 20 and 10 residual blocks instead of 5, 10 and 5, with 320, 1088 and 2080
    channels instead of 384, 1152 and 2144; the last block has neither scaling nor ReLU. `size` changes nothing; the
    paper's is 299. `convert_timm_state_dict` renames timm's published weights.

    Source: Szegedy et al. 2016, §3.2, §3.3; the authors' code in TF-Slim.
    """

    def __init__(self, classes: int = 1000, channels: int = 3, size: int = 299) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            ConvBNReLU(channels, 32, 3, stride=2, padding=0),
            ConvBNReLU(32, 32, 3, padding=0),
            ConvBNReLU(32, 64, 3),
            nn.MaxPool2d(3, stride=2),
            ConvBNReLU(64, 80, 1),
            ConvBNReLU(80, 192, 3, padding=0),
            nn.MaxPool2d(3, stride=2),
            Branches(
                branch0=ConvBNReLU(192, 96, 1),
                branch1=make_conv_chain(192, (48, 1), (64, 5)),
                branch2=make_conv_chain(192, (64, 1), (96, 3), (96, 3)),
                branch3=make_avg_pool_conv(192, 64),
            ),
        )
        self.inception_a = nn.Sequential(*(InceptionResNetA() for _ in range(10)))
        self.reduction_a = ReductionA(320, k=256, l=256, m=384, n=384)
        self.inception_b = nn.Sequential(*(InceptionResNetB() for _ in range(20)))
        self.reduction_b = InceptionResNetReductionB()
        self.inception_c = nn.Sequential(
            *(InceptionResNetC() for _ in range(9)), InceptionResNetC(scale=1.0, activation=False)
        )
        self.conv = ConvBNReLU(2080, 1536, 1)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(0.2)
        self.fc = Linear(1536, classes)
        init_weights(self, INIT_SCHEME)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        x = self.stem(x)
        x = self.reduction_a(self.inception_a(x))
        x = self.reduction_b(self.inception_b(x))
        x = self.conv(self.inception_c(x))
        logits: torch.Tensor = self.fc(self.dropout(self.flatten(self.avgpool(x))))
        return logits
