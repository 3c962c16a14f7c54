"""The places in a data set that excite each unit of a network most, found in one pass."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from svertka.data.batches import Batch, Batches

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Data = Tensor | Batches | Iterable[Tensor | Batch | tuple[Tensor, Tensor]]

SIMILAR = 6  # units that are told for each


@dataclass(frozen=True, eq=False)
class LayerPatches:
    """What excites the units of one layer.

    Of each picture a unit has one value, the largest of its map; what is not above 0 does not excite it.

    `layer`: as asked for. `seen_in`: the layer whose output was looked at, behind the ReLU of `layer` where it has one.
    `shape`: of a map, (rows, columns). `count`: pictures looked at.

    The `k` strongest pictures of each unit, strongest first (of equals the one that came first):
    `values`: (units, k) float32, NaN where fewer pictures excite it.
    `pictures`: (units, k) int64, which of the data; −1 where there are fewer, and so in the next two.
    `places`: (units, k, 2) int64, row and column in the map.
    `boxes`: (units, k, 4) int64, top, left, bottom, right of the pixels that this place sees: `picture[top:bottom,
    left:right]`, exactly, and so smaller at the border.

    `active`: (units,) float32, the share of pictures that excite it. `dead`: (units,) bool, those that none does.
    `histogram`: (units, bins) int64, the pictures that excite it, by value. `edges`: (bins + 1,) float32, four bins an
    octave.
    `classes`: (units, K) float32, which share of the sum of its values each class has; None where data has no labels.
    `base`: (K,) float32, the share of the pictures that each class has; None too.
    `similar`: (units, 6) int64, the units whose values correlate most with its own over the pictures, nearest first;
    −1 where there are fewer. `correlations`: (units, 6) float32, NaN there.
    """

    layer: str
    seen_in: str
    shape: tuple[int, int]
    count: int
    values: Floats
    pictures: Ints
    places: Ints
    boxes: Ints
    active: Floats
    histogram: Ints
    edges: Floats
    classes: Floats | None
    base: Floats | None
    similar: Ints
    correlations: Floats

    @property
    def dead(self) -> npt.NDArray[np.bool_]:
        """(units,): those that no picture excites."""
        return np.equal(self.active, 0)


@torch.no_grad()
def top_patches(
    network: nn.Module, data: Data, layers: str | Sequence[str] | None = None, count: int = 9
) -> dict[str, LayerPatches]:
    """What excites the units of `layers` most, in one pass over `data`; memory does not depend on how many pictures.

    `data`: `Batches`, or pictures as `network` takes them, (N, C, H, W): all in one tensor, or batch by batch, alone or
    with labels (N,). `layers`: a name or several, as `activations.layers` tells them; None: every convolution.
    `count`: places told for each unit, at most one a picture.

    Raises:
        UsageError: no such layer, or it has no maps; `count` below 1; the network does not take such pictures.
        DataError: there are no pictures.
    """
    raise NotImplementedError
