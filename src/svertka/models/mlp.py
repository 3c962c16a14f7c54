"""The multilayer perceptron: linear, nonlinearity, linear."""

from collections import OrderedDict

from torch import nn


class MLP(nn.Sequential):
    """Class scores (B, classes) for pictures (B, channels, size, size).

    Source: LeCun et al. 1998, §III.C.5, "28×28-300-10". ReLU stands where the paper has its scaled tanh.
    """

    def __init__(self, classes: int = 10, channels: int = 1, size: int = 28, hidden: int = 300) -> None:
        super().__init__(
            OrderedDict(
                flatten=nn.Flatten(),
                hidden=nn.Linear(channels * size * size, hidden),
                relu=nn.ReLU(inplace=True),
                output=nn.Linear(hidden, classes),
            )
        )
