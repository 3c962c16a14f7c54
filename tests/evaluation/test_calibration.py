import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from svertka.evaluation.calibration import BINS, TEMPERATURES, Calibration, CalibrationAccumulator


def drawn(images: int, sharpness: float, classes: int = 10, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels drawn from the probabilities of some scores, and these scores times `sharpness`."""
    generator = torch.Generator().manual_seed(seed)
    scores = 2 * torch.randn(images, classes, generator=generator)
    labels = torch.multinomial(scores.softmax(1), 1, generator=generator)[:, 0]
    return scores * sharpness, labels


def calibration(logits: torch.Tensor, labels: torch.Tensor, batch: int = 97) -> Calibration:
    counted = CalibrationAccumulator()
    right = logits.argmax(1) == labels
    for part in torch.arange(len(labels)).split(batch):
        counted.update(logits[part], labels[part], right[part], part)
    return counted.result()


def test_expected_calibration_error_matches_a_loop_over_images() -> None:
    logits, labels = drawn(3000, 2.0)
    bins: dict[int, list[tuple[float, bool]]] = {}
    for scores, label in zip(logits.double().softmax(1).numpy(), labels.tolist(), strict=True):
        bins.setdefault(min(int(scores.max() * BINS), BINS - 1), []).append((scores.max(), scores.argmax() == label))
    expected = sum(
        len(one) / 3000 * abs(np.mean([right for _, right in one]) - np.mean([sure for sure, _ in one]))
        for one in bins.values()
    )
    found = calibration(logits, labels)
    # A picture whose confidence rounding moves over the edge of a bin counts a 3000th.
    assert found.error == pytest.approx(expected, abs=1e-3)
    assert [one.images for one in found.bins] == pytest.approx([len(bins[k]) for k in sorted(bins)], abs=1)


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 1.7, 4.0])
def test_temperature_has_the_lowest_loss(sharpness: float) -> None:
    logits, labels = drawn(1000, sharpness)
    fine = np.exp(np.linspace(math.log(0.25), math.log(8), 3000))
    losses = [cross_entropy(logits.double() / temperature, labels).item() for temperature in fine]
    found = calibration(logits, labels)
    step = TEMPERATURES[1] / TEMPERATURES[0]
    assert math.log(found.temperature) == pytest.approx(math.log(fine[np.argmin(losses)]), abs=math.log(step) / 2)
    assert cross_entropy(logits / found.temperature, labels).item() < min(losses) + 1e-3


def test_temperature_scaling_corrects_overconfidence() -> None:
    found = calibration(*drawn(6000, 3.0))
    assert found.temperature == pytest.approx(3, rel=0.07)
    assert found.error > 0.1
    assert found.scaled_error < 0.03
    assert all(one.confidence > one.accuracy for one in found.bins if one.images > 100)


def test_each_fold_is_scaled_by_the_temperature_of_the_other() -> None:
    logits, labels = drawn(2000, 1.0)
    sharp = logits.clone()
    sharp[1::2] *= 4  # pictures of odd numbers want another temperature than those of even ones
    found = calibration(sharp, labels)
    crossed = sharp / torch.where(torch.arange(2000) % 2 == 0, 4.0, 1.0)[:, None]
    assert found.scaled_error == pytest.approx(calibration(crossed, labels).error, abs=0.02)
    assert found.scaled_error > found.error  # which looking at the answers would have hidden


def test_infinite_scores_and_empty_batches_are_ignored() -> None:
    logits, labels = drawn(100, 1.0)
    logits[3, 2], logits[5, 1] = math.inf, math.nan
    assert sum(one.images for one in calibration(logits, labels).bins) == 98
    nothing = calibration(logits[:0], labels[:0])
    assert (nothing.bins, nothing.scaled_bins) == ((), ())
    assert all(map(math.isnan, (nothing.error, nothing.temperature, nothing.scaled_error)))
