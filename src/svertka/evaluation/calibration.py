"""Calibration of class probabilities, and temperature scaling."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from svertka import distributed

BINS = 15  # of equal width
MIN_IMAGES = 100  # on fewer, the expected calibration error of exact probabilities is several percent
FOLDS = 2  # for cross-fitting of the temperature
# 0.25 to 8 in steps of 6 %; a finer grid changes the loss by less than 0.001.
TEMPERATURES = tuple(2 ** (k / 12) for k in range(-24, 37))


@dataclass(frozen=True)
class ConfidenceBin:
    """The images whose highest probability lies in one range.

    Attributes:
        images: Number of images.
        confidence: Mean of their highest probabilities.
        accuracy: Share of them that is correct.
    """

    images: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """Confidence against accuracy.

    Attributes:
        bins: The bins that hold images, from low to high confidence.
        error: Expected calibration error, 0 to 1; NaN without images.
        temperature: Divisor of all scores with the lowest loss; NaN without images.
        scaled_bins: The bins after temperature scaling with cross-fitting: each half of the images is scaled by the
            temperature that is best for the other half.
        scaled_error: Expected calibration error after that.

    On fewer than `MIN_IMAGES`, error and temperature say more about the few images than about the network.

    Source:
        Guo et al. 2017, On calibration of modern neural networks, eq. 3 and §4.2.
    """

    bins: tuple[ConfidenceBin, ...]
    error: float
    temperature: float
    scaled_bins: tuple[ConfidenceBin, ...]
    scaled_error: float

    @property
    def images(self) -> int:
        """Number of images."""
        return sum(one.images for one in self.bins)

    @property
    def is_meaningful(self) -> bool:
        """Whether there are enough images."""
        return self.images >= MIN_IMAGES


class CalibrationAccumulator:
    """Calibration accumulated over batches, for every temperature at once."""

    def __init__(self) -> None:
        self._loss = torch.zeros(len(TEMPERATURES), FOLDS, dtype=torch.float64)
        # last axis: images, sum of confidences, correct images
        self._bins = torch.zeros(len(TEMPERATURES), FOLDS * BINS, 3, dtype=torch.float64)

    def update(self, logits: Tensor, labels: Tensor, right: Tensor, indices: Tensor) -> None:
        """Add a batch; images with an infinite score are left out.

        Args:
            logits: Scores (B, K) float32.
            labels: True classes (B,) int64.
            right: Whether each image is classified correctly, (B,) bool.
            indices: Indices of the images (B,) int64; even and odd ones form the two folds.
        """
        sound = logits.isfinite().all(1)
        if not sound.all():
            logits, labels, right, indices = logits[sound], labels[sound], right[sound], indices[sound]
        below = logits - logits.amax(1, keepdim=True)
        own = below.gather(1, labels[:, None])[:, 0]
        fold = indices % FOLDS
        ones = torch.ones(len(labels), dtype=torch.float64)
        for k, temperature in enumerate(TEMPERATURES):
            normalizer = (below / temperature).exp_().sum(1).log_()
            self._loss[k].index_add_(0, fold, (normalizer - own / temperature).double())
            confidence = normalizer.neg_().exp_()
            place = (confidence * BINS).long().clamp_(max=BINS - 1)
            rows = torch.stack([ones, confidence.double(), right.double()], 1)
            self._bins[k].index_add_(0, fold * BINS + place, rows)

    def all_reduce(self) -> "CalibrationAccumulator":
        """Return the sum over all processes; this accumulator does not change."""
        whole = CalibrationAccumulator()
        whole._loss = distributed.all_reduce(self._loss.clone())
        whole._bins = distributed.all_reduce(self._bins.clone())
        return whole

    def result(self) -> Calibration:
        """Return the calibration."""
        plain = TEMPERATURES.index(1.0)
        folds = self._bins.view(len(TEMPERATURES), FOLDS, BINS, 3)
        best = self._loss.argmin(0).tolist()
        counts = folds[plain, :, :, 0].sum(1)
        bins = folds[plain].sum(0)
        # Without images in the other fold there is no temperature to use.
        crossed = [best[1 - fold] if counts[1 - fold] else plain for fold in range(FOLDS)]
        scaled = torch.stack([folds[k, fold] for fold, k in enumerate(crossed)]).sum(0)
        return Calibration(
            bins=_bins(bins),
            error=_expected_error(bins),
            temperature=TEMPERATURES[int(self._loss.sum(1).argmin())] if counts.sum() else math.nan,
            scaled_bins=_bins(scaled),
            scaled_error=_expected_error(scaled),
        )


def _bins(sums: Tensor) -> tuple[ConfidenceBin, ...]:
    return tuple(ConfidenceBin(int(n), sure / n, right / n) for n, sure, right in sums.tolist() if n)


def _expected_error(sums: Tensor) -> float:
    """Return the expected calibration error, Σ n/N |accuracy − confidence| over the bins, from sums per bin."""
    images = float(sums[:, 0].sum())
    return float((sums[:, 2] - sums[:, 1]).abs().sum()) / images if images else math.nan
