"""Whether probabilities are to be believed, and by how much all scores would have to be divided for that."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from svertka import distributed

BINS = 15  # of confidence, equally wide
FOLDS = 2  # a temperature is fitted on the pictures of one and tried on those of the other
# 0.25 to 8 in steps of a twelfth of an octave, 6 %: what is between two of them changes the loss by less than 0.001.
TEMPERATURES = tuple(2 ** (k / 12) for k in range(-24, 37))


@dataclass(frozen=True)
class ConfidenceBin:
    """The pictures whose highest probability lies in one range: how sure the network was, and how often right."""

    images: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """Confidence against how often it is right.

    `bins`: those with pictures, from unsure to sure. `error`: the expected calibration error, the mean distance of the
    two over the pictures, 0 to 1. `temperature`: what all scores divided by have the lowest loss. `scaled_bins`,
    `scaled_error`: the same after that division, each half of the pictures with the temperature that was best on the
    other half. NaN and nothing where there are no pictures.

    Source: Guo et al. 2017, On calibration of modern neural networks, eq. 3 and §4.2.
    """

    bins: tuple[ConfidenceBin, ...]
    error: float
    temperature: float
    scaled_bins: tuple[ConfidenceBin, ...]
    scaled_error: float


class CalibrationAccumulator:
    """Sums over batches from which a Calibration is made, for every temperature at once."""

    def __init__(self) -> None:
        self._loss = torch.zeros(len(TEMPERATURES), FOLDS, dtype=torch.float64)
        # the last axis: pictures, sum of their confidences, how many are right
        self._bins = torch.zeros(len(TEMPERATURES), FOLDS * BINS, 3, dtype=torch.float64)

    def update(self, logits: Tensor, labels: Tensor, right: Tensor, indices: Tensor) -> None:
        """Count a batch: `logits` (B, K) float32, `right` (B,) bool; pictures with an infinite score are left out."""
        sound = logits.isfinite().all(1)
        if not sound.all():
            logits, labels, right, indices = logits[sound], labels[sound], right[sound], indices[sound]
        below = logits - logits.amax(1, keepdim=True)
        own = below.gather(1, labels[:, None])[:, 0]
        fold = indices % FOLDS
        ones = torch.ones(len(labels), dtype=torch.float64)
        for k, temperature in enumerate(TEMPERATURES):
            normaliser = (below / temperature).exp_().sum(1).log_()
            self._loss[k].index_add_(0, fold, (normaliser - own / temperature).double())
            confidence = normaliser.neg_().exp_()
            place = (confidence * BINS).long().clamp_(max=BINS - 1)
            rows = torch.stack([ones, confidence.double(), right.double()], 1)
            self._bins[k].index_add_(0, fold * BINS + place, rows)

    def all_reduce(self) -> "CalibrationAccumulator":
        """Of all processes; this one stays."""
        whole = CalibrationAccumulator()
        whole._loss = distributed.total(self._loss.clone())
        whole._bins = distributed.total(self._bins.clone())
        return whole

    def result(self) -> Calibration:
        """The figures."""
        plain = TEMPERATURES.index(1.0)
        folds = self._bins.view(len(TEMPERATURES), FOLDS, BINS, 3)
        best = self._loss.argmin(0).tolist()
        counts = folds[plain, :, :, 0].sum(1)
        bins = folds[plain].sum(0)
        # A half without pictures has nothing to say about the other's temperature.
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
    """Σ n/N |right − confidence| over the bins: their sums differ by n times what their means do."""
    images = float(sums[:, 0].sum())
    return float((sums[:, 2] - sums[:, 1]).abs().sum()) / images if images else math.nan
