"""A network for many crops of one image, whose first layers run once on the image and whose others run per crop."""

from bisect import bisect_left

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from svertka.errors import UsageError
from svertka.graph.cut import CuttableGraph, PrefixAndRest
from svertka.graph.fully_convolutional import output_strides, receptive_field_grids
from svertka.graph.fx_trace import SHAPE
from svertka.graph.summary import Trace, trace

Ints = npt.NDArray[np.int64]

# The fraction of multiply-adds that may be recomputed per window. A larger one is slower, but its scores are closer to
# those of separate crops, because windows see less of the surrounding image.
MAX_RECOMPUTED_SHARE = 0.5
BATCH = 32  # windows per batch


class SharedCrops(nn.Module):
    """A network applied to windows of an image that is larger than the network's input. For inference only.

    `first` runs on the whole image, and `rest` on crops of size `side` of its feature maps. If `first` pads its maps, a
    window sees the surrounding image where a separate crop sees zeros; otherwise the results are equal. The weights are
    shared with the network.

    Attributes:
        window: Height and width of the network's input, in pixels.
        stride: Distance between possible windows, in pixels of the image.
        shape: Shape of the input of `rest`, (C, H, W).
        share: The fraction of the network's multiply-adds that are in `rest`.
        place: The cut, one of `CuttableGraph.places`.
    """

    def __init__(
        self,
        first: nn.Module | None,
        rest: nn.Module,
        shape: tuple[int, ...],
        window: tuple[int, int],
        stride: tuple[int, int],
        share: float,
        place: int,
    ) -> None:
        super().__init__()
        self.first, self.rest = first or nn.Identity(), rest
        self.shape, self.side = shape, shape[1:]
        self.window, self.stride, self.share, self.place = window, stride, share, place
        self.eval()

    def forward(self, image: Tensor, places: Ints) -> Tensor:
        """Return the network's outputs, (P, …), for P windows of `image`, (1, C, H, W).

        Args:
            image: (1, C, H, W).
            places: (P, 2) integers, the upper left corners of the windows in units of `stride`.
        """
        maps = self.first(image)
        found = []
        for start in range(0, len(places), BATCH):
            some = [
                maps[:, :, y : y + self.side[0], x : x + self.side[1]]
                for y, x in places[start : start + BATCH].tolist()
            ]
            found.append(self.rest(torch.cat(some).contiguous(memory_format=torch.channels_last)))
        return torch.cat(found)


def make_shared_crops(network: nn.Module, shape: tuple[int, ...], place: int | None = None) -> SharedCrops:
    """Cut `network`, with inputs of `shape`, (1, C, H, W), so that windows of larger images share its first layers.

    By default it is cut as early as MAX_RECOMPUTED_SHARE allows, but not before the first layer that pads. Before that
    layer, the feature maps of a crop are a part of those of the image, so a network without padding gives the results
    of separate crops. Dense layers are not counted, so that the cut does not depend on the head.

    Layers that depend on the size of the whole image, such as GroupNorm, run per window. A network whose graph cannot
    be traced runs per window as a whole.

    Args:
        network: Any nn.Module.
        shape: Shape of the input, (1, C, H, W).
        place: The cut, from a network with the same first layers. None: the default.

    Raises:
        UsageError: A `place` is given, and the network cannot be traced, or its layers before `place` depend on the
            size of the whole image.
    """
    window = shape[2], shape[3]
    try:
        cuts, whole = CuttableGraph(network, shape), trace(network, shape)
    except UsageError:
        if place is not None:
            raise
        return SharedCrops(None, network, shape[1:], window, (1, 1), share=1.0, place=1)
    place = _place(cuts, whole, shape) if place is None else place
    chosen = cuts.halves(place)
    share = trace(chosen.rest, (1, *chosen.shape)).multiply_adds / whole.multiply_adds
    stride = (1, 1) if chosen.prefix is None else output_strides(chosen.prefix, shape)
    return SharedCrops(chosen.prefix, chosen.rest, chosen.shape, window, stride, share, place)


def _place(cuts: CuttableGraph, whole: Trace, shape: tuple[int, ...]) -> int:
    """Return the default cut of a network."""
    places = [place for place in cuts.places if len(cuts.nodes[place - 1].meta[SHAPE]) == 4]

    def is_small(place: int) -> bool:
        halves = cuts.halves(place)
        return _of_maps(trace(halves.rest, (1, *halves.shape))) <= MAX_RECOMPUTED_SHARE * _of_maps(whole)

    early = min(bisect_left(places, True, key=is_small), len(places) - 1)
    exact = bisect_left(places, True, lo=early, key=lambda place: not _is_exact(cuts.halves(place), shape)) - 1
    chosen = max(early, exact)
    if _is_evenly_spaced(cuts.halves(places[chosen]), shape):
        return places[chosen]
    uneven = bisect_left(places, True, hi=chosen, key=lambda place: not _is_evenly_spaced(cuts.halves(place), shape))
    return places[uneven - 1]


def _of_maps(traced: Trace) -> int:
    """Return the multiply-adds of layers that output feature maps."""
    return sum(layer.multiply_adds for layer in traced.layers if len(layer.shape) == 4)


def _is_evenly_spaced(halves: PrefixAndRest, shape: tuple[int, ...]) -> bool:
    """Return whether the prefix's outputs are evenly spaced, so that windows can share them."""
    if halves.prefix is None:
        return True
    try:
        return None not in receptive_field_grids(halves.prefix, shape)
    except UsageError:  # it takes images of one size only
        return False


def _is_exact(halves: PrefixAndRest, shape: tuple[int, ...]) -> bool:
    """Return whether the receptive fields of the prefix's outputs lie inside an input of `shape`."""
    if halves.prefix is None:
        return True
    if not _is_evenly_spaced(halves, shape):
        return False
    fields = receptive_field_grids(halves.prefix, shape)
    sides = zip(fields, halves.shape[1:], shape[2:], strict=True)
    return all(
        field is not None and field.start >= 0 and field.start + (count - 1) * field.jump + field.extent <= side
        for field, count, side in sides
    )
