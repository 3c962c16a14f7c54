"""The ranges of a network's values on calibration images, and the quantization of each that loses least.

Histograms of all values are collected in one pass. For each value, the range is the one with the least mean square
error of rounding among the whole range, its percentiles and shrunk ranges (Nagel et al. 2021, "A White Paper on Neural
Network Quantization", section 3.1).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from svertka.compiler.fusion import FusedNetwork
from svertka.compiler.image_sizes import resize_images
from svertka.compiler.ir import BatchDependentSize, Quantization, step_output_numbers
from svertka.compiler.reference import run_reference
from svertka.errors import UsageError
from svertka.graph.trace_errors import THE_NETWORK

BINS = 1 << 13  # of a histogram; its range is at most twice as wide as needed
PERCENTILES = 99.9, 99.99, 99.999
SHRINKS = [1 - step / 50 for step in range(36)]  # of the whole range


@dataclass
class ActivationHistogram:
    """The numbers that a value takes on all calibration images.

    Attributes:
        count: How many numbers there are.
        low, high: The smallest and the largest number.
        reach: The histogram covers [-reach, reach], a power of two.
        histogram: The numbers in each bin, (BINS,) float64.
        channel_sums: The sum of the numbers of each channel, axis 1, float64.
    """

    count: int = 0
    low: float = math.inf
    high: float = -math.inf
    reach: float = 0.0
    histogram: Tensor = field(default_factory=lambda: torch.zeros(BINS, dtype=torch.float64, device="cpu"))
    channel_sums: Tensor | None = None
    _quantization: Quantization | None = field(default=None, repr=False)

    def add(self, values: Tensor) -> None:
        """Count `values`, (N, C, …), which are finite."""
        self._quantization = None
        low, high = (float(one) for one in values.aminmax())
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.count += values.numel()
        sums = values.sum([axis for axis in range(values.dim()) if axis != 1]).double()
        self.channel_sums = sums if self.channel_sums is None else self.channel_sums + sums
        largest = max(-low, high)
        if largest == 0:
            self.histogram[BINS // 2] += values.numel()
            return
        needed = 2.0 ** math.ceil(math.log2(largest))
        if self.reach == 0:
            self.reach = needed
        while self.reach < needed:  # pairs of bins around the middle become one bin
            self.histogram[BINS // 4 : -BINS // 4] = self.histogram.view(-1, 2).sum(1)
            self.histogram[: BINS // 4] = 0
            self.histogram[-BINS // 4 :] = 0
            self.reach *= 2
        self.histogram += torch.histc(values, BINS, -self.reach, self.reach).double()

    @property
    def is_zero(self) -> bool:
        """Whether all numbers are 0, which any quantization represents."""
        return self.low == self.high == 0

    @property
    def channel_means(self) -> Tensor:
        """The mean of each channel, (C), float64."""
        assert self.channel_sums is not None
        return self.channel_sums * (len(self.channel_sums) / self.count)

    def find_quantization(self) -> Quantization:
        """Return the quantization with the least mean square error among those of several ranges."""
        if self._quantization is None:
            self._quantization = Quantization(1.0, 0) if self.is_zero else self._search_quantization()
        return self._quantization

    def _search_quantization(self) -> Quantization:
        width = 2 * self.reach / BINS
        inside = self.histogram.nonzero().flatten()
        counts = self.histogram[inside]
        centers = (inside.double() + 0.5) * width - self.reach
        centers = centers.clamp(self.low, self.high)
        cumulated = counts.cumsum(0) / counts.sum()
        ranges = [(self.low * shrink, self.high * shrink) for shrink in SHRINKS]
        for percentile in PERCENTILES:
            rest = 1 - percentile / 100
            edges = torch.searchsorted(cumulated, torch.tensor([rest, 1 - rest], dtype=torch.float64, device="cpu"))
            low, high = centers[edges.clamp(max=len(centers) - 1)].tolist()
            ranges.append((low if self.low < 0 else self.low, high if self.high > 0 else self.high))
        candidates = [Quantization.covering(low, high) for low, high in ranges]
        errors = [float((counts * (centers - one.round(centers)).square()).sum()) for one in candidates]
        return candidates[errors.index(min(errors))]


def observe_activations(
    networks: Sequence[FusedNetwork], batches: Iterable[Tensor]
) -> Sequence[Mapping[int, ActivationHistogram]]:
    """Return what the values of float networks are on calibration images, in one pass over these.

    Args:
        networks: One network compiled for several image sizes; its weights are float32.
        batches: Images, (N, C, H, W) float32; they are resized for networks that take another size.

    Returns:
        For each network: value -> its numbers, for each value with channels that kernels read or compute. Values that
        are −∞ in part, which no scale represents, are left out.

    Raises:
        UsageError: Values of a layer are NaN, ∞, or −∞ throughout, or the images are all zero.
    """
    found: list[dict[int, ActivationHistogram]] = [{} for _ in networks]
    masked: list[set[int]] = [set() for _ in networks]
    for images in batches:
        for fused, values, without_range in zip(networks, found, masked, strict=True):
            _observe_batch(fused, resize_images(images, fused.image_size), values, without_range)
    if any(0 in values and values[0].is_zero for values in found):
        raise UsageError(
            "all values of the calibration images are zero, so their range is unknown; calibrate on typical "
            "images, or use precision='fp32'"
        )
    return [
        {number: one for number, one in values.items() if number not in without_range}
        for values, without_range in zip(found, masked, strict=True)
    ]


def _observe_batch(
    fused: FusedNetwork, images: Tensor, found: dict[int, ActivationHistogram], masked: set[int]
) -> None:
    """Add the values of a network on `images` to those `found` before, and values with masks to `masked`."""
    places = {value: step.place for step in fused.steps for value in step_output_numbers(step)}
    here: set[int] = set()

    def observe(number: int, values: Tensor) -> None:
        if number in here or values.dtype != torch.float32 or values.dim() < 2 or not values.numel():
            return
        if isinstance(fused.shapes[number][1], BatchDependentSize):  # axis 1 has no channels
            return
        here.add(number)
        if not bool(values.isfinite().all()):
            if _is_masked(values):
                masked.add(number)
                return
            raise UsageError(
                f"{_name(places, number)} NaN or infinite for calibration images; correct the weights or the images, "
                "or use precision='fp32'"
            )
        found.setdefault(number, ActivationHistogram()).add(values)

    run_reference(fused, fused.tensors.__getitem__, images.contiguous(memory_format=torch.channels_last), observe)


def _is_masked(values: Tensor) -> bool:
    """Return whether values are −∞ in part and finite otherwise, as masked scores of attention are before softmax."""
    infinite = values == -torch.inf
    return bool((infinite | values.isfinite()).all()) and not bool(infinite.all())


def _name(places: Mapping[int, str], number: int) -> str:
    if number == 0:
        return "the numbers of the images are"
    place = places.get(number)
    return f"the results of {f'layer {place}' if place and place != THE_NETWORK else 'the network'} are"
