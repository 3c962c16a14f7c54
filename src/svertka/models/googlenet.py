"""GoogLeNet, and its batch-normed form with published PyTorch weights.

Source: Szegedy, Liu, Jia, Sermanet, Reed, Anguelov, Erhan, Vanhoucke & Rabinovich 2014, "Going deeper with
convolutions".
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import nn

from svertka.geometry import SMALL
from svertka.layers import Conv2d, Linear, LocalResponseNorm
from svertka.models.initial import initialise

# Table 1, in its order: 1×1, 3×3 reduce, 3×3, 5×5 reduce, 5×5, pool projection.
WIDTHS = {
    "inception3a": (64, 96, 128, 16, 32, 32),
    "inception3b": (128, 128, 192, 32, 96, 64),
    "inception4a": (192, 96, 208, 16, 48, 64),
    "inception4b": (160, 112, 224, 24, 64, 64),
    "inception4c": (128, 128, 256, 24, 64, 64),
    "inception4d": (112, 144, 288, 32, 64, 64),
    "inception4e": (256, 160, 320, 32, 128, 128),
    "inception5a": (256, 160, 320, 32, 128, 128),
    "inception5b": (384, 192, 384, 48, 128, 128),
}


class Convolution(nn.Sequential):
    """A convolution and ReLU; without stride the size stays. `kernel` is odd."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        conv = Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2)
        super().__init__(OrderedDict(conv=conv, relu=nn.ReLU(inplace=True)))


class NormedConvolution(nn.Sequential):
    """A convolution without bias, batch norm and ReLU; without stride, and if `padded`, the size stays.

    `kernel`: height and width, or both in one number; odd.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        *,
        padded: bool = True,
    ) -> None:
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (height // 2, width // 2) if padded else 0
        conv = Conv2d(in_channels, out_channels, (height, width), stride, padding, bias=False)
        # 0.001 as in the published weights of all Inception networks, in PyTorch and before
        super().__init__(OrderedDict(conv=conv, bn=nn.BatchNorm2d(out_channels, eps=1e-3), relu=nn.ReLU(inplace=True)))


class Branches(nn.Module):
    """What several branches make of the same maps, channel upon channel: (B, C, H, W) to (B, sum of theirs, H′, W′).

    A branch is a chain of layers by name, in order. Two layers in a tuple, `name`, stand side by side, channel upon
    channel too; they are called name + "a" and name + "b".
    """

    def __init__(self, *branches: Mapping[str, nn.Module | tuple[nn.Module, nn.Module]]) -> None:
        super().__init__()
        self.chains: list[list[list[str]]] = []
        for branch in branches:
            chain = []
            for name, step in branch.items():
                layers = {name + "a": step[0], name + "b": step[1]} if isinstance(step, tuple) else {name: step}
                for layer_name, layer in layers.items():
                    self.add_module(layer_name, layer)
                chain.append(list(layers))
            self.chains.append(chain)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The stacked maps; the branches must agree in height and width."""
        return torch.cat([self._along(chain, inputs) for chain in self.chains], dim=1)

    def _along(self, chain: list[list[str]], maps: torch.Tensor) -> torch.Tensor:
        for names in chain:
            side_by_side = [self.get_submodule(name)(maps) for name in names]
            maps = torch.cat(side_by_side, dim=1) if len(names) > 1 else side_by_side[0]
        return maps


class SideExits(nn.Module):
    """Layers in a row; those whose names are `auxiliaries` hang at its side, where they stand among the others.

    In training a tuple: the last layer's outputs, then each auxiliary's. Otherwise the last layer's outputs alone, and
    the auxiliaries are not computed.
    """

    auxiliaries: ClassVar[tuple[str, ...]] = ()

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Class scores (B, classes); in training (logits, auxiliary logits, …)."""
        maps, exits = inputs, []
        for name, layer in self.named_children():
            if name not in self.auxiliaries:
                maps = layer(maps)
            elif self.training:
                exits.append(layer(maps))
        return (maps, *exits) if self.training else maps


class AuxiliaryPool(nn.Module):
    """A grid of averages over 5×5 pixels, 3 apart: (B, C, H, W) to (B, C, `side`, `side`).

    The papers' maps give just that grid. Where larger or smaller ones give another, it is averaged or repeated to fit;
    maps below 5×5 are so without averages.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.windows = nn.AvgPool2d(5, stride=3)
        self.grid = nn.AdaptiveAvgPool2d(side)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The grid, whatever the size of the maps, for the layer that needs just that many."""
        maps = self.windows(inputs) if min(inputs.shape[-2:]) >= 5 else inputs
        outputs: torch.Tensor = self.grid(maps)
        return outputs


class Auxiliary(nn.Sequential):
    """A classifier for maps halfway, used in training alone: (B, in_channels, H, W) to class scores (B, classes).

    Source: Szegedy et al. 2014, §5: 4×4 averages, 128 filters of 1×1, 1024 units, dropout of 70 %, classes.
    """

    def __init__(
        self, in_channels: int, classes: int, convolution: type[Convolution | NormedConvolution], pool: nn.Module
    ) -> None:
        super().__init__(
            OrderedDict(
                pool=pool,
                conv=convolution(in_channels, 128, 1),
                flatten=nn.Flatten(),
                fc1=Linear(128 * 4 * 4, 1024),
                relu=nn.ReLU(inplace=True),
                dropout=nn.Dropout(0.7),
                fc2=Linear(1024, classes),
            )
        )


def halved(kernel: int = 3) -> nn.MaxPool2d:
    """Max-pooling to half the size, rounded up: the paper's 112 become 56, 28, 14 and 7 without padding."""
    return nn.MaxPool2d(kernel, stride=2, ceil_mode=True)


