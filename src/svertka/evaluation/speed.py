"""How fast networks are on this machine; they take turns, so that whatever else it does hits all of them alike."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from svertka.classifier import Classifier
from svertka.device import autocast
from svertka.progress import progress

BATCH = 16  # pictures
SPENT = 0.5  # seconds a network and batch size
ROUNDS = range(3, 100)  # of timed runs


@dataclass(frozen=True)
class Speed:
    """What one network needs for pictures that are ready in memory, medians.

    `seconds`: of one picture alone. `per_second`: pictures, `BATCH` at a time.
    """

    seconds: float
    per_second: float


@torch.inference_mode()
def speeds(classifiers: Sequence[Classifier], device: torch.device) -> tuple[Speed, ...]:
    """Of each of `classifiers`, whose networks are on `device`; they are left in evaluation mode."""
    with progress("timing", 2 * len(classifiers)) as shown:
        medians = []
        for batch in (1, BATCH):
            medians.append(_in_turns(classifiers, device, batch))
            shown.advance(len(classifiers))
    return tuple(Speed(one, BATCH / many) for one, many in zip(*medians, strict=True))


def _in_turns(classifiers: Sequence[Classifier], device: torch.device, batch: int) -> list[float]:
    """Median seconds of each for a batch of so many pictures."""
    inputs = [
        torch.rand(batch, one.preprocess.channels, one.preprocess.size, one.preprocess.size, device=device)
        for one in classifiers
    ]
    # The first run finds memory and algorithms; how long it takes says how often there is time for another.
    first = [_seconds(one, images) for one, images in zip(classifiers, inputs, strict=True)]
    rounds = [min(max(ROUNDS.start, int(SPENT / one)), ROUNDS.stop) for one in first]
    times: list[list[float]] = [[] for _ in classifiers]
    for turn in range(max(rounds)):
        for number, (one, images) in enumerate(zip(classifiers, inputs, strict=True)):
            if turn < rounds[number]:
                times[number].append(_seconds(one, images))
    return [statistics.median(some) for some in times]


def _seconds(classifier: Classifier, images: torch.Tensor) -> float:
    network = classifier.network.eval()
    began = time.perf_counter()
    with autocast(images.device):
        network(images).float().cpu()  # until the scores are here: a graphics card answers before it is done
    return time.perf_counter() - began
