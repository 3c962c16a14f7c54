"""Inference speed of networks, measured in turns so that other load affects all of them alike."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from svertka.classifier import Classifier
from svertka.compiler.optimize import MANY_IMAGES
from svertka.device import autocast
from svertka.progress import progress

BATCH = 16  # images
SPENT = 0.5  # seconds per network and batch size
ROUNDS = range(3, 100)  # timed runs


@dataclass(frozen=True)
class InferenceSpeed:
    """Median speed of an optimized network for images in memory.

    Attributes:
        seconds: Seconds for a single image.
        per_second: Images per second in batches of 16.
    """

    seconds: float
    per_second: float


@torch.inference_mode()
def measure_speeds(classifiers: Sequence[Classifier], device: torch.device) -> tuple[InferenceSpeed, ...]:
    """Measure the speed of each classifier on `device`, where their networks are; they stay in evaluation mode."""
    shapes = [one.preprocess.input_shape[1:] for one in classifiers]
    with progress("timing", 2 * len(classifiers)) as shown:
        for one in classifiers:
            one.network.eval()
        networks = [one.optimized_for(MANY_IMAGES).network for one in classifiers]
        medians = []
        for batch in (1, BATCH):
            inputs = [torch.rand(batch, *shape, device=device) for shape in shapes]
            medians.append(_median_seconds(networks, inputs))
            shown.advance(len(classifiers))
    return tuple(InferenceSpeed(one, BATCH / many) for one, many in zip(*medians, strict=True))


def _median_seconds(networks: Sequence[nn.Module], inputs: Sequence[torch.Tensor]) -> list[float]:
    """Return the median seconds of each network for its batch."""
    # The first run allocates memory and selects algorithms; its time sets the number of rounds.
    first = [_seconds(one, images) for one, images in zip(networks, inputs, strict=True)]
    rounds = [min(max(ROUNDS.start, int(SPENT / one)), ROUNDS.stop) for one in first]
    times: list[list[float]] = [[] for _ in networks]
    for turn in range(max(rounds)):
        for number, (one, images) in enumerate(zip(networks, inputs, strict=True)):
            if turn < rounds[number]:
                times[number].append(_seconds(one, images))
    return [statistics.median(some) for some in times]


def _seconds(network: nn.Module, images: torch.Tensor) -> float:
    began = time.perf_counter()
    with autocast(images.device):
        network(images).float().cpu()  # the copy waits for the GPU
    return time.perf_counter() - began
