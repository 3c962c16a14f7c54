"""Weight initialization, as in the papers."""

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

InitScheme = Literal["gaussian", "glorot", "he"]
VANISHED_STD = 1e-3  # of the logits over images; below it, gradients do not reach the first layers
HEAD_STD = 0.01  # of a head's initial weights, as in Krizhevsky et al. 2012, §5


def init_weights(network: nn.Module, scheme: InitScheme) -> None:
    """Initialize the weights of every convolution and fully connected layer in place, and set their biases to 0.

    Other layers, such as batch normalization, are unchanged.

    Args:
        scheme: "gaussian", normal with standard deviation 0.01 (Krizhevsky et al. 2012, §5; Simonyan & Zisserman 2014,
            §3.1, who call it variance); "glorot", uniform with variance 2 / (fan-in + fan-out) (Glorot & Bengio 2010,
            eq. 16); or "he", normal with variance 2 / fan-in (He et al. 2015, "Delving deep into rectifiers", eq. 10).
    """
    for layer in network.modules():
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            continue
        if scheme == "gaussian":
            nn.init.normal_(layer.weight, std=0.01)
        elif scheme == "glorot":
            nn.init.xavier_uniform_(layer.weight)
        else:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


@torch.no_grad()
def signal_vanishes(network: nn.Module, images: Tensor) -> bool:
    """Return whether the logits of a freshly initialized network hardly depend on `images`, (B, C, H, W) normalized.

    If each layer halves the signal, 1e-5 of it is left after twenty layers. Gradients are as small, and the network
    stays at chance for tens of epochs. Always False for networks with batch normalization, which rescales the signal.
    """
    if any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in network.modules()) or len(images) < 2:
        return False
    training = network.training
    logits: Tensor = network.eval()(images)
    network.train(training)
    return float(logits.std(0).mean()) < VANISHED_STD


def init_head(network: nn.Module, tensors: Iterable[str]) -> None:
    """Initialize the head in place, so that all classes start alike: weights from N(0, 0.01²), biases 0.

    Args:
        tensors: Names of the head's tensors. Names of buffers are ignored: LeNet-5's last layer has nothing else.
    """
    parameters = dict(network.named_parameters())
    for name in sorted(parameters.keys() & set(tensors)):
        tensor = parameters[name]
        if tensor.dim() > 1:
            nn.init.normal_(tensor, std=HEAD_STD)
        else:
            nn.init.zeros_(tensor)
