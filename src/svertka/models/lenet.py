"""LeNet-5, as published.

Source: LeCun, Bottou, Bengio & Haffner 1998, "Gradient-based learning applied to document recognition", §II.B.
"""

import hashlib
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

from svertka.geometry import output_size
from svertka.layers import ScaledTanh, Subsampling

# Table I: the maps of S2 that each map of C3 sees.
CONNECTIONS = (
    (0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5),
    (0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5),
    (0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5),
    (0, 1, 2, 3, 4, 5),
)  # fmt: skip

# What F6 should draw for each digit, 7×12 pixels. The paper's figure 3 has such bitmaps; these are drawn anew.
DIGITS = """
    ....... ....... ....... ....... ....... ....... ....... ....... ....... .......
    ..###.. ...##.. .#####. .#####. .....## ####### ..####. ####### .#####. .#####.
    .##.##. ..###.. ##...## ##...## ....### ##..... .##.... ##...## ##...## ##...##
    ##...## .####.. ##...## .....## ...#### ##..... ##..... .....## ##...## ##...##
    ##...## ...##.. .....## .....## ..##.## ##..... ##..... ....##. ##...## ##...##
    ##...## ...##.. ....##. ..####. .##..## ######. ######. ....##. .#####. .######
    ##...## ...##.. ...##.. .....## ##...## .....## ##...## ...##.. ##...## .....##
    ##...## ...##.. ..##... .....## ####### .....## ##...## ...##.. ##...## .....##
    ##...## ...##.. .##.... .....## .....## .....## ##...## ..##... ##...## .....##
    .##.##. ...##.. ##..... ##...## .....## ##...## ##...## ..##... ##...## ....##.
    ..###.. .###### ####### .#####. .....## .#####. .#####. ..##... .#####. .####..
    ....... ....... ....... ....... ....... ....... ....... ....... ....... .......
"""
CODE_LENGTH = 7 * 12


def codes(classes: int) -> torch.Tensor:
    """The state of F6 that stands for each class, (classes, 84) float32 of ±1.

    Ten classes get the digits' bitmaps. For any other count, class k gets the first 84 bits of SHA-256 of the text
    "class k": about half of them differ between two classes, and a class keeps its code whatever the count. The paper
    too prefers such distributed codes, since one unit a class behaves badly beyond a few dozen classes.
    """
    if classes == 10:
        rows = [row.split() for row in DIGITS.split("\n") if row.strip()]
        bits = [[pixel == "#" for row in rows for pixel in row[digit]] for digit in range(10)]
    else:
        hashes = [int.from_bytes(hashlib.sha256(f"class {k}".encode()).digest(), "big") for k in range(classes)]
        bits = [[bool(value >> (255 - place) & 1) for place in range(CODE_LENGTH)] for value in hashes]
    return torch.tensor(bits, dtype=torch.float32) * 2 - 1


class PartialConvolution(nn.Module):
    """A 5×5 convolution in which each output map sees only some input maps: C3 of the paper.

    `weight`: (connections, 5, 5), those that exist and no others, in the order of `table`.
    """

    positions: torch.Tensor

    def __init__(self, in_channels: int, table: tuple[tuple[int, ...], ...]) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, len(table)
        fan_in = torch.tensor([25.0 * len(maps) for maps in table])
        positions = [number * in_channels + seen for number, maps in enumerate(table) for seen in maps]
        self.register_buffer("positions", torch.tensor(positions), persistent=False)
        bound = 2.4 / fan_in
        owner = torch.tensor(positions) // in_channels
        self.weight = nn.Parameter(torch.empty(len(positions), 5, 5).uniform_(-1, 1) * bound[owner, None, None])
        self.bias = nn.Parameter(torch.empty(len(table)).uniform_(-1, 1) * bound)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(B, in_channels, H, W) to (B, out_channels, H − 4, W − 4)."""
        # One dense kernel with zeros where nothing is connected is much faster than a convolution for each map.
        kernel = self.weight.new_zeros(self.out_channels * self.in_channels, 5, 5)
        kernel = kernel.index_copy(0, self.positions, self.weight)
        return F.conv2d(inputs, kernel.view(self.out_channels, self.in_channels, 5, 5), self.bias)


class RadialBasis(nn.Module):
    """Minus the squared distances of its input (B, N) to each class's code, (B, classes); nothing learns.

    Source: eq. 7, with the sign that makes the largest output the best class. Cross-entropy on these is the criterion
    of eq. 9 without its constant e^{−j}, which stands there for pictures of no class at all; `Recipe.rubbish` adds it.
    """

    codes: torch.Tensor

    def __init__(self, codes: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("codes", codes)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Values from −∞ to 0; 0 where the input is the code itself."""
        return -(inputs[:, None] - self.codes).square().sum(dim=2)


class LeNet5(nn.Sequential):
    """Class scores (B, classes), minus squared distances, for pictures (B, channels, size, size).

    60,000 trainable parameters for one channel and 32×32 pixels, whatever the count of classes. Units up to F6 squash
    their sum by 1.7159 tanh(2/3 a). C5 covers all of S4, as in the paper, so that it grows with `size`, 16 at least.
    Background should be −0.1 and ink 1.175 (§II.B).
    """

    def __init__(self, classes: int = 10, channels: int = 1, size: int = 32) -> None:
        side = output_size(output_size(size, kernel=5), kernel=2, stride=2)  # of S2
        side = output_size(output_size(side, kernel=5), kernel=2, stride=2)  # of S4
        super().__init__(
            OrderedDict(
                c1=nn.Conv2d(channels, 6, kernel_size=5),
                squash1=ScaledTanh(),
                s2=Subsampling(6),
                squash2=ScaledTanh(),
                c3=PartialConvolution(6, CONNECTIONS),
                squash3=ScaledTanh(),
                s4=Subsampling(16),
                squash4=ScaledTanh(),
                c5=nn.Conv2d(16, 120, kernel_size=side),
                squash5=ScaledTanh(),
                flatten=nn.Flatten(),
                f6=nn.Linear(120, CODE_LENGTH),
                squash6=ScaledTanh(),
                output=RadialBasis(codes(classes)),
            )
        )
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                bound = 2.4 / layer.weight[0].numel()
                nn.init.uniform_(layer.weight, -bound, bound)
                if layer.bias is not None:
                    nn.init.uniform_(layer.bias, -bound, bound)
