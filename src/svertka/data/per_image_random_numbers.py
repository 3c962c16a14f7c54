"""Random numbers that depend on the seed, the epoch and the image, not on batches, order or processes."""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt
import torch

from svertka.data.dataset import Ints

WORD = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


@dataclass(frozen=True, eq=False)
class PerImageRandomNumbers:
    """Random numbers for the images of a batch in one epoch.

    Each number is a hash of the seed, the epoch, the place (which of several augmentations asks), the stream (which of
    its numbers) and the index of the image. So it is the same in any batch, order or process, and after a resume.

    Attributes:
        seed: Seed of the run.
        epoch: Epoch.
        indices: Indices of the images, (B,).
        place: Position of the augmentation that asks.
    """

    seed: int
    epoch: int
    indices: Ints
    place: int = 0

    def for_augmentation(self, place: int) -> Self:
        """Return independent numbers for the same images, for the augmentation at position `place`."""
        return replace(self, place=place)

    def in_epoch(self, epoch: int) -> Self:
        """Return the numbers of the same images in another epoch."""
        return replace(self, epoch=epoch)

    def uniform(self, stream: int) -> torch.Tensor:
        """Return one number per image in [0, 1), a multiple of 2⁻⁵³, (B,) float64."""
        key = 0
        for word in (self.seed, self.epoch, self.place, stream):
            key = _mix((key ^ word & WORD) + GOLDEN & WORD)
        counters = self.indices.astype(np.uint64) * np.uint64(GOLDEN) + np.uint64(key)
        return torch.from_numpy((_mix_array(counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53)

    def below(self, stream: int, bound: int) -> torch.Tensor:
        """Return one integer per image in [0, bound), (B,) int64."""
        return (self.uniform(stream) * bound).long()

    def normal(self, stream: int) -> torch.Tensor:
        """Return one number per image from the standard normal distribution, (B,) float64."""
        numbers: torch.Tensor = torch.special.ndtri(self.uniform(stream).clamp(min=2.0**-54))  # 0 would give −∞
        return numbers


# The finalizer of SplitMix64: Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators", figure 9,
# with Stafford's thirteenth set of constants. Applied twice, because counters are less random than a running sum.


def _mix(word: int) -> int:
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & WORD
    word = (word ^ word >> 27) * 0x94D049BB133111EB & WORD
    return word ^ word >> 31


def _mix_array(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    for _ in range(2):
        words = (words ^ words >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        words = (words ^ words >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        words = words ^ words >> np.uint64(31)
    return words
