"""What may stand in place of a network's last layer, on the same features."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from svertka.errors import UsageError
from svertka.models.weights import head_of
from svertka.models.zoo import Model

Head = Literal["linear", "pooled", "cosine", "adaptation"]
ADAPTED = 2048  # units of FCa
OWN_TENSORS: tuple[Head, ...] = ("linear", "pooled")  # heads that keep the names of the network's own tensors


class Cosine(nn.Module):
    """`scale` times the cosine between the features (B, D) and each class's `weight` (classes, D): (B, classes).

    `scale` learns too. However long the features of a picture are, they count the same, so that a class of which
    few pictures are known is not at a disadvantage.

    Source: Gidaris & Komodakis 2018, "Dynamic few-shot visual learning without forgetting", eq. 3.
    """

    def __init__(self, features: int, classes: int, scale: float = 10.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(classes, features))
        self.scale = nn.Parameter(torch.tensor(scale))
        nn.init.kaiming_normal_(self.weight)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Scores within ±`scale`."""
        return self.scale * F.linear(F.normalize(inputs), F.normalize(self.weight))


class Adaptation(nn.Sequential):
    """FCa, a dense layer of 2048 units with ReLU and dropout, and FCb, the class scores, on features (B, D).

    Source: Oquab et al. 2014, "Learning and transferring mid-level image representations", §3.1.
    """

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.fca = nn.Linear(features, ADAPTED)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(0.5)
        self.fcb = nn.Linear(ADAPTED, classes)


def trainable_head(model: Model, kind: Head) -> Head:
    """The `kind` of head that `model` is trained with where `kind` is asked for.

    A network whose own class scores pass through a ReLU, as SqueezeNet's do, is trained with a "pooled" one: a class
    whose scores are negative for every image is given 0 for all of them, gets no gradient, and is never learned.
    """
    with torch.device("meta"):
        rectified = _rectified_scores(model.build(2), head_path(model)) is not None
    return "pooled" if rectified and kind == "linear" else kind


def put_head(network: nn.Module, model: Model, kind: Head, classes: int) -> None:
    """Let `network`, of `model` with its own last layer, end in a head of that `kind`, with fresh weights, in place.

    "linear" is the network's own last layer. "pooled" replaces a 1×1 convolution, ReLU and pooling by pooling and a
    dense layer; it keeps the weights. Auxiliary classifiers stay as they are.

    Raises:
        UsageError: its last layer is not a dense one.
    """
    if kind == "linear":
        return
    path = head_path(model)
    _pool_before_scores(network, path)
    if kind == "pooled":
        return
    old = network.get_submodule(path)
    if not isinstance(old, nn.Linear):
        raise UsageError(
            f"head={kind} needs a network that ends in a dense layer, and {model.name} ends in {type(old).__name__}; "
            "use linear, or another --model"
        )
    made = Cosine(old.in_features, classes) if kind == "cosine" else Adaptation(old.in_features, classes)
    network.set_submodule(path, made.to(old.weight.device))


def head_path(model: Model) -> str:
    """The name of the layer of `model` that gives the class scores."""
    with torch.device("meta"):
        auxiliary = tuple(getattr(model.build(), "auxiliaries", ()))
    paths = {name.rpartition(".")[0] for name in head_of(model)}
    return next(path for path in sorted(paths) if path.partition(".")[0] not in auxiliary)


def _rectified_scores(network: nn.Module, path: str) -> tuple[nn.Sequential, int] | None:
    """The sequence in which the class scores of the 1×1 convolution at `path` pass through a ReLU, and its place there.

    None where they do not.
    """
    parent, _, place = path.rpartition(".")
    sequence = network.get_submodule(parent)
    if not (isinstance(sequence, nn.Sequential) and place.isdigit()):
        return None
    layer, after = sequence[int(place)], list(sequence)[int(place) + 1 :]
    is_rectified = isinstance(layer, nn.Conv2d) and any(isinstance(one, nn.ReLU) for one in after)
    return (sequence, int(place)) if is_rectified else None


def _pool_before_scores(network: nn.Module, path: str) -> None:
    """Let the layer at `path` give its scores from the means of maps, and end the network, if a ReLU follows it now.

    Without the ReLU, the mean over the maps of scores is the score of the mean over the maps of features: the dense
    layer takes the weights of the convolution.
    """
    found = _rectified_scores(network, path)
    if found is None:
        return
    sequence, place = found
    old = sequence[place]
    assert isinstance(old, nn.Conv2d)
    dense = nn.Linear(old.in_channels, old.out_channels).to(old.weight.device)
    with torch.no_grad():
        dense.weight.copy_(old.weight.flatten(1))
        if old.bias is not None:
            dense.bias.copy_(old.bias)
    sequence[place - 1] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), sequence[place - 1])
    sequence[place] = dense
    for later in range(place + 1, len(sequence)):
        sequence[later] = nn.Identity()
