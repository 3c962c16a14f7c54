"""A network on many windows of one picture: its first layers run once over all of it, the others on each window."""

from bisect import bisect_left

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from svertka.graph.cut import Cuts, Halves
from svertka.graph.fully_convolutional import grids, jumps
from svertka.graph.fx_trace import SHAPE
from svertka.graph.summary import Trace, trace

Ints = npt.NDArray[np.int64]

# Of a network's multiply-adds, how much may be computed for each window anew. The more, the nearer are its scores to
# those of crops, for the less its windows see of what lies around them; and the longer it takes.
SHARE = 0.5
BATCH = 32  # windows that are computed together


class Windows(nn.Module):
    """What a network gives for windows of a picture that is larger than what it was built for.

    `first` runs over the whole picture; from the maps that it gives windows of `side` are cut out, and `rest` does with
    each what the network does with a whole picture, the zeros around it included. Where `first` pads its maps, windows
    see there what the picture has around them, and crops see zeros: in this alone the two differ. `window`: height and
    width of what the network was built for; `stride`: the way from one possible window to the next; both in pixels of
    the picture. `shape`: of what `rest` takes, (C, H, W). `share`: the part of the network's multiply-adds that is in
    it. `place`: of `cut.Cuts`, where the two were cut apart. In inference alone; its weights are the network's own.
    """

    def __init__(
        self, halves: Halves, window: tuple[int, int], stride: tuple[int, int], share: float, place: int
    ) -> None:
        super().__init__()
        self.first = halves.prefix or nn.Identity()
        self.rest: nn.Module = halves.rest
        self.shape, self.side = halves.shape, halves.shape[1:]
        self.window, self.stride, self.share, self.place = window, stride, share, place
        self.eval()

    def forward(self, picture: Tensor, places: Ints) -> Tensor:
        """What the network gives for windows of a `picture` (1, C, H, W), (P, …).

        `places`: (P, 2) integers; a window begins `stride` times these from the upper left corner.
        """
        maps = self.first(picture)
        found = []
        for start in range(0, len(places), BATCH):
            some = [
                maps[:, :, y : y + self.side[0], x : x + self.side[1]]
                for y, x in places[start : start + BATCH].tolist()
            ]
            found.append(self.rest(torch.cat(some).contiguous(memory_format=torch.channels_last)))
        return torch.cat(found)


def windows(network: nn.Module, shape: tuple[int, ...], place: int | None = None) -> Windows:
    """`network`, which takes inputs of `shape`, (1, C, H, W), for many windows of larger pictures.

    It is cut at `place`, that of a network with the same layers up to there; or, None, as early as `SHARE` allows, but
    not before the first layer that pads: before that, the maps of a crop are those of its place in the picture, so that
    a network without padding gives what it gives for crops. Dense layers do not count, so that heads change nothing.

    Raises:
        UsageError: as for `symbolic.symbolic`, or what it does first depends on the size of the whole picture.
    """
    cuts, whole = Cuts(network, shape), trace(network, shape)
    place = _place(cuts, whole, shape) if place is None else place
    chosen = cuts.halves(place)
    share = trace(chosen.rest, (1, *chosen.shape)).multiply_adds / whole.multiply_adds
    stride = (1, 1) if chosen.prefix is None else jumps(chosen.prefix, shape)
    return Windows(chosen, (shape[2], shape[3]), stride, share, place)


def _place(cuts: Cuts, whole: Trace, shape: tuple[int, ...]) -> int:
    """Where `windows` cuts a network by itself."""
    places = [place for place in cuts.places if len(cuts.nodes[place - 1].meta[SHAPE]) == 4]

    def is_small(place: int) -> bool:
        halves = cuts.halves(place)
        return _of_maps(trace(halves.rest, (1, *halves.shape))) <= SHARE * _of_maps(whole)

    early = min(bisect_left(places, True, key=is_small), len(places) - 1)
    exact = bisect_left(places, True, lo=early, key=lambda place: not _is_exact(cuts.halves(place), shape)) - 1
    return places[max(early, exact)]


def _of_maps(traced: Trace) -> int:
    """The multiply-adds of layers that give maps."""
    return sum(layer.multiply_adds for layer in traced.layers if len(layer.shape) == 4)


def _is_exact(halves: Halves, shape: tuple[int, ...]) -> bool:
    """Whether all that the maps of the prefix see lies inside of an input of `shape`."""
    if halves.prefix is None:
        return True
    fields = grids(halves.prefix, shape)
    sides = zip(fields, halves.shape[1:], shape[2:], strict=True)
    return all(
        field is not None and field.start >= 0 and field.start + (count - 1) * field.jump + field.extent <= side
        for field, count, side in sides
    )
