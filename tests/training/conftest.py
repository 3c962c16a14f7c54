"""Scikit-learn's digits, as the loop gets them."""

from collections.abc import Callable

import numpy as np
import pytest

from svertka.data.batches import Batches
from svertka.data.preprocess import Preprocess


@pytest.fixture(scope="session")
def digit_batches() -> Callable[..., Batches]:
    """`digit_batches(pictures=1000, batch_size=64)`: shuffled batches of so many digits."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    labels = digits.target.astype(np.int64)
    rows = (digits.images * 15.9).astype(np.uint8)[..., None]
    preprocess = Preprocess(size=8, resize=8, mean=(0.3,), std=(0.4,))

    def batches(pictures: int = 1000, batch_size: int = 64) -> Batches:
        return Batches(rows, labels, np.arange(pictures), preprocess, batch_size=batch_size, shuffle=True)

    return batches
