"""Filters of a network's first convolution, as images."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from torch import nn

from svertka.data.dataset import Ints
from svertka.errors import UsageError
from svertka.inspection.checked_forward_pass import unwrap_compiled
from svertka.type_checking import check_types

Floats = npt.NDArray[np.float32]

# Opponent color axes: brightness, red-green, blue-yellow.
OPPONENT_AXES = np.array([[1, 1, 1], [1, -1, 0], [-0.5, -0.5, 1]])
OPPONENT_AXES /= np.linalg.norm(OPPONENT_AXES, axis=1, keepdims=True)


@dataclass(frozen=True, eq=False)
class FirstLayerFilters:
    """The filters of the convolution that reads the image.

    Attributes:
        layer: Name of the layer.
        weights: (units, h, w, C) float32 with C 1 or 3 (RGB), in the network's order.
    """

    layer: str
    weights: Floats

    def to_images(self) -> npt.NDArray[np.uint8]:
        """Return the filters as (units, h, w, C) uint8: 128 is a weight of 0; the largest weight becomes 1 or 255."""
        largest = np.abs(self.weights).max(axis=(1, 2, 3), keepdims=True)
        scaled = self.weights / np.where(largest > 0, largest, 1)
        return np.rint(128 + 127 * scaled).astype(np.uint8)

    @cached_property
    def similarity_order(self) -> Ints:
        """Return an order of the units, (units,), in which neighboring filters look alike.

        The similarity of two filters is the cosine of their amplitude spectra, which depend on the direction, width and
        colors of an edge, but not on its contrast, position and sign. The units are sorted by the second eigenvector of
        the similarity graph's Laplacian, then 2-opt shortens the path through all filters.

        Source: Atkins, Boman & Hendrickson 1998, "A spectral algorithm for seriation and the consecutive ones problem";
        Croes 1958, "A method for solving traveling-salesman problems".
        """
        axes = self.weights @ OPPONENT_AXES.T if self.weights.shape[-1] == 3 else self.weights
        # Zero-padded to twice the side, because the spectrum of so few pixels does not separate similar directions.
        sides = [2 * side for side in self.weights.shape[1:3]]
        spectra = np.abs(np.fft.rfft2(axes, s=sides, axes=(1, 2))).reshape(len(axes), -1)
        lengths = np.linalg.norm(spectra, axis=1, keepdims=True)
        spectra /= np.where(lengths > 0, lengths, 1)
        similarity = spectra @ spectra.T
        # The power weakens moderate similarities; the constant connects filters that resemble no other.
        weights = similarity**8 + 1e-6
        vectors = np.linalg.eigh(np.diag(weights.sum(axis=1)) - weights)[1]
        return _two_opt(np.argsort(vectors[:, min(1, len(vectors) - 1)], kind="stable"), 1 - similarity)


def _two_opt(order: Ints, distances: npt.NDArray[np.float64]) -> Ints:
    """Reverse stretches of `order` until no reversal shortens the path along it."""
    # A dummy node at both ends, at equal distance from all, leaves the ends free.
    path = np.pad(order, 1, constant_values=len(order))
    distances = np.pad(distances, (0, 1))
    has_improved = True
    while has_improved:
        has_improved = False
        for start in range(1, len(order)):
            before, first, lasts, after = path[start - 1], path[start], path[start:-1], path[start + 1 :]
            old = distances[before, first] + distances[lasts, after]
            gains = old - distances[before, lasts] - distances[first, after]
            best = int(gains.argmax())
            if gains[best] > 1e-9:
                path[start : start + best + 1] = path[start : start + best + 1][::-1].copy()
                has_improved = True
    return path[1:-1]


@check_types
def get_first_layer_filters(network: nn.Module) -> FirstLayerFilters:
    """Return the filters of the first nn.Conv2d of `network`.

    Args:
        network: Any nn.Module.

    Returns:
        The name of the convolution and its filters, (K, h, w, C) float32 on the CPU.

    Raises:
        UsageError: The network has no convolution, its first one reads neither 1 nor 3 channels, or its weights are not
            finite real numbers.
    """
    for name, layer in unwrap_compiled(network).named_modules():
        if isinstance(layer, nn.Conv2d):
            if layer.weight.shape[1] not in (1, 3):
                raise UsageError(
                    f"layer={name}, the first convolution of {type(network).__name__}, reads {layer.weight.shape[1]} "
                    "channels, which cannot be shown as an image; give a network that reads 1 (gray) or 3 (RGB)"
                )
            if layer.weight.is_meta:
                raise UsageError(
                    f"layer={name} has weights on the meta device, which have no values; load pretrained weights first"
                )
            if layer.weight.is_complex() or not layer.weight.isfinite().all():
                raise UsageError(f"layer={name} has weights that are complex, NaN or infinite; load real, finite ones")
            return FirstLayerFilters(name, layer.weight.detach().float().cpu().permute(0, 2, 3, 1).numpy().copy())
    raise UsageError(f"{type(network).__name__} has no convolution, so it has no filters to show")
