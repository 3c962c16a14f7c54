"""A multilayer perceptron with one hidden layer."""

import torch
from torch import nn

HIDDEN_UNITS = 300


class MLP(nn.Module):
    """A multilayer perceptron: images (B, channels, size, size) to logits (B, classes).

    Source: LeCun et al. 1998, §III.C.5, "28×28-300-10", with ReLU in place of the paper's scaled tanh.
    """

    def __init__(self, classes: int = 10, channels: int = 1, size: int = 28) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.hidden = nn.Linear(channels * size * size, HIDDEN_UNITS)
        self.relu = nn.ReLU(inplace=True)
        self.output = nn.Linear(HIDDEN_UNITS, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        logits: torch.Tensor = self.output(self.relu(self.hidden(self.flatten(x))))
        return logits
