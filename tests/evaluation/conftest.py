"""Real pictures with real mistakes, without any training."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sklearn.datasets import load_digits

from svertka.evaluation.metrics import Evaluation, Tally


@pytest.fixture(scope="session")
def digit_pictures() -> npt.NDArray[np.uint8]:
    """(1797, 8, 8, 1)."""
    return (load_digits().images * 255 / 16).astype(np.uint8)[..., None]


@pytest.fixture(scope="session")
def nearest_centre(digit_pictures: npt.NDArray[np.uint8]) -> Callable[[Sequence[str]], Evaluation]:
    """Tells digits apart by their distance to the classes' means; beyond ten classes, by the place in the set too."""
    target = load_digits().target
    flat = torch.from_numpy(digit_pictures.reshape(len(digit_pictures), -1) / 255.0)

    def evaluate(names: Sequence[str]) -> Evaluation:
        classes = len(names)
        labels = torch.from_numpy((target + 10 * (np.arange(len(target)) % math.ceil(classes / 10))) % classes)
        centres = torch.stack([flat[labels == k].mean(0) for k in range(classes)])
        tally = Tally(classes)
        tally.update(-(torch.cdist(flat, centres) ** 2), labels, torch.arange(len(labels)))
        return tally.result(names)

    return evaluate