class Inception(Branches):
    """An inception module with dimension reductions (figure 2b); `widths`: a row of WIDTHS.

    `large`: side of the filters that the paper has at 5×5.
    """

    def __init__(
        self,
        in_channels: int,
        widths: tuple[int, int, int, int, int, int],
        convolution: type[Convolution | NormedConvolution],
        large: int,
    ) -> None:
        one, reduce3, three, reduce5, five, projected = widths
        self.out_channels = one + three + five + projected
        super().__init__(
            {"branch1": convolution(in_channels, one, 1)},
            {"branch2": nn.Sequential(convolution(in_channels, reduce3, 1), convolution(reduce3, three, 3))},
            {"branch3": nn.Sequential(convolution(in_channels, reduce5, 1), convolution(reduce5, five, large))},
            {"branch4": nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), convolution(in_channels, projected, 1))},
        )


class GoogLeNet(SideExits):
    """Class scores (B, classes) for pictures (B, channels, H, W); in training (logits, those of aux1, those of aux2).

    22 layers with weights, and two auxiliary classifiers behind modules 4a and 4d, whose losses the paper adds with
    weight 0.3. `size`: below 64 the network is built for pictures of 32×32, with a first convolution of 3×3 without
    stride and without the first two poolings. `batch_norm`: the form that GoogLeNetBN describes.

    The paper does not give the constants of its local response norms; they are AlexNet's here.

    Source: Szegedy et al. 2014, §5, table 1 and figure 3.
    """

    auxiliaries = ("aux1", "aux2")

    def __init__(self, classes: int = 1000, channels: int = 3, size: int = 224, *, batch_norm: bool = False) -> None:
        small = size < SMALL
        convolution = NormedConvolution if batch_norm else Convolution
        layers: dict[str, nn.Module] = {}
        layers["conv1"] = convolution(channels, 64, 3) if small else convolution(channels, 64, 7, stride=2)
        if not small:
            layers["maxpool1"] = halved()
        if not batch_norm:
            layers["norm1"] = LocalResponseNorm()
        layers["conv2"] = convolution(64, 64, 1)
        layers["conv3"] = convolution(64, 192, 3)
        if not batch_norm:
            layers["norm2"] = LocalResponseNorm()
        if not small:
            layers["maxpool2"] = halved()
        features = 192
        for name, widths in WIDTHS.items():
            module = Inception(features, widths, convolution, large=3 if batch_norm else 5)
            layers[name], features = module, module.out_channels
            if name == "inception3b":
                layers["maxpool3"] = halved()
            if name == "inception4e":
                layers["maxpool4"] = halved(2 if batch_norm else 3)
            if name in ("inception4a", "inception4d"):
                pool = nn.AdaptiveAvgPool2d(4) if batch_norm else AuxiliaryPool(4)
                layers["aux1" if name == "inception4a" else "aux2"] = Auxiliary(features, classes, convolution, pool)
        layers["avgpool"] = nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = nn.Flatten()
        layers["dropout"] = nn.Dropout(0.2 if batch_norm else 0.4)
        layers["fc"] = Linear(features, classes)
        super().__init__(layers)
        initialise(self, "glorot")  # the paper does not say how; so does Caffe's reproduction of it


class GoogLeNetBN(GoogLeNet):
    """GoogLeNet with batch norm behind each convolution instead of two local response norms.

    It is what the published PyTorch weights fit, names included, and differs from the paper in more than the norms:
    3×3 filters where table 1 has 5×5, 2×2 in the last max-pooling, auxiliary classifiers on 4×4 averages of the whole
    map, dropout of 20 %. The published weights of the auxiliaries are as untrained as those drawn here: whoever trains
    on with auxiliary losses trains them anew.

    Source: Ioffe & Szegedy 2015, "Batch normalization", for the idea.
    """

    def __init__(self, classes: int = 1000, channels: int = 3, size: int = 224) -> None:
        super().__init__(classes, channels, size, batch_norm=True)
