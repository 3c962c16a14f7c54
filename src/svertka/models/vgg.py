"""The VGG networks: 3×3 convolutions and nothing else, 11 to 19 layers deep.

Source: Simonyan & Zisserman 2014, "Very deep convolutional networks for large-scale image recognition" (arXiv
1409.1556).
"""

from collections import OrderedDict
from itertools import islice
from typing import Literal

import torch
from torch import nn

from svertka.errors import UsageError
from svertka.geometry import SMALL
from svertka.layers import Conv2d, Linear, LocalResponseNorm
from svertka.models.initial import initialise

# Table 1: the kernels of the convolutions in each of the five blocks, and the channels of a block.
CHANNELS = (64, 128, 256, 512, 512)
CONFIGURATIONS: dict[str, tuple[tuple[int | Literal["LRN"], ...], ...]] = {
    "A": ((3,), (3,), (3, 3), (3, 3), (3, 3)),
    "A-LRN": ((3, "LRN"), (3,), (3, 3), (3, 3), (3, 3)),
    "B": ((3, 3), (3, 3), (3, 3), (3, 3), (3, 3)),
    "C": ((3, 3), (3, 3), (3, 3, 1), (3, 3, 1), (3, 3, 1)),
    "D": ((3, 3), (3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)),
    "E": ((3, 3), (3, 3), (3, 3, 3, 3), (3, 3, 3, 3), (3, 3, 3, 3)),
}


class VGG(nn.Sequential):
    """Class scores (B, classes) for pictures (B, channels, H, W).

    Parameters, for 1000 classes: 132,863,336 (A and A-LRN), 133,047,848 (B), 133,638,952 (C), 138,357,544 (D),
    143,667,240 (E). `batch_norm` puts a batch norm behind each convolution, as the `_bn` twins of the published PyTorch
    weights have it; the paper is older. Parameters bear the names of those weights.

    Below 64 pixels, the five blocks leave one pixel of 32, and as is customary for CIFAR (Liu & Deng 2015, "Very deep
    convolutional neural network based image classification using small training sample size") the hidden dense
    layers shrink from 4096 units to 512; 15,245,130 parameters for D and ten classes. The pools of that form round up,
    so that 28 pixels will do, or any other number.

    First weights are drawn from N(0, 2 / fan-in) (He et al. 2015, "Delving deep into rectifiers", eq. 10), so that deep
    ones learn from the start. From the paper's N(0, 0.01²) they do not, and take A's layers to start with: see
    `starting_tensors`. (§3.1 says "10⁻² variance"; He et al., §2.2, read it as deviation. A deviation of 0.1 would make
    each layer behind 512 maps multiply the signal by 0.1·√(9·512 / 2) = 4.8.) Biases are zero.

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
        if configuration not in CONFIGURATIONS:
            raise UsageError(f"configuration={configuration} is not a VGG; use {', '.join(CONFIGURATIONS)}")
        small = size < SMALL
        grid, width = (1, 512) if small else (7, 4096)
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
        classifier = nn.Sequential(
            Linear(channels * grid * grid, width),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            Linear(width, width),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            Linear(width, classes),
        )
        super().__init__(
            OrderedDict(
                features=nn.Sequential(*features),
                avgpool=nn.AdaptiveAvgPool2d(grid),  # changes nothing at 224 pixels
                flatten=nn.Flatten(),
                classifier=classifier,
            )
        )
        self.configuration = configuration
        initialise(self, "he")


def starting_tensors(shallow: VGG, deep: VGG) -> dict[str, torch.Tensor]:
    """The tensors that `deep` takes over from a trained `shallow`, by their names in `deep`'s state_dict.

    They are those of `shallow`'s first four convolutions (with their batch norms), each for the convolution at the same
    place in the same block, and of all dense layers. Load with `strict=False`; all else keeps its first values.

    Raises:
        UsageError: one of them has no place in `deep`, or another shape there.

    Source: Simonyan & Zisserman 2014, §3.1.
    """
    places = _places(deep)
    moved = {name: name for name, _ in shallow.named_modules() if name.startswith("classifier.")}
    for place, index in islice(_places(shallow).items(), 4):
        if place not in places:
            raise UsageError(
                f"VGG {shallow.configuration} begins with a convolution that VGG {deep.configuration} lacks; "
                "start it from VGG A"
            )
        moved[f"features.{index}"] = f"features.{places[place]}"
        moved[f"features.{index + 1}"] = f"features.{places[place] + 1}"  # a batch norm; a ReLU has no tensors
    tensors, fresh = {}, deep.state_dict()
    for old, new in moved.items():
        for kind, tensor in shallow.get_submodule(old).state_dict().items():
            name, shape = f"{new}.{kind}", tuple(tensor.shape)
            if name not in fresh or tuple(fresh[name].shape) != shape:
                raise UsageError(
                    f"{old}.{kind} {shape} of VGG {shallow.configuration} does not fit {name} of VGG "
                    f"{deep.configuration}; train both with the same classes, channels, size and batch norm"
                )
            tensors[name] = tensor
    return tensors


def _places(network: VGG) -> dict[tuple[int, int], int]:
    """Where in `features` the convolutions stand, by block and place in the block, in order."""
    places, block, place = {}, 0, 0
    for index, layer in enumerate(network.get_submodule("features").children()):
        if isinstance(layer, nn.MaxPool2d):
            block, place = block + 1, 0
        elif isinstance(layer, Conv2d):
            places[block, place] = index
            place += 1
    return places
