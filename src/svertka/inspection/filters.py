"""The filters of a network's first layer, as pictures."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import nn

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Filters:
    """The filters of the convolution that reads the picture.

    `layer`: its name. `weights`: (units, h, w, C) float32, C 1 or 3 (RGB), unit by unit as in the network.
    `order`: (units,) int64, the units so that those next to each other look alike.
    """

    layer: str
    weights: Floats
    order: Ints

    def pictures(self) -> npt.NDArray[np.uint8]:
        """(units, h, w, C) in the network's order: 128 is 0, and each filter's largest weight is 1 or 255."""
        raise NotImplementedError


def first_layer(network: nn.Module) -> Filters:
    """The filters of the first nn.Conv2d of `network`.

    Raises:
        UsageError: it has none, or that reads neither 1 nor 3 channels.
    """
    raise NotImplementedError


def between(before: nn.Module, after: nn.Module) -> tuple[Filters, Filters]:
    """The average of the first layers of two states of a network, and their difference, `after` − `before`.

    Raises:
        UsageError: as `first_layer`; or they are not of one shape.
    """
    raise NotImplementedError
