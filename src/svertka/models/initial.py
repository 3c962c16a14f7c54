"""First weights, as the papers draw them."""

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

Initial = Literal["gaussian", "glorot", "he"]
VANISHED = 1e-3  # standard deviation over images of class scores, below which gradients do not reach the first layers
HEAD_DEVIATION = 0.01  # of the weights that give the scores, as in Krizhevsky et al. 2012 §5


def initialise(network: nn.Module, initial: Initial) -> None:
    """Draw the weights of every convolution and dense layer anew, in place; biases become 0, batch norms stay.

    gaussian: normal, deviation 0.01 (Krizhevsky et al. 2012 §5; Simonyan & Zisserman 2014 §3.1, who call it variance).
    glorot: uniform, of variance 2 / (fan-in + fan-out) (Glorot & Bengio 2010, eq. 16). he: normal, of variance
    2 / fan-in (He et al. 2015, "Delving deep into rectifiers", eq. 10).
    """
    for layer in network.modules():
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            continue
        if initial == "gaussian":
            nn.init.normal_(layer.weight, std=0.01)
        elif initial == "glorot":
            nn.init.xavier_uniform_(layer.weight)
        else:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


@torch.no_grad()
def signal_vanishes(network: nn.Module, images: Tensor) -> bool:
    """Whether the class scores of a `network` without batch norm hardly depend on `images`, (B, C, H, W) normalised.

    Fresh weights of which each layer halves the signal leave 1e-5 of it behind twenty layers. Gradients are as small,
    and the network stays at chance for tens of epochs. Batch norm scales the signal anew in each layer.
    """
    if any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in network.modules()) or len(images) < 2:
        return False
    training = network.training
    scores: Tensor = network.eval()(images)
    network.train(training)
    return float(scores.std(0).mean()) < VANISHED


def draw_small(network: nn.Module, tensors: Iterable[str]) -> None:
    """Draw the weights among `tensors` from N(0, 0.01) and set the biases to 0, in place: all classes begin alike."""
    parameters = dict(network.named_parameters())  # LeNet-5 has its last layer in a buffer, which does not learn
    for name in sorted(parameters.keys() & set(tensors)):
        tensor = parameters[name]
        if tensor.dim() > 1:
            nn.init.normal_(tensor, std=HEAD_DEVIATION)
        else:
            nn.init.zeros_(tensor)
