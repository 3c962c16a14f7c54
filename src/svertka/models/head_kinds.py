"""Heads: the layers that compute class scores from a network's features, and how one replaces another."""

from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from svertka.device import meta_device
from svertka.errors import UsageError
from svertka.models.registry import Model
from svertka.models.weights import head_tensor_names

HeadKind = Literal["linear", "pooled", "cosine", "adaptation"]
ADAPTATION_UNITS = 2048  # of layer FCa
NATIVE_HEADS: tuple[HeadKind, ...] = ("linear", "pooled")  # their tensors have the names of the network's own head


class CosineHead(nn.Module):
    """Cosine similarity between features (B, D) and each class's weight vector, times a trainable scale: (B, classes).

    The norm of an image's features does not matter, so that classes with few training images are not at a disadvantage.

    Source: Gidaris & Komodakis 2018, "Dynamic few-shot visual learning without forgetting", eq. 3.
    """

    def __init__(self, features: int, classes: int, scale: float = 10.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(classes, features))
        self.scale = nn.Parameter(torch.tensor(scale))
        nn.init.kaiming_normal_(self.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits between −scale and scale."""
        return self.scale * F.linear(F.normalize(x), F.normalize(self.weight))


class AdaptationHead(nn.Sequential):
    """Adaptation layers: FCa, 2048 units with ReLU and dropout, and FCb, from features (B, D) to logits (B, classes).

    Source: Oquab et al. 2014, "Learning and transferring mid-level image representations", §3.1.
    """

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.fca = nn.Linear(features, ADAPTATION_UNITS)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(0.5)
        self.fcb = nn.Linear(ADAPTATION_UNITS, classes)


def head_kind_without_relu(model: Model, kind: HeadKind) -> HeadKind:
    """Return the kind of head that `model` is trained with if `kind` is requested.

    A network whose logits pass through a ReLU, such as SqueezeNet, gets a "pooled" head instead of its own: with the
    ReLU, a class whose logits are negative for every image has no gradient and never learns.
    """
    if kind == "linear" and not has_head(model):
        return kind
    has_relu = _has_rectified_head(model)
    return "pooled" if has_relu and kind == "linear" else kind


@cache
def _has_rectified_head(model: Model) -> bool:
    with meta_device():
        return _rectified_head(model.build(2), head_path(model)) is not None


def set_head_kind(network: nn.Module, model: Model, kind: HeadKind, classes: int) -> None:
    """Replace the last layer of `network`, which `model` built, with a newly initialized head, in place.

    Auxiliary classifiers are unchanged.

    Args:
        kind: "linear", the network's own last layer: nothing is replaced; "pooled", pooling and a fully connected layer
            instead of a 1×1 convolution, ReLU and pooling, with the same weights; "cosine", CosineHead; or
            "adaptation", AdaptationHead.

    Raises:
        UsageError: The last layer is not fully connected.
    """
    if kind == "linear":
        return
    path = head_path(model)
    _pool_before_head(network, path)
    if kind == "pooled":
        return
    old = network.get_submodule(path)
    if not isinstance(old, nn.Linear):
        raise UsageError(
            f"head={kind} needs a network that ends in a fully connected layer, and {model.name} ends in "
            f"{type(old).__name__}; use head=linear, or another model"
        )
    made = CosineHead(old.in_features, classes) if kind == "cosine" else AdaptationHead(old.in_features, classes)
    network.set_submodule(path, made.to(old.weight.device))


def has_head(model: Model) -> bool:
    """Return whether a layer computes the logits of `model`, as in all networks of the registry."""
    return model.reference is None or model.reference.head_layer is not None


def head_path(model: Model) -> str:
    """Return the path of the module that computes the logits of `model`.

    Raises:
        UsageError: The network is somebody else's, and no layer does.
    """
    if model.reference is not None:
        if model.reference.head_layer is None:
            raise UsageError(
                f"{model.name} has no linear layer or 1×1 convolution that computes its class scores; name the layer "
                "with --head-layer (in Python head_layer=), or train all of it with --head linear"
            )
        return model.reference.head_layer
    return _own_head_path(model)


@cache
def _own_head_path(model: Model) -> str:
    """Return the path of the head of a network of the registry, which is built for it."""
    with meta_device():
        auxiliary = tuple(getattr(model.build(), "auxiliaries", ()))
    paths = {name.rpartition(".")[0] for name in head_tensor_names(model)}
    return next(path for path in sorted(paths) if path.partition(".")[0] not in auxiliary)


def _rectified_head(network: nn.Module, path: str) -> tuple[nn.Sequential, int] | None:
    """Return the nn.Sequential in which a ReLU follows the convolution at `path`, and the convolution's index in it.

    None if no ReLU follows.
    """
    parent, _, name = path.rpartition(".")
    layers = network.get_submodule(parent)
    if not (isinstance(layers, nn.Sequential) and name.isdigit()):
        return None
    index = int(name)
    has_relu = isinstance(layers[index], nn.Conv2d) and any(
        isinstance(layer, nn.ReLU) for layer in list(layers)[index + 1 :]
    )
    return (layers, index) if has_relu else None


def _pool_before_head(network: nn.Module, path: str) -> None:
    """Replace convolution, ReLU and pooling at `path` with pooling and a fully connected layer, if a ReLU follows.

    Without the ReLU, pooling after the convolution equals pooling before it, so the weights are kept.
    """
    found = _rectified_head(network, path)
    if found is None:
        return
    layers, index = found
    conv = layers[index]
    assert isinstance(conv, nn.Conv2d)
    linear = nn.Linear(conv.in_channels, conv.out_channels).to(conv.weight.device)
    with torch.no_grad():
        linear.weight.copy_(conv.weight.flatten(1))
        if conv.bias is not None:
            linear.bias.copy_(conv.bias)
    layers[index - 1] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), layers[index - 1])
    layers[index] = linear
    for later in range(index + 1, len(layers)):
        layers[later] = nn.Identity()
