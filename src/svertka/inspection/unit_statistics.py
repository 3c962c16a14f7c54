"""Statistics of a layer's units, accumulated over a data set in memory that does not grow with the number of images."""

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

NUM_SIMILAR = 6  # similar units reported per unit
BINS_PER_OCTAVE = 4  # linearly spaced
LOWEST_EXPONENT, OCTAVES = -24, 48  # the histogram starts at 2^-24; values outside fall into the outermost bins
TINY = 1e-300  # to avoid division by zero
# Outputs that differ by less, relative to the layer's largest one, are equal: float32 rounds means to about 1e-6.
CONSTANT_TOLERANCE = 1e-5


class UnitStatistics:
    """The strongest images of each unit, and sums over all images.

    The activation of a unit in an image is the maximum of its feature map. The histogram and the class shares count
    values of 0 or less as 0.

    Args:
        num_units: Channels of the layer.
        count: Strongest images kept per unit.
    """

    def __init__(self, num_units: int, count: int) -> None:
        self.num_images = 0
        # Strongest first. A value of -inf marks an empty slot.
        self.values = torch.full((num_units, count), -torch.inf)
        self.images = torch.full((num_units, count), -1)
        self.positions = torch.full((num_units, count), -1)
        self.bin_counts = torch.zeros(num_units, OCTAVES * BINS_PER_OCTAVE, dtype=torch.int64)
        self._offset = torch.zeros(num_units)  # subtracted from the values to reduce cancellation in the products
        self._sums = torch.zeros(num_units, dtype=torch.float64)
        self._products = torch.zeros(num_units, num_units, dtype=torch.float64)
        self._sums_by_class = torch.zeros(0, num_units, dtype=torch.float64)
        self._class_counts = torch.zeros(0, dtype=torch.int64)
        self._totals = torch.zeros(num_units, dtype=torch.float64)  # of the images with labels
        self._labeled = 0
        self._has_negative_outputs = False
        # The lowest and the highest over the images of each unit's maximum and mean.
        self._lowest, self._highest = torch.full((2, num_units), torch.inf), torch.full((2, num_units), -torch.inf)
        self._pending: list[tuple[Tensor, Tensor]] = []

    def observe(self, output: Tensor) -> None:
        """Store the maxima of feature maps (N, num_units, H, W) until the next `update`."""
        # In channels-last layout this is one vectorized pass for value and index, and ties go to the first position.
        # amax alone takes twice as long for 64 units and twenty times as long for 16.
        values, positions = F.adaptive_max_pool2d(output, 1, return_indices=True)
        self._pending.append((values.flatten(1), positions.flatten(1)))
        # After ReLU, a unit that is never above 0 is constant, so only its maxima are needed.
        self._has_negative_outputs = self._has_negative_outputs or bool(output.amin() < 0)
        means = output.float().mean((2, 3)) if self._has_negative_outputs else values.flatten(1)
        both = torch.stack([values.flatten(1), means]).float().cpu().nan_to_num(0, 0, 0)
        self._lowest = torch.minimum(self._lowest, both.amin(1))
        self._highest = torch.maximum(self._highest, both.amax(1))

    def update(self, images: Tensor, labels: Tensor | None) -> None:
        """Add the maxima stored since the last update to the statistics.

        Args:
            images: (n,) int64, the indices of these images in the data set.
            labels: (n,) int64, the class of each image; (n, K) bool, which labels it has; or None.
        """
        values = torch.cat([values for values, _ in self._pending]).float().cpu()
        values[values.isnan()] = -torch.inf
        positions = torch.cat([positions for _, positions in self._pending]).cpu()
        self._pending.clear()
        self._keep_strongest(values.T, positions.T, images)
        values[values.isneginf()] = 0
        positive = values.clamp(min=0)
        self._count_values(positive)
        if labels is not None:
            self._add_to_classes(positive, labels)
        if not self.num_images:
            self._offset = values.mean(0)
        self.num_images += len(values)
        values -= self._offset
        self._sums += values.sum(0)
        self._products += values.T @ values

    def _keep_strongest(self, values: Tensor, positions: Tensor, images: Tensor) -> None:
        """Merge `values` and `positions`, both (num_units, n), into the strongest images."""
        count = self.values.shape[1]
        merged = torch.cat([self.values, values], dim=1)
        # A stable sort keeps the earlier of equal values.
        self.values, order = (one[:, :count] for one in merged.sort(dim=1, descending=True, stable=True))
        self.positions = torch.cat([self.positions, positions], dim=1).gather(1, order)
        self.images = torch.cat([self.images, images.expand(len(values), -1)], dim=1).gather(1, order)

    def _count_values(self, values: Tensor) -> None:
        fraction, exponent = torch.frexp(values)  # value = fraction · 2^exponent, with the fraction in [1/2, 1)
        bin_in_octave = ((fraction * 2 - 1) * BINS_PER_OCTAVE).long()
        num_bins = OCTAVES * BINS_PER_OCTAVE
        bins = ((exponent.long() - 1 - LOWEST_EXPONENT) * BINS_PER_OCTAVE + bin_in_octave).clamp_(0, num_bins - 1)
        unit_offsets = torch.arange(values.shape[1]) * num_bins
        found = torch.bincount((bins + unit_offsets)[values > 0], minlength=self.bin_counts.numel())
        self.bin_counts += found.view_as(self.bin_counts)

    def _add_to_classes(self, values: Tensor, labels: Tensor) -> None:
        num_classes = labels.shape[1] if labels.dim() == 2 else int(labels.max()) + 1
        num_new = max(0, num_classes - len(self._sums_by_class))
        self._sums_by_class = F.pad(self._sums_by_class, (0, 0, 0, num_new))
        self._totals = self._totals + values.double().sum(0)
        self._labeled += len(labels)
        if labels.dim() == 2:
            self._sums_by_class += labels.T.double() @ values.double()
            counts = labels.sum(0)
        else:
            self._sums_by_class.index_add_(0, labels, values.double())
            counts = labels.bincount(minlength=len(self._sums_by_class))
        self._class_counts = F.pad(self._class_counts, (0, num_new)) + counts

    def is_dead(self) -> Tensor:
        """Return whether each unit is never above 0 and constant, (num_units,) bool.

        Constant means that its maximum and its mean vary over the images by at most `CONSTANT_TOLERANCE` of the
        layer's largest absolute maximum or mean. After ReLU, this is a unit that is always 0.
        """
        largest = torch.maximum(self._lowest.abs(), self._highest.abs()).amax()
        varies = (self._highest - self._lowest > CONSTANT_TOLERANCE * largest).any(0)
        return (self.values[:, 0] <= 0) & ~varies

    def has_patch(self) -> Tensor:
        """Return which of the strongest images show a unit at work, (num_units, count) bool.

        These are images with an activation above 0 and, in a layer with negative outputs, all images of a unit that is
        not dead.
        """
        shown = self.values > 0
        if self._has_negative_outputs:
            shown |= ~self.is_dead()[:, None] & self.values.isfinite()
        return shown

    def histogram(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Return the histogram of activations over the range of bins in use.

        Returns:
            (num_units, bins) counts of images that activate each unit, and the (bins + 1,) bin edges.
        """
        steps = np.arange(OCTAVES * BINS_PER_OCTAVE + 1)
        octaves, bins = np.divmod(steps, BINS_PER_OCTAVE)
        edges = np.ldexp(1 + bins / BINS_PER_OCTAVE, LOWEST_EXPONENT + octaves).astype(np.float32)
        used = self.bin_counts.sum(0).nonzero().flatten().tolist() or [0]
        return self.bin_counts[:, used[0] : used[-1] + 1].numpy(), edges[used[0] : used[-1] + 2]

    def class_shares(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return each class's share of a unit's total activation, and of the images.

        Returns:
            (num_units, K), 0 for dead units, and (K,).
        """
        shares = self._sums_by_class / self._totals.clamp(min=TINY)
        return shares.T.float().numpy(), (self._class_counts / max(self._labeled, 1)).numpy()

    def similar_units(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Return the six units whose activations correlate most with each unit's own.

        Returns:
            (num_units, 6) units and (num_units, 6) correlations; −1 and NaN where there are fewer.
        """
        means = self._sums / self.num_images
        covariance = self._products / self.num_images - means.outer(means)
        variance = covariance.diagonal()
        # A variation below float32 precision counts as none.
        varies = variance > (1e-6 * (means + self._offset)).square()
        deviation = variance.clamp(min=TINY).sqrt()
        correlation = covariance / deviation.outer(deviation)
        correlation[~varies] = correlation[:, ~varies] = -torch.inf
        correlation.fill_diagonal_(-torch.inf)
        nearest = correlation.topk(min(NUM_SIMILAR, len(correlation)), dim=1)
        units = torch.full((len(correlation), NUM_SIMILAR), -1)
        values = torch.full((len(correlation), NUM_SIMILAR), torch.nan)
        valid = nearest.values.isfinite()
        width = valid.shape[1]
        units[:, :width][valid] = nearest.indices[valid]
        values[:, :width][valid] = nearest.values[valid].float()
        return units.numpy(), values.numpy()
