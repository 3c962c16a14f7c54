"""The filters of a network's first layer, as pictures."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from torch import nn

from svertka.data.dataset import Ints
from svertka.errors import UsageError
from svertka.inspection.forward_pass import unwrap_compiled
from svertka.type_checking import check_types

Floats = npt.NDArray[np.float32]

# Brightness, red against green, blue against yellow.
OPPONENT = np.array([[1, 1, 1], [1, -1, 0], [-0.5, -0.5, 1]])
OPPONENT /= np.linalg.norm(OPPONENT, axis=1, keepdims=True)


@dataclass(frozen=True, eq=False)
class FirstLayerFilters:
    """The filters of the convolution that reads the picture.

    `layer`: its name. `weights`: (units, h, w, C) float32, C 1 or 3 (RGB), unit by unit as in the network.
    """

    layer: str
    weights: Floats

    def pictures(self) -> npt.NDArray[np.uint8]:
        """(units, h, w, C), unit by unit: 128 is a weight of 0, and each filter's largest weight is 1 or 255."""
        largest = np.abs(self.weights).max(axis=(1, 2, 3), keepdims=True)
        scaled = self.weights / np.where(largest > 0, largest, 1)
        return np.rint(128 + 127 * scaled).astype(np.uint8)

    @cached_property
    def order(self) -> Ints:
        """(units,): the units, so that neighbours look alike whatever their contrast, phase and sign.

        Two filters are alike as their amplitude spectra are (cosine): an edge stays the same when it moves or changes
        its sides, while its direction, width and colours count. Ordered along the second eigenvector of the graph
        Laplacian of the likenesses, the most alike are close; then stretches are turned round as long as that makes
        the way through all filters shorter.

        Source: Atkins, Boman & Hendrickson 1998, "A spectral algorithm for seriation and the consecutive ones problem";
        Croes 1958, "A method for solving traveling-salesman problems".
        """
        axes = self.weights @ OPPONENT.T if self.weights.shape[-1] == 3 else self.weights
        # Twice the side: between the frequencies of so few pixels lie directions that they would not tell apart.
        sides = [2 * side for side in self.weights.shape[1:3]]
        spectra = np.abs(np.fft.rfft2(axes, s=sides, axes=(1, 2))).reshape(len(axes), -1)
        lengths = np.linalg.norm(spectra, axis=1, keepdims=True)
        spectra /= np.where(lengths > 0, lengths, 1)
        likeness = spectra @ spectra.T
        # The power: what is only somewhat alike pulls little. The sum: what is like nothing hangs on all the rest.
        pulls = likeness**8 + 1e-6
        vectors = np.linalg.eigh(np.diag(pulls.sum(axis=1)) - pulls)[1]
        return _two_opt(np.argsort(vectors[:, min(1, len(vectors) - 1)], kind="stable"), 1 - likeness)


def _two_opt(order: Ints, distances: npt.NDArray[np.float64]) -> Ints:
    """`order` with stretches turned round until none makes the way along it shorter."""
    # A place before the first and behind the last, equally far from all, so that both ends are free.
    way = np.pad(order, 1, constant_values=len(order))
    distances = np.pad(distances, (0, 1))
    shorter = True
    while shorter:
        shorter = False
        for start in range(1, len(order)):
            before, first, lasts, behind = way[start - 1], way[start], way[start:-1], way[start + 1 :]
            old = distances[before, first] + distances[lasts, behind]
            gains = old - distances[before, lasts] - distances[first, behind]
            best = int(gains.argmax())
            if gains[best] > 1e-9:
                way[start : start + best + 1] = way[start : start + best + 1][::-1].copy()
                shorter = True
    return way[1:-1]


@check_types
def get_first_layer_filters(network: nn.Module) -> FirstLayerFilters:
    """The filters of the first nn.Conv2d of `network`.

    Raises:
        UsageError: it has none, or that reads neither 1 nor 3 channels, or has no values.
    """
    for name, layer in unwrap_compiled(network).named_modules():
        if isinstance(layer, nn.Conv2d):
            if layer.weight.shape[1] not in (1, 3):
                raise UsageError(
                    f"layer={name}, the first convolution of {type(network).__name__}, reads {layer.weight.shape[1]} "
                    "channels, which are no picture; give a network that reads 1 (grey) or 3 (RGB)"
                )
            if layer.weight.is_meta:
                raise UsageError(f"layer={name} has weights on the device meta, without values; load some first")
            return FirstLayerFilters(name, layer.weight.detach().float().cpu().permute(0, 2, 3, 1).numpy().copy())
    raise UsageError(f"{type(network).__name__} has no convolution, so there are no filters to show")


def between(before: nn.Module, after: nn.Module) -> tuple[FirstLayerFilters, FirstLayerFilters]:
    """The average of the first layers of two states of a network, and their difference, `after` − `before`.

    Raises:
        UsageError: as `first_layer`; or they are not of one shape.
    """
    one, other = get_first_layer_filters(before), get_first_layer_filters(after)
    if one.weights.shape != other.weights.shape:
        raise UsageError(
            f"first layers of {one.weights.shape} and {other.weights.shape} weights cannot be compared; "
            "give two states of one network"
        )
    average = ((one.weights + other.weights) / 2).astype(np.float32)
    return FirstLayerFilters(one.layer, average), FirstLayerFilters(one.layer, other.weights - one.weights)
