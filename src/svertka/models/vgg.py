"""The VGG networks: 11 to 19 layers with weights, of 3×3 convolutions.

Source: Simonyan & Zisserman 2014, "Very deep convolutional networks for large-scale image recognition" (arXiv
1409.1556).
"""

from itertools import islice
from typing import Literal

import torch
from torch import nn

from svertka.conv_shape import SMALL
from svertka.errors import UsageError
from svertka.layers import Conv2d, Linear, LocalResponseNorm
from svertka.models.initialization import init_weights

# Table 1: channels of each of the five blocks, and the kernels of its convolutions.
CHANNELS = (64, 128, 256, 512, 512)
CONFIGURATIONS: dict[str, tuple[tuple[int | Literal["LRN"], ...], ...]] = {
    "A": ((3,), (3,), (3, 3), (3, 3), (3, 3)),
    "A-LRN": ((3, "LRN"), (3,), (3, 3), (3, 3), (3, 3)),
    "B": ((3, 3), (3, 3), (3, 3), (3, 3), (3, 3)),
    "C": ((3, 3), (3, 3), (3, 3, 1), (3, 3, 1), (3, 3, 1)),
    "D": ((3, 3), (3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)),
    "E": ((3, 3), (3, 3), (3, 3, 3, 3), (3, 3, 3, 3), (3, 3, 3, 3)),
}


class VGG(nn.Module):
    """VGG: images (B, channels, H, W) to logits (B, classes).

    Parameters, for 1000 classes: 132,863,336 (A and A-LRN), 133,047,848 (B), 133,638,952 (C), 138,357,544 (D),
    143,667,240 (E). Parameter names are those of the published PyTorch weights.

    Weights are drawn from N(0, 2 / fan-in) (He et al. 2015, "Delving deep into rectifiers", eq. 10) and biases are
    zero. With the paper's N(0, 0.01²) the deep configurations do not learn, unless they start from layers of a trained
    A: see `warm_start_tensors`. (§3.1 says "10⁻² variance"; He et al., §2.2, read it as standard deviation. With a
    standard deviation of 0.1 each layer with 512 input channels would multiply the signal by 0.1·√(9·512 / 2) = 4.8.)

    Args:
        configuration: Column of table 1, a key of CONFIGURATIONS.
        size: Height and width of the images. Below 64 the five blocks reduce 32×32 pixels to one, and as is customary
            for CIFAR (Liu & Deng 2015, "Very deep convolutional neural network based image classification using small
            training sample size") the hidden fully connected layers have 512 units instead of 4096 (15,245,130
            parameters for D and ten classes). Poolings then round up, so that images may have any size.
        batch_norm: Add batch normalization after each convolution, as in the published `_bn` weights; it is younger
            than the paper.

    Raises:
        UsageError: `configuration` is not in table 1.
    """

    def __init__(
        self,
        configuration: str,
        classes: int = 1000,
        channels: int = 3,
        size: int = 224,
        *,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        if configuration not in CONFIGURATIONS:
            raise UsageError(f"configuration={configuration} is not a VGG; use {', '.join(CONFIGURATIONS)}")
        self.configuration = configuration
        small = size < SMALL
        grid, hidden = (1, 512) if small else (7, 4096)
        features: list[nn.Module] = []
        for block, out_channels in zip(CONFIGURATIONS[configuration], CHANNELS, strict=True):
            for kernel in block:
                if kernel == "LRN":
                    features += [LocalResponseNorm()]
                    continue
                features += [Conv2d(channels, out_channels, kernel, padding=kernel // 2)]
                if batch_norm:
                    features += [nn.BatchNorm2d(out_channels)]
                features += [nn.ReLU(inplace=True)]
                channels = out_channels
            features += [nn.MaxPool2d(2, ceil_mode=small)]
        self.features = nn.Sequential(*features)
        self.avgpool = nn.AdaptiveAvgPool2d(grid)  # changes nothing at 224×224 pixels
        self.flatten = nn.Flatten()
        self.classifier = nn.Sequential(
            Linear(channels * grid * grid, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            Linear(hidden, classes),
        )
        init_weights(self, "he")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        logits: torch.Tensor = self.classifier(self.flatten(self.avgpool(self.features(x))))
        return logits


def warm_start_tensors(shallow: VGG, deep: VGG) -> dict[str, torch.Tensor]:
    """Return the tensors with which `deep` starts from a trained `shallow`, by their names in `deep`'s state_dict.

    They are those of `shallow`'s first four convolutions with their batch normalization, each for the convolution at
    the same position in the same block, and of all fully connected layers. Load them with `strict=False`.

    Raises:
        UsageError: A tensor of `shallow` has no counterpart in `deep`, or one of another shape.

    Source: Simonyan & Zisserman 2014, §3.1.
    """
    deep_convs = _conv_indices(deep)
    names = {name: name for name, _ in shallow.named_modules() if name.startswith("classifier.")}
    for position, index in islice(_conv_indices(shallow).items(), 4):
        if position not in deep_convs:
            raise UsageError(
                f"VGG {deep.configuration} lacks one of the first four convolutions of VGG {shallow.configuration}; "
                "start it from VGG A"
            )
        names[f"features.{index}"] = f"features.{deep_convs[position]}"
        # batch normalization, or a ReLU, which has no tensors
        names[f"features.{index + 1}"] = f"features.{deep_convs[position] + 1}"
    tensors, expected = {}, deep.state_dict()
    for old, new in names.items():
        for kind, tensor in shallow.get_submodule(old).state_dict().items():
            name, shape = f"{new}.{kind}", tuple(tensor.shape)
            if name not in expected or tuple(expected[name].shape) != shape:
                raise UsageError(
                    f"{old}.{kind} {shape} of VGG {shallow.configuration} does not fit {name} of VGG "
                    f"{deep.configuration}; train both with the same classes, channels, size and batch normalization"
                )
            tensors[name] = tensor
    return tensors


def _conv_indices(network: VGG) -> dict[tuple[int, int], int]:
    """Index in `features` of each convolution, by block and position in the block, in order."""
    indices, block, position = {}, 0, 0
    for index, layer in enumerate(network.features.children()):
        if isinstance(layer, nn.MaxPool2d):
            block, position = block + 1, 0
        elif isinstance(layer, Conv2d):
            indices[block, position] = index
            position += 1
    return indices
