"""First weights, as the papers draw them."""

from typing import Literal

from torch import nn

Initial = Literal["gaussian", "glorot", "he"]


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
