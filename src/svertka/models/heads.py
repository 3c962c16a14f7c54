"""What may stand in place of a network's last layer, on the same features."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from svertka.errors import UsageError
from svertka.models.weights import head_of
from svertka.models.zoo import Model

Head = Literal["linear", "cosine", "adaptation"]
ADAPTED = 2048  # units of FCa


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


def put_head(network: nn.Module, model: Model, kind: Head, classes: int) -> None:
    """Let `network`, of `model` with its own last layer, end in a head of that `kind`, with fresh weights, in place.

    Auxiliary classifiers stay as they are.

    Raises:
        UsageError: its last layer is not a dense one.
    """
    if kind == "linear":  # what networks have
        return
    path = head_path(model)
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
