"""What is kept of one layer while pictures go by: its memory does not depend on how many there are."""

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

SIMILAR = 6  # units that are told for each
BINS = 4  # of a histogram in each octave, all as wide
LOWEST, OCTAVES = -24, 48  # from 2^LOWEST on; values outside are counted in the outermost bins
TINY = 1e-300  # instead of 0, to divide by


class UnitStatistics:
    """The strongest pictures of each of `units`, and sums over all pictures.

    Of each picture a unit has one value, the largest of its map; what is not above 0 counts as 0.
    """

    def __init__(self, units: int, count: int) -> None:
        self.pictures = 0
        # Strongest first. A value of 0 is none.
        self.values = torch.zeros(units, count)
        self.where = torch.full((units, count), -1)
        self.places = torch.full((units, count), -1)
        self.counts = torch.zeros(units, OCTAVES * BINS, dtype=torch.int64)
        self._base = torch.zeros(units)  # subtracted from the values, so that their products cancel less
        self._sums = torch.zeros(units, dtype=torch.float64)
        self._products = torch.zeros(units, units, dtype=torch.float64)
        self._by_class = torch.zeros(0, units, dtype=torch.float64)
        self._class_counts = torch.zeros(0, dtype=torch.int64)
        self._seen: list[tuple[Tensor, Tensor]] = []

    def see(self, output: Tensor) -> None:
        """The maps (N, units, H, W) of the next N pictures."""
        # With channels last one vectorised pass for value and place, of equal ones the first; amax alone takes twice
        # as long for 64 units and twenty times for 16.
        values, places = F.adaptive_max_pool2d(output, 1, return_indices=True)
        self._seen.append((values.flatten(1), places.flatten(1)))

    def take(self, pictures: Tensor, labels: Tensor | None) -> None:
        """Count what was seen since the last time: of the `pictures` (n,) int64, which have `labels` (n,) int64."""
        values = torch.cat([values for values, _ in self._seen]).float().cpu().clamp_(min=0)
        values[values.isnan()] = 0
        places = torch.cat([places for _, places in self._seen]).cpu()
        self._seen.clear()
        self._keep_strongest(values.T, places.T, pictures)
        self._count(values)
        if labels is not None:
            self._add_classes(values, labels)
        if not self.pictures:
            self._base = values.mean(0)
        self.pictures += len(values)
        values -= self._base
        self._sums += values.sum(0)
        self._products += values.T @ values

    def _keep_strongest(self, values: Tensor, places: Tensor, pictures: Tensor) -> None:
        """`values` and `places`: (units, n)."""
        count = self.values.shape[1]
        everything = torch.cat([self.values, values], dim=1)
        # Stable: of equal values the one that came first.
        self.values, order = (one[:, :count] for one in everything.sort(dim=1, descending=True, stable=True))
        self.places = torch.cat([self.places, places], dim=1).gather(1, order)
        self.where = torch.cat([self.where, pictures.expand(len(values), -1)], dim=1).gather(1, order)

    def _count(self, values: Tensor) -> None:
        fraction, exponent = torch.frexp(values)  # fraction · 2^exponent, from 1/2 to 1
        quarter = ((fraction * 2 - 1) * BINS).long()
        bins = ((exponent.long() - 1 - LOWEST) * BINS + quarter).clamp_(0, OCTAVES * BINS - 1)
        units = torch.arange(values.shape[1]) * (OCTAVES * BINS)
        found = torch.bincount((bins + units)[values > 0], minlength=self.counts.numel())
        self.counts += found.view_as(self.counts)

    def _add_classes(self, values: Tensor, labels: Tensor) -> None:
        more = max(0, int(labels.max()) + 1 - len(self._by_class))
        self._by_class = F.pad(self._by_class, (0, 0, 0, more)).index_add_(0, labels, values.double())
        self._class_counts = F.pad(self._class_counts, (0, more)) + labels.bincount(minlength=len(self._by_class))

    def histogram(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """(units, bins) pictures that excite it, by value, and the (bins + 1,) edges, as far as there are any."""
        quarters = np.arange(OCTAVES * BINS + 1)
        edges = np.ldexp(1 + quarters % BINS / BINS, LOWEST + quarters // BINS).astype(np.float32)
        used = self.counts.sum(0).nonzero().flatten().tolist() or [0]
        span = slice(used[0], used[-1] + 1)
        return self.counts[:, span].numpy(), edges[used[0] : used[-1] + 2]

    def classes(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """(units, K) each class's share of the sum of a unit's values, 0 for a dead one, and (K,) of the pictures."""
        shares = self._by_class / self._by_class.sum(0).clamp(min=TINY)
        return shares.T.float().numpy(), (self._class_counts / self._class_counts.sum().clamp(min=1)).numpy()

    def similar(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """(units, 6) the units whose values correlate most with a unit's own, and (units, 6) how much; −1 and NaN."""
        means = self._sums / self.pictures
        covariance = self._products / self.pictures - means.outer(means)
        variance = covariance.diagonal()
        # What varies less than float32 can tell of values of this size does not vary.
        varies = variance > (1e-6 * (means + self._base)).square()
        spread = variance.clamp(min=TINY).sqrt()
        correlation = covariance / spread.outer(spread)
        correlation[~varies] = correlation[:, ~varies] = -torch.inf
        correlation.fill_diagonal_(-torch.inf)
        nearest = correlation.topk(min(SIMILAR, len(correlation)), dim=1)
        units = torch.full((len(correlation), SIMILAR), -1)
        values = torch.full((len(correlation), SIMILAR), torch.nan)
        there = nearest.values.isfinite()
        width = there.shape[1]
        units[:, :width][there] = nearest.indices[there]
        values[:, :width][there] = nearest.values[there].float()
        return units.numpy(), values.numpy()
