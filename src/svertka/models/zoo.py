"""The networks by name, with the facts that training and its reader need."""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from torch import nn

from svertka.errors import UsageError
from svertka.graph.trace import count
from svertka.models.lenet import LeNet5
from svertka.models.mlp import MLP
from svertka.models.resnet import resnet20


@dataclass(frozen=True)
class Model:
    """A network as published.

    `builder`: (classes, channels, size) to the network. `channels`, `size`, `classes`: the paper's. `resize`: side to
    which pictures are resized before they are cropped or padded to `size`. `smallest`: of the sizes it can take.
    `mean`, `std`: what every channel is normalised with, of full scale; None: measured on the training pictures.
    """

    name: str
    builder: Callable[[int, int, int], nn.Module]
    channels: int
    size: int
    resize: int
    classes: int
    smallest: int
    source: str
    published: str | None = None
    mean: float | None = None
    std: float | None = None

    @property
    def input(self) -> tuple[int, int, int]:
        """Shape of one picture as in the paper, (channels, size, size)."""
        return self.channels, self.size, self.size

    def resize_for(self, size: int) -> int:
        """`resize` in the paper's proportion to another input `size`, pixels."""
        return round(size * self.resize / self.size)

    def build(self, classes: int | None = None, channels: int | None = None, size: int | None = None) -> nn.Module:
        """The network with fresh random weights, returning logits (B, classes); None is the paper's value.

        Raises:
            UsageError: `size` is too small, or `classes` below 1, or `channels` neither 1 nor 3.
        """
        classes = self.classes if classes is None else classes
        channels = self.channels if channels is None else channels
        size = self.size if size is None else size
        if size < self.smallest:
            raise UsageError(f"size={size} is too small for {self.name}; use at least {self.smallest} pixels")
        if classes < 1:
            raise UsageError(f"classes={classes} must be at least 1")
        if channels not in (1, 3):
            raise UsageError(f"channels={channels} must be 1 (grey) or 3 (RGB)")
        return self.builder(classes, channels, size)


def facts(model: Model) -> dict[str, Any]:
    """What `svertka models` says of a network in the paper's form: name, parameters, multiply_adds, input, source …

    `input`: (channels, size, size). `published`: the result that the paper reports, or None.
    """
    size = count(model.build(), (1, *model.input))
    return {
        "name": model.name,
        "parameters": size.trainable,
        "multiply_adds": size.multiply_adds,
        "input": list(model.input),
        "source": model.source,
        "published": model.published,
    }


def find(name: str) -> Model:
    """The network called `name`.

    Raises:
        UsageError: there is none; the message names those that are spelt nearly so, or all.
    """
    if name in MODELS:
        return MODELS[name]
    names = get_close_matches(name.lower(), MODELS) or list(MODELS)
    raise UsageError(f"model={name} is not known; use {' or '.join(names)}")


MODELS = {
    model.name: model
    for model in (
        Model(
            name="mlp",
            builder=lambda classes, channels, size: MLP(classes, channels, size),
            channels=1,
            size=28,
            resize=28,
            classes=10,
            smallest=1,
            source="LeCun et al. 1998, Gradient-based learning applied to document recognition, §III.C.5",
            published="4.7 % test error on MNIST",
        ),
        Model(
            name="lenet5",
            builder=lambda classes, channels, size: LeNet5(classes, channels, size),
            channels=1,
            size=32,
            resize=28,
            classes=10,
            smallest=16,
            source="LeCun et al. 1998, Gradient-based learning applied to document recognition, §II.B",
            published="0.95 % test error on MNIST without distortions",
            mean=0.1 / 1.275,  # so that 0 becomes −0.1 and 255 becomes 1.175 (§II.B)
            std=1 / 1.275,
        ),
        Model(
            name="resnet20",
            builder=lambda classes, channels, size: resnet20(classes, channels),
            channels=3,
            size=32,
            resize=32,
            classes=10,
            smallest=8,
            source="He et al. 2015, Deep residual learning for image recognition, §4.2",
            published="8.75 % test error on CIFAR-10",
        ),
    )
}
