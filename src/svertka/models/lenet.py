"""LeNet-5.

Source: LeCun, Bottou, Bengio & Haffner 1998, "Gradient-based learning applied to document recognition", §II.B.
"""

import hashlib

import torch
import torch.nn.functional as F
from torch import nn

from svertka.conv_shape import output_size
from svertka.layers import ScaledTanh, Subsampling

# Table I: the feature maps of S2 that each feature map of C3 is connected to.
C3_CONNECTIONS = (
    (0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5),
    (0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5),
    (0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5),
    (0, 1, 2, 3, 4, 5),
)  # fmt: skip

# Target of F6 for each digit, 7×12 pixels. The paper's figure 3 shows such bitmaps; these were drawn for this file.
DIGIT_BITMAPS = """
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


def make_class_codes(classes: int) -> torch.Tensor:
    """Return the target state of F6 for each class, (classes, 84) float32 of ±1.

    Ten classes get the bitmaps of the digits. For any other number, class k gets the first 84 bits of the SHA-256 hash
    of the text "class k": two codes differ in about half of the bits, and do not depend on the number of classes. The
    paper prefers such distributed codes, too: one unit per class works badly beyond a few dozen classes.
    """
    if classes == 10:
        rows = [row.split() for row in DIGIT_BITMAPS.split("\n") if row.strip()]
        bits = [[pixel == "#" for row in rows for pixel in row[digit]] for digit in range(10)]
    else:
        hashes = [int.from_bytes(hashlib.sha256(f"class {k}".encode()).digest(), "big") for k in range(classes)]
        bits = [[bool(value >> (255 - place) & 1) for place in range(CODE_LENGTH)] for value in hashes]
    return torch.tensor(bits, dtype=torch.float32) * 2 - 1


class PartiallyConnectedConv2d(nn.Module):
    """A 5×5 convolution in which each output channel is connected to some input channels: layer C3 of the paper.

    (B, in_channels, H, W) to (B, len(connections), H − 4, W − 4). `weight`: (number of connections, 5, 5), in the order
    of `connections`.

    Args:
        connections: The input channels of each output channel.
    """

    positions: torch.Tensor

    def __init__(self, in_channels: int, connections: tuple[tuple[int, ...], ...]) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, len(connections)
        fan_in = torch.tensor([25.0 * len(sources) for sources in connections])
        positions = [number * in_channels + source for number, sources in enumerate(connections) for source in sources]
        self.register_buffer("positions", torch.tensor(positions), persistent=False)
        bound = 2.4 / fan_in
        owner = torch.tensor(positions) // in_channels
        self.weight = nn.Parameter(torch.empty(len(positions), 5, 5).uniform_(-1, 1) * bound[owner, None, None])
        self.bias = nn.Parameter(torch.empty(len(connections)).uniform_(-1, 1) * bound)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the feature maps."""
        # One full convolution with zeros where nothing is connected is much faster than one for each output channel.
        kernel = self.weight.new_zeros(self.out_channels * self.in_channels, 5, 5)
        kernel = kernel.index_copy(0, self.positions, self.weight)
        return F.conv2d(x, kernel.view(self.out_channels, self.in_channels, 5, 5), self.bias)


class RadialBasisOutput(nn.Module):
    """The negative squared distance of (B, N) features to each class's code, (B, classes); it has no parameters.

    Source: eq. 7, negated so that the largest output is the predicted class. Cross-entropy on these outputs is the
    criterion of eq. 9 without its constant e^{−j}, which stands for images of no class; `Recipe.rubbish` adds it.
    """

    codes: torch.Tensor

    def __init__(self, codes: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("codes", codes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Values of at most 0; 0 where the features are the code."""
        return -(x[:, None] - self.codes).square().sum(dim=2)


class LeNet5(nn.Module):
    """LeNet-5: images (B, channels, size, size) to scores (B, classes), which are negative squared distances.

    60,000 trainable parameters for one channel and 32×32 pixels, for any number of classes. Units up to F6 apply
    1.7159 tanh(2/3 a). Images should be normalized so that the background is −0.1 and the foreground 1.175 (§II.B).

    Args:
        size: Height and width of the images, at least 16. C5 covers all of S4, as in the paper, and grows with it.
    """

    def __init__(self, classes: int = 10, channels: int = 1, size: int = 32) -> None:
        super().__init__()
        s2_size = output_size(output_size(size, kernel=5), kernel=2, stride=2)
        s4_size = output_size(output_size(s2_size, kernel=5), kernel=2, stride=2)
        self.c1 = nn.Conv2d(channels, 6, kernel_size=5)
        self.tanh1 = ScaledTanh()
        self.s2 = Subsampling(6)
        self.tanh2 = ScaledTanh()
        self.c3 = PartiallyConnectedConv2d(6, C3_CONNECTIONS)
        self.tanh3 = ScaledTanh()
        self.s4 = Subsampling(16)
        self.tanh4 = ScaledTanh()
        self.c5 = nn.Conv2d(16, 120, kernel_size=s4_size)
        self.tanh5 = ScaledTanh()
        self.flatten = nn.Flatten()
        self.f6 = nn.Linear(120, CODE_LENGTH)
        self.tanh6 = ScaledTanh()
        self.output = RadialBasisOutput(make_class_codes(classes))
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                bound = 2.4 / layer.weight[0].numel()
                nn.init.uniform_(layer.weight, -bound, bound)
                if layer.bias is not None:
                    nn.init.uniform_(layer.bias, -bound, bound)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores."""
        x = self.tanh2(self.s2(self.tanh1(self.c1(x))))
        x = self.tanh4(self.s4(self.tanh3(self.c3(x))))
        x = self.flatten(self.tanh5(self.c5(x)))
        scores: torch.Tensor = self.output(self.tanh6(self.f6(x)))
        return scores
