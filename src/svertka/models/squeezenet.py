"""SqueezeNet 1.1: AlexNet's accuracy from fifty times fewer parameters.

Source: Iandola, Han, Moskewicz, Ashraf, Dally & Keutzer 2016, "SqueezeNet: AlexNet-level accuracy with 50x fewer
parameters", and version 1.1 in the authors' repository, which needs 2.4 times fewer multiply-adds: the first layer is
3×3 instead of 7×7, and max-pooling comes earlier.
"""

import torch
from torch import nn

from svertka.layers import Conv2d

# Prefix of a parameter in the authors' Caffe weights → prefix here.
CAFFE_PREFIXES = {
    "conv1.": "features.0.",
    "fire2/": "features.3.",
    "fire3/": "features.4.",
    "fire4/": "features.6.",
    "fire5/": "features.7.",
    "fire6/": "features.9.",
    "fire7/": "features.10.",
    "fire8/": "features.11.",
    "fire9/": "features.12.",
    "conv10.": "classifier.1.",
}


class Fire(nn.Module):
    """A 1×1 squeeze convolution, then parallel 1×1 and 3×3 expand convolutions (§3.2, figure 1).

    (B, in_channels, H, W) to (B, 2 · expand, H, W). `squeeze`, `expand`: output channels of each convolution.
    """

    def __init__(self, in_channels: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = Conv2d(in_channels, squeeze, 1)
        self.squeeze_relu = nn.ReLU(inplace=True)
        self.expand1x1 = Conv2d(squeeze, expand, 1)
        self.expand1x1_relu = nn.ReLU(inplace=True)
        self.expand3x3 = Conv2d(squeeze, expand, 3, padding=1)
        self.expand3x3_relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the outputs of both expand convolutions, concatenated along the channels."""
        x = self.squeeze_relu(self.squeeze(x))
        return torch.cat([self.expand1x1_relu(self.expand1x1(x)), self.expand3x3_relu(self.expand3x3(x))], dim=1)


class SqueezeNet(nn.Module):
    """SqueezeNet 1.1: images (B, channels, H, W) to logits (B, classes), none below 0; 1,235,496 parameters.

    `size` changes nothing. Max-poolings round up. Parameter names are those of the published PyTorch weights.
    """

    def __init__(self, classes: int = 1000, channels: int = 3, size: int = 224) -> None:
        super().__init__()
        self.features = nn.Sequential(
            Conv2d(channels, 64, 3, stride=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, ceil_mode=True),
            Fire(64, 16, 64),
            Fire(128, 16, 64),
            nn.MaxPool2d(3, stride=2, ceil_mode=True),
            Fire(128, 32, 128),
            Fire(256, 32, 128),
            nn.MaxPool2d(3, stride=2, ceil_mode=True),
            Fire(256, 48, 192),
            Fire(384, 48, 192),
            Fire(384, 64, 256),
            Fire(512, 64, 256),
        )
        self.classifier = nn.Sequential(
            nn.Dropout(0.5),
            Conv2d(512, classes, 1),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                # as in the authors' Caffe definition; the paper does not say
                bound = (3 / layer.weight[0].numel()) ** 0.5
                nn.init.uniform_(layer.weight, -bound, bound)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        nn.init.normal_(self.classifier.get_parameter("1.weight"), std=0.01)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        logits: torch.Tensor = self.classifier(self.features(x))
        return logits


def convert_caffe_state_dict(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the authors' Caffe weights under the parameter names used here; other names are kept.

    The converted weights expect RGB images normalized by `Preprocess(mean=(123/255, 117/255, 104/255),
    std=(1/255,) * 3)`.

    Args:
        tensors: Tensors by Caffe's names ("fire2/squeeze1x1.weight"), for BGR images from 0 to 255 minus
            (104, 117, 123).
    """
    converted = {}
    for name, tensor in tensors.items():
        prefix = next((prefix for prefix in CAFFE_PREFIXES if name.startswith(prefix)), "")
        new = CAFFE_PREFIXES.get(prefix, "") + name.removeprefix(prefix).replace("squeeze1x1", "squeeze")
        converted[new] = tensor.flip(1) if new == "features.0.weight" else tensor
    return converted
